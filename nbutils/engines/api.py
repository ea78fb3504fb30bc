"""Asking an OpenAI-compatible server (Hugging Face's router, vLLM, llama.cpp), many requests at once.

One thread runs the event loop, so it also works inside Jupyter, whose own loop is busy. The client's retries are
switched off: they would bypass our limits and our count.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import openai
from tenacity import AsyncRetrying, RetryCallState, RetryError, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_exponential, wait_random

from nbutils import keys
from nbutils.engines import Engine, Reply, Request, Tally, completions, dialect, wire
from nbutils.errors import InputError, Interrupted, first_line
from nbutils.records import encodable

log = logging.getLogger(__name__)

# index and reply of a request, and what to call when the reply is in safety; an error or None end the run
Results = queue.Queue[tuple[int, Reply, Callable[[], object]] | BaseException | None]
# draw one sample of a request with a seed
Ask = Callable[..., Awaitable[Reply]]

TRIES = 8
# Longest wait in seconds between two tries, also where the server's Retry-After asks for more.
LONGEST_WAIT = 60.0
# Requests given up one after the other before the run stops: the server is not there.
GIVEN_UP = 8
# Different requests refused one after the other before it is asked whether the server answers anything at all.
REFUSED = 5
ODD = 8  # things said about replies, at most
# What no other request can mend: no token, no credit, a proxy that wants a password, an address that sends elsewhere.
ELSEWHERE = (301, 302, 303, 307, 308)
HOPELESS = (401, 402, 407, *ELSEWHERE)
_REASONS = {
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
class _Round:
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

    def __post_init__(self) -> None:
        self.todo = iter(enumerate(self.requests))

    def ending(self) -> bool:
        return bool(self.fatal) or time.monotonic() > self.deadline

    def release(self) -> None:
        """Hand on the refusals: the server answers others, so it is the requests that it refuses."""
        for i, error in self.held:
            self.results.put((i, Reply((), refused=str(error)), lambda: None))
        self.held.clear()


class ApiEngine(Engine):
    """A chat model behind an OpenAI-compatible server."""

    chunk_size = 0
    special_tokens: tuple[str, ...] = ()  # a server does not tell them

    def __init__(  # noqa: PLR0913 - each is a key of a judge file
        self,
        server: str,
        model: str,
        *,
        key_variable: str = "",
        concurrency: int = 8,
        requests_per_minute: int = 0,
        max_calls: int = 0,
        timeout: float = 120.0,
        chat_template_kwargs: dict[str, Any] | None = None,
        neutral: bool = True,
        wait: float = 1.0,
    ):
        """Prepare a client; nothing is sent yet.

        Args:
            server: base URL, e.g. "http://127.0.0.1:8000/v1".
            key_variable: environment variable with the token; empty for a server that wants none.
            concurrency: requests in flight.
            requests_per_minute: calls begin at least this far apart, retries too; 0 sets no limit.
            max_calls: hard stop after so many calls of this engine, retries counted; 0 sets none.
            timeout: seconds for one try of one request.
            chat_template_kwargs: passed on for servers that accept them (vLLM does).
            neutral: whether to switch off, where something is drawn, what the server would add of the model's own
                generation_config (`dialect.NEUTRAL`); a policy has to be drawn as stated.
            wait: seconds before the first retry, doubled each time up to a minute, with as much jitter.

        Raises:
            InputError: if the variable is named but not set, or cannot be sent.
        """
        self._key, self._key_variable = keys.read_key(key_variable, server), key_variable
        self._server, self._model, self._timeout, self._wait = server, model, timeout, wait
        self._concurrency, self._max_calls, self._neutral = concurrency, max_calls, neutral
        self._interval, self._last_call = 60 / requests_per_minute if requests_per_minute else 0.0, float("-inf")
        self._in_flight: set[asyncio.Task | None] = set()
        self._dialect = dialect.Dialect()
        self._told: set[str] = set()  # odd things about replies, each said once
        self._in_a_row = 0  # requests given up since the last reply
        self._good: Request | None = None  # the last one that was answered
        self.tally = Tally()
        self._extra = {"chat_template_kwargs": chat_template_kwargs} if chat_template_kwargs else {}
        self.identity: dict[str, Any] = {"engine": "api", "server": server, "model": model, **self._extra}

    def generate(
        self, requests: Sequence[Request], *, seed: int, deadline: float = float("inf")
    ) -> Iterator[tuple[int, Reply]]:
        """Yield replies as they arrive; a request that failed TRIES times is logged and left out.

        A request that the server refuses has a reply that says so. Where REFUSED different ones are refused in a row,
        one that was answered before is asked again, or a harmless one: if that is refused too, the run ends.

        n samples are n calls with n seeds: many servers ignore `n`. Whatever ends the run, requests in flight are
        waited for, since they are paid for; only a caller who stops listening (Ctrl-C) loses them.

        Raises:
            InputError: on an error no retry can mend (no token, no credit, no such model).
            Interrupted: after `max_calls`.
        """
        results: Results = queue.Queue()
        stop = threading.Event()

        def work() -> None:
            try:
                asyncio.run(self._ask_all(_Round(requests, seed, deadline, results, stop)))
                results.put(None)
            except BaseException as error:  # handed to the caller's thread, raised there
                results.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        done = 0
        try:
            while (item := results.get()) is not None:
                if isinstance(item, InputError | Interrupted):
                    raise type(item)(f"{item} ({done} answers of this call are stored; the same command goes on)")
                if isinstance(item, BaseException):
                    raise item
                i, reply, kept = item
                done += not reply.refused
                yield i, reply
                kept()
        finally:
            stop.set()
            thread.join()

    async def _ask_all(self, asked: "_Round") -> None:
        async with self._client(asked.requests) as client:
            retrying = AsyncRetrying(
                stop=lambda state: asked.ending() or stop_after_attempt(TRIES)(state),
                wait=self._pause,
                retry=retry_if_exception(wire.worth_retrying),
                before_sleep=self._note,
            )
            ask = partial(self._ask, client, retrying=retrying, turn=asyncio.Lock())
            async with asyncio.TaskGroup() as group:
                number = min(self._concurrency, len(asked.requests))
                workers = [group.create_task(self._work(asked, ask)) for _ in range(number)]
                group.create_task(self._wind_up(workers, asked))
            if asked.answered and not asked.fatal:
                asked.release()
            elif not asked.stop.is_set():
                await self._look(asked, ask)
        if asked.fatal:
            raise asked.fatal[0]

    async def _work(self, asked: "_Round", ask: Ask) -> None:
        """Ask for one request after the other, while there are any; a failure is that request's, or ends the run."""
        kept = asyncio.Event()
        for i, request in asked.todo:
            if asked.stop.is_set() or asked.ending():
                return
            try:
                parts = [await ask(request, asked.seed + k) for k in range(request.n)]
                self._in_a_row, self._good, asked.answered = 0, request, True
                asked.release()
                asked.results.put((i, completions.join(parts), partial(_set, kept, asyncio.get_running_loop())))
                await kept.wait()  # else a slow disk would let replies pile up that a kill would lose
                kept.clear()
            except RefusedError as error:
                self._in_a_row = 0
                asked.held.append((i, error))
                if self._good is None or len(asked.held) >= REFUSED:
                    await self._look(asked, ask)
            except RetryError as error:
                if (tried := error.last_attempt.attempt_number) == TRIES:  # else the run is ending
                    self.tally.failures += 1
                    self._in_a_row += 1
                    said = self._brief(error.last_attempt.exception())
                    log.warning("request %d failed %d times: %s", i, tried, said)
                    if self._in_a_row >= max(GIVEN_UP, self._concurrency):
                        asked.fatal.append(Interrupted(f"{self._server} does not answer ({said}); try again later"))
            except Exception as error:  # whatever it is, what is in flight is waited for
                asked.fatal.append(error)

    async def _look(self, asked: "_Round", ask: Ask) -> None:
        """Find out whether the refused requests are at fault, or the server refuses whatever it is asked."""
        async with asked.looking:
            if not asked.held or asked.ending():
                return
            try:
                await ask(replace(self._good or _harmless(asked.requests[0]), n=1), 0, again=True)
                asked.release()
            except (RefusedError, RetryError):
                if asked.held:  # another request may have been answered in the meantime
                    asked.fatal.append(self._no_more(asked.held[-1][1], len(asked.held)))
            except (InputError, Interrupted) as error:
                asked.fatal.append(error)

    def _client(self, requests: Sequence[Request]) -> openai.AsyncOpenAI:
        http = wire.Client(**keys.alone(self._server, self._key))
        http.most = max(
            (wire.allowed(r.sampling.max_tokens, logprobs=r.logprobs) for r in requests), default=wire.LEAST
        )
        return openai.AsyncOpenAI(
            base_url=self._server, api_key=self._key, max_retries=0, timeout=self._timeout, http_client=http
        )

    def _no_more(self, error: RefusedError, count: int) -> InputError:
        reason = _REASONS.get(error.status, _REASONS[400]).format(key=self._key_variable or "its token")
        said = f" (it said: {error.said})" if error.said and error.status not in _REASONS.keys() - {400} else ""
        many = f"; it refused {count} different requests in a row" if count > 1 else ""
        return InputError(f"{self._server} answered {error.status}: {reason}{said}{many}")

    async def _wind_up(self, workers: list[asyncio.Task], asked: "_Round") -> None:
        """Let nothing more be sent once the run is ending: a worker may be waiting a minute for its next try."""
        left = set(workers)
        while left:
            _, left = await asyncio.wait(left, timeout=0.05)
            for worker in left:
                if asked.stop.is_set() or (asked.ending() and worker not in self._in_flight):
                    worker.cancel()

    async def _ask(
        self,
        client: openai.AsyncOpenAI,
        request: Request,
        seed: int,
        *,
        retrying: AsyncRetrying,
        turn: asyncio.Lock,
        again: bool = False,
    ) -> Reply:
        """Draw one sample; where the server refuses parts of the request, try it without them.

        Raises:
            RefusedError: if it is refused without them, too.
            InputError: if no other request would fare better.
        """
        whole = dialect.parts_of(request, neutral=self._neutral)
        wanted = whole - self._dialect.refused
        parts, base, named, tried = wanted, wanted, set[str](), [wanted]
        while True:
            try:
                async for attempt in retrying.copy():
                    with attempt:
                        repeated = again or len(tried) > 1 or attempt.retry_state.attempt_number > 1
                        reply = await self._call(client, request, dialect.options(request, seed, parts), turn, repeated)
            except openai.APIStatusError as error:
                refusal = RefusedError(error.status_code, self._brief(error).partition(f"{error.status_code} - ")[2])
                if error.status_code in HOPELESS:
                    raise self._no_more(refusal, 1) from None
                said = error.response.text
                if error.status_code not in (400, 422):
                    raise refusal from None
                if found := dialect.named(said, parts):
                    named |= found
                    base = parts = parts - found
                else:
                    others = () if dialect.about_itself(said) else self._dialect.guesses(base)
                    parts = next((other for other in others if other not in tried), parts)
                if parts in tried:
                    raise refusal from None
                tried.append(parts)
                continue
            for part in self._dialect.learn(wanted, wanted - parts, named):
                log.warning("%s refuses %s; asking without from now on", self._server, dialect.SAID[part][0])
            return self._noted(reply, whole - parts)

    def _noted(self, reply: Reply, without: set[str]) -> Reply:
        """Say what is odd about a reply, once, and what it went without."""
        for note in set(reply.notes) - self._told if len(self._told) < ODD else ():
            log.warning("%s was asked for %s, and a reply is %s", self._server, self._model, note)
            self._told.add(note)
        lost = sorted(note for part in without if (note := dialect.SAID[part][1]))
        return replace(reply, notes=(*lost, *reply.notes)) if lost else reply

    async def _call(
        self, client: openai.AsyncOpenAI, request: Request, options: dict[str, Any], turn: asyncio.Lock, again: bool
    ) -> Reply:
        async with turn:
            if (wait := self._last_call + self._interval - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            if self._max_calls and self.tally.calls >= self._max_calls:
                raise Interrupted(
                    f"max_calls: all {self._max_calls} calls are used up, retries among them; raise it in the judge "
                    "file, or run again to spend as many once more"
                )
            self._last_call = time.monotonic()
            self.tally.calls += 1
            self.tally.retries += again
        self._in_flight.add(task := asyncio.current_task())
        body = {"model": self._model, "messages": list(request.messages), **options, **self._extra}
        try:
            async with asyncio.timeout(self._timeout):  # the client's own begins anew with every byte
                # not `chat.completions.create`: it looks through schema and answer, and trusts what it finds
                said = await client.post("/chat/completions", cast_to=str, body=body, options={"headers": wire.HEADERS})
            return completions.read(said, self._model, request.sampling.max_tokens)
        except (openai.APIError, wire.GarbledReplyError, TimeoutError):
            raise
        except Exception as error:  # what a reply can do to a client nobody knows; it is this request's failure
            raise wire.GarbledReplyError(f"expected a chat completion, got one that raises {error!r:.80}") from error
        finally:
            self._in_flight.discard(task)

    def _pause(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = wire.retry_after(error) if isinstance(error, openai.APIStatusError) else 0.0
        waited = wait_exponential(multiplier=self._wait, max=LONGEST_WAIT)(state)
        return min(max(asked, waited), LONGEST_WAIT) + wait_random(0, self._wait)(state)

    def _note(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.debug("retrying after: %s", self._brief(error))

    def _brief(self, error: BaseException | None) -> str:
        """Name a failure in one line, without the token: some servers repeat it in their answer."""
        said = " ".join(encodable(str(error)).split())
        if isinstance(error, openai.APIStatusError) and " - " not in said:  # an error in a form of its own
            said += f" - {' '.join(error.response.text.split())}"
        return f"{type(error).__name__}: {first_line(said)}"[:160]


def _harmless(like: Request) -> Request:
    """Return a request that nobody would refuse for what it says."""
    return Request(({"role": "user", "content": "Hello."},), sampling=replace(like.sampling, temperature=0.0))


def _set(event: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
    """Set an event of another thread's loop, or nothing where that has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(event.set)
