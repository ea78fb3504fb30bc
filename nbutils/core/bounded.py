"""Running what a stranger wrote, a template or a regular expression, for so long and in so much memory and no more."""

import os
import pickle
import resource
import select
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nbutils.core.errors import InputError, first_line

SECONDS, MEMORY = 5.0, 512 * 2**20


def within(work: Callable[[], Any], what: str, *, seconds: float = SECONDS, memory: int = MEMORY) -> Any:
    """Return what plain Python gives in a copy of this process that ends with it.

    Args:
        what: runs, for the errors.
        memory: bytes that it may take beside what is there.

    Raises:
        InputError: if it takes longer or more memory, or raises an error.
    """
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads here: the copy uses none of theirs
        child = os.fork()
    if not child:
        _run(work, memory, write)
    os.close(write)
    try:
        answer, deadline = b"", time.monotonic() + seconds
        while select.select([read], [], [], max(deadline - time.monotonic(), 0))[0]:
            if not (part := os.read(read, 2**16)):
                break
            answer += part
        else:
            raise InputError(f"{what} takes longer than {seconds:g} seconds")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
    # nothing came where the system ended it
    good, result = pickle.loads(answer) if answer else (False, "takes too much memory")  # noqa: S301 - our own
    if not good:
        raise InputError(f"{what} {result}")
    return result


@contextmanager
def room(memory: int) -> Iterator[None]:
    """Let this process take so many bytes more and no more; what asks for more gets a `MemoryError` or its library's.

    Where the system does not tell what a process has taken, nothing is bounded.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(OSError, ValueError):  # no such file, on other systems
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + memory
        if before[0] == resource.RLIM_INFINITY or most < before[0]:
            resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _run(work: Callable[[], Any], memory: int, pipe: int) -> None:
    try:
        try:
            with room(memory):
                answer = True, work()
        except MemoryError:
            answer = False, "takes too much memory"
        except Exception as error:
            answer = False, f"fails ({first_line(error)})"
        with open(pipe, "wb") as stream:
            pickle.dump(answer, stream)
    finally:
        os._exit(0)
