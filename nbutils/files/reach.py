"""Which of the package's files a program can reach by its imports: what has to be the same for its result to be."""

import ast
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path

PACKAGE = Path(str(resources.files("nbutils")))


def reached(text: str) -> list[Path]:
    """Return the modules of the package that a program's text imports, and those that they import, in turn.

    An import inside a function counts too, and with a module its packages. Files that a module reads, templates say,
    come with the package they lie in; those of `templates` with the judges.
    """
    found: set[Path] = set()
    waiting = list(_imported(text))
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _of_file(path)
    folders = {path.parent for path in found if path.name == "__init__.py"}
    folders |= {folder.parent / "templates" for folder in folders if folder.name == "judges"}
    beside = (path for folder in folders for path in folder.glob("*") if path.suffix in (".yaml", ".txt"))
    return sorted(found.union(beside))


@cache
def _of_file(path: Path) -> tuple[Path, ...]:
    return tuple(_imported(path.read_text(encoding="utf-8")))


def _imported(text: str) -> Iterator[Path]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from _files(node.module)
            for alias in node.names:
                yield from _files(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(alias.name)


def _files(name: str) -> Iterator[Path]:
    """Yield the files of a module and of the packages above it; none where it is no module of this package."""
    parts = name.split(".")
    if parts[0] != PACKAGE.name:
        return
    for end in range(1, len(parts) + 1):
        place = PACKAGE.joinpath(*parts[1:end])
        yield from (path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file())
