import logging
import math
import os
import re
import sys
import time
import types

import pandas as pd
import psutil
import pytest
from builders import ScriptedEngine, notebook_shell, request
from huggingface_hub import HfApi
from IPython.core.interactiveshell import InteractiveShell

from nbutils import notebook
from nbutils.core.errors import InputError, Interrupted, out_of_time
from nbutils.core.sampling import Sample
from nbutils.engines.protocol import Reply
from nbutils.engines.store import Store
from nbutils.notebook import open_stage, run_folder

PARAMETERS = """run_dir: str = "run"
samples: str = "02_sample"
judge: str = "verifier"
pair_strategy: str = "best_worst"
pairs_per_prompt: int = 1
min_margin: float = 0.1
min_chosen: float = 0.0
max_length_gap: int = 0
language: str = ""
seed: int = 0
time_budget_hours: float = 0.0
push_to_hub: str = ""
"""


@pytest.fixture
def cells(tmp_path, monkeypatch, inputs):
    """Run cells in a stand-in for IPython: `In` holds their sources, the names they assign are there."""
    shell = notebook_shell()

    def run(*sources):
        for source in sources:
            shell.user_ns["In"].append(source)
            exec(source, shell.user_ns)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(notebook, "get_ipython", lambda: shell)
    monkeypatch.setattr(notebook, "_session", [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    logger = logging.getLogger("nbutils")
    before = logger.handlers[:], logger.level
    logger.handlers = []
    yield run
    logger.handlers, logger.level = before
    for session in notebook._session:
        session.stage.close()


@pytest.fixture
def kaggle(monkeypatch):
    """A Kaggle session whose secret store holds what the test puts into the returned mapping."""
    secrets = {}
    module = types.ModuleType("kaggle_secrets")
    module.UserSecretsClient = lambda: types.SimpleNamespace(get_secret=secrets.__getitem__)
    monkeypatch.setitem(sys.modules, "kaggle_secrets", module)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setenv("HF_TOKEN", "")
    return secrets


def test_a_stage_opens_with_the_values_of_the_parameters_cell(cells, tmp_path):
    cells(PARAMETERS)
    session = open_stage("03_judge")
    assert session.params.judge == "verifier"
    assert session.stage.folder == tmp_path / "run" / "03_judge"
    assert session.deadline == math.inf


def test_papermills_cell_counts_and_a_time_budget_sets_the_deadline(cells):
    cells(PARAMETERS, "# Parameters\nseed = 7\ntime_budget_hours = 2.0\n")
    session = open_stage("03_judge")
    assert session.params.seed == 7
    assert session.deadline == pytest.approx(time.monotonic() + 7200, abs=60)


def test_on_kaggle_a_batch_counts_from_the_start_of_its_process(cells, kaggle, monkeypatch):
    cells(PARAMETERS, "# Parameters\ntime_budget_hours = 2.0\n")
    assert 0 < notebook._age() < 24 * 3600
    monkeypatch.setattr(notebook, "_age", lambda: 600.0)
    assert open_stage("03_judge").deadline == pytest.approx(time.monotonic() + 6600, abs=60)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")  # it may have been open for hours
    assert open_stage("03_judge").deadline == pytest.approx(time.monotonic() + 7200, abs=60)


def test_the_age_of_a_process_is_the_time_since_its_start():
    started = psutil.Process().create_time()  # by the clock on the wall, to the second
    assert notebook._age() == pytest.approx(time.time() - started, abs=2)


@pytest.fixture
def shell():
    """An IPython whose cells may stop on purpose, as in a notebook after its first cells."""
    shell = InteractiveShell()
    shell.user_ns["stop"] = lambda: (_ for _ in ()).throw(out_of_time("at 3 of 4"))
    shell.user_ns["refuse"] = lambda: (_ for _ in ()).throw(InputError("the credit is used up"))
    for _ in range(2):  # the cell can be run twice
        shell.set_custom_exc((InputError, Interrupted), notebook._show)
        shell.events.register("post_run_cell", notebook._forgive)
    return shell


@pytest.mark.parametrize("kind", ["", "Interactive"])
def test_a_stop_on_purpose_shows_its_sentence_and_fails_the_cell(shell, kind, monkeypatch, capsys):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", kind)
    assert isinstance(shell.run_cell("stop()").error_in_exec, Interrupted)
    said = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out)
    assert "Interrupted: time budget used up at 3 of 4; everything done so far is stored: run the same" in said
    assert "Traceback" not in said
    assert "lambda" not in said
    assert ("first add this notebook's output as its input" in said) == bool(kind)
    assert shell.run_cell("x = 1").success
    assert shell.user_ns["x"] == 1  # the cell can be run again, here and now


def test_with_a_key_the_output_of_a_stopped_session_need_not_be_named(shell, kaggle, with_key, capsys):
    shell.run_cell("stop()")
    assert "first add this notebook's output as its input\nThe cells below were not run.\n" in capsys.readouterr().out


def test_in_a_batch_on_kaggle_a_stop_is_no_failure_and_no_further_cell_runs(shell, kaggle, capsys):
    assert shell.run_cell("before = 1\nstop()\nafter = 1").success
    said = capsys.readouterr().out
    assert said.startswith("time budget used up at 3 of 4; everything done so far is stored")
    assert said.endswith(
        "first add this notebook's output as its input, and name it in NBUTILS_INPUTS in the setup cell\n"
        "The cells below were not run.\n"
    )
    assert shell.run_cell("after = 1\n1 / 0").success
    assert "before" in shell.user_ns
    assert "after" not in shell.user_ns


@pytest.mark.parametrize(("earned", "forgiven"), [(True, True), (False, False)])
def test_in_a_batch_on_kaggle_our_error_costs_no_output_that_a_next_session_can_use(
    shell, kaggle, monkeypatch, capsys, earned, forgiven
):
    monkeypatch.setattr(notebook, "_session", [types.SimpleNamespace(earned=earned)])
    assert shell.run_cell("refuse()").success == forgiven
    said = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out)
    assert "the credit is used up" in said
    assert "Traceback" not in said
    assert ("; in a new session, first add this notebook's output as its input" in said) == forgiven


def test_a_session_has_earned_something_with_a_reply_or_a_written_folder(cells, tmp_path):
    cells(PARAMETERS)
    session = open_stage("03_judge")
    assert not session.earned
    session.store.put([("k", ScriptedEngine(None), request(), Reply((Sample("re"),)))])
    assert session.earned
    session = open_stage("03_judge")
    assert not session.earned, "the replies of an earlier session are kept anyway"
    session.stage.write({}, params={}, metrics={}, summary="")
    assert session.earned


def test_in_a_batch_on_kaggle_any_other_error_stays_one(shell, kaggle, capsys):
    assert isinstance(shell.run_cell("1 / 0").error_in_exec, ZeroDivisionError)
    assert shell.run_cell("after = 1").success
    assert shell.user_ns["after"] == 1


def test_a_misspelt_parameter_and_a_wrong_one_stop_the_notebook_together(cells):
    cells(PARAMETERS, '# Parameters\nsead = 7\nmin_margin = "5e-7"\n')
    with pytest.raises(InputError, match=r"(?s)2 wrong parameter.*") as caught:
        open_stage("03_judge")
    assert "sead is unknown" in str(caught.value)
    assert "min_margin is '5e-7'" in str(caught.value)


def test_the_cell_can_be_run_twice(cells):
    cells(PARAMETERS)
    open_stage("03_judge")
    cells(PARAMETERS.replace("seed: int = 0", "seed: int = 1"))
    assert open_stage("03_judge").params.seed == 1


def mount(path, key, secret=b""):
    """A store as a run with this key leaves it, with one reply."""
    store = Store(path / "store.sqlite", key=secret)
    store.put([(key, ScriptedEngine(None), request(), Reply((Sample(f"re {key}"),)))])
    store.close()


def test_mounted_stores_are_taken_over_and_named_once(cells, inputs, with_key, monkeypatch, capsys):
    mount(inputs / "a" / "runs", "k")
    mount(inputs / "notebooks" / "me" / "b" / "runs", "l", with_key)
    (inputs / "a" / "store.sqlite").write_text("no database, hence passed over" * 99)
    monkeypatch.setenv("NBUTILS_INPUTS", "a")
    cells(PARAMETERS)
    store = open_stage("03_judge").store
    assert [store.get(key).samples[0].text for key in "kl"] == ["re k", "re l"]
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"1 replies taken over from {inputs}/a/runs/store.sqlite"
    assert shown[1].startswith(f"the store {inputs}/a/store.sqlite is damaged or not of this kit")
    assert shown[2] == f"1 replies taken over from {inputs}/notebooks/me/b/runs/store.sqlite"
    open_stage("03_judge")
    assert "taken over" not in capsys.readouterr().out


@pytest.mark.parametrize("secret", [b"", b"theirs"])
@pytest.mark.parametrize("key", [False, True])
def test_a_strangers_replies_are_not_taken_and_that_is_said(cells, inputs, request, capsys, secret, key):
    mount(inputs / "stranger", "k", secret)
    if key:
        request.getfixturevalue("with_key")
    cells(PARAMETERS)
    assert len(open_stage("03_judge").store) == 0
    shown = capsys.readouterr().out
    assert "taken over" not in shown
    assert ("no run with your key wrote them" if key else "not taken, since no run with your key left it") in shown
    assert "/stranger/store.sqlite" in shown or "store.sqlite in stranger" in shown


def test_a_misspelt_input_stops_the_notebook_at_once(cells, inputs, monkeypatch):
    mount(inputs / "notebooks" / "me" / "judge", "k")
    monkeypatch.setenv("NBUTILS_INPUTS", "me/jugde")
    cells(PARAMETERS)
    with pytest.raises(InputError, match=r"NBUTILS_INPUTS: 'me/jugde' is not attached, .*: notebooks/me/judge"):
        open_stage("03_judge")


def test_a_store_that_is_refused_leaves_the_stage_open_for_another_try(cells, tmp_path):
    (tmp_path / "store.sqlite").write_text("this is a diary, not a database" * 99)
    cells(PARAMETERS)
    with pytest.raises(InputError, match=r"cannot open the store .*move it away") as caught:
        open_stage("03_judge")
    (tmp_path / "store.sqlite").unlink()
    assert len(open_stage("03_judge").store) == 0, f"after {caught.value}"


def test_an_upload_without_a_token_is_refused_at_once(cells, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    cells(PARAMETERS, '# Parameters\npush_to_hub = "me/pairs"\n')
    with pytest.raises(InputError, match="HF_TOKEN is not set"):
        open_stage("03_judge")


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("params.yaml", ""),
        ("input/my-params/params.yaml", "my-params"),
        ("input/datasets/me/my-params/params.yaml", "me/my-params"),
        ("input/notebooks/me/out/deep/in/it/params.yaml", "x, me/out"),
    ],
)
def test_on_kaggle_a_file_overrides_the_defaults_and_the_notebook_says_so(
    cells, kaggle, tmp_path, monkeypatch, capsys, place, named
):
    (tmp_path / "input" / "x").mkdir()
    monkeypatch.setenv("NBUTILS_INPUTS", named)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("seed: 5\n")
    cells(PARAMETERS)
    assert open_stage("03_judge").params.seed == 5
    assert "params.yaml: seed" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["stranger", "datasets/stranger/data", "notebooks/a/b/runs/kaggle", "mine/more"])
def test_a_strangers_parameters_and_judge_steer_nothing(cells, kaggle, inputs, tmp_path, monkeypatch, capsys, place):
    kaggle |= {"HF_TOKEN": "of the user", "AWS_SECRET_ACCESS_KEY": "of the user"}
    folder = inputs / place
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(f"judge: {folder}/judge.yaml\npush_to_hub: stranger/loot\nseed: 5\n")
    (folder / "judge.yaml").write_text("kind: llm\nserver: https://example.org/v1\nmodel: m\ntemplate: rating_it\n")
    (inputs / "mine").mkdir(exist_ok=True)
    if place == "mine/more":  # a link in an input that the user did name
        (folder / "params.yaml").rename(tmp_path / "elsewhere")
        (folder / "params.yaml").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("NBUTILS_INPUTS", "mine")
    cells(PARAMETERS)
    session = open_stage("03_judge")
    assert (session.params.judge, session.params.push_to_hub, session.params.seed) == ("verifier", "", 0)
    assert "params.yaml in " in capsys.readouterr().out


@pytest.mark.parametrize("judge", ["judge", "rating_xx", "datasets/s/j/judge.yaml"])
def test_a_judge_is_not_looked_for_in_inputs(cells, kaggle, inputs, judge):
    for place in ("s", "datasets/s/j"):
        (inputs / place / "judge").mkdir(parents=True)
        for name in ("judge", "judge.yaml", "rating_xx.yaml", "rating_xx", "judge/params.json"):
            if not (inputs / place / name).exists():
                (inputs / place / name).write_text("kind: verifier\n")
    cells(PARAMETERS.replace('judge: str = "verifier"', f"judge: str = {judge!r}"))
    with pytest.raises(InputError, match="is neither a file nor one of"):
        open_stage("03_judge")


def test_of_two_files_the_one_beside_the_notebook_counts_and_the_other_is_named(
    cells, kaggle, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("NBUTILS_INPUTS", "mine")
    (tmp_path / "input" / "mine").mkdir(parents=True)
    for place, seed in (("params.yaml", 5), ("input/mine/params.yaml", 6)):
        (tmp_path / place).write_text(f"seed: {seed}\n")
    cells(PARAMETERS)
    assert open_stage("03_judge").params.seed == 5
    assert f"of 2 files of parameters, {tmp_path}/input/mine/params.yaml is not read" in capsys.readouterr().out


def test_injected_parameters_win_over_the_file(cells, kaggle, tmp_path):
    (tmp_path / "params.yaml").write_text("seed: 5\n")
    cells(PARAMETERS, "# Parameters\nmin_margin = 0.2\n")
    assert open_stage("03_judge").params.seed == 0


def test_off_kaggle_no_file_overrides_anything(cells, tmp_path):
    (tmp_path / "params.yaml").write_text("seed: 5\n")
    cells(PARAMETERS)
    assert open_stage("03_judge").params.seed == 0


def test_a_misspelt_name_in_the_file_is_refused(cells, kaggle, tmp_path):
    (tmp_path / "params.yaml").write_text("sead: 5\n")
    cells(PARAMETERS)
    with pytest.raises(InputError, match="sead is unknown"):
        open_stage("03_judge")


def test_a_secret_reaches_the_environment_and_nothing_else(cells, kaggle, tmp_path, capsys, monkeypatch):
    kaggle["HF_TOKEN"] = "hf_very_secret"
    monkeypatch.setattr(HfApi, "whoami", lambda self: {"name": "me"})
    cells(PARAMETERS, '# Parameters\npush_to_hub = "me/pairs"\n')
    session = open_stage("03_judge")
    assert os.environ["HF_TOKEN"] == "hf_very_secret"
    session.stage.write({}, params=session.params.model_dump(), metrics={}, summary="")
    shown = capsys.readouterr()
    assert "hf_very_secret" not in shown.out + shown.err + repr(session)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 3
    assert not any(b"hf_very_secret" in path.read_bytes() for path in files)


def test_the_token_of_a_judges_server_is_fetched_by_the_name_its_file_gives(cells, kaggle, tmp_path, monkeypatch):
    kaggle["MY_JUDGE_TOKEN"] = "of the judge"
    monkeypatch.setenv("MY_JUDGE_TOKEN", "")
    (tmp_path / "mine.yaml").write_text(
        "kind: llm\nserver: http://127.0.0.1:1/v1\nmodel: m\ntemplate: rating_it\nkey_variable: MY_JUDGE_TOKEN\n"
    )
    cells(PARAMETERS.replace('judge: str = "verifier"', 'judge: str = "mine.yaml"'))
    open_stage("03_judge")
    assert os.environ["MY_JUDGE_TOKEN"] == "of the judge"


def test_a_secret_that_is_not_attached_is_told_without_stopping(cells, kaggle, capsys):
    cells(PARAMETERS)
    open_stage("03_judge")
    assert "Kaggle has no secret HF_TOKEN for this notebook (KeyError)" in capsys.readouterr().out


def test_in_a_checkout_every_working_folder_means_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "CHECKOUT", tmp_path)
    (tmp_path / "notebooks").mkdir()
    for folder in (tmp_path, tmp_path / "notebooks"):
        monkeypatch.chdir(folder)
        assert run_folder("runs/demo") == tmp_path / "runs" / "demo"
    assert run_folder("/elsewhere/run") == notebook.Path("/elsewhere/run")


def test_elsewhere_a_run_lies_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_folder("runs/demo") == tmp_path / "runs" / "demo"


def test_a_dollar_sign_in_a_table_begins_no_formula_and_a_tag_is_text(cells):
    cells(PARAMETERS)
    open_stage("03_judge")
    shown = pd.DataFrame({"answer": ["$x$ and <b>"]})._repr_html_()
    assert "tex2jax_ignore" in shown
    assert "&lt;b&gt;" in shown
