"""Did the training help? Base and tuned model answer the same held-out prompts, and the same judge compares them.

Used by 04. Intervals resample whole topics (the `category` of a prompt), since answers about one topic resemble each
other. Beside the score stand length, variety and truncation: a score that rises while these fall is not a gain.
"""

import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nbutils import health, judges, params, prompts, sources
from nbutils.engines import Engine, Request, Sample, Sampling
from nbutils.errors import InputError
from nbutils.judges import Judge, bias
from nbutils.judges.verifier import check, faults_of, parse_checks
from nbutils.prompts import Overlap, from_rows
from nbutils.records import PROMPTS, Row, digest
from nbutils.stats import bootstrap_mean, distinct
from nbutils.store import Store, answer
from nbutils.texts import language as language_of
from nbutils.verdicts import decide, mean_scores
from nbutils.winrates import win_rate

log = logging.getLogger(__name__)

PASSED = "all passed"  # the headline where prompts carry checks


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
    reference: str = "",
    judges_of: Mapping[str, Judge] | None = None,
    judged: Sequence[Row] = (),
    fits: Callable[[Row], bool] | None = None,
) -> tuple[dict[str, list[Row]], dict[str, int], dict[str, int]]:
    """Return the prompts of each held-out set that overlap with no training prompt, how many did, how many are unfit.

    The rule is the one by which 02 chooses its prompts. A set without a prompt left is left out with a warning, as
    long as there is another.

    Args:
        names: of datasets; a set goes by `sources.label` of its name.
        column: with the prompt.
        reference: column with the right answer, empty for none; read where the set's judge goes by it.
        judges_of: from `load_judges`; prompts that a set's judge has no way to judge are unfit.
        trained_on: rows with the prompts that must not be asked again, of off-policy pairs as well.
        judged: rows with the prompts that those were chosen from: beside the others they tell which words are how
            prompts of a kind are worded, and no overlap.
        fits: whether the model can be asked a prompt; one at which it raises cannot.

    Raises:
        InputError: if two sets share a label, or no prompt of any set is left.
    """
    kept: dict[str, list[Row]] = {}
    overlapped: dict[str, int] = {}
    unfit: dict[str, int] = {}
    for name in names:
        label = sources.label(name)
        judge = (judges_of or {}).get(label)
        by_key = judge is None or judge.file.kind == "answer"

        def can_be_proof(row: Row, judge: Judge | None = judge) -> bool:
            return not (judge and judges.fault(judge, row)) and (fits is None or fits(row))

        if label in overlapped:
            raise InputError(f"eval_prompts: two sets would be called {label!r}, {name} the second; rename a file")
        rows = from_rows(sources.read(name, run_dir=run_dir), column, reference if by_key else "")
        trained = Overlap(trained_on, among=[*rows, *judged])
        fresh = [row for row in rows if not trained.holds(row)]
        kept[label] = [row for row in fresh if not prompts.unfit(row, can_be_proof)]
        overlapped[label], unfit[label] = len(rows) - len(fresh), len(fresh) - len(kept[label])
        if unfit[label]:
            log.warning("%s: %d of %d prompts cannot be asked, over context or refused", name, unfit[label], len(rows))
        if not kept[label]:
            del kept[label]
            log.warning("%s: none of %d prompts is left, the set is left out", name, len(rows))
    if not kept:
        raise InputError(
            f"eval_prompts: no prompt of {', '.join(names)} is left, {sum(overlapped.values())} overlap with training "
            f"prompts and {sum(unfit.values())} are over context or {prompts.REFUSED}; name others"
        )
    return kept, overlapped, unfit


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

    As many rows as a judge's `gate_rows` are judged first, as a trial, of all its sets together. A prompt without an
    answer on either side is passed over.

    Returns:
        For each set one row per pair of answers with text, score (0..1, NaN if unparsed), tokens and finish reason of
        both, and `verdict` as seen from the tuned model: win, tie, loss, flip or unparsed.

    Raises:
        InputError: if more of the trial stays unanswered or unreadable than the gate of 01 and 03 allows, before
            the rest is paid for; or if more of all stays unanswered. What was answered is stored.
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
            _insist(judge, _compare(judge, trial, store, deadline), "unanswered", "refused", "unparsed")
    compared = {name: _compare(judges_of[name], parts, store, deadline) for name, parts in asked.items()}
    for names in sets.values():
        _insist(judges_of[names[0]], [row for name in names for row in compared[name]], "unanswered")
    return compared


def _insist(judge: Judge, compared: Sequence[Row], *limits: str) -> None:
    try:
        table = bias.figures(_judged(compared))
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
    result = []
    for (row, couple), said in zip(parts, judge.score(asked, store, deadline=deadline), strict=True):
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
        verdict = decide([new - old for old, new in orders])
        result.append(record | {"scores": orders, "replies": said.replies, "verdict": verdict, "judge": judge.name})
    return result


def _judged(compared: Sequence[Row]) -> list[Row]:
    return [row | {"responses": [{"text": row[f"{side}_text"]} for side in ("before", "after")]} for row in compared]


def judge_report(judges_of: Mapping[str, Judge], compared: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Return `judges.bias.report` on each held-out set; the answer before is the first response."""
    return {
        name: bias.report(judges_of[name], judged, bias.figures(judged))
        for name, judged in ((name, _judged(rows)) for name, rows in compared.items())
    }


def summarise(rows: Sequence[Row], *, language: str = "", seed: int = 0) -> dict[str, Any]:
    """Return the numbers of one held-out set; intervals are 95%, by bootstrap over topics.

    What rests on scores is of the answers that were `measured`, with both scores readable; it is None where none was.
    `bounds` is the headline's change with all others counted as losses, and as wins; None where all were measured.
    `passed_all` is the share of answers with the judge's highest score (for the verifier: every check passed).
    `tokens_ratio` and `distinct_2` are there to be distrusted: see RESULTS.md.

    Args:
        language: expected of the answers, ISO 639-1. `wrong_language` is then the share told to be in another one;
            empty for any, where it is None.
    """
    rows = [row | {"category": row["category"] or row["prompt_id"]} for row in rows]  # without one, each its own topic
    frame = pd.DataFrame(rows)
    read = np.isfinite(frame[["before_score", "after_score"]].astype(float)).all(axis=1)
    scored = frame[read]
    passed = (scored.before_score >= 1 - 1e-9, scored.after_score >= 1 - 1e-9)
    result: dict[str, Any] = {
        "prompts": int(frame.prompt_id.nunique()),
        "answers": len(frame),
        "topics": int(frame.category.nunique()),
        "unparsed": len(frame) - len(scored),
        "measured": {
            "prompts": int(scored.prompt_id.nunique()),
            "answers": len(scored),
            "topics": int(scored.category.nunique()),
        },
        "score": _change(scored.before_score, scored.after_score, scored.category, seed) if len(scored) else None,
        "passed_all": _change(*passed, scored.category, seed) if len(scored) else None,
        "verdicts": dict(sorted(Counter(frame.verdict).items())),
        "win_rate": win_rate(rows, seed=seed),
        "checks": _per_check(rows, seed),
        "truncated": _change(
            frame.before_finish_reason == "length", frame.after_finish_reason == "length", frame.category, seed
        ),
        "wrong_language": _foreign(frame, language, seed) if language else None,
        "characters": {side: float(frame[f"{side}_text"].str.len().mean()) for side in ("before", "after")},
        "tokens": {side: float(frame[f"{side}_tokens"].mean()) for side in ("before", "after")},
        "distinct_2": {side: distinct(frame[f"{side}_text"]) for side in ("before", "after")},
    }
    before, after = passed if result["checks"] else (scored.before_score, scored.after_score)
    change = after.astype(float) - before.astype(float)
    result["bounds"] = (
        {
            word: bootstrap_mean(
                list(change.reindex(frame.index).fillna(worst)), list(frame.category), seed=seed
            )._asdict()
            for word, worst in (("losses", -1.0), ("wins", 1.0))
        }
        if len(scored) < len(frame)
        else None
    )
    for unit in ("tokens", "characters"):
        result[f"{unit}_ratio"] = result[unit]["after"] / max(result[unit]["before"], 1e-9)
    return result


def same_judge_warnings(training: Iterable[str], proof: Iterable[str]) -> list[str]:
    """Return a sentence for each judge of the proof that is among those that made the training pairs.

    Args:
        training: the `judge` of every training pair.
        proof: the name of the judge of every held-out set.
    """
    made = Counter(training)
    return [
        f"the judge {judge} also made {made[judge]} of the {made.total()} training pairs: the policy was trained to "
        "please it, so its verdict may flatter; name another judge in eval_judge"
        for judge in dict.fromkeys(proof)
        if made[judge]
    ]


def headline(summary: Mapping[str, Any]) -> tuple[str, dict[str, float] | None]:
    """Return the change that the verdict goes by, with its name: the share that passed all checks, or the mean score.

    Only where prompts carry checks has the highest score a meaning of its own; a reward model never gives it. None
    where nothing was measured.
    """
    return (PASSED, summary["passed_all"]) if summary["checks"] else ("mean score", summary["score"])


def word(low: float, high: float) -> str:
    """Return the verdict by the ends of a change's interval."""
    return "better" if low > 0 else "worse" if high < 0 else "not shown to differ"


def in_words(summary: Mapping[str, Any]) -> str:
    """Return the verdict (better, worse, not shown) by the interval of the headline's change, and what it rests on."""
    name, change = headline(summary)
    measured, prompts = summary["measured"], summary["prompts"]
    if change is None:
        return f"not measured: the judge gave no readable score on any of {prompts} prompts"
    judged = word(change["low"], change["high"])
    text = (
        f"{judged}{' where measured' if health.unmeasured(summary) else ''}: {name} {100 * change['before']:.1f}% to "
        f"{100 * change['after']:.1f}%, {100 * change['change']:+.1f} points [{100 * change['low']:+.1f}, "
        f"{100 * change['high']:+.1f}] on {measured['prompts']} "
    )
    if not summary["bounds"]:
        return f"{text}prompts, {measured['topics']} topics"
    bounds = ", ".join(
        f"{100 * bound['value']:+.1f} points [{100 * bound['low']:+.1f}, {100 * bound['high']:+.1f}] as {word}"
        for word, bound in summary["bounds"].items()
    )
    return (
        f"{text}of {prompts} prompts that were measured ({measured['answers']} of {summary['answers']} answers), "
        f"{measured['topics']} topics; the others counted: {bounds}"
    )


def got_worse(summary: dict[str, Any]) -> list[str]:
    """Return one line for each kind of check whose interval lies below zero: what an overall gain may hide."""
    return [
        f"{name}: {100 * c['change']:+.0f} points [{100 * c['low']:+.0f}, {100 * c['high']:+.0f}]"
        for name, c in summary["checks"].items()
        if c["high"] < 0
    ]


def findings(proof: Mapping[str, dict[str, Any]]) -> list[str]:
    """Return what must be quoted together: the verdict of every held-out set, each with the kinds that got worse."""
    lines = []
    for name, summary in proof.items():
        worse = got_worse(summary)
        lines.append(f"{name}: {in_words(summary)}{'; got worse: ' if worse else ''}{', '.join(worse)}")
    return lines


def side_effects(proof: Mapping[str, dict[str, Any]]) -> pd.DataFrame:
    """Return what a collapse would move, one row per held-out set: length (tokens), variety, shares of faults."""
    faults = {"truncated": "cut off", "wrong_language": "wrong language"}
    table = {
        name: {
            "tokens before": summary["tokens"]["before"],
            "tokens after": summary["tokens"]["after"],
            "tokens ratio": summary["tokens_ratio"],
            "distinct-2 before": summary["distinct_2"]["before"],
            "distinct-2 after": summary["distinct_2"]["after"],
        }
        | {
            f"{title} {side}": summary[fault][side]
            for fault, title in faults.items()
            if summary[fault]
            for side in ("before", "after")
        }
        for name, summary in proof.items()
    }
    return pd.DataFrame(table).T.round(3)


def examples(rows: Sequence[Row], count: int = 3) -> list[Row]:
    """Choose pairs of answers by a fixed rule: first answers of the prompts with the smallest ids."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row["prompt_id"], row)
    return [first[i] for i in sorted(first)[:count]]


def _change(before: Any, after: Any, topics: Any, seed: int) -> dict[str, float]:
    before, after = before.astype(float), after.astype(float)
    interval = bootstrap_mean(list(after - before), list(topics), seed=seed)
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "change": interval.value,
        "low": interval.low,
        "high": interval.high,
    }


def _foreign(frame: pd.DataFrame, language: str, seed: int) -> dict[str, float]:
    """Return the change of the share told to be in another language; of answers too short to tell nothing is said."""
    before, after = (~frame[f"{side}_text"].map(language_of).isin(("", language)) for side in ("before", "after"))
    return _change(before, after, frame.category, seed)


def _per_check(rows: Sequence[Row], seed: int) -> dict[str, dict[str, float]]:
    """Return the change of every kind of check, where prompts carry checks; a prompt's own topic word apart."""
    table = []
    for row in rows:
        if row["checks"] and _checkable(row["checks"]):
            sides = [check(row["checks"], row[f"{side}_text"]) for side in ("before", "after")]
            topic = row["category"]
            names = [
                "topic named" if name == "keywords:existence" and options.get("keywords") == [topic] else name
                for name, options in parse_checks(row["checks"])
            ]
            table += [
                {"name": name, "before": old, "after": new, "topic": topic}
                for name, (_, old), (_, new) in zip(names, *sides, strict=True)
            ]
    if not table:
        return {}
    groups = pd.DataFrame(table).groupby("name")
    return {str(name): _change(g.before, g.after, g.topic, seed) for name, g in groups}


@functools.cache
def _checkable(checks: str) -> bool:
    """Tell whether a prompt's checks are rules that can be followed: one row's garbled ones stop nobody's proof."""
    try:
        return not faults_of(checks, "en")
    except InputError:
        return False
