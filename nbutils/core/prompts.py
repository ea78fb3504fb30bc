"""Choosing the prompts to sample: readable, of a sensible length, each once, none that an evaluation set holds.

Used by 02, and by 04 to keep its held-out prompts apart from the training pairs: `Overlap` is the one rule of both.
Near-duplicates are found by MinHash over character 5-grams, which needs no word splitter and so works for any language
(Broder 1997). It sees that two texts resemble each other as a whole; a passage that two otherwise different prompts
share is found by `Runs`. Neither sees that two differently worded prompts ask the same: of the 80 Vicuna questions in
two Italian translations MinHash finds 12, both together 18, without a false hit (tests/core/test_prompts.py).
"""

import functools
import logging
import random
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from datasketch import MinHash, MinHashLSH

from nbutils.core.columns import insist_on, prompt_columns
from nbutils.core.conversations import each, prompt_of
from nbutils.core.errors import InputError, first_line
from nbutils.core.printed import Unusable
from nbutils.core.records import Messages, Row

log = logging.getLogger(__name__)

# Jaccard similarity of 5-gram sets from which two prompts count as the same. Lower finds more translations of one
# question, but "the square root of 121" and "of two" are at 0.76 already, and at 0.5 all questions for a capital match.
NEAR = 0.7
# words in a row that two prompts share by no accident (Brown et al. 2020, appendix C)
RUN = 13
REFUSED = "refused by the chat template"
# words of a stock phrase, and the share of all prompts that hold it; below 100 prompts nothing can be called frequent
PHRASE, COMMON = 5, 0.01


def from_rows(rows: Iterable[Mapping[str, Any]], column: str, reference: str = "") -> list[Row]:
    """Turn source rows into rows of the `prompts` schema; those that hold no prompt are left out and counted.

    A prompt may be of any shape that `conversations` reads; of a whole conversation the last answer is left out.

    Args:
        column: with the prompt.
        reference: column with the right answer, empty for none.

    Raises:
        InputError: naming row and column of the first, if most rows hold no prompt.
    """
    rows = list(rows)
    insist_on(rows, reference)
    texts = Counter(isinstance(row[column], str) for row in rows if isinstance(row, Mapping) and column in row)
    if len(texts) == 2:
        log.warning("column %r holds %d texts and %d lists or other values", column, texts[True], texts[False])
    found = each(rows, lambda row, notes: prompt_columns(row, prompt_of(row, column, notes), reference))
    return [row for row in found if not isinstance(row, Unusable)]


def select(
    rows: Sequence[Row],
    *,
    min_chars: int,
    max_chars: int,
    fits: Callable[[Row], bool] | None = None,
    exclude: Sequence[Row] = (),
    max_prompts: int = 0,
    seed: int = 0,
) -> tuple[list[Row], dict[str, int]]:
    """Return the prompts to sample and how many were dropped for what.

    They keep their order unless `max_prompts` is set: then they are shuffled first and taken from one `category`
    after the other, so that each gives the same number, or all it has and the others fill up (a warning names it).
    A larger `max_prompts` adds prompts to the same ones.

    Args:
        min_chars, max_chars: window for the last turn, in characters.
        fits: whether a prompt leaves the model room for an answer, in tokens; asked last.
        exclude: prompts that must not be sampled (held-out sets): themselves, near-duplicates, shared passages.
        max_prompts: how many to return at most; 0 sets no limit.
        seed: of the shuffle.

    Raises:
        InputError: if nothing is left.
    """
    screen = _Screen((min_chars, max_chars), Overlap(exclude, among=rows), fits)
    dropped: Counter[str] = Counter()
    kept, groups = list[Row](), dict[str, deque[Row]]()
    for row in random.Random(seed).sample(rows, len(rows)) if max_prompts else rows:
        groups.setdefault(row["category"] if max_prompts else "", deque()).append(row)
    waiting = deque(groups.values())
    while waiting and len(kept) < (max_prompts or len(rows)):
        row = waiting[0].popleft()
        reason = screen.fault(row)
        if reason:
            dropped[reason] += 1
        else:
            kept.append(row)
            screen.add(row)
        if not waiting[0]:
            waiting.popleft()
        elif not reason:
            waiting.rotate(-1)  # it is the next category's turn
    if not kept:
        raise _nothing_left(len(rows), dropped)
    if waiting:
        dropped["over max_prompts"] = sum(map(len, waiting))
    _warn_of_small(groups, kept, max_prompts // len(groups))
    return kept, dict(dropped)


class _Screen:
    """What is wrong with a prompt, beside those that were taken before it."""

    def __init__(self, window: tuple[int, int], held_out: "Overlap", fits: Callable[[Row], bool] | None):
        self.window, self.held_out, self.fits = window, held_out, fits
        self.ids, self.near = set[str](), Near()

    def fault(self, row: Row) -> str:
        """Return why a prompt is dropped, empty if it is not; the model is asked last."""
        length = len(row["prompt"][-1]["content"])
        checks: dict[str, Callable[[], bool]] = {
            "too short": lambda: length < self.window[0],
            "too long": lambda: length > self.window[1],
            "in exclude": lambda: self.held_out.holds(row),
            "duplicate": lambda: row["prompt_id"] in self.ids,
            "near-duplicate": lambda: self.near.holds(row),
        }
        return next((reason for reason, holds in checks.items() if holds()), "") or unfit(row, self.fits)

    def add(self, row: Row) -> None:
        self.ids.add(row["prompt_id"])
        self.near.add(row)


def unfit(row: Row, fits: Callable[[Row], bool] | None) -> str:
    """Return why a model cannot be asked a prompt, `over context`, REFUSED or what `fits` says; empty if it can.

    Args:
        fits: whether a prompt leaves room for an answer; it may raise Unusable with a reason of its own, and what else
            it raises comes from the model's chat template.
    """
    try:
        return "" if fits is None or fits(row) else "over context"
    except Unusable as error:
        return error.reason
    except Exception as error:  # a template is a program of the model's makers
        log.warning("a prompt is %s: %s", REFUSED, first_line(error))
        return REFUSED


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


class Runs:
    """The runs of 13 words of held-out prompts; it can tell whether another prompt shares one of them.

    As in the decontamination of GPT-3 (Brown et al. 2020, appendix C), case and punctuation do not count, and runs
    that are frequent are ignored: they are how tasks of a kind are worded ("explain your answer step by step, so
    that the reader..."), not what is asked. GPT-3 ignored runs found in more than 10 documents. Sets of prompts are
    small and their wordings combine, so frequency is told by phrases of five words here: a phrase that one prompt in a
    hundred holds, and three at least, is stock, and a run counts when most of its words stand in no stock phrase.

    Args:
        rows: the held-out prompts.
        among: the prompts that will be asked about; with `rows` they tell what is frequent.
    """

    def __init__(self, rows: Iterable[Row], *, among: Iterable[Row]):
        held_out = [_words(text) for text in {_text(row["prompt"]) for row in rows}]
        self._runs = {run for words in held_out for run in _grams(words, RUN)}
        self._stock: set[tuple[str, ...]] = set()
        if not self._runs:
            return
        phrases = {phrase for words in held_out for phrase in _grams(words, PHRASE)}
        others = [_words(text) for text in {_text(row["prompt"]) for row in among}]
        prompts = {tuple(words) for words in held_out + others}
        counts = Counter(p for words in prompts for p in phrases.intersection(_grams(words, PHRASE)))
        if len(prompts) * COMMON >= 1:
            self._stock = {p for p, count in counts.items() if count >= max(3, len(prompts) * COMMON)}

    def holds(self, row: Row) -> bool:
        words = _words(_text(row["prompt"]))
        shared = [i for i, run in enumerate(_grams(words, RUN)) if run in self._runs]
        starts = [i for i, p in enumerate(_grams(words, PHRASE)) if p in self._stock] if shared else []
        stock = {i + k for i in starts for k in range(PHRASE)}
        return any(len(stock.intersection(range(i, i + RUN))) <= RUN // 2 for i in shared)


class Overlap:
    """Prompts that others must keep away from: the prompts themselves, near-duplicates, shared passages.

    Args:
        rows: those prompts, held out from a training or trained on.
        among: the prompts that will be asked about.
    """

    def __init__(self, rows: Sequence[Row], *, among: Iterable[Row]):
        self._near, self._runs = Near(rows), Runs(rows, among=among)

    def holds(self, row: Row) -> bool:
        return self._near.holds(row) or self._runs.holds(row)


def given(row: Row, *, system_prompt: str, suffix: str) -> Row:
    """Return the row with its prompt exactly as the model is given it: system prompt before, suffix after.

    `prompt_id` stays the source's, so that one prompt under two suffixes can be compared.
    """
    turns: Messages = [dict(turn) for turn in row["prompt"]]
    if suffix:
        turns[-1]["content"] += suffix
    if system_prompt and turns[0]["role"] == "system":  # templates take one
        turns[0]["content"] = f"{system_prompt}\n\n{turns[0]['content']}"
    elif system_prompt:
        turns.insert(0, {"role": "system", "content": system_prompt})
    return row | {"prompt": turns}


def _nothing_left(asked: int, dropped: Mapping[str, int]) -> InputError:
    return InputError(
        f"no prompt is left of {asked}: {dict(dropped)}; look at the window and at `exclude`, and for those over "
        f"context at max_tokens; those {REFUSED} need another one, or no system_prompt"
    )


def _warn_of_small(groups: Mapping[str, Any], kept: Iterable[Row], share: int) -> None:
    counts = Counter(row["category"] for row in kept)
    small = [f"{name or 'no category'} ({counts[name]})" for name in groups if counts[name] < share]
    if len(groups) > 1 and small:
        more = f" and {len(small) - 8} more" if len(small) > 8 else ""
        log.warning(
            "%d of %d categories hold fewer prompts than an equal share of %d, and give all they have: %s",
            len(small), len(groups), share, ", ".join(small[:8]) + more,
        )  # fmt: skip


def _text(prompt: Messages) -> str:
    return " ".join(" ".join(turn["content"] for turn in prompt if turn["role"] != "system").lower().split())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _grams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(n)), strict=False)


def _minhash(prompt: Messages) -> MinHash:
    return _of_text(_text(prompt))


@functools.lru_cache(maxsize=4)  # a prompt is looked up in two sets and then added to one
def _of_text(text: str) -> MinHash:
    grams = {text[i : i + 5] for i in range(max(len(text) - 4, 1))}
    result = MinHash(num_perm=64, seed=1)
    result.update_batch([gram.encode("utf-8", "surrogatepass") for gram in grams])
    return result
