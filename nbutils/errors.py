"""The two ways a stage ends early; both carry one sentence written for the person who reads it."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
# safetensors and tokenizers raise errors of their own in the system's words, torch one that says nothing of the disk
_FOREIGN = re.compile(r"\(os error (?:13|27|28|30|122)\)|iostream error|inline_container|PytorchStreamWriter")


class InputError(ValueError):
    """Something the user gave is wrong: the message names it, says what was expected and what to do."""


class Interrupted(RuntimeError):  # noqa: N818 - nothing is wrong
    """The stage stopped before its end on purpose; what was finished is stored and the same command goes on."""


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Give whatever a library raises where there is no room, or no right to write, as one sentence.

    Raises:
        InputError: naming the place and the reason; every other error passes.
    """
    try:
        yield
    except Exception as error:
        known = isinstance(error, OSError) and error.errno in _NO_PLACE
        if not known and not _FOREIGN.search(str(error)):
            raise
        said = (isinstance(error, OSError) and error.strerror) or str(error).splitlines()[0][:120]
        raise InputError(
            f"cannot write to {place} ({said}); make room there, or choose a folder that can be written, and run the "
            "same command or cell again"
        ) from None
