"""run.py: what lies in the way of an executed notebook, and what makes a stage be done again."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import nbformat
import papermill
import pytest
from builders import prompt_row
from huggingface_hub.constants import HF_HUB_CACHE
from papermill.iorw import load_notebook_node

from nbutils import judges, run
from nbutils.core import records
from nbutils.core.errors import InputError
from nbutils.core.markup import say
from nbutils.files import hub, owned, sources
from nbutils.files.sources import CHECKOUT, fingerprint
from nbutils.files.stage import Stage

TEMPLATE = (CHECKOUT / "nbutils/templates/rating_it.txt").read_text()


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """Return a function that stands for an execution of 01 in the folder `run {1}`; it leaves the notebook there."""
    (tmp_path / "run {1}").mkdir()
    path = tmp_path / "run {1}/01_rerank.ipynb"

    def execute(source, output, values, **options):
        book = load_notebook_node(source.replace("{{", "{").replace("}}", "}"))
        raw = papermill.parameterize.parameterize_notebook(book, values)
        said = {"cell_type": "markdown", "source": "failed", "metadata": {"tags": ["papermill-error-cell-tag"]}}
        raw.cells.insert(3, said)
        path.write_text(json.dumps(raw), encoding="utf-8") if output.format() == str(path) else None
        raise KeyboardInterrupt

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    values = {"run_dir": str(path.parent), "dataset": str(tmp_path / "none.jsonl")}

    def again():
        with pytest.raises(KeyboardInterrupt):
            run.execute("01_rerank", values)
        return path

    return again


def test_a_notebook_that_holds_the_kits_cells_alone_is_executed_over(executed):
    for _ in range(3):
        path = executed()
    assert [p.name for p in path.parent.iterdir()] == ["01_rerank.ipynb"]


def sources_of(path):
    """The cells of a notebook, without those that stand in the place of papermill's two."""
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
    return [text for text in cells if text != "failed" and not text.startswith("# Parameters")]


def note(book):
    book["cells"][2]["source"] += "\n# a note of mine"


def more(book):
    book["cells"].append({"cell_type": "code", "source": "2 + 2", "metadata": {}, "outputs": []})


def less(book):
    del book["cells"][-1]


@pytest.mark.parametrize("change", [note, more, less, lambda book: book.update(cells=3), lambda book: book.clear()])
def test_a_notebook_that_somebody_worked_in_is_kept_beside_the_new_one(executed, change, capsys):
    path = executed()
    new = path.read_text()
    for n in (1, 2):
        book = json.loads(new) | {"round": n}
        change(book)
        path.write_text(json.dumps(book))
        assert sources_of(executed()) == sources_of(run.notebook("01_rerank"))
        kept = path.with_name(f"01_rerank.kept-{n}.ipynb")
        assert json.loads(kept.read_text()) == book
        assert capsys.readouterr().out == f"{path} is not as the kit executed it; it is kept as {kept}\n"


@pytest.mark.parametrize("make", [
    lambda p, other: p.symlink_to(other),
    lambda p, other: p.symlink_to("nowhere"),
    lambda p, other: p.write_text("<thesis>"),
    lambda p, other: p.write_bytes(b"\xff\0"),
    lambda p, other: p.mkdir(),
    lambda p, other: os.mkfifo(p),
])  # fmt: skip
def test_what_is_no_notebook_in_its_place_is_kept_and_no_link_is_written_through(executed, tmp_path, make):
    other = tmp_path / "mine.ipynb"
    other.write_text(run.notebook("01_rerank").read_text())
    make(tmp_path / "run {1}/01_rerank.ipynb", other)
    assert not executed().is_symlink()
    assert other.read_text() == run.notebook("01_rerank").read_text()
    assert len(list((tmp_path / "run {1}").iterdir())) == 2


@pytest.mark.parametrize("name", ["notebooks", "", ".", "~", "/"])
def test_the_command_refuses_a_run_dir_that_it_must_not_fill(name, capsys, monkeypatch):
    monkeypatch.chdir(sources.CHECKOUT)
    assert run.main(["params/demo", name]) == 1
    assert capsys.readouterr().err.startswith("error: run_dir is ")


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("one\ntwo\tthree è", "one\ntwo\tthree è"),
        ("\x1b[2Jx\x1b]0;t\x07\r", "\\x1b[2Jx\\x1b]0;t\\x07\\r"),
        ("\ud800", "\\ud800"),
    ],
)
def test_a_printed_line_holds_no_order_to_the_terminal(said, left, capsys):
    say(said)
    assert capsys.readouterr().out == f"{left}\n"


def test_the_command_to_go_on_can_be_typed_as_it_is(monkeypatch, capsys, tmp_path):
    profile, run_dir = "my profile; touch x", str(tmp_path / "$(touch x) `y`")
    monkeypatch.setattr(run, "read_profile", lambda *_: {"01_rerank": {"run_dir": run_dir}})
    monkeypatch.setattr(run, "changes", lambda *_: None)

    def stop(stem, values):
        raise InputError("it stopped")

    monkeypatch.setattr(run, "execute", stop)
    assert run.main([profile, run_dir]) == 1
    command = capsys.readouterr().err.partition("to go on: ")[2]
    assert shlex.split(command) == ["python", "-m", "nbutils.run", profile, run_dir]


def notebook_of(folder, *cells):
    """Write a first notebook of these cells; return the run's values for it."""
    made = nbformat.read(run.notebook("01_rerank"), as_version=4)
    made.cells = [made.cells[n] for n, cell in enumerate(made.cells) if "parameters" in cell.metadata.get("tags", ())]
    made.cells += map(nbformat.v4.new_code_cell, cells)
    nbformat.write(made, folder / "01_rerank.ipynb")
    return {"run_dir": str(folder / "run")}


DIES = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
ENDS_NOISILY = "import sys, atexit; atexit.register(lambda: sys.__stderr__.write('Traceback of nobody\\n'))"


@pytest.mark.parametrize("cells", [["1 + 1", DIES, "2"], [f"{ENDS_NOISILY}\n1 / 0"]])
def test_a_kernel_that_dies_or_is_noisy_at_its_end_is_told_in_one_sentence(cells, tmp_path, monkeypatch, capfd):
    values = notebook_of(tmp_path, *cells)
    monkeypatch.setattr(run, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(run, "fingerprint", lambda *_: MARK)
    with pytest.raises(InputError) as stopped:
        run.execute("01_rerank", values)
    died = "01_rerank stopped, since the process that ran it died, most often because the machine's memory ran out"
    expected = died if DIES in cells else "01_rerank stopped in cell 3: ZeroDivisionError: division by zero"
    assert str(stopped.value).startswith(expected)
    assert str(tmp_path / "run/01_rerank.ipynb") in str(stopped.value)
    assert capfd.readouterr() == ("", "")


MARK = {"params": {"seed": 0}, "inputs": [["judge", "1"]], "code": "a"}


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        (MARK, "unchanged, skipped"),
        (MARK | {"code": "b"}, "0 s, since code changed"),
        (MARK | {"inputs": [["judge", "2"]], "params": {"seed": 1}}, "0 s, since params and inputs changed"),
        (None, "0 s"),
        ([], "0 s"),
        ({"code": "a"}, "0 s"),
        ("a mark of an earlier version", "0 s"),
    ],
)
def test_why_a_stage_runs_again_is_said(mark, said, tmp_path, monkeypatch):
    (tmp_path / "01_rerank").mkdir()
    (tmp_path / "01_rerank.ipynb").touch()
    if mark is not None:
        (tmp_path / "01_rerank" / hub.MARK).write_text(json.dumps(mark))
    monkeypatch.setattr(run, "fingerprint", lambda *_: MARK | {"inputs": [("judge", "1")]})
    monkeypatch.setattr(run, "execute", lambda *_: None)
    assert run.finish("01_rerank", {"run_dir": str(tmp_path)}) == said


@pytest.mark.parametrize(
    "word", ["x; touch pwn", '"x" > pwn', "`touch pwn`", "it's", "a b", "&& touch pwn #", "|tee pwn"]
)
def test_make_hands_its_variables_on_as_words(tmp_path, word):
    shutil.copy(sources.CHECKOUT / "Makefile", tmp_path)
    for name in ("requirements.txt", "requirements-demo.txt", "constraints.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nprintf '<%s>' \"$@\"\n")
    python.chmod(0o755)
    (tmp_path / ".venv/.installed").touch()
    given = [f"{name}={word}" for name in ("PROFILE", "RUN", "N", "USER")]
    expected = {
        "run": f"<-m><nbutils.run><params/{word}><runs/{word}>",
        "rounds": f"<-m><tools.experiments><rounds><params/{word}><runs/{word}><--rounds><{word}>",
        "kaggle": f"<-m><tools.kaggle><params/{word}><{word}><build/kaggle>",
        "cost": f"<-m><tools.cost><params/{word}>",
    }
    for target, words in expected.items():
        made = subprocess.run(["make", "-s", target, *given], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert made.stdout == words
    assert not list(tmp_path.rglob("pwn"))


# what makes a stage be done again


@pytest.fixture
def folder(tiny_llama, tmp_path, monkeypatch):
    """A working folder with one of everything that a stage may be given by name."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_llama, tmp_path / "policy")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora/adapter_model.bin").write_text("a pickle")
    for name in ("prompts", "other", "knowledge"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "Ciao"}\n')
    (tmp_path / "training.yaml").write_text("lora_r: 8\n")
    (tmp_path / "rating.txt").write_text(TEMPLATE)
    served = {"kind": "llm", "server": "http://127.0.0.1:1/v1", "model": "m", "template": "rating.txt"}
    here = {"kind": "llm", "engine": "transformers", "model": "policy", "template": "rating.txt"}
    for name, file in {"served": served, "here": here, "reward": {"kind": "reward", "model": "policy"}}.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(file))
    return tmp_path


def given(stem, **values):
    return run.fingerprint(stem, {"run_dir": "runs/x"} | values)


DPO = {
    "model": "policy", "adapter": "lora", "off_policy": "other.jsonl", "on_policy": "prompts.jsonl",
    "judge": "verifier", "eval_judge": "served.yaml", "training": "training.yaml", "knowledge": "knowledge.jsonl",
    "eval_prompts": "prompts.jsonl",
}  # fmt: skip
SAMPLE = {"model": "policy", "adapter": "", "prompts": "prompts.jsonl", "exclude": "other.jsonl,knowledge.jsonl"}


@pytest.mark.parametrize(
    ("stem", "values", "changed"),
    [
        ("04_dpo", DPO, "policy/model.safetensors"),
        ("04_dpo", DPO, "policy/tokenizer.json"),
        ("04_dpo", DPO, "policy/chat_template.jinja"),
        ("04_dpo", DPO, "policy/generation_config.json"),
        ("04_dpo", DPO, "lora/adapter_model.bin"),
        ("04_dpo", DPO, "training.yaml"),
        ("04_dpo", DPO, "knowledge.jsonl"),
        ("04_dpo", DPO, "other.jsonl"),
        ("04_dpo", DPO, "served.yaml"),
        ("04_dpo", DPO, "rating.txt"),
        ("02_sample", SAMPLE, "policy/tokenizer_config.json"),
        ("02_sample", SAMPLE, "prompts.jsonl"),
        ("02_sample", SAMPLE, "other.jsonl"),
        ("02_sample", SAMPLE, "knowledge.jsonl"),
        ("01_rerank", {"dataset": "prompts.jsonl,other.jsonl", "judge": "served.yaml"}, "other.jsonl"),
        ("01_rerank", {"dataset": "prompts.jsonl", "judge": "served.yaml"}, "served.yaml"),
        ("01_rerank", {"dataset": "prompts.jsonl", "judge": "served.yaml"}, "rating.txt"),
        ("03_judge", {"samples": "prompts.jsonl", "judge": "here.yaml"}, "rating.txt"),
        ("03_judge", {"samples": "prompts.jsonl", "judge": "here.yaml"}, "policy/model.safetensors"),
        ("03_judge", {"samples": "prompts.jsonl", "judge": "reward.yaml"}, "policy/tokenizer.json"),
    ],
)
def test_a_stage_is_no_longer_done_when_a_file_it_depends_on_has_another_content(stem, values, changed, folder):
    before = given(stem, **values)
    assert given(stem, **values) == before
    path = folder / changed
    seen, content = path.stat(), path.read_bytes()
    path.write_bytes(content + b"\n")
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert given(stem, **values) != before


def test_a_commit_on_the_hub_is_content_too(folder):
    refs = Path(HF_HUB_CACHE) / "datasets--me--asked" / "refs"
    refs.mkdir(parents=True)
    prints = set()
    for commit in ("1" * 40, "2" * 40):
        (refs / "main").write_text(commit)
        prints.add(json.dumps(given("02_sample", model="policy", prompts="me/asked:it@train", exclude="")["inputs"]))
    assert len(prints) == 2
    assert "me/asked:it@train at 111" in str(sorted(prints)[0])


def test_what_a_stage_measured_is_no_input_of_the_next_but_its_rows_are(tmp_path):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs/train.parquet").write_bytes(b"rows")
    (tmp_path / "metrics.json").write_text('{"seconds": 1}')
    owned.record(tmp_path)
    first = fingerprint(str(tmp_path))
    (tmp_path / "metrics.json").write_text('{"seconds": 2}')
    (tmp_path / "run.json").write_text("{}")
    owned.record(tmp_path)
    assert fingerprint(str(tmp_path)) == first
    (tmp_path / "pairs/train.parquet").write_bytes(b"swor")
    assert fingerprint(str(tmp_path)) != first


def test_in_a_folder_of_somebody_else_a_file_of_that_name_is_content(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"prompt": "a"}')
    (tmp_path / "metrics.json").write_text('{"seconds": 1}')
    first = fingerprint(str(tmp_path))
    (tmp_path / "metrics.json").write_text('{"seconds": 2}')
    assert fingerprint(str(tmp_path)) != first


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("verifier", []),
        ("rating_it", []),
        ("served.yaml", [("file", "served.yaml"), ("file", "rating.txt")]),
        ("here.yaml", [("file", "here.yaml"), ("file", "rating.txt"), ("model", "policy")]),
        ("reward.yaml", [("file", "reward.yaml"), ("model", "policy")]),
    ],
)
def test_what_a_judge_brings_along_is_told_in_one_place(name, found, folder):
    assert judges.brings(name) == found


def test_the_kits_judges_that_run_here_bring_their_model_and_no_file():
    for name in ("local_it", "local_en", "reward"):
        [(kind, model)] = judges.brings(name)
        assert (kind, "/" in model) == ("model", True)


def test_a_judge_whose_template_is_gone_is_named_before_anything_runs(folder):
    (folder / "rating.txt").unlink()
    with pytest.raises(InputError, match=r"rating\.txt"):
        given("01_rerank", dataset="prompts.jsonl", judge="served.yaml")


def test_the_prompts_of_all_that_a_stage_judged_are_found_where_it_is_a_folder(tmp_path):
    judged = records.dataset([prompt_row("Ciao?"), prompt_row("Why?")], records.PROMPTS)
    Stage("01_rerank", tmp_path).write({"judged": judged}, params={}, metrics={}, summary="")
    found = sources.judged_prompts(["01_rerank", "", "org/pairs", "03_judge"], run_dir=tmp_path)
    assert [row["prompt"][0]["content"] for row in found] == ["Ciao?", "Why?"]
