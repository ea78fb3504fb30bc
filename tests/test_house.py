"""The plan of the house: how long files and functions may be, and what an import may cost. Who may import whom is said
in pyproject.toml and looked at by `make lint`."""

import ast
import subprocess
import sys

import pytest

from nbutils.files.sources import CHECKOUT

FILES = sorted([*(CHECKOUT / "nbutils").rglob("*.py"), *(CHECKOUT / "tools").rglob("*.py")])
FACES = [path for path in FILES if path.name == "__init__.py" and path.parent.name not in ("nbutils", "tools")]
LONGEST_FILE, LONGEST_FACE, LONGEST_FUNCTION = 300, 40, 50  # lines


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_file_is_longer_than_can_be_read_at_once():
    assert len(FILES) > 100
    assert not {str(path.relative_to(CHECKOUT)): lines(path) for path in FILES if lines(path) > LONGEST_FILE}


def test_a_rooms_face_only_hands_on():
    assert len(FACES) == 7
    for path in FACES:
        assert lines(path) <= LONGEST_FACE, path
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert all(isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign) for node in body), path


def test_no_function_is_longer_than_can_be_kept_in_mind():
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = {
        f"{path.relative_to(CHECKOUT)} {node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, kinds)
    }
    assert len(functions) > 800
    assert not {name: length for name, length in functions.items() if length > LONGEST_FUNCTION}


LIGHT = "nbutils.files.stage", "nbutils.judges.figures", "nbutils.notebook", "nbutils.plots", "nbutils.judges.answer"


@pytest.mark.parametrize("module", LIGHT)
def test_what_01_needs_leaves_torch_unloaded(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'trl') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert said.stdout == "[]\n"
