"""The values that a notebook's parameter cells assign, read from their text."""

import ast
from collections.abc import Sequence
from typing import Any

from nbutils.core.errors import InputError


def given(cells: Sequence[str]) -> dict[str, Any]:
    """Return the values that the parameters cell and papermill's injected cell assign, out of all cells run so far.

    Both stand in IPython's `In`, in the order they ran. Their text is read, not the variables they made: a later cell
    may use a parameter's name for something else, and any cell may be run twice.

    Raises:
        InputError: naming a parameter whose value is no literal.
    """
    values: dict[str, Any] = {}
    for cell in cells:
        try:
            body = ast.parse(cell).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # a magic, or text that Python cannot read
            continue
        targets = {ast.unparse(node.target) for node in body if isinstance(node, ast.AnnAssign)}
        if "run_dir" in targets:
            values = _literals(body)
        elif cell.lstrip().startswith("# Parameters"):
            values |= _literals(body)
    return values


def _literals(body: Sequence[ast.stmt]) -> dict[str, Any]:
    values = {}
    for node in body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        name = ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])
        try:
            values[name] = ast.literal_eval(node.value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            raise InputError(f"{name} is {_written(node.value)}, expected a plain number or text") from None
    return values


def _written(node: ast.expr) -> str:
    try:
        return ast.unparse(node)[:100]
    except RecursionError:
        return "an expression too deep to show"
