"""Inputs attached to a session on Kaggle: what of them is this user's own, and what lies there and is not taken.

Anybody's dataset can be attached, and hold parameters, replies, checkpoints or a stage of its own. So nothing is taken
for being there: only what a run with this user's key has sealed (`seals`), and what lies in an input that the user
named in the environment variable NBUTILS_INPUTS (a line of the notebooks' setup cell). A path that a parameter spells
out is read as data. No link inside an input is followed, and of a large one only the beginning is looked at.
"""

import logging
import os
import re
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from nbutils.core.errors import InputError, shown
from nbutils.files import seals

log = logging.getLogger(__name__)

# an input is a folder <slug>/ in here or, in the newer layout, datasets/<user>/<slug>/, notebooks/<user>/<slug>/ ...
MOUNTS = Path(os.environ.get("NBUTILS_MOUNTS", "/kaggle/input"))
LAYOUTS = {"datasets": 2, "notebooks": 2, "models": 2, "competitions": 1}  # name -> folders down to the input
NAMED = "NBUTILS_INPUTS"
MOST = 100_000  # files and folders of one input that are looked at
SHOWN = 6  # names in a sentence
STAGE = re.compile(r"0[1-9]_[a-z]+")  # a stage's name
# what else a session can go on from, by the last two parts of its path
OURS = re.compile(r"[^/]*/(params\.yaml|store\.sqlite|checkpoint-\d+)|reference/[^/]+\.json|labels/0[1-9]_[a-z]+\.csv")


def taken(pattern: str) -> list[Path]:
    """Return what matches a pattern like `work/checkpoint-*` in any input, at any depth, and may be taken; sorted.

    Raises:
        InputError: from `named`.
    """
    trusted = named()
    result = []
    for root in _roots():
        spoilt = []
        for path in filter(lambda path: _matches(path, pattern), _entries(root)):
            may = _is_plain(path) if root in trusted else seals.is_sealed(path)
            if may:
                result.append(path)
            elif root in trusted or seals.is_sealed(path, whole=False):
                spoilt.append(_said(path, root))
        if spoilt:
            reason = "links are not followed" if root in trusted else "changed after a run of yours"
            log.warning("not taken from %s: %s (%s)", _said(root), _listed(spoilt), reason)
    return sorted(result)


def stores() -> Iterator[tuple[Path, bool]]:
    """Yield the stores in all inputs, and whether the user named the input; with a key each reply tells whose it is.

    Raises:
        InputError: from `named`.
    """
    trusted = named()
    for root in _roots():
        for path in sorted(path for path in _entries(root) if path.name == "store.sqlite" and not path.is_symlink()):
            if root in trusted or seals.key():
                yield path, root in trusted


def named() -> set[Path]:
    """Return the inputs that the user named as his own.

    Raises:
        InputError: if one of them is not attached.
    """
    roots, result = _roots(), set()
    for name in filter(None, (part.strip().rstrip("/") for part in os.environ.get(NAMED, "").split(","))):
        places = [[MOUNTS / name], [MOUNTS / kind / name for kind in LAYOUTS], [MOUNTS / name.rpartition("/")[2]]]
        # the older layout, which does not tell whose an input is, counts last
        found = next((here for group in places if (here := [p for p in group if p in roots])), [])
        if not found and MOUNTS.is_dir():
            there = ", ".join(_said(root) for root in roots) or "none"
            raise InputError(f"{NAMED}: {shown(name)} is not attached, expected some of the inputs: {there}")
        result |= set(found)
    return result


def untaken(pattern: str = "") -> str:
    """Return a sentence on what matches a pattern, or else looks like a run's, and is not taken; empty if nothing does.

    Raises:
        InputError: from `named`.
    """
    trusted, lines, name = named(), [], ""
    for root in _roots():
        names = [
            _said(path, root)
            for path in _entries(root)
            if (_matches(path, pattern) if pattern else _looks_like_ours(path))
            and (path.is_symlink() or (root not in trusted and not seals.is_sealed(path, whole=False)))
        ]
        if names:
            name = name or _said(root)
            lines.append(f"{_listed(names)} in {_said(root)}")
    if not lines:
        return ""
    return (
        f"found in attached inputs and not taken, since no run with your key left it: {'; '.join(lines)}; to have "
        f"what is in an input of your own, name it in {NAMED} (setup cell), e.g. {name!r}; links are never followed"
    )


def refuse_links(path: Path) -> None:
    """Check a path that a parameter spells out: inside an input neither it nor anything in it may be a link.

    Raises:
        InputError: naming it.
    """
    root = next((root for root in _roots() if path.is_relative_to(root)), None)
    if root is None:
        return
    steps = [path, *path.parents]
    linked = any(step.is_symlink() for step in steps[: steps.index(root)])
    if linked or not _is_plain(path):
        raise InputError(
            f"the input {_said(path)} is a link or holds one (or {MOST:,} files), and links are not followed there; "
            "attach the files themselves"
        )


def _roots() -> list[Path]:
    """Return the folders of the inputs, sorted."""
    result = []
    for first in _folders(MOUNTS):
        level = [first]
        for _ in range(LAYOUTS.get(first.name, 0)):
            level = [folder for outer in level for folder in _folders(outer)]
        result += level
    return result


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink())
    except OSError:  # not there, or closed to us
        return []


def _entries(root: Path) -> Iterator[Path]:
    """Yield what lies in an input, what lies least deep first, leaving out what a killed run was about to replace."""
    seen = 0
    try:
        for entry in islice(_walk(root), MOST):
            seen += 1
            if ".draft-" not in entry.path:
                yield Path(entry.path)
    except OSError as error:  # deeper than a path may be long, or closed to us
        log.warning("the input %s cannot be read to its end (%s)", _said(root), error.strerror or error)
    if seen == MOST and root not in _told:
        _told.add(root)
        log.warning("the input %s is large: only its first %d files and folders are looked at", _said(root), MOST)


_told: set[Path] = set()  # the inputs for which that has been said


def _matches(path: Path, pattern: str) -> bool:
    parts = pattern.split("/")
    return fnmatchcase(path.name, parts[-1]) and all(map(fnmatchcase, path.parts[-len(parts) :], parts))


def _looks_like_ours(path: Path) -> bool:
    if path.name == "nbutils":
        return path.is_symlink() or (
            (path / "run.py").is_file() and path.resolve() != Path(__file__).parents[1].resolve()
        )
    if STAGE.fullmatch(path.name):
        return path.is_symlink() or (path / "params.json").is_file()
    if path.name == "store.sqlite" and seals.key():
        return path.is_symlink()  # else its replies are looked at one by one
    return OURS.fullmatch("/".join(path.parts[-2:])) is not None


def _is_plain(path: Path) -> bool:
    """Return whether a path is a file, or a folder of files and folders, without a link, and not without end."""
    try:
        if path.is_symlink() or not path.is_dir():
            return path.is_file() and not path.is_symlink()
        parts = list(islice(_walk(path), MOST))
        kinds = (part.is_file(follow_symlinks=False) or part.is_dir(follow_symlinks=False) for part in parts)
        return len(parts) < MOST and all(kinds)
    except OSError:
        return False


def _walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield everything in a folder, what lies least deep first; links are yielded and not followed."""
    folders = deque([str(folder)])
    while folders:
        with os.scandir(folders.popleft()) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(names)[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _said(path: Path, root: Path | None = None) -> str:
    """A path in an input as a text without line breaks, whatever a stranger called his files."""
    return repr(str(path.relative_to(root or MOUNTS)))[1:-1]


def bring(found: Sequence[Path], folder: Path) -> None:
    """Copy files and folders of unfinished work into a folder that lacks them, each whole or not at all.

    Their names stand for their content: of two with one name the first is taken, and none replaces what is here.

    Raises:
        InputError: if there is no room for them.
    """
    missing = {path.name: path for path in reversed(found) if not (folder / path.name).exists()}
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(p.stat().st_size for path in missing.values() for p in (path, *path.rglob("*")) if p.is_file())
    places = ", ".join(sorted({str(path.parent) for path in missing.values()}))
    if size > (free := shutil.disk_usage(folder).free):
        raise InputError(
            f"cannot copy the unfinished work in {places} to {folder}: it takes {size / 2**20:,.0f} MiB and "
            f"{free / 2**20:,.0f} are free; free space there, or detach that input to begin anew"
        )
    log.info("taking over %d unfinished pieces of work (%.1f MiB) from %s", len(missing), size / 2**20, places)
    for name, path in reversed(missing.items()):
        draft = folder / f"draft-{name}.part"  # no name that a reader of the folder looks for
        if draft.is_dir():  # of a copy that was killed
            shutil.rmtree(draft)
        try:
            _copy(path, draft)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise InputError(
                f"cannot copy {path} to {folder} ({error.strerror or error}); free space there, or detach that input "
                "to begin anew"
            ) from None
        os.rename(draft, folder / name)
        seals.seal(folder / name)


def _copy(path: Path, to: Path) -> None:
    """Copy the content alone: what is copied from a read-only input is to be deleted some day."""
    if not path.is_dir():
        shutil.copyfile(path, to)
        return
    to.mkdir()
    for part in path.iterdir():
        _copy(part, to / part.name)
