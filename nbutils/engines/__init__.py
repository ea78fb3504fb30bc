"""One interface for everything that turns messages into text: the policy, a local judge, a judge over the network.

An engine takes requests and yields replies as they come. `local.TransformersEngine` runs a model in this process on any
GPU or CPU; `api.ApiEngine` asks an OpenAI-compatible server. Both are used through `nbutils.store.answer`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from nbutils.errors import InputError


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
        if self.max_tokens < 1:
            raise InputError(f"sampling: max_tokens is {self.max_tokens}, expected at least 1")
        if self.top_k < 0:
            raise InputError(f"sampling: top_k is {self.top_k}, expected 0 (off) or more")


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
            raise InputError(f"sampling: unknown option {name!r}; known are {', '.join(kinds)}")
        try:
            values[name] = int(value) if kinds[name] is int else float(value)
        except ValueError:
            raise InputError(f"sampling: {name} is {value!r}, expected a number") from None
    return Sampling(**values)


@dataclass(frozen=True)
class Request:
    """Messages to answer, how often and how. Every field determines the reply and so is part of its key."""

    messages: tuple[Mapping[str, str], ...]
    n: int = 1
    sampling: Sampling = Sampling()
    response_format: Mapping[str, Any] | None = None  # a JSON schema, where the server enforces one
    attempt: int = 1


@dataclass(frozen=True)
class Sample:
    """One completion: its text, its length in tokens (-1 if unknown), and `stop` or `length` (cut off)."""

    text: str
    n_tokens: int = -1
    finish_reason: str = "stop"


@dataclass(frozen=True)
class Reply:
    """The samples of one request and the tokens it cost (-1 if unknown)."""

    samples: tuple[Sample, ...]
    prompt_tokens: int = -1
    completion_tokens: int = field(default=-1)


class Engine(Protocol):
    """What `nbutils.store.answer` needs of an engine."""

    # everything about the engine that determines its replies, "model" among it; JSON-able, part of every key
    identity: dict[str, Any]
    # requests drawn together from one seed; 0 where each request stands alone
    chunk_size: int

    def generate(self, requests: Sequence[Request], *, seed: int, deadline: float) -> Iterator[tuple[int, Reply]]:
        """Yield (index into requests, reply) in any order; a request that fails for good is left out."""
        ...


def load(
    name: str,
    model: str,
    *,
    cache: Path,
    adapter: str = "",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    **server: Any,
) -> Engine:
    """Return the engine a parameter names: `transformers`, or the URL of an OpenAI-compatible server.

    Args:
        cache: folder for converted models.
        server: what only `api.ApiEngine` takes, e.g. concurrency.

    Raises:
        InputError: if the name is neither, or an adapter is asked of a server (it serves what it was started with).
    """
    template = dict(chat_template_kwargs or {})
    if name == "transformers":
        from nbutils.engines.local import TransformersEngine
        from nbutils.preflight import pick_device

        return TransformersEngine(
            model, device=pick_device(), cache=cache, adapter=adapter, chat_template_kwargs=template
        )
    if not name.startswith(("http://", "https://")):
        raise InputError(
            f"engine: expected 'transformers' or a server's URL like http://127.0.0.1:8000/v1, got {name!r}"
        )
    if adapter:
        raise InputError("adapter: a server samples the model it was started with; start it with the adapter instead")
    from nbutils.engines.api import ApiEngine

    return ApiEngine(name, model, chat_template_kwargs=template, **server)
