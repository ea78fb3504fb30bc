"""A server's refusals: whose fault they are, the request's or all requests', and what a user can do about each."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import openai

from nbutils.core.errors import InputError, first_line
from nbutils.core.records import encodable
from nbutils.engines.protocol import Reply, Request

# index and reply of a request, and what to call when the reply is in safety; an error or None end the run
Results = queue.Queue[tuple[int, Reply, Callable[[], object]] | BaseException | None]

# What no other request can mend: no token, no credit, a proxy that wants a password, an address that sends elsewhere.
ELSEWHERE = (301, 302, 303, 307, 308)
HOPELESS = (401, 402, 407, *ELSEWHERE)
REASONS = {
    400: "the server refuses the request; check the model name and the sampling options",
    401: "the token is missing or wrong; set {key} (on Kaggle: add it as a secret)",
    402: "the credit is used up; add some, or choose a judge that costs nothing",
    403: "the token may not use this model; accept its terms or choose another",
    404: "there is no such model or address; check `model` and `server` in the judge file",
    407: "a proxy stands before it and wants a password",
    **dict.fromkeys(
        ELSEWHERE,
        "it sends on to another address, which may be anybody's; write its final one as `server` in the judge file",
    ),
}


class RefusedError(RuntimeError):
    """The server refuses a request and would refuse it again."""

    def __init__(self, status: int, said: str):
        super().__init__(f"{status}: {said}")
        self.status, self.said = status, said


@dataclass
class Round:
    """One call of `generate`: what is asked, and how it goes."""

    requests: Sequence[Request]
    seed: int
    deadline: float
    results: Results
    stop: threading.Event
    fatal: list[Exception] = field(default_factory=list)
    held: list[tuple[int, RefusedError]] = field(default_factory=list)  # refused since the last answer
    answered: bool = False
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # of a call to begin

    def __post_init__(self) -> None:
        self.todo = iter(enumerate(self.requests))

    def ending(self) -> bool:
        return bool(self.fatal) or time.monotonic() > self.deadline

    def release(self) -> None:
        """Hand on the refusals: the server answers others, so it is the requests that it refuses."""
        for i, error in self.held:
            self.results.put((i, Reply((), refused=str(error)), lambda: None))
        self.held.clear()


def hopeless(error: RefusedError, count: int, server: str, key_variable: str) -> InputError:
    """Return what to tell a user of a server that refuses whatever it is asked.

    Args:
        count: of different requests that it refused in a row.
        key_variable: environment variable with its token, empty if it wants none.
    """
    reason = REASONS.get(error.status, REASONS[400]).format(key=key_variable or "its token")
    said = f" (it said: {error.said})" if error.said and error.status not in REASONS.keys() - {400} else ""
    many = f"; it refused {count} different requests in a row" if count > 1 else ""
    return InputError(f"{server} answered {error.status}: {reason}{said}{many}")


def probe(like: Request, good: Request | None) -> Request:
    """Return a request for what `like` asks for, with the same options, in words that nobody refuses.

    Args:
        good: one that was answered, whose words are taken.
    """
    return replace(like, messages=good.messages if good else ({"role": "user", "content": "Hello."},), n=1)


def brief(error: BaseException | None) -> str:
    """Name a failure in one line, without the token: some servers repeat it in their answer."""
    said = " ".join(encodable(str(error)).split())
    if isinstance(error, openai.APIStatusError) and " - " not in said:  # an error in a form of its own
        said += f" - {' '.join(error.response.text.split())}"
    return f"{type(error).__name__}: {first_line(said)}"[:160]


def tell(event: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
    """Set an event of another thread's loop, or nothing where that has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(event.set)
