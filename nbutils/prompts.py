"""Choosing the prompts to sample: readable, of a sensible length, each once, none that an evaluation set holds.

Used by 02, and by 04 to keep its held-out prompts apart from the training pairs. Near-duplicates are found by MinHash
over character 5-grams, which needs no word splitter and so works for any language (Broder 1997).
"""

import functools
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasketch import MinHash, MinHashLSH

from nbutils.errors import InputError
from nbutils.pairs import prompt_columns
from nbutils.records import Messages, Row

# Jaccard similarity of 5-gram sets from which two prompts count as the same
NEAR = 0.7


def from_rows(rows: Iterable[Mapping[str, Any]], column: str) -> list[Row]:
    """Turn source rows into rows of the `prompts` schema; an empty prompt is an error that names its row."""
    return [prompt_columns(row, column, number) for number, row in enumerate(rows)]


def select(
    rows: Sequence[Row],
    *,
    min_chars: int,
    max_chars: int,
    exclude: Sequence[Row] = (),
    max_prompts: int = 0,
    seed: int = 0,
) -> tuple[list[Row], dict[str, int]]:
    """Return the prompts to sample and how many were dropped for what.

    They keep their order unless `max_prompts` is set: then they are shuffled first, so that a larger `max_prompts`
    adds prompts to the same ones.

    Args:
        min_chars, max_chars: window for the last turn, in characters.
        exclude: prompts whose near-duplicates must not be sampled (held-out sets).
        max_prompts: how many to return at most; 0 sets no limit.
        seed: of the shuffle.

    Raises:
        InputError: if nothing is left.
    """
    dropped: Counter[str] = Counter()
    kept: list[Row] = []
    held_out, seen = Near(exclude), Near()
    order = random.Random(seed).sample(rows, len(rows)) if max_prompts else rows
    for number, row in enumerate(order):
        if max_prompts and len(kept) == max_prompts:
            dropped["over max_prompts"] = len(rows) - number
            break
        length = len(row["prompt"][-1]["content"])
        if length < min_chars:
            dropped["too short"] += 1
        elif length > max_chars:
            dropped["too long"] += 1
        elif held_out.holds(row):
            dropped["in exclude"] += 1
        elif seen.holds(row):
            dropped["duplicate"] += 1
        else:
            seen.add(row)
            kept.append(row)
    if not kept:
        raise InputError(f"no prompt is left of {len(rows)}: {dict(dropped)}; look at the window and at `exclude`")
    return kept, dict(dropped)


class Near:
    """A growing set of prompts that can tell whether it holds a near-duplicate of another."""

    def __init__(self, rows: Iterable[Row] = ()):
        self._ids: set[str] = set()
        self._index = MinHashLSH(threshold=NEAR, num_perm=64)
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        if row["prompt_id"] not in self._ids:
            self._ids.add(row["prompt_id"])
            self._index.insert(row["prompt_id"], _minhash(row["prompt"]))

    def holds(self, row: Row) -> bool:
        return row["prompt_id"] in self._ids or bool(self._index.query(_minhash(row["prompt"])))


def given(row: Row, *, system_prompt: str, suffix: str) -> Row:
    """Return the row with its prompt exactly as the model is given it: system prompt before, suffix after.

    `prompt_id` stays the source's, so that one prompt under two suffixes can be compared.
    """
    turns: Messages = [dict(turn) for turn in row["prompt"]]
    if suffix:
        turns[-1]["content"] += suffix
    if system_prompt:
        turns.insert(0, {"role": "system", "content": system_prompt})
    return row | {"prompt": turns}


def _minhash(prompt: Messages) -> MinHash:
    return _of_text(" ".join(" ".join(t["content"] for t in prompt if t["role"] != "system").lower().split()))


@functools.lru_cache(maxsize=4)  # a prompt is looked up in two sets and then added to one
def _of_text(text: str) -> MinHash:
    grams = {text[i : i + 5] for i in range(max(len(text) - 4, 1))}
    result = MinHash(num_perm=64, seed=1)
    result.update_batch([gram.encode("utf-8", "surrogatepass") for gram in grams])
    return result
