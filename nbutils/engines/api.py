"""Asking an OpenAI-compatible server (Hugging Face's router, vLLM, llama.cpp), many requests at once.

One thread runs the event loop, so it also works inside Jupyter, whose own loop is busy. The client's retries are
switched off: they would bypass our limits and our count.
"""

import asyncio
import email.utils
import itertools
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import openai
from openai.types.chat import ChatCompletion
from tenacity import AsyncRetrying, RetryCallState, RetryError, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_exponential, wait_random

from nbutils.engines import Engine, Reply, Request, Tally, completions
from nbutils.errors import InputError, Interrupted

log = logging.getLogger(__name__)

# index and reply of a request, and what to call when the reply is in safety; an error or None end the run
Results = queue.Queue[tuple[int, Reply, Callable[[], object]] | BaseException | None]

TRIES = 8
# Longest wait in seconds between two tries, also where the server's Retry-After asks for more.
LONGEST_WAIT = 60.0
# Requests given up one after the other before the run stops: the server is not there.
GIVEN_UP = 8
TOP_LOGPROBS = 10  # more than a scale of digits has levels
# What a request may ask for and a server may refuse; asked again without it.
OPTIONAL = {"response_format": "a JSON schema", "logprobs": "log-probabilities"}
_REASONS = {
    400: "the server refuses the request; check the model name and the sampling options",
    401: "the token is missing or wrong; set {key} (on Kaggle: add it as a secret)",
    402: "the credit is used up; add some, or choose a judge that costs nothing",
    403: "the token may not use this model; accept its terms or choose another",
    404: "there is no such model or address; check `model` and `server` in the judge file",
}


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
            wait: seconds before the first retry, doubled each time up to a minute, with as much jitter.

        Raises:
            InputError: if the variable is named but not set, or cannot be sent.
        """
        key = os.environ.get(key_variable, "").strip() if key_variable else "none"  # pasted with the end of its line
        if not (key.isascii() and key.isprintable()):  # the client's own error would show it
            raise InputError(f"{key_variable} holds a character that no token has; copy the token once more")
        if not key:
            raise InputError(
                f"the server {server} wants a token and {key_variable} is not set; set it in the environment "
                "(on Kaggle: add it as a secret and attach it to the notebook)"
            )
        self._key, self._key_variable = key, key_variable
        self._server, self._model, self._timeout, self._wait = server, model, timeout, wait
        self._concurrency, self._max_calls = concurrency, max_calls
        self._interval, self._last_call = 60 / requests_per_minute if requests_per_minute else 0.0, float("-inf")
        self._in_flight: set[asyncio.Task | None] = set()
        self._refused: set[str] = set()
        self._in_a_row = 0  # requests given up since the last reply
        self.tally = Tally()
        self._extra = {"chat_template_kwargs": chat_template_kwargs} if chat_template_kwargs else {}
        self.identity: dict[str, Any] = {"engine": "api", "server": server, "model": model, **self._extra}

    def generate(
        self, requests: Sequence[Request], *, seed: int, deadline: float = float("inf")
    ) -> Iterator[tuple[int, Reply]]:
        """Yield replies as they arrive; a request that failed TRIES times is logged and left out.

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
                asyncio.run(self._ask_all(requests, seed, deadline, results, stop))
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
                done += 1
                yield i, reply
                kept()
        finally:
            stop.set()
            thread.join()

    async def _ask_all(
        self, requests: Sequence[Request], seed: int, deadline: float, results: Results, stop: threading.Event
    ) -> None:
        # the token goes to the server named in the judge file and nowhere else
        async with openai.AsyncOpenAI(
            base_url=self._server, api_key=self._key, max_retries=0, timeout=self._timeout
        ) as client:
            todo = iter(enumerate(requests))
            fatal: list[Exception] = []
            turn = asyncio.Lock()

            def ending() -> bool:
                return bool(fatal) or time.monotonic() > deadline

            retrying = AsyncRetrying(
                stop=lambda state: ending() or stop_after_attempt(TRIES)(state),
                wait=self._pause,
                retry=retry_if_exception(_worth_retrying),
                before_sleep=self._note,
            )

            async def worker() -> None:
                kept = asyncio.Event()
                for i, request in todo:
                    if stop.is_set() or ending():
                        return
                    try:
                        parts = [
                            await self._ask(client, request, seed + k, retrying.copy(), turn) for k in range(request.n)
                        ]
                        self._in_a_row = 0
                        results.put((i, completions.join(parts), partial(_set, kept, asyncio.get_running_loop())))
                        await kept.wait()  # else a slow disk would let replies pile up that a kill would lose
                        kept.clear()
                    except RetryError as error:
                        if (tried := error.last_attempt.attempt_number) == TRIES:  # else the run is ending
                            self.tally.failures += 1
                            self._in_a_row += 1
                            said = self._brief(error.last_attempt.exception())
                            log.warning("request %d failed %d times: %s", i, tried, said)
                            if self._in_a_row >= max(GIVEN_UP, self._concurrency):
                                fatal.append(Interrupted(f"{self._server} does not answer ({said}); try again later"))
                    except (InputError, Interrupted) as error:
                        fatal.append(error)

            async with asyncio.TaskGroup() as group:
                workers = [group.create_task(worker()) for _ in range(min(self._concurrency, len(requests)))]
                group.create_task(self._wind_up(workers, stop, ending))
            if fatal:
                raise fatal[0]

    async def _wind_up(self, workers: list[asyncio.Task], stop: threading.Event, ending: Callable[[], bool]) -> None:
        """Let nothing more be sent once the run is ending: a worker may be waiting a minute for its next try."""
        left = set(workers)
        while left:
            _, left = await asyncio.wait(left, timeout=0.05)
            for worker in left:
                if stop.is_set() or (ending() and worker not in self._in_flight):
                    worker.cancel()

    async def _ask(
        self, client: openai.AsyncOpenAI, request: Request, seed: int, retrying: AsyncRetrying, turn: asyncio.Lock
    ) -> Reply:
        """Draw one sample; where the server refuses the request with its optional parts, try it without them."""
        wanted = [name for name in OPTIONAL if getattr(request, name) and name not in self._refused]
        subsets = [set(part) for size in range(len(wanted), -1, -1) for part in itertools.combinations(wanted, size)]
        for parts in subsets:
            options = self._options(request, seed, parts)
            try:
                async for attempt in retrying:
                    with attempt:
                        again = parts != subsets[0] or attempt.retry_state.attempt_number > 1
                        reply = await self._call(client, options, turn, again=again)
            except openai.APIStatusError as error:
                if error.status_code in (400, 422) and parts:
                    continue
                reason = _REASONS.get(error.status_code, _REASONS[400]).format(key=self._key_variable or "its token")
                said = "" if error.status_code in _REASONS.keys() - {400} else f" (it said: {self._brief(error)})"
                raise InputError(f"{self._server} answered {error.status_code}: {reason}{said}") from None
            for name in set(wanted) - parts - self._refused:
                self._refused.add(name)
                log.warning("%s refuses %s; asking without from now on", self._server, OPTIONAL[name])
            return reply
        raise AssertionError("unreachable: the last subset is empty and either returns or raises")

    def _options(self, request: Request, seed: int, parts: set[str]) -> dict[str, Any]:
        sampling = request.sampling
        options: dict[str, Any] = {
            "model": self._model,
            "messages": list(request.messages),
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            **self._extra,
        }
        if sampling.top_k:
            options["top_k"] = sampling.top_k
        if sampling.temperature > 0:
            options |= {"top_p": sampling.top_p, "seed": seed + request.attempt - 1}
        if "response_format" in parts:
            options["response_format"] = request.response_format
        if "logprobs" in parts:
            options |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return options

    async def _call(
        self, client: openai.AsyncOpenAI, options: dict[str, Any], turn: asyncio.Lock, *, again: bool
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
        try:
            async with asyncio.timeout(self._timeout):  # the client's own begins anew with every byte
                # not `chat.completions.create`, which spends a third of the time on looking through the schema
                return completions.read(await client.post("/chat/completions", cast_to=ChatCompletion, body=options))
        finally:
            self._in_flight.discard(task)

    def _pause(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = _retry_after(error) if isinstance(error, openai.APIStatusError) else 0.0
        waited = wait_exponential(multiplier=self._wait, max=LONGEST_WAIT)(state)
        return min(max(asked, waited), LONGEST_WAIT) + wait_random(0, self._wait)(state)

    def _note(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.debug("retrying after: %s", self._brief(error))

    def _brief(self, error: BaseException | None) -> str:
        """Name a failure in one line, without the token: some servers repeat it in their answer."""
        first = next(iter(str(error).splitlines()), "")
        return f"{type(error).__name__}: {first.replace(self._key, '***') if self._key_variable else first}"[:160]


def _set(event: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
    """Set an event of another thread's loop, or nothing where that has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(event.set)


def _worth_retrying(error: BaseException) -> bool:
    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409, 425, 429) or error.status_code >= 500
    garbled = (
        completions.GarbledReplyError | json.JSONDecodeError | UnicodeDecodeError | openai.APIResponseValidationError
    )
    return isinstance(error, garbled | openai.APIConnectionError | TimeoutError)


def _retry_after(error: openai.APIStatusError) -> float:
    """Return the seconds a server asks to wait, given as a number or a date; 0 where it says nothing readable."""
    value = error.response.headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(value))  # in this order "nan" is 0
    with suppress(ValueError, TypeError):
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    return 0.0
