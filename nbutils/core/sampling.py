"""How answers are drawn, and what one of them is; which engines there are to draw them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from nbutils.core import keys
from nbutils.core.errors import InputError, shown

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
