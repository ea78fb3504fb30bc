"""Between messages and token ids, for the engines that run a model on this machine."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from nbutils import models
from nbutils.engines import Request, Sample, numbers_in
from nbutils.errors import InputError


def prompts(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request], template: dict[str, Any], context: int
) -> list[list[int]]:
    """Return the token ids each request's completion goes on from.

    Raises:
        InputError: if a prompt and its completion would not fit `context` tokens.
    """
    result = []
    for request in requests:
        ids = models.render(tokenizer, [dict(m) for m in request.messages], template)
        if len(ids) + request.sampling.max_tokens > context:
            raise InputError(
                f"a prompt of {len(ids)} tokens and max_tokens={request.sampling.max_tokens} exceed the model's "
                f"context of {context} tokens; lower max_tokens or leave out the prompt that begins "
                f"{request.messages[-1]['content'][:60]!r}"
            )
        result.append(ids)
    return result


def sample(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    stop_ids: set[int],
    options: Mapping[int, Mapping[int, float]],
) -> Sample:
    """Return the completion as text without its stop token; one without a stop token was cut off by max_tokens.

    Args:
        ids: the completion's tokens, up to and with the first stop token.
        options: for places in `ids` the most probable tokens and their log-probabilities.
    """
    stopped = ids[-1] in stop_ids
    kept = list(ids[:-1] if stopped else ids)
    text = str(tokenizer.decode(kept, skip_special_tokens=True))
    numbers = numbers_in(text, _numbers(tokenizer, kept, options)) if options else {}
    return Sample(text, len(ids), "stop" if stopped else "length", numbers)


def _numbers(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], options: Mapping[int, Mapping[int, float]]
) -> Iterator[tuple[int, str, dict[str, float]]]:
    for place, token in enumerate(ids):
        if place in options and tokenizer.decode([token]).strip().isdigit():
            before = tokenizer.decode(ids[:place], skip_special_tokens=True)
            written = tokenizer.decode(ids[: place + 1], skip_special_tokens=True)[len(before) :]
            yield len(before), written, {tokenizer.decode([other]): p for other, p in options[place].items()}
