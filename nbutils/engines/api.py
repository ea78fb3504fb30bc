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
from dataclasses import replace
from functools import partial
from typing import Any

import openai
from tenacity import RetryError

from nbutils.core import keys
from nbutils.core.errors import InputError, Interrupted
from nbutils.engines import completions, dialect, retries, wire
from nbutils.engines.protocol import Engine, Reply, Request, Tally
from nbutils.engines.refusals import HOPELESS, RefusedError, Results, Round, brief, hopeless, probe, tell

log = logging.getLogger(__name__)

# draw one sample of a request with a seed
Ask = Callable[..., Awaitable[Reply]]

TRIES = 8
# Requests given up one after the other before it is asked, so many times, whether the server answers anything at all.
GIVEN_UP, PROBES = 8, 3
# Different requests refused one after the other before it is asked whether the server answers anything at all.
REFUSED = 5
ODD = 8  # things said about replies, at most


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
        self._greeted = False  # whether it was asked for next to nothing
        self.tally = Tally()
        self.identity = dialect.identity(server, model, chat_template_kwargs)

    def generate(
        self, requests: Sequence[Request], *, seed: int, deadline: float = float("inf")
    ) -> Iterator[tuple[int, Reply]]:
        """Yield replies as they arrive; a request that failed TRIES times is logged and left out.

        A request that the server refuses has a reply that says so. Where REFUSED different ones are refused in a row,
        or GIVEN_UP given up, the words of one that was answered are asked again, or harmless ones: if that fails, too,
        the run ends. Where nothing was answered yet, the first refusal is enough to ask.

        n samples are n calls with n seeds: many servers ignore `n`. Whatever ends the run, requests in flight are
        waited for, since they are paid for; only a caller who stops listening (Ctrl-C) loses them.

        Raises:
            InputError: on an error no retry can mend (no token, no credit, no such model).
            Interrupted: after `max_calls`, and where the server answers nothing.
        """
        results: Results = queue.Queue()
        stop = threading.Event()

        def work() -> None:
            try:
                asyncio.run(self._ask_all(Round(requests, seed, deadline, results, stop)))
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

    async def _ask_all(self, asked: Round) -> None:
        async with wire.client(self._server, self._key, self._timeout, asked.requests) as client:
            ask = partial(self._ask, client, asked=asked)
            async with asyncio.TaskGroup() as group:
                number = min(self._concurrency, len(asked.requests))
                workers = [group.create_task(self._work(asked, ask)) for _ in range(number)]
                group.create_task(self._wind_up(workers, asked))
            if not asked.stop.is_set():  # the last ones, too: credit may have run out
                await self._look(asked, ask)
        if asked.fatal:
            raise asked.fatal[0]

    async def _work(self, asked: Round, ask: Ask) -> None:
        """Ask for one request after the other, while there are any; a failure is that request's, or ends the run."""
        kept = asyncio.Event()
        for i, request in asked.todo:
            if asked.stop.is_set() or asked.ending():
                return
            try:
                parts = [await ask(request, asked.seed + k) for k in range(request.n)]
                self._in_a_row, self._good, asked.answered = 0, request, True
                asked.release()
                asked.results.put((i, completions.join(parts), partial(tell, kept, asyncio.get_running_loop())))
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
                    said = brief(error.last_attempt.exception())
                    log.warning("request %d failed %d times: %s", i, tried, said)
                    await self._reach(asked, ask, request, said)
            except Exception as error:  # whatever it is, what is in flight is waited for
                asked.fatal.append(error)

    async def _look(self, asked: Round, ask: Ask) -> None:
        """Find out whether the refused requests are at fault, or the server refuses whatever it is asked."""
        async with asked.looking:
            if not asked.held or asked.ending():
                return
            answers = await self._answers(asked, ask, asked.requests[asked.held[-1][0]], TRIES)
            if answers is False and asked.held:  # another request may have been answered in the meantime
                asked.fatal.append(hopeless(asked.held[-1][1], len(asked.held), self._server, self._key_variable))

    async def _greet(self, asked: Round, ask: Ask, request: Request, refusal: RefusedError) -> None:
        """Before parts are guessed at, find out whether a server that answered nothing yet takes a request at all."""
        async with asked.looking:
            if self._good or self._greeted or asked.ending():
                return
            self._greeted = True
            if await self._answers(asked, ask, request, TRIES, whole=dialect.PLAIN) is False:
                asked.fatal.append(hopeless(refusal, 1, self._server, self._key_variable))

    async def _reach(self, asked: Round, ask: Ask, request: Request, said: str) -> None:
        """Where many requests failed in a row, find out whether they are at fault, or the server answers nothing."""
        async with asked.looking:
            if self._in_a_row < max(GIVEN_UP, self._concurrency) or asked.ending():
                return
            answers = await self._answers(asked, ask, request, PROBES)
            if answers:
                self._in_a_row = 0
                log.warning("%s answers others: what fails is left out, and the run goes on", self._server)
            elif answers is False and self._in_a_row:
                asked.fatal.append(Interrupted(f"{self._server} does not answer ({said}); try again later"))

    async def _answers(
        self, asked: Round, ask: Ask, like: Request, tries: int, *, whole: set[str] | None = None
    ) -> bool | None:
        """Tell whether the server answers anything that is asked like this; None where the run is ending."""
        try:
            await ask(probe(like, self._good), 0, again=True, tries=tries, whole=whole)
        except (RefusedError, RetryError):
            return None if asked.ending() else False
        except (InputError, Interrupted) as error:
            asked.fatal.append(error)
            return None
        if not whole:
            asked.release()
        return True

    async def _wind_up(self, workers: list[asyncio.Task], asked: Round) -> None:
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
        asked: Round,
        again: bool = False,
        tries: int = TRIES,
        whole: set[str] | None = None,
    ) -> Reply:
        """Draw one sample; where the server refuses parts of the request, try it without them.

        Raises:
            RefusedError: if it is refused without them, too.
            InputError: if no other request would fare better.
        """
        whole = whole or dialect.parts_of(request, neutral=self._neutral)
        trial = self._dialect.begin(whole)
        while True:
            try:
                async for attempt in retries.until(asked.ending, tries, self._wait):
                    with attempt:
                        repeated = again or trial.repeated or attempt.retry_state.attempt_number > 1
                        options = dialect.options(request, seed, trial.parts)
                        reply = await self._call(client, request, options, asked.turn, repeated)
            except openai.APIStatusError as error:
                refusal = RefusedError(error.status_code, brief(error).partition(f"{error.status_code} - ")[2])
                if error.status_code in HOPELESS:
                    raise hopeless(refusal, 1, self._server, self._key_variable) from None
                more = trial.refused(error.status_code, error.response.text)
                if more and trial.guessed and not again:
                    await self._greet(asked, partial(self._ask, client, asked=asked), request, refusal)
                if not more or asked.fatal:
                    raise refusal from None
                continue
            for learnt in trial.taken():
                log.warning("%s %s", self._server, learnt)
            return self._noted(reply, whole - trial.parts)

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
        body = dialect.body(request, self.identity, options)
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
