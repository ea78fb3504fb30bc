"""Reading what an OpenAI-compatible server answered; nothing in it is trusted, and everything may be missing or odd."""

import codecs
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from nbutils.core.records import encodable, finish_reason
from nbutils.core.sampling import Sample
from nbutils.engines.protocol import Reply, count, numbers_in
from nbutils.engines.wire import GarbledReplyError

CHARACTERS = 64  # of a token, at most; what is longer is no answer to the request
ALTERNATIVES = 20  # of a token whose log-probabilities are kept
_ABOVE_ONE = 0.01  # servers round: a log-probability may lie this far above 0
# what a name may say although the model is the same: how its numbers are packed and its file is called, and its date
_PACKED = re.compile(
    r"(?<![a-z0-9])(?:latest|dynamic|static|i1|ud|unsloth|gg(?:uf|ml)|awq|gptq|bnb|mlx|onnx|exl\d|hqq|aqlm|autoround"
    r"|quant\w*|i?q\d\w*|int\d+|[mn]?[vx]?fp?(?:4|8|16|32)|bf16|nf4|w\d+a\d+|\d+-?bits?|[\d.]+bpw|g(?:32|64|128))"
    r"(?![a-z0-9])"
)
_DATE = re.compile(r"(?<![a-z0-9.])(?:\d\d-){0,2}\d{3,}(?:-\d\d)*(?![a-z0-9])|(?<=-)\d\d-\d\d\Z")
# what a tag may say of the model and not of where it runs: llama3:70b-text, phi3:mini, llama4:scout
_TELLS = re.compile(
    r"(?<![a-z0-9.])(?:[ae]?\d+(?:\.\d+)?(?:x\d+(?:\.\d+)?)?[bmt]|tiny|mini|small|medium|large|scout|maverick|instruct|it"
    r"|chat|base|text|think\w*|reason\w*|code\w*|math|vision|vl|embed\w*|guard)(?![a-z0-9])"
)
_USUAL = {"instruct", "it", "chat"}  # what a tag may leave out
_WORDS = re.compile(r"\d+|[^\W\d_]+")
OTHER = "by a model that calls itself"
THOUGHTS_ONLY = "only thoughts and no answer: raise max_tokens, or switch thinking off (chat_template_kwargs)"


def read(body: str, model: str, max_tokens: int) -> Reply:
    """Read the body of a completion.

    Args:
        model, max_tokens: what was asked for; another model's name becomes a note of the reply.

    Raises:
        GarbledReplyError: if it is none: an HTML page, half a JSON document, another type anywhere it matters.
    """
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        message = choice["message"]
        text = encodable(_text(message.get("content")))
        if not message:
            raise ValueError("no message")
        if len(text) > CHARACTERS * (max_tokens + 100):
            raise ValueError("a text longer than max_tokens allows")
    # among ValueErrors are an integer of 5,000 digits and half a document
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        said = f"{body.strip()[:80]!r} ({type(error).__name__})"
        raise GarbledReplyError(f"expected a chat completion, got {said}") from None
    prompt_tokens, tokens = _usage(completion.get("usage"), bool(text) or _thinks(message))
    finish = finish_reason(said := choice.get("finish_reason"))
    notes = [] if text or not _thinks(message) else [THOUGHTS_ONLY]
    if finish == "unknown":
        finish = "length" if tokens >= max_tokens else "stop"
    elif finish == "other":
        notes.append(f"not whole (ended by {encodable(said)[:40]!r})")
    numbers: dict[int, dict[str, float]] = {}
    # log-probabilities in another form, the text is good; the values of a hostile server raise whatever they like
    with suppress(Exception):
        numbers = numbers_in(text, _tokens(text, choice["logprobs"]["content"]))
    if (other := completion.get("model")) and isinstance(other, str) and not same_model(model, other):
        notes.append(f"{OTHER} {' '.join(encodable(other)[:60].split())}")
    return Reply((Sample(text, tokens, finish, numbers),), prompt_tokens, tokens, notes=tuple(notes))


def same_model(asked: str, said: str) -> bool:
    """Tell whether a server may mean the model it was asked for.

    Owner, provider and packaging do not count, nor does a date that only one of them names or a tag that only one has.

    >>> same_model("openai/gpt-oss-120b:cheapest", "f/models/gpt-oss-120b"), same_model("gpt-4o", "gpt-4o-mini")
    (True, False)
    >>> same_model("llama3:70b", "llama3"), same_model("qwen3:8b-thinking", "qwen3:8b-instruct")
    (True, False)
    """
    (name, tag, dated), (other, other_tag, other_dated) = _named(asked), _named(said)
    if dated and other_dated and dated != other_dated:
        return False
    if name != other:
        return name + tag == other + other_tag
    tells, other_tells = ([word for word in words if word not in _USUAL] for words in (tag, other_tag))
    return not tells or not other_tells or tells == other_tells


def _named(model: str) -> tuple[list[str], list[str], str]:
    """Return the words and numbers of a model's name, those of its tag that tell of the model, and its date."""
    name, _, tag = _PACKED.sub("", model.rstrip("/").rpartition("/")[2].lower()).partition(":")
    dated = "".join(re.findall(r"\d", "".join(date[0] for date in _DATE.finditer(name))))
    told = " ".join(match[0] for match in _TELLS.finditer(tag))
    return _WORDS.findall(_DATE.sub("", name)), _WORDS.findall(told), dated


def _usage(usage: Any, said: bool) -> tuple[int, int]:
    """Return the tokens of prompt and answer, -1 where they are not known: 0 is no count where something was said."""
    counts = (usage.get(side) if isinstance(usage, Mapping) else -1 for side in ("prompt_tokens", "completion_tokens"))
    prompt, answer = (-1 if said and value == 0 else count(value) for value in counts)
    return prompt, answer


def _text(content: Any) -> str:
    """Return the text of a message; its parts may be several, of which thoughts and pictures are none of the answer."""
    if content is None:
        return ""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part.get("type", "text") in ("text", "output_text"))
    if not isinstance(content, str):
        raise TypeError
    return content


def _thinks(message: Mapping[str, Any]) -> bool:
    return any(message.get(name) for name in ("reasoning_content", "reasoning", "reasoning_details", "thinking"))


def _tokens(text: str, content: Sequence[Any]) -> Iterator[tuple[int, str, dict[str, float]]]:
    """Yield where each token begins in the text, its own text, and the alternatives with their log-probabilities.

    A token may be part of a character. The tokens may hold more than the text: the spaces a server strips, or what a
    model thought before. A token with an alternative that has no log-probability is passed over.
    """
    # a number in place of the bytes would make so many zeros
    raw = [bytes(list(token["bytes"])) if token.get("bytes") else token["token"].encode() for token in content]
    start = -max(b"".join(raw).decode(errors="ignore").rfind(text), 0)
    decode = codecs.getincrementaldecoder("utf-8")("ignore").decode
    for token, piece in zip(content, raw, strict=True):
        options = {o["token"]: o["logprob"] for o in (token.get("top_logprobs") or ())[:ALTERNATIVES]}
        if all(type(p) in (int, float) and -math.inf < p <= _ABOVE_ONE for p in options.values()):
            yield start, token["token"], {name: float(p) for name, p in options.items()}
        start += len(decode(piece))


def join(parts: Sequence[Reply]) -> Reply:
    """Put n replies of one sample each together."""
    tokens = [part.completion_tokens for part in parts]
    return replace(
        parts[0],
        samples=tuple(part.samples[0] for part in parts),
        completion_tokens=count(sum(tokens)) if min(tokens) >= 0 else -1,
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )
