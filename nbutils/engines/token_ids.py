"""Between messages and token ids, for the engines that run a model on this machine."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from nbutils import models
from nbutils.core.errors import InputError, first_line
from nbutils.core.sampling import Sample
from nbutils.engines.protocol import Reply, Request, Tally, numbers_in


def prompts(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request], template: dict[str, Any], context: int
) -> tuple[dict[int, list[int]], dict[int, Reply]]:
    """Return the token ids each request's completion goes on from, and the replies of those that have none.

    A prompt that would not fit `context` tokens with its completion, or that the chat template does not take, is
    refused: that is its own outcome.
    """
    result, refused = {}, {}
    for i, request in enumerate(requests):
        begins = f"the prompt that begins {request.messages[-1]['content'][:60]!r}"
        try:
            ids = models.render(tokenizer, [dict(m) for m in request.messages], template)
        except Exception as error:  # a template is a program, and refuses in its own way
            reason = f"the chat template does not take {begins} ({first_line(error)})"
            refused[i] = Reply((), refused=reason)
            continue
        if len(ids) + request.sampling.max_tokens > context:
            reason = (
                f"a prompt of {len(ids)} tokens and max_tokens={request.sampling.max_tokens} exceed the model's "
                f"context of {context} tokens; lower max_tokens or leave out {begins}"
            )
            refused[i] = Reply((), refused=reason)
        else:
            result[i] = ids
    return result, refused


def insist(refused: Collection[Reply], asked: int, tally: Tally) -> None:
    """Raise InputError if all that was ever asked was refused: then it is not the prompts that are at fault."""
    if refused and len(refused) == asked and not tally.calls:
        raise InputError(next(iter(refused)).refused)


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
