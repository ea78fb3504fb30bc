"""Folders that the kit writes: what a manifest of ours lists may be replaced, and no more.

Used by `stage` for a run's folders, by `training` and `models` for weights, by `hub` for what is sent, by `run` and
`kaggle`. A folder's `manifest.json` holds the hash of every file in it; what it does not list, or what was changed
since, is somebody's work and is carried over when the folder is written anew.
"""

import ctypes
import glob
import itertools
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from nbutils.core.errors import InputError
from nbutils.files import disk, documents

log = logging.getLogger(__name__)

NAME = "manifest.json"
MAKER = "nbutils"  # another program's manifest.json has other keys
LARGEST = 2**26  # bytes of a manifest
MARK = ".draft"  # beside a draft: names the kit and it, and is locked as long as the process lives that makes it
WHOLE = ".whole"  # beside a draft that is to take the folder's place, or what the folder held
_held: dict[Path, IO[str]] = {}  # the marks of this process


def draft(folder: Path, place: Path) -> Path:
    """Return an empty folder in which the next version of `folder` is to be made, in a holder of its own in `place`."""
    made = _holder(folder, place) / folder.name
    made.mkdir()
    return made


def _holder(folder: Path, place: Path) -> Path:
    new = Path(tempfile.mkdtemp(prefix=".draft-", dir=place))
    holder = place / f"{folder.name}{new.name}"
    try:
        mark = disk.locked(new / MARK)
        mark.write(json.dumps(_mark(holder)))
        mark.flush()
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
        raise
    os.rename(new, holder)  # nobody finds it without its lock
    _held[holder] = mark
    return holder


def _mark(holder: Path) -> dict[str, str]:
    return {"written_by": MAKER, "draft": holder.name}


def _is_marked(holder: Path) -> bool:
    with suppress(InputError):
        return bool(documents.read_json(holder / MARK) == _mark(holder))
    return False


def finish(made: Path, folder: Path) -> None:
    """Put a draft into its folder's place in one step; what is not ours in the folder is carried over."""
    record(made)
    (made.parent / WHOLE).touch()
    if os.path.lexists(folder):
        _swap(made, folder)
    _settle(made, folder)
    if mark := _held.pop(made.parent, None):
        mark.close()


def _settle(made: Path, folder: Path) -> None:
    """Bring what a whole draft holds to its folder; what cannot be moved stays in it, and was told."""
    if os.path.lexists(folder):
        carry(made, folder)
    elif os.path.lexists(made):
        os.rename(made, folder)
    if not os.path.lexists(made):
        shutil.rmtree(made.parent, ignore_errors=True)


@contextmanager
def renewed(folder: Path) -> Iterator[Path]:
    """Give a draft to fill, and put it into the folder's place when that is done; see `finish`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear(folder, folder.parent)
    made = draft(folder, folder.parent)
    try:
        yield made
        finish(made, folder)
    except BaseException:
        abandon(made)
        raise


def abandon(made: Path) -> None:
    """Let go of a draft, and remove it unless it was finished."""
    if mark := _held.pop(made.parent, None):
        if not (made.parent / WHOLE).exists():
            shutil.rmtree(made.parent, ignore_errors=True)
        mark.close()


def clear(folder: Path, place: Path) -> None:
    """Remove the drafts of processes that were killed; what is not ours in them goes to the folder.

    A draft that a process is at work on stays, and so does a folder that is only named like one.
    """
    for holder in place.glob(f"{glob.escape(folder.name)}.draft-*"):
        made = holder / folder.name
        if holder.is_symlink() or made.is_symlink() or not _is_marked(holder):
            try:
                made.rmdir() if made.is_dir() else None
                holder.rmdir()
            except OSError:
                log.warning("%s is not known as a draft of the kit and stays; delete it if nothing is yours", holder)
            continue
        with suppress(OSError), disk.locked(holder / MARK):  # locked by another process, or gone since
            if not _is_marked(holder):
                continue
            if (holder / WHOLE).exists():  # killed between two renamings, or before all was carried over
                _settle(made, folder)
            else:
                shutil.rmtree(holder)


def record(folder: Path, hashes: Mapping[str, str] | None = None) -> None:
    """Write the manifest of a folder: of these hashes, or of all that lies in it."""
    if hashes is None:
        names = [name for name in disk.entries(folder) if name != NAME]
        hashes = {name: disk.sha256(folder / name) for name in names}
    whole = folder / f".{NAME}.draft"
    whole.write_text(json.dumps({"written_by": MAKER, "files": dict(hashes)}, indent=1) + "\n", encoding="utf-8")
    os.replace(whole, folder / NAME)


def listed(folder: Path) -> dict[str, str] | None:
    """Return name -> hash of the files that the kit wrote into a folder; None where there is no manifest of ours."""
    try:
        content = json.loads(documents.read_text(folder / NAME, limit=LARGEST))
        if content["written_by"] == MAKER:
            return {str(name): str(value) for name, value in content["files"].items()}
    except (InputError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return None


def unchanged(path: Path, value: str | None) -> bool:
    """Return whether a path is a regular file, no link, with this hash."""
    try:
        return value is not None and disk.sha256(path) == value
    except (InputError, OSError):
        return False


def _swap(draft: Path, folder: Path) -> None:
    """Exchange a folder and a draft, so that a reader always sees one of the two."""
    paths = (-100, os.fsencode(draft), -100, os.fsencode(folder))  # AT_FDCWD
    try:
        if ctypes.CDLL(None).renameat2(*paths, 2) == 0:  # RENAME_EXCHANGE
            return
    except AttributeError:  # not this system's library
        pass
    holder = _holder(folder, draft.parent.parent)
    (holder / WHOLE).touch()
    os.rename(folder, holder / folder.name)
    os.rename(draft, folder)
    os.rename(holder / folder.name, draft)
    abandon(holder / folder.name)
    shutil.rmtree(holder, ignore_errors=True)


def carry(old: Path, new: Path) -> None:
    """Move what is not ours from an old folder of ours into the new one, and remove the old one.

    A file of ours that was changed since, and one whose name is taken in the new folder, go to `kept-1` there, or the
    next free number.
    """
    ours = listed(old)
    known, moved, stuck = ours or {}, 0, list[str]()
    kept = new / _free(old, new)
    for name in disk.entries(old):
        path = old / name
        if name == NAME and ours is not None:
            continue
        if unchanged(path, known.get(name)):
            path.unlink()
        elif any(_moved(path, to) for to in ([kept / name] if name in known else [new / name, kept / name])):
            moved += 1
        else:
            stuck.append(name)
    if moved:
        aside = f"; those that were changed or whose name was taken are in {kept.name}" if kept.exists() else ""
        log.warning("%s: %d files that no stage wrote, or that were changed since, are kept%s", new, moved, aside)
    if stuck:
        log.warning("%s could not be moved to %s; what the kit did not write there: %s", old, new, some(stuck))
        return
    if ours is not None:
        (old / NAME).unlink(missing_ok=True)
    for place, _, _ in os.walk(old, topdown=False):
        with suppress(OSError):  # somebody puts a file there at this moment
            Path(place).rmdir()


def place(draft: Path, folder: Path, name: str) -> None:
    """Put one more whole file into a folder of ours, in one step; one of this name that is not ours is kept."""
    place_all({name: draft}, folder)


def place_all(drafts: Mapping[str, Path], folder: Path) -> None:
    """Put files into a folder of ours under their names, as `place` does; what is not ours is kept in one place."""
    known, aside = listed(folder), folder / _free(folder)
    if known is None and os.path.lexists(folder / NAME):
        _moved(folder / NAME, aside / NAME)
    known = known or {}
    for name, draft in drafts.items():
        if os.path.lexists(folder / name) and not unchanged(folder / name, known.get(name)):
            _moved(folder / name, aside / name)
            log.warning("%s is not the file that the kit wrote; it is kept as %s", folder / name, aside / name)
        known[name] = disk.sha256(draft)
        os.replace(draft, folder / name)
        record(folder, known)


def _free(*folders: Path) -> str:
    """Return the first of the names kept-1, kept-2, ... that is in none of these folders."""
    names = (f"kept-{n}" for n in itertools.count(1))
    return next(name for name in names if not any(os.path.lexists(folder / name) for folder in folders))


def _moved(path: Path, to: Path) -> bool:
    """Move a file to a place where there is none; return whether that could be done."""
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(to):
            return False
        os.rename(path, to)
    except OSError:  # a file of the new folder in the place of a folder of the old one, or no right
        return False
    return True


def some(names: Iterable[str]) -> str:
    """Return the first of some names, and how many there are, as a sentence can hold them."""
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(disk.plain(name) for name in names[:3]) + more
