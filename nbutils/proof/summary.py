"""Did the training help? The numbers of a held-out set, with intervals, and the verdict in words.

Intervals resample whole topics (the `category` of a prompt), since answers about one topic resemble each other.
Beside the score stand length, variety and truncation: a score that rises while these fall is not a gain."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nbutils.core.errors import InputError
from nbutils.core.records import Row
from nbutils.core.stats import bootstrap_mean, distinct
from nbutils.core.texts import language as language_of
from nbutils.judges.verifier import check, faults_of, parse_checks
from nbutils.proof import people
from nbutils.proof.doubts import unmeasured
from nbutils.proof.winrates import win_rate

PASSED = "all passed"  # the headline where prompts carry checks
SCORE, RIGHT = "mean score", "right answers"  # elsewhere; the latter where the judge goes by a key


def summarise(rows: Sequence[Row], *, language: str = "", seed: int = 0, by_key: bool = False) -> dict[str, Any]:
    """Return the numbers of one held-out set; intervals are 95%, by bootstrap over topics.

    What rests on scores is of the answers that were `measured`, with both scores readable; it is None where none was.
    `bounds` is the headline's change with all others counted as losses, and as wins; None where all were measured.
    `passed_all` is the share of answers with the judge's highest score (for the verifier: every check passed).
    `tokens_ratio` and `distinct_2` are there to be distrusted: see RESULTS.md.

    Args:
        language: expected of the answers, ISO 639-1. `wrong_language` is then the share told to be in another one;
            empty for any, where it is None.
        by_key: whether scores tell right from wrong, see `judges.answer`.
    """
    rows = [row | {"category": row["category"] or row["prompt_id"]} for row in rows]  # without one, each its own topic
    frame = pd.DataFrame(rows)
    scored = frame[np.isfinite(frame[["before_score", "after_score"]].astype(float)).all(axis=1)]
    scores = (scored.before_score, scored.after_score)
    passed = (scores[0] >= 1 - 1e-9, scores[1] >= 1 - 1e-9)
    given = frame[frame.verdict != "unanswered"]  # what can be told of answers, whatever their score
    cut = (given.before_finish_reason == "length", given.after_finish_reason == "length")
    result: dict[str, Any] = {
        **_sizes(frame),
        "scored": RIGHT if by_key else SCORE,
        "unparsed": len(given) - len(scored),
        "unanswered": len(frame) - len(given),
        "measured": _sizes(scored),
        "score": _change(*scores, scored.category, seed) if len(scored) else None,
        "passed_all": _change(*passed, scored.category, seed) if len(scored) else None,
        "verdicts": dict(sorted(Counter(frame.verdict).items())),
        "win_rate": win_rate(rows),
        "checks": _per_check([row for row in rows if row["verdict"] != "unanswered"], seed),
        "truncated": _change(*cut, given.category, seed),
        "wrong_language": _foreign(given, language, seed) if language else None,
        "characters": {side: float(given[f"{side}_text"].str.len().mean()) for side in ("before", "after")},
        "tokens": {side: float(given[f"{side}_tokens"].mean()) for side in ("before", "after")},
        "distinct_2": {side: distinct(given[f"{side}_text"]) for side in ("before", "after")},
    }
    before, after = passed if result["checks"] else scores
    change = after.astype(float) - before.astype(float)
    result["bounds"] = None
    if len(scored) < len(frame):
        change = change.reindex(frame.index)  # NaN for what was not measured
        result["bounds"] = {
            word: bootstrap_mean(list(change.fillna(value)), list(frame.category), seed=seed)._asdict()
            for word, value in (("losses", -1.0), ("wins", 1.0))
        }
    ratios = {
        f"{unit}_ratio": result[unit]["after"] / max(result[unit]["before"], 1e-9) for unit in ("tokens", "characters")
    }
    return result | ratios


def _sizes(frame: Any) -> dict[str, int]:
    return {"prompts": frame.prompt_id.nunique(), "answers": len(frame), "topics": frame.category.nunique()}


def headline(summary: Mapping[str, Any]) -> tuple[str, dict[str, float] | None]:
    """Return the change that the verdict goes by, with its name: the share that passed all checks, or the mean score.

    That is the share of right answers where the judge goes by a key. Only where prompts carry checks has the highest
    score a meaning of its own; a reward model never gives it. None where nothing was measured.
    """
    return (PASSED, summary["passed_all"]) if summary["checks"] else (summary.get("scored", SCORE), summary["score"])


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
        f"{judged}{' where measured' if unmeasured(summary) else ''}: {name} {100 * change['before']:.1f}% to "
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
        if (asked := summary.get("people")) and asked["labels"]:
            lines.append(f"{name}, people: {people.in_words(asked)}")
    return lines


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
