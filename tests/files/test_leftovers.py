"""leftovers: a token given to papermill by mistake does not stay in the notebook that papermill writes."""

import json
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
    papermill.execute_notebook(sys.argv[1], "out.ipynb", {"dataset": sys.argv[2], "run_dir": "runs/mine"}, kernel_name="python3")
except papermill.PapermillExecutionError as error:
    print(error, file=sys.stderr)
time.sleep(20)  # it goes on with something else
sys.exit(1)
"""  # noqa: E501


@pytest.mark.nightly
@pytest.mark.parametrize("form", [*COMMANDS, "a program"])
def test_after_papermill_nothing_of_the_token_is_left(tmp_path, form):
    source = CHECKOUT / "notebooks" / "01_rerank.ipynb"
    (tmp_path / "made").mkdir()
    command = [word.format(source=source, token=TOKEN) for word in COMMANDS.get(form, "").split()]
    command = command or ["-c", PROGRAM, str(source), TOKEN]
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
