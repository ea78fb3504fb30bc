"""Asking an OpenAI-compatible server (Hugging Face's router, vLLM, llama.cpp), many requests at once.

One thread runs the event loop, so it also works inside Jupyter, whose own loop is busy. The client's retries are
switched off: they would bypass our limit of requests in flight and our count.
"""

import asyncio
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import openai
from tenacity import AsyncRetrying, Future, RetryError, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_exponential, wait_random

from nbutils.engines import Reply, Request, Sample
from nbutils.errors import InputError

log = logging.getLogger(__name__)

TRIES = 8
_REASONS = {
    400: "the server refuses the request; check the model name and the sampling options",
    401: "the token is missing or wrong; set {key} (on Kaggle: add it as a secret)",
    402: "the credit is used up; add some, or choose a judge that costs nothing",
    403: "the token may not use this model; accept its terms or choose another",
    404: "there is no such model or address; check `model` and `server` in the judge file",
}


class GarbledReplyError(RuntimeError):
    """The server answered 200 with something that is no chat completion (an HTML page, half a JSON document)."""


class ApiEngine:
    """A chat model behind an OpenAI-compatible server."""

    chunk_size = 0

    def __init__(
        self,
        server: str,
        model: str,
        *,
        key_variable: str = "",
        concurrency: int = 8,
        timeout: float = 120.0,
        chat_template_kwargs: dict[str, Any] | None = None,
        wait: float = 1.0,
    ):
        """Prepare a client; nothing is sent yet.

        Args:
            server: base URL, e.g. "http://127.0.0.1:8000/v1".
            key_variable: environment variable with the token; empty for a server that wants none.
            concurrency: requests in flight.
            timeout: seconds for one try of one request.
            chat_template_kwargs: passed on for servers that accept them (vLLM does).
            wait: seconds before the first retry, doubled each time up to a minute.

        Raises:
            InputError: if the variable is named but not set.
        """
        key = os.environ.get(key_variable, "") if key_variable else "none"
        if not key:
            raise InputError(
                f"the server {server} wants a token and {key_variable} is not set; set it in the environment "
                "(on Kaggle: add it as a secret and attach it to the notebook)"
            )
        self._key, self._key_variable = key, key_variable
        self._server, self._model, self._timeout, self._wait = server, model, timeout, wait
        self._concurrency = concurrency
        self._extra = {"chat_template_kwargs": chat_template_kwargs} if chat_template_kwargs else {}
        self.identity: dict[str, Any] = {"engine": "api", "server": server, "model": model, **self._extra}

    def generate(
        self, requests: Sequence[Request], *, seed: int, deadline: float = float("inf")
    ) -> Iterator[tuple[int, Reply]]:
        """Yield replies as they arrive; a request that failed TRIES times is logged and left out.

        n samples are n calls with n seeds: many servers ignore `n`.

        Raises:
            InputError: on an error no retry can mend (no token, no credit, no such model).
        """
        results: queue.Queue[tuple[int, Reply] | BaseException | None] = queue.Queue()
        stop = threading.Event()

        def work() -> None:
            try:
                asyncio.run(self._ask_all(requests, seed, deadline, results, stop))
                results.put(None)
            except BaseExceptionGroup as group:  # of the workers; handed to the caller's thread, raised there
                results.put(next((e for e in group.exceptions if isinstance(e, InputError)), group.exceptions[0]))
            except BaseException as error:
                results.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        done = 0
        try:
            while (item := results.get()) is not None:
                if isinstance(item, InputError):
                    raise InputError(f"{item} ({done} answers of this call are stored; the same command goes on)")
                if isinstance(item, BaseException):
                    raise item
                done += 1
                yield item
        finally:
            stop.set()
            thread.join()

    async def _ask_all(
        self, requests: Sequence[Request], seed: int, deadline: float, results: queue.Queue, stop: threading.Event
    ) -> None:
        # the token goes to the server named in the judge file and nowhere else
        async with openai.AsyncOpenAI(
            base_url=self._server, api_key=self._key, max_retries=0, timeout=self._timeout
        ) as client:
            todo = iter(enumerate(requests))

            async def worker() -> None:
                for i, request in todo:
                    if stop.is_set() or time.time() > deadline:
                        return
                    try:
                        results.put((i, await self._ask(client, request, seed)))
                    except RetryError as error:
                        log.warning("request %d failed %d times: %s", i, TRIES, self._brief(error.last_attempt))

            async with asyncio.TaskGroup() as group:
                workers = [group.create_task(worker()) for _ in range(min(self._concurrency, len(requests)))]
                group.create_task(_cancel_when(stop, workers))

    async def _ask(self, client: openai.AsyncOpenAI, request: Request, seed: int) -> Reply:
        parts = [await self._ask_once(client, request, seed + i) for i in range(request.n)]
        return replace(
            parts[0],
            samples=tuple(part.samples[0] for part in parts),
            completion_tokens=sum(part.completion_tokens for part in parts) if parts[0].completion_tokens >= 0 else -1,
        )

    async def _ask_once(self, client: openai.AsyncOpenAI, request: Request, seed: int) -> Reply:
        sampling = request.sampling
        options: dict[str, Any] = {"temperature": sampling.temperature, "max_tokens": sampling.max_tokens}
        if sampling.temperature > 0:
            options |= {"top_p": sampling.top_p, "seed": seed + request.attempt - 1}
        if request.response_format:
            options["response_format"] = request.response_format
        extra = self._extra | ({"top_k": sampling.top_k} if sampling.top_k else {})
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(TRIES),
            wait=wait_exponential(multiplier=self._wait, max=60) + wait_random(0, self._wait),
            retry=retry_if_exception(_worth_retrying),
            before_sleep=lambda state: log.info("retrying after: %s", self._brief(state.outcome)),
        ):
            with attempt:
                try:
                    completion = await client.chat.completions.create(
                        model=self._model, messages=cast(Any, list(request.messages)), extra_body=extra, **options
                    )
                    return _reply(completion)
                except openai.APIStatusError as error:
                    if not _worth_retrying(error):
                        reason = _REASONS.get(error.status_code, _REASONS[400])
                        reason = reason.format(key=self._key_variable or "its token")
                        raise InputError(f"{self._server} answered {error.status_code}: {reason}") from None
                    raise
        raise AssertionError("unreachable: the loop returns or raises")

    def _brief(self, outcome: Future | None) -> str:
        """Name a failure in one line, without the token: some servers repeat it in their answer."""
        error = outcome.exception() if outcome else None
        first = next(iter(str(error).splitlines()), "")
        return f"{type(error).__name__}: {first.replace(self._key, '***') if self._key_variable else first}"[:160]


async def _cancel_when(stop: threading.Event, workers: list[asyncio.Task]) -> None:
    while not all(worker.done() for worker in workers):
        await asyncio.sleep(0.05)
        if stop.is_set():
            for worker in workers:
                worker.cancel()


def _worth_retrying(error: BaseException) -> bool:
    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409, 425, 429) or error.status_code >= 500
    return isinstance(
        error, GarbledReplyError | openai.APIConnectionError | json.JSONDecodeError | openai.APIResponseValidationError
    )


def _reply(completion: Any) -> Reply:
    """Read a completion; the client hands an HTML page through as text and lets missing fields pass."""
    try:
        choice = completion.choices[0]
        text, usage = choice.message.content or "", completion.usage
    except (AttributeError, IndexError, TypeError):
        raise GarbledReplyError(f"expected a chat completion, got {str(completion)[:80]!r}") from None
    tokens = usage.completion_tokens if usage else -1
    finish = "length" if choice.finish_reason == "length" else "stop"
    return Reply((Sample(text, tokens, finish),), usage.prompt_tokens if usage else -1, tokens)
