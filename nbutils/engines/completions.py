"""Reading what an OpenAI-compatible server answered; the client checks nothing, so everything may be missing or odd."""

import codecs
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from nbutils.engines import Reply, Sample, numbers_in
from nbutils.records import encodable


class GarbledReplyError(RuntimeError):
    """The server answered 200 with something that is no chat completion (an HTML page, half a JSON document)."""


def read(completion: Any) -> Reply:
    """Read a completion.

    Raises:
        GarbledReplyError: if it is none: an HTML page comes as text, missing fields pass.
    """
    try:
        choice = completion.choices[0]
        text, finish = encodable(choice.message.content or ""), choice.finish_reason
        if not isinstance(text, str):
            raise TypeError
    except (AttributeError, IndexError, TypeError):
        raise GarbledReplyError(f"expected a chat completion, got {str(completion)[:80]!r}") from None
    numbers: dict[int, dict[str, float]] = {}
    with suppress(AttributeError, TypeError, ValueError):  # log-probabilities in another form; the text is good
        numbers = numbers_in(text, _tokens(text, choice.logprobs.content))
    prompt_tokens, tokens = (_count(completion.usage, side) for side in ("prompt_tokens", "completion_tokens"))
    sample = Sample(text, tokens, "length" if finish == "length" else "stop", numbers)
    return Reply((sample,), prompt_tokens, tokens)


def _count(usage: Any, name: str) -> int:
    value = getattr(usage, name, None)
    return value if isinstance(value, int) else -1


def _tokens(text: str, content: Sequence[Any]) -> Iterator[tuple[int, str, dict[str, float]]]:
    """Yield where each token begins in the text, its own text, and the alternatives with their log-probabilities.

    A token may be part of a character. The tokens may hold more than the text: the spaces a server strips, or what a
    model thought before.
    """
    raw = [bytes(token.bytes) if token.bytes else token.token.encode() for token in content]
    start = -max(b"".join(raw).decode(errors="ignore").rfind(text), 0)
    decode = codecs.getincrementaldecoder("utf-8")("ignore").decode
    for token, piece in zip(content, raw, strict=True):
        yield start, token.token, {option.token: float(option.logprob) for option in token.top_logprobs or ()}
        start += len(decode(piece))


def join(parts: Sequence[Reply]) -> Reply:
    """Put n replies of one sample each together."""
    known = parts[0].completion_tokens >= 0
    tokens = sum(part.completion_tokens for part in parts) if known else -1
    return replace(parts[0], samples=tuple(part.samples[0] for part in parts), completion_tokens=tokens)
