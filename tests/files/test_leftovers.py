"""leftovers: a token given to papermill by mistake does not stay in the notebook that papermill writes."""

import json
import os
import subprocess
import sys
import time

import pytest

from nbutils.files import leftovers
from nbutils.files.sources import CHECKOUT

TOKEN = "hf_aB3dE5gH7jK9mN1pQaB3dE5gH7jK9mN1pQ"


def executed(parameters, source, tags=("injected-parameters",)):
    code = {"cell_type": "code", "metadata": {"tags": list(tags)}, "source": source, "outputs": []}
    return {"cells": [code], "metadata": {"papermill": {"parameters": parameters}}, "nbformat": 4, "nbformat_minor": 5}


@pytest.mark.parametrize(
    "notebook",
    [
        executed({"dataset": TOKEN}, f'dataset = "{TOKEN}"\n'),
        executed({"dataset": f"a, {TOKEN}"}, ["# Parameters\n", f'dataset = "a, {TOKEN}"\n']),
        executed({TOKEN: 1, "x": {"y": [f"https://me:{TOKEN}@host"]}}, f"{TOKEN} = 1"),
    ],
)
def test_stars_stand_where_papermill_keeps_parameters(tmp_path, notebook):
    path = tmp_path / "out.ipynb"
    path.write_text(json.dumps(notebook))
    leftovers.replace(path)
    assert TOKEN not in path.read_text()
    assert json.loads(path.read_text())["cells"][0]["metadata"] == notebook["cells"][0]["metadata"]
    assert [p.name for p in tmp_path.iterdir()] == ["out.ipynb"]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(executed({"dataset": "org/name"}, 'dataset = "org/name"')),
        json.dumps(executed({}, f'mine = "{TOKEN}"', tags=())),  # a cell of the user's
        json.dumps({"metadata": {}, "cells": [{"metadata": {}, "source": TOKEN}]}),  # not papermill's
        f"{TOKEN}",
        "[1]",
        '{"metadata": {"papermill": 3}, "cells": 4}',
        "[" * 100_000,
    ],
)
def test_any_other_file_stays_as_it_is(tmp_path, content):
    path = tmp_path / "out.ipynb"
    path.write_text(content)
    leftovers.replace(path)
    assert path.read_text() == content


@pytest.mark.parametrize("place", ["out.ipynb", "out.nb", "made/out.ipynb", "runs/mine/più/a fondo/out.ipynb",
                                   ".hidden/out.ipynb", "[1]*/out.ipynb"])  # fmt: skip
def test_what_a_program_left_where_it_works_or_below_is_found(tmp_path, monkeypatch, place):
    monkeypatch.setattr(leftovers, "AFTER", 0)
    text = json.dumps(executed({"dataset": TOKEN}, f'dataset = "{TOKEN}"'))
    for name in (place, "old/earlier.ipynb", "away/out.ipynb"):
        (tmp_path / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / name).write_text(text)
    os.utime(tmp_path / "home/old/earlier.ipynb", (1, 1))
    (tmp_path / "home/away").rename(tmp_path / "away")
    (tmp_path / "home/away").symlink_to(tmp_path / "away")
    (tmp_path / "home/circle").symlink_to(tmp_path / "home")
    leftovers.main("none", "none", str(tmp_path / "home"), str(tmp_path / "no such"))
    assert TOKEN not in (tmp_path / "home" / place).read_text()
    assert (tmp_path / "home/old/earlier.ipynb").read_text() == text
    assert (tmp_path / "away/out.ipynb").read_text() == text, "no link is followed"


def test_of_a_folder_without_end_the_nearest_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "MOST_NAMES", 24)
    for name in ("a/out.ipynb", *(f"b/{n}/x.ipynb" for n in range(20))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = list(leftovers._notebooks(tmp_path))
    assert tmp_path / "a/out.ipynb" in found
    assert len(found) < 20


GIVEN = "-p dataset {token} -p run_dir runs/mine -k python3"
COMMANDS = {
    "a command": "-m papermill {source} out.ipynb " + GIVEN,
    "with options of Python": "-X dev -W ignore -m papermill {source} out.ipynb " + GIVEN,
    "another ending": "-m papermill {source} out.nb " + GIVEN,
    "below another folder": "-m papermill {source} made/out.ipynb " + GIVEN,
}
PROGRAM = """
import papermill, sys, time
try:
    papermill.execute_notebook(sys.argv[1], sys.argv[3], {"dataset": sys.argv[2], "run_dir": "runs/mine"}, kernel_name="python3")
except papermill.PapermillExecutionError as error:
    print(error, file=sys.stderr)
time.sleep(20)  # it goes on with something else
sys.exit(1)
"""  # noqa: E501


@pytest.mark.nightly
@pytest.mark.parametrize("form", [*COMMANDS, "out.ipynb", "made/out.ipynb", "runs/mine/out.ipynb"])
def test_after_papermill_nothing_of_the_token_is_left(tmp_path, form):
    source = CHECKOUT / "notebooks" / "01_rerank.ipynb"
    (tmp_path / "made").mkdir()
    (tmp_path / "runs/mine").mkdir(parents=True)
    command = [word.format(source=source, token=TOKEN) for word in COMMANDS.get(form, "").split()]
    # a program that names its output nowhere but in itself
    command = command or ["-c", PROGRAM.replace("sys.argv[3]", repr(form)), str(source), TOKEN]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 1
    assert "papermill has written it into its output: delete that unless it shows stars" in done.stderr
    [written] = [path for path in tmp_path.rglob("out.*") if path.is_file()]
    ends = time.monotonic() + 60
    while TOKEN in written.read_text() and time.monotonic() < ends:
        time.sleep(0.2)
    assert TOKEN not in written.read_text()
    assert json.loads(written.read_text())["cells"]
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and TOKEN in p.read_text(errors="replace")]
