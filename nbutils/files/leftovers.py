"""A token that was given to papermill by mistake: it is in its output before a cell of ours runs.

It stands among the notebook's metadata and in the cell of parameters, and papermill writes both once more after the
kernel has gone. So a process of its own (`python -m nbutils.files.leftovers`) waits for papermill's end and puts stars
there.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from nbutils.core import secrets
from nbutils.core.errors import InputError
from nbutils.files import disk, documents

PATIENCE = 600  # seconds to wait for papermill's end
AFTER = 5.0  # seconds in which papermill writes its output once more after the kernel's end
BEFORE = 60  # seconds before the token was seen, in which papermill began to write
MOST_NAMES = 200_000  # in a folder and below it, the nearest first, that are looked at
INJECTED = "injected-parameters"


def clear() -> None:
    """Have the tokens in the output of the papermill above this kernel replaced, once that has ended.

    A command names its output among its words. A program that calls papermill does not: what it left since now where it
    and this kernel work, and in the folders below, is looked at.
    """
    above = Path(f"/proc/{os.getppid()}")
    try:
        words = (above / "cmdline").read_bytes().decode(errors="surrogateescape").split("\0")
        folder = (above / "cwd").readlink()
    except OSError:  # no such system, or another user's process
        return
    named = [part for word in words for part in (word, word.partition("=")[2]) if part and not part.startswith("-")]
    paths = [str(folder / name) for name in named]
    pids = map(str, (os.getpid(), os.getppid()))
    command = [sys.executable, "-m", "nbutils.files.leftovers", *pids, str(folder), str(Path.cwd()), *paths]
    # not in its group: whatever ends papermill is not to end this
    silent: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    subprocess.Popen(command, start_new_session=True, cwd=Path(__file__).parents[2], **silent)


def replace(path: Path) -> None:
    """Put stars for tokens where papermill keeps parameters in a notebook; any other file stays as it is."""
    try:
        notebook = json.loads(documents.read_text(path, limit=2**28))
        before = json.dumps(notebook)
        given = notebook["metadata"]["papermill"]
        given["parameters"] = _hidden(given["parameters"])
        for cell in notebook["cells"]:
            if INJECTED in cell["metadata"].get("tags", ()):
                cell["source"] = _hidden(cell["source"])
    except (InputError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    if json.dumps(notebook) != before:
        draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        draft.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.copymode(path, draft)
        os.replace(draft, path)


def _hidden(value: Any) -> Any:
    if isinstance(value, dict):
        return {_hidden(name): _hidden(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_hidden(part) for part in value]
    return secrets.hidden(value) if isinstance(value, str) else value


def _notebooks(path: Path) -> Iterator[Path]:
    """Yield what may be a notebook: a path, all that lies in a folder, and below it what is called so."""
    if not path.is_dir():
        yield path
        return
    places, names = deque([str(path)]), 0
    while places and names < MOST_NAMES:
        place = places.popleft()
        with suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                names += 1
                if entry.is_dir(follow_symlinks=False):
                    places.append(entry.path)
                elif place == str(path) or entry.name.endswith(".ipynb"):
                    yield Path(entry.path)


def main(kernel: str, above: str, *paths: str) -> None:
    """Replace in these files, and in the notebooks of these folders, when the kernel has ended and when papermill has.

    A program that called papermill may run on for long; a command ends when its output is written.
    """
    started = time.time()
    for pid, after in ((kernel, AFTER), (above, 0.0)):
        ends = time.monotonic() + PATIENCE
        while Path(f"/proc/{pid}").exists() and time.monotonic() < ends:
            time.sleep(0.2)
        time.sleep(after)
        for path in map(Path, dict.fromkeys(paths)):
            with suppress(OSError, ValueError):  # what a word names need be no path
                for file in _notebooks(path):
                    if disk.is_regular(file) and file.stat().st_mtime > started - BEFORE:
                        replace(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
