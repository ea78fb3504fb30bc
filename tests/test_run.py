"""What lies in the way of an executed notebook."""

import json
import os
import shlex
import shutil
import subprocess

import papermill
import pytest
from papermill.iorw import load_notebook_node

from nbutils import run, sources
from nbutils.errors import InputError


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
    run.say(said)
    assert capsys.readouterr().out == f"{left}\n"


def test_the_command_to_go_on_can_be_typed_as_it_is(monkeypatch, capsys, tmp_path):
    profile, run_dir = "my profile; touch x", str(tmp_path / "$(touch x) `y`")
    monkeypatch.setattr(run, "read_profile", lambda *_: {"01_rerank": {"run_dir": run_dir}})
    monkeypatch.setattr(run, "is_done", lambda *_: False)

    def stop(stem, values):
        raise InputError("it stopped")

    monkeypatch.setattr(run, "execute", stop)
    assert run.main([profile, run_dir]) == 1
    command = capsys.readouterr().err.partition("to go on: ")[2]
    assert shlex.split(command) == ["python", "-m", "nbutils.run", profile, run_dir]


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
        "rounds": f"<-m><nbutils.experiments><rounds><params/{word}><runs/{word}><--rounds><{word}>",
        "kaggle": f"<-m><nbutils.kaggle><params/{word}><{word}><build/kaggle>",
        "cost": f"<bench/cost.py><params/{word}>",
    }
    for target, words in expected.items():
        made = subprocess.run(["make", "-s", target, *given], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert made.stdout == words
    assert not list(tmp_path.rglob("pwn"))
