"""One interface for everything that turns messages into text: the policy, a local judge, a judge over the network.

An engine takes requests and yields replies as they come. `local.TransformersEngine` runs a model in this process on any
GPU or CPU, `vllm.VllmEngine` in worker processes, one per GPU; `api.ApiEngine` asks an OpenAI-compatible server. All
are used through `nbutils.store.answer`.
"""

import logging
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nbutils import keys, sources
from nbutils.errors import InputError, shown

log = logging.getLogger(__name__)

ENGINES = ("auto", "vllm", "transformers")
MOST = 1_000_000  # tokens of an answer, or of a vocabulary


@dataclass(frozen=True)
class Sampling:
    """How to draw a completion; the names are the ones vLLM and OpenAI servers use."""

    temperature: float = 0.8
    top_p: float = 0.95
    max_tokens: int = 512
    top_k: int = 0  # 0 considers every token

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 5:
            raise InputError(f"sampling: temperature is {self.temperature}, expected 0 to 5")
        if not 0 < self.top_p <= 1:
            raise InputError(f"sampling: top_p is {self.top_p}, expected above 0 and at most 1")
        if not 1 <= self.max_tokens <= MOST:
            raise InputError(f"sampling: max_tokens is {shown(self.max_tokens)}, expected 1 to {MOST:,}")
        if not 0 <= self.top_k <= MOST:
            raise InputError(f"sampling: top_k is {shown(self.top_k)}, expected 0 (off) to {MOST:,}")


def parse_sampling(text: str) -> Sampling:
    """Read sampling options from text like 'temperature: 0.8, top_p: 0.95, max_tokens: 512'.

    The colon is there because papermill hides a parameter whose line holds a second equals sign.

    Raises:
        InputError: naming an unknown option or a value that is no number.

    >>> parse_sampling("temperature: 0, max_tokens: 20").max_tokens
    20
    """
    kinds = {f.name: f.type for f in fields(Sampling)}
    values: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition(":"))
        if name not in kinds:
            raise InputError(f"sampling: unknown option {shown(name)}; known are {', '.join(kinds)}")
        if name in values:
            raise InputError(f"sampling: {name} stands there twice")
        try:
            values[name] = int(value) if kinds[name] is int else float(value)
        except ValueError:
            raise InputError(f"sampling: {name} is {shown(value)}, expected a number") from None
    return Sampling(**values)


def check_name(text: str) -> None:
    """Check the name of an engine, before anything is loaded.

    Raises:
        InputError: if it is none of ours and no server's URL.
    """
    try:
        if text not in ENGINES:
            keys.read_server(text)
    except InputError:
        raise InputError(
            f"engine: expected {', '.join(ENGINES)} or a server's URL like http://127.0.0.1:8000/v1, got {shown(text)}"
        ) from None


@dataclass(frozen=True)
class Request:
    """Messages to answer, how often and how. Every field determines the reply and so is part of its key."""

    messages: tuple[Mapping[str, str], ...]
    n: int = 1
    sampling: Sampling = Sampling()
    response_format: Mapping[str, Any] | None = None  # a JSON schema, where the server enforces one
    attempt: int = 1
    logprobs: bool = False  # also return what each number in the text could have been, where the engine can


@dataclass(frozen=True)
class Sample:
    """One completion: its text, its length in tokens (-1 if unknown), and `stop`, or else why it is no whole answer.

    That is `length` (cut off at the limit) or `filter` (cut off by the server's content filter).

    `numbers` tells for every token of the text that is a number where it begins and which numbers could have stood
    there, with their log-probabilities; all that a judge's score needs of thousands of log-probabilities.
    """

    text: str
    n_tokens: int = -1
    finish_reason: str = "stop"
    numbers: Mapping[int, Mapping[str, float]] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return what the `samples` schema keeps of it."""
        return {"text": self.text, "n_tokens": self.n_tokens, "finish_reason": self.finish_reason}


@dataclass(frozen=True)
class Reply:
    """The samples of one request and the tokens it cost (-1 if unknown); or why it was refused, and no sample.

    `notes` tell what of the request did not reach the model, or what is odd about the reply.
    """

    samples: tuple[Sample, ...]
    prompt_tokens: int = -1
    completion_tokens: int = field(default=-1)
    refused: str = ""
    notes: tuple[str, ...] = ()


@dataclass
class Tally:
    """What an engine did since it was made: calls it sent (retries among them), retries, requests it gave up."""

    calls: int = 0
    retries: int = 0
    failures: int = 0


def count(value: object) -> int:
    """Return a number of tokens as it came from outside if it can be one, else -1: it will stand in 32 bits.

    >>> count(7), count(True), count("7"), count(10**30)
    (7, -1, -1, -1)
    """
    return value if type(value) is int and 0 <= value < 2**31 else -1


def numbers_in(text: str, tokens: Iterable[tuple[int, str, Mapping[str, float]]]) -> dict[int, dict[str, float]]:
    """Return `Sample.numbers` from the tokens of a text.

    Args:
        tokens: for each token where it begins, its text and the alternatives with their log-probabilities. A token
            that does not stand where it is said to is passed over.
    """
    found: dict[int, dict[str, float]] = {}
    for start, token, options in tokens:
        number = token.strip()
        place = start + len(token) - len(token.lstrip())
        if not (number.isascii() and number.isdigit()) or place < 0 or not text.startswith(number, place):
            continue
        found[place] = {}
        for option, logprob in options.items():
            if (name := option.strip()).isascii() and name.isdigit():  # " 4" and "4" are the same number
                found[place][name] = float(np.logaddexp(logprob, found[place].get(name, -np.inf)))
    return found


class Engine(Protocol):
    """What `nbutils.store.answer` needs of an engine."""

    # everything about the engine that determines its replies, "model" among it; JSON-able, part of every key
    identity: dict[str, Any]
    # requests drawn together from one seed; 0 where each request stands alone
    chunk_size: int
    tally: Tally
    # what frames a turn for this engine's tokenizer, where it is known
    special_tokens: tuple[str, ...]

    @abstractmethod
    def generate(self, requests: Sequence[Request], *, seed: int, deadline: float) -> Iterator[tuple[int, Reply]]:
        """Yield (index into requests, reply) in any order; a request that fails for now is left out.

        One that will always fail has a reply that says so, see `Reply.refused`.
        """
        ...

    def generate_chunks(
        self, chunks: Sequence[tuple[Sequence[Request], int]], *, deadline: float
    ) -> Iterator[tuple[int, int, Reply]]:
        """Yield (index into chunks, index into its requests, reply), one chunk after the other.

        Args:
            chunks: requests drawn together, and their seed.
            deadline: `time.monotonic()` after which no further chunk is started.
        """
        for c, (requests, seed) in enumerate(chunks):
            if self.chunk_size and time.monotonic() > deadline:
                return
            for i, reply in self.generate(requests, seed=seed, deadline=deadline):
                yield c, i, reply


def load(
    name: str,
    model: str,
    *,
    cache: Path,
    adapter: str = "",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Engine:
    """Return the engine a parameter names: `transformers`, `vllm`, or the URL of an OpenAI-compatible server.

    `auto` is vLLM where it can run, found out by starting it, otherwise transformers; the reason is logged.

    Args:
        cache: folder for converted models.
        options: what only one engine takes: batch_size and four_bit of transformers, workers of vLLM, limits of
            `api.ApiEngine`.

    Raises:
        InputError: if the name is none of these, or the engine cannot run here.
    """
    check_name(name)
    adapter = sources.located(adapter)
    options |= {"chat_template_kwargs": dict(chat_template_kwargs or {})}
    if name not in ENGINES:
        if adapter:
            raise InputError(
                "adapter: a server samples the model it was started with; start it with the adapter instead"
            )
        from nbutils.engines.api import ApiEngine

        return ApiEngine(name, model, **options)
    if name in ("auto", "vllm"):
        from nbutils.engines.vllm import VllmEngine

        try:
            engine = VllmEngine(model, cache=cache, adapter=adapter, **_without(options, "batch_size"))
            if name == "vllm":
                return engine
            engine.start()
            log.info("engine: vllm %s on %s", engine.version, engine.device.reason)
            return engine
        except InputError as error:
            if name == "vllm":
                raise
            log.info("engine: transformers, because %s", error)
    from nbutils.engines.local import TransformersEngine
    from nbutils.preflight import pick_device

    return TransformersEngine(model, device=pick_device(), cache=cache, adapter=adapter, **options)


def _without(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}
