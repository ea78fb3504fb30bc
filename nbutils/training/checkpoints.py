"""Checkpoints that survive a kill: which one is whole, and what an earlier session left."""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nbutils.core.errors import InputError
from nbutils.files import disk, mounts

log = logging.getLogger(__name__)

CHECKPOINT = re.compile(r"checkpoint-\d+")


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the lock of a training's folder: two that wrote the same checkpoints would tear them."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = disk.locked(folder / "lock")
    except BlockingIOError:
        raise InputError(f"another process is training in {folder}; wait for it or stop it") from None
    except OSError as error:
        raise InputError(f"cannot lock {folder} ({error.strerror}); see what {folder / 'lock'} is") from None
    with lock:
        yield


def last_complete(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written whole, and remove torn ones that are newer.

    The trainer writes trainer_state.json last, and only then deletes older checkpoints (in transformers 5.20:
    `_save_checkpoint`): a checkpoint without a readable one was interrupted, and the one before it is still whole. An
    older one may be half deleted; a whole one stands before it then.
    """
    there = (path for path in folder.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name))  # and not its seal
    for checkpoint in sorted(there, key=_step, reverse=True):
        if _is_whole(checkpoint):
            return checkpoint
        log.warning("removing %s, which was interrupted while being written", checkpoint.name)
        shutil.rmtree(checkpoint)
    return None


def take_checkpoints(folder: Path) -> None:
    """Copy this training's checkpoints from the output of an earlier session that got further than this folder.

    Raises:
        InputError: if there is no room for them, or another process trains in the folder.
    """
    there = [p for p in mounts.taken(f"{folder.name}/checkpoint-*") if CHECKPOINT.fullmatch(p.name) and _is_whole(p)]
    if not there:
        return
    newest = max(there, key=_step)
    with only_one(folder):
        here = last_complete(folder)
        if here is None or _step(newest) > _step(here):
            beside = [p for p in there if p.parent == newest.parent]  # the best one, if it is not the last
            mounts.bring(sorted(beside, key=_step), folder)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return True
