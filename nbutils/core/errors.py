"""The two ways a stage ends early, both with one sentence for the person who reads it, and how to go on afterwards."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nbutils.core import secrets

GO_ON = "everything done so far is stored: run the same command or cell again to go on"
STOPPED = "nbutils_stopped"  # where `notebook` leaves the sentence for `run`: in the metadata of a cell's output
ON_KAGGLE = "in a new session, first add this notebook's output as its input"
_NO_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
# safetensors and tokenizers raise errors of their own in the system's words, torch one that says nothing of the disk
_FOREIGN = re.compile(r"\(os error (?:13|27|28|30|122)\)|iostream error|inline_container|PytorchStreamWriter")


class InputError(ValueError):
    """Something the user gave is wrong: the message names it, says what was expected and what to do, no secret."""

    def __init__(self, message: object):
        super().__init__(secrets.masked(str(message)))


class Interrupted(RuntimeError):  # noqa: N818 - nothing is wrong
    """The stage stopped before its end on purpose; what was finished is stored and the same command goes on."""

    def __init__(self, message: object):
        super().__init__(secrets.masked(str(message)))


def out_of_time(at: str) -> Interrupted:
    """Return what to raise at a deadline: how far the work got, and how to go on."""
    return Interrupted(f"time budget used up {at}; {GO_ON}")


def on_kaggle() -> str:
    """Return how Kaggle runs this notebook, `Interactive` or `Batch` (Save & Run All); empty elsewhere."""
    return os.environ.get("KAGGLE_KERNEL_RUN_TYPE", "")


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Give whatever a library raises where there is no room, or no right to write, as one sentence.

    Raises:
        InputError: naming the place and the reason; every other error passes.
    """
    try:
        yield
    except (InputError, Interrupted):
        raise
    except Exception as error:
        known = isinstance(error, OSError) and error.errno in _NO_PLACE
        if not known and not _FOREIGN.search(str(error)):
            raise
        said = (isinstance(error, OSError) and error.strerror) or first_line(error)
        # a right that is missing may be another file's
        where = (isinstance(error, PermissionError) and error.filename) or place
        raise InputError(
            f"cannot write to {where} ({said}); make room there, or choose a folder that can be written, and run the "
            "same command or cell again"
        ) from None


@contextmanager
def telling(what: str, remedy: str) -> Iterator[None]:
    """Give whatever a library raises as one sentence that begins with what was being done; the error hangs on it.

    Raises:
        InputError: naming the library's error; those that are sentences already pass.
    """
    try:
        yield
    except (InputError, Interrupted):
        raise
    except Exception as error:
        raise InputError(f"while {what}: {type(error).__name__}: {first_line(error)}; {remedy}") from error


def first_line(error: object) -> str:
    """Return what another library's error or a server says, short enough for a sentence of ours, without a secret."""
    lines = secrets.hidden(str(error)[:20_000]).strip().splitlines()  # masked first, then cut
    lines = lines or [type(error).__name__ if isinstance(error, BaseException) else ""]
    return lines[0][:200].encode("utf-8", "backslashreplace").decode()


def shown(value: object, longest: int = 100) -> str:
    """Return a value as Python writes it, on one line and short enough for a sentence, and without a secret."""
    try:
        text = repr(value[:20_000] if isinstance(value, str) else value)
    except (RecursionError, ValueError):  # nested too deep, or a number of more digits than Python prints
        text = f"a value too large to show ({type(value).__name__})"
    text = secrets.hidden(text[:20_000])  # masked first, then cut
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
