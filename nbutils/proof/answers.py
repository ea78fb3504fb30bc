"""Base and tuned model answer the same held-out prompts, and the same judge compares them."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nbutils import judges, params
from nbutils.core import prompts
from nbutils.core.errors import InputError
from nbutils.core.prompts import Overlap, from_rows
from nbutils.core.records import PROMPTS, Row, digest
from nbutils.core.sampling import Sample, Sampling
from nbutils.core.verdicts import decide, mean_scores
from nbutils.engines.asking import answer
from nbutils.engines.protocol import Engine, Request
from nbutils.engines.store import Store
from nbutils.files import sources
from nbutils.judges import bias
from nbutils.judges.judge import Judge, Judgement

log = logging.getLogger(__name__)

NONE = Sample("", 0, "unanswered")  # stands for an answer that there is not


def load_judges(given: params.Dpo, *, cache: Path) -> dict[str, Judge]:
    """Return the judge of each held-out set, by the set's label; one that judges several is loaded once."""
    loaded = {name: judges.load(name, cache=cache, seed=given.seed) for name in given.proof_judges}
    sets = map(sources.label, params.names(given.eval_prompts))
    return {label: loaded[judge] for label, judge in zip(sets, given.proof_judges, strict=True)}


def held_out(
    names: Sequence[str],
    column: str,
    *,
    trained_on: Sequence[Row],
    run_dir: Path,
    judges_of: Mapping[str, Judge],
    reference: str = "",
    judged: Sequence[Row] = (),
    fits: Callable[[Row], bool] | None = None,
) -> tuple[dict[str, list[Row]], dict[str, int], dict[str, int]]:
    """Return the prompts of each held-out set that overlap with no training prompt, how many did, how many are unfit.

    The rule is that of 02. A set without a prompt left is left out with a warning, as long as there is another.

    Args:
        names: of datasets; a set goes by `sources.label` of its name.
        column: with the prompt.
        trained_on: rows with the prompts that must not be asked again, of off-policy pairs as well.
        judges_of: from `load_judges`; prompts that a set's judge has no way to judge are unfit.
        reference: column with the right answer, or a good one that neither model wrote, for judges that go by it.
        judged: rows with the prompts that those were chosen from: they tell how prompts of a kind are worded.
        fits: whether the model can be asked a prompt; one at which it raises cannot.

    Raises:
        InputError: if two sets share a label, or no prompt of any set is left.
    """
    kept = dict[str, list[Row]]()
    overlapped, unfit = dict[str, int](), dict[str, int]()
    for name in names:
        judge = judges_of[label := sources.label(name)]
        if label in overlapped:
            raise InputError(f"eval_prompts: two sets would be called {label!r}, {name} the second; rename a file")
        key = reference if judges.sees_reference(judge) else ""
        rows = from_rows(sources.read(name, run_dir=run_dir), column, key)
        trained = Overlap(trained_on, among=[*rows, *judged])
        fresh = [row for row in rows if not trained.holds(row)]
        fit = [row for row in fresh if not prompts.unfit(row, partial(_can_be_proof, judge=judge, fits=fits))]
        overlapped[label], unfit[label] = len(rows) - len(fresh), len(fresh) - len(fit)
        if unfit[label]:
            log.warning("%s: %d of %d prompts cannot be asked, over context or refused", name, unfit[label], len(rows))
        kept |= {label: fit} if fit else {}
        if not fit:
            log.warning("%s: none of %d prompts is left, the set is left out", name, len(rows))
    if not kept:
        raise InputError(
            f"eval_prompts: no prompt of {', '.join(names)} is left, {sum(overlapped.values())} overlap with training "
            f"prompts and {sum(unfit.values())} are over context or {prompts.REFUSED}; name others"
        )
    return kept, overlapped, unfit


def shown_to(judges_of: Mapping[str, Judge], held_out: Mapping[str, Sequence[Row]]) -> list[str]:
    """Return what the judge of each held-out set sees beside prompt and answers, one sentence each."""
    sentences = []
    for name, rows in held_out.items():
        judge, known = judges_of[name], sum(bool(row["reference"]) for row in rows)
        seen = "sees no reference"
        if judges.sees_reference(judge):
            seen = f"sees the reference of {known} of {len(rows)} prompts, which must be by neither model"
        sentences.append(f"{name}: judge {judge.name} {seen}")
    return sentences


def _can_be_proof(row: Row, *, judge: Judge, fits: Callable[[Row], bool] | None) -> bool:
    return not judges.fault(judge, row) and (fits is None or fits(row))


def sample(
    engine: Engine,
    held_out: Mapping[str, Sequence[Row]],
    sampling: Sampling,
    *,
    n: int,
    seed: int,
    store: Store,
    deadline: float,
) -> dict[str, list[tuple[Sample, ...]]]:
    """Return n samples for every prompt of every held-out set, in their order; none where there was no answer.

    Raises:
        InputError: if the engine left more prompts unanswered than a judge may leave rows.
    """
    result: dict[str, list[tuple[Sample, ...]]] = {}
    for name, rows in held_out.items():
        requests = [Request(tuple(row["prompt"]), n=n, sampling=sampling) for row in rows]
        replies = answer(store, engine, requests, seed=seed, deadline=deadline, title="sampling")
        result[name] = [reply.samples if reply else () for reply in replies]
        missing = result[name].count(())
        if missing > bias.MOST["unanswered"] * len(rows):
            raise InputError(f"{name}: {missing} of {len(rows)} prompts got no answer; run the same command again")
    return result


def compare(
    judges_of: Mapping[str, Judge],
    held_out: Mapping[str, Sequence[Row]],
    before: Mapping[str, Sequence[Sequence[Sample]]],
    after: Mapping[str, Sequence[Sequence[Sample]]],
    *,
    store: Store,
    deadline: float = float("inf"),
) -> dict[str, list[Row]]:
    """Judge the i-th answer before against the i-th after, for every prompt of every held-out set, by the set's judge.

    As many rows as a judge's `gate_rows` are judged first, as a trial, of all its sets together.

    Returns:
        For each set one row per pair of answers with text, score (0..1, NaN if unparsed), tokens and finish reason of
        both, and `verdict` as seen from the tuned model: win, tie, loss, flip, unparsed or unanswered.

    Raises:
        InputError: if more of the trial, or of all, stays unanswered or unreadable than the gate of 01 and 03 allows.
    """
    asked = {
        name: [
            (row, couple)
            for row, *sides in zip(rows, before[name], after[name], strict=True)
            if all(sides)
            for couple in zip(*sides, strict=True)
        ]
        for name, rows in held_out.items()
    }
    sets: dict[int, list[str]] = {}
    for name in asked:
        sets.setdefault(id(judges_of[name]), []).append(name)
    for names in sets.values():
        judge = judges_of[names[0]]
        every = sorted(
            (part for name in names for part in asked[name]),
            key=lambda part: digest([part[0]["prompt"], part[1][0].text]),
        )
        if trial := every[: getattr(judge.file, "gate_rows", 0)]:
            tried = _compare(judge, trial, store, deadline)
            judges.finish(judge)
            _insist(judge, tried, "unanswered", "refused", "unparsed")
    compared = {name: _compare(judges_of[name], parts, store, deadline) for name, parts in asked.items()}
    judges.finish(*(judges_of[name] for name in asked))
    for name, rows in held_out.items():
        compared[name] += _unanswered(judges_of[name], zip(rows, before[name], after[name], strict=True))
    compared = {name: _in_order(compared[name], rows) for name, rows in held_out.items()}
    for names in sets.values():
        _insist(judges_of[names[0]], [row for name in names for row in compared[name]], "unanswered")
    return compared


def _unanswered(judge: Judge, drawn: Iterable[tuple[Row, Sequence[Sample], Sequence[Sample]]]) -> list[Row]:
    """Return what is known of prompts to which a side has no answer."""
    parts = list(drawn)
    n = max((len(side) for _, *sides in parts for side in sides), default=0)  # as many as of the other prompts
    lost = [(row, couple) for row, *sides in parts if not all(sides) for couple in _padded(sides, n)]
    return [_record(row, judge, couple, Judgement(), "unanswered") for row, couple in lost]


def _in_order(compared: list[Row], rows: Sequence[Row]) -> list[Row]:
    """Return compared rows in the order of their prompts."""
    place = {row["prompt_id"]: i for i, row in enumerate(rows)}
    return sorted(compared, key=lambda row: place[row["prompt_id"]])


def _padded(sides: Sequence[Sequence[Sample]], n: int) -> Iterator[tuple[Sample, ...]]:
    return zip(*([*side, *[NONE] * (n - len(side))] for side in sides), strict=True)


def _insist(judge: Judge, compared: Sequence[Row], *limits: str) -> None:
    try:
        table = bias.figures(as_judged(compared))
        bias.insist(table[table.index.isin(limits)])
    except InputError as error:
        raise InputError(
            f"eval_judge {judge.name}: {error}; samples, training and adapter are kept: run again with the same or "
            "another eval_judge"
        ) from None


def _compare(
    judge: Judge, parts: Sequence[tuple[Row, tuple[Sample, Sample]]], store: Store, deadline: float
) -> list[Row]:
    asked = [row | {"responses": [{"text": drawn.text} for drawn in couple]} for row, couple in parts]
    judged = zip(parts, judge.score(asked, store, deadline=deadline), strict=True)
    return [_record(row, judge, couple, said) for (row, couple), said in judged]


def _record(row: Row, judge: Judge, couple: Sequence[Sample], said: Judgement, verdict: str = "") -> Row:
    # an order without two numbers was not understood: compared with NaN, everything is a loss
    orders = [order for order in said.scores if all(map(math.isfinite, order))]
    scores = mean_scores(orders) or [math.nan, math.nan]
    record = {key: row[key] for key in PROMPTS if key in row}
    for side, drawn, score in zip(("before", "after"), couple, scores, strict=True):
        record |= {
            f"{side}_text": drawn.text,
            f"{side}_score": score,
            f"{side}_tokens": drawn.n_tokens,
            f"{side}_finish_reason": drawn.finish_reason,
        }
    verdict = verdict or decide([new - old for old, new in orders])
    return record | {"scores": orders, "replies": said.replies, "verdict": verdict, "judge": judge.name}


def as_judged(compared: Sequence[Row]) -> list[Row]:
    """Return compared rows as judges see them: the answer before is the first response, the one after the second."""
    return [row | {"responses": [{"text": row[f"{side}_text"]} for side in ("before", "after")]} for row in compared]


def judge_report(judges_of: Mapping[str, Judge], compared: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Return `judges.bias.report` on each held-out set; the answer before is the first response."""
    return {
        name: bias.report(judges_of[name], judged, bias.figures(judged))
        for name, judged in ((name, as_judged(rows)) for name, rows in compared.items())
    }


def examples(rows: Sequence[Row], count: int = 3) -> list[Row]:
    """Choose pairs of answers by a fixed rule: first answers of the prompts with the smallest ids."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row["prompt_id"], row)
    return [first[i] for i in sorted(first)[:count]]
