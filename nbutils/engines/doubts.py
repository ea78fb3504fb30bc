"""What a user should know of a server's replies before trusting them: what was refused, left out, or looks cut."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nbutils.core.errors import InputError
from nbutils.engines.protocol import Reply

log = logging.getLogger(__name__)

# Prompts of at least so many tokens, so often the longest: below, chance can do it.
_LEAST_TOKENS, _OFTEN = 256, 3
SHOWN = 8  # notes, at most


def of(replies: Sequence[Reply | None]) -> list[str]:
    """Return what is odd about replies, one sentence each."""
    known = [reply for reply in replies if reply is not None]
    refused = Counter(reply.refused for reply in known if reply.refused)
    sentences = [f"{n} of {len(replies)} requests were refused: {reason}" for reason, n in refused.most_common(SHOWN)]
    sentences += noted(Counter(note for reply in known for note in reply.notes), len(known))
    return sentences + cut_prompts(reply.prompt_tokens for reply in known)


def answered(replies: Sequence[Reply | None]) -> tuple[list[Reply | None], dict[str, Any]]:
    """Return the replies with None for those that were refused; and how many were, with all doubts, which are logged.

    Raises:
        InputError: if no request was answered.
    """
    doubts = of(replies)
    kept = [None if reply is not None and reply.refused else reply for reply in replies]
    if replies and not any(kept):
        raise InputError(f"no request was answered: {'; '.join(doubts) or 'try again later'}")
    for sentence in doubts:
        log.warning("%s", sentence)
    return kept, {"refused": sum(bool(reply and reply.refused) for reply in replies), "doubts": doubts}


def noted(notes: Mapping[str, int], total: int) -> list[str]:
    """Return a sentence for each note, the most frequent first."""
    return [f"{n} of {total} replies are {note}" for note, n in Counter(notes).most_common(SHOWN)]


def cut_prompts(tokens: Iterable[int]) -> list[str]:
    """Return a sentence if a server seems to cut long prompts: several count the same power of two, and none more.

    Args:
        tokens: of different prompts.
    """
    counts = Counter(n for n in tokens if n >= _LEAST_TOKENS)
    most = max(counts, default=0)
    if counts[most] < _OFTEN or most.bit_count() > 1:
        return []
    return [
        f"{counts[most]} prompts count exactly {most:,} tokens and none counts more: the server may cut what is "
        "longer; raise its context length, or send less"
    ]
