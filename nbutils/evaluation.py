"""Did the training help? Base and tuned model answer the same held-out prompts, and the same judge compares them.

Used by 04. Intervals resample whole topics (the `category` of a prompt), since answers about one topic resemble each
other. Beside the score stand length, variety and truncation: a score that rises while these fall is not a gain.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nbutils import sources
from nbutils.engines import Engine, Request, Sample, Sampling
from nbutils.errors import InputError
from nbutils.judges import Judge, bias
from nbutils.judges.verifier import check, parse_checks
from nbutils.prompts import Near, from_rows
from nbutils.records import PROMPTS, Row
from nbutils.stats import bootstrap_mean, distinct
from nbutils.store import Store, answer
from nbutils.texts import language as language_of
from nbutils.verdicts import decide, mean_scores
from nbutils.winrates import win_rate


def held_out(
    names: Sequence[str], column: str, *, trained_on: Sequence[Row], run_dir: Path, reference: str = ""
) -> tuple[dict[str, list[Row]], dict[str, int]]:
    """Return the prompts of each held-out set that resemble no training prompt, and how many did.

    Args:
        names: of datasets; a set goes by `sources.label` of its name.
        column: with the prompt.
        reference: column with the right answer, empty for none.
        trained_on: rows with the prompts that must not be asked again.

    Raises:
        InputError: if two sets share a label, or none of a set's prompts is left.
    """
    near = Near(trained_on)
    kept: dict[str, list[Row]] = {}
    overlapped = {}
    for name in names:
        label = sources.label(name)
        if label in kept:
            raise InputError(f"eval_prompts: two sets would be called {label!r}, {name} the second; rename a file")
        rows = from_rows(sources.read(name, run_dir=run_dir), column, reference)
        kept[label] = [row for row in rows if not near.holds(row)]
        overlapped[label] = len(rows) - len(kept[label])
        if not kept[label]:
            raise InputError(f"eval_prompts: all {len(rows)} prompts of {name} resemble training prompts; name others")
    return kept, overlapped


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
    """Return n samples for every prompt of every held-out set, in the order of the rows.

    Raises:
        InputError: if the engine left prompts unanswered.
    """
    result = {}
    for name, rows in held_out.items():
        requests = [Request(tuple(row["prompt"]), n=n, sampling=sampling) for row in rows]
        replies = answer(store, engine, requests, seed=seed, deadline=deadline, title="sampling")
        result[name] = [reply.samples for reply in replies if reply is not None]
        if missing := len(rows) - len(result[name]):
            raise InputError(f"{name}: {missing} of {len(rows)} prompts got no answer; run the same command again")
    return result


def compare(
    judge: Judge,
    held_out: Mapping[str, Sequence[Row]],
    before: Mapping[str, Sequence[Sequence[Sample]]],
    after: Mapping[str, Sequence[Sequence[Sample]]],
    *,
    store: Store,
    deadline: float = float("inf"),
) -> dict[str, list[Row]]:
    """Judge the i-th answer before against the i-th after, for every prompt of every held-out set.

    Returns:
        For each set one row per pair of answers with text, score (0..1, NaN if unparsed), tokens and finish reason of
        both, and `verdict` as seen from the tuned model: win, tie, loss, flip or unparsed.
    """
    return {name: _compare(judge, rows, before[name], after[name], store, deadline) for name, rows in held_out.items()}


def _compare(
    judge: Judge,
    rows: Sequence[Row],
    before: Sequence[Sequence[Sample]],
    after: Sequence[Sequence[Sample]],
    store: Store,
    deadline: float,
) -> list[Row]:
    asked = [
        row | {"responses": [{"text": s.text} for s in couple]}
        for row, olds, news in zip(rows, before, after, strict=True)
        for couple in zip(olds, news, strict=True)
    ]
    couples = [c for olds, news in zip(before, after, strict=True) for c in zip(olds, news, strict=True)]
    result = []
    for row, couple, said in zip(asked, couples, judge.score(asked, store, deadline=deadline), strict=True):
        scores = mean_scores(said.scores) or [math.nan, math.nan]
        record = {key: row[key] for key in PROMPTS if key in row}
        for side, drawn, score in zip(("before", "after"), couple, scores, strict=True):
            record |= {
                f"{side}_text": drawn.text,
                f"{side}_score": score,
                f"{side}_tokens": drawn.n_tokens,
                f"{side}_finish_reason": drawn.finish_reason,
            }
        verdict = decide([new - old for old, new in said.scores])
        result.append(
            record | {"scores": said.scores, "replies": said.replies, "verdict": verdict, "judge": judge.name}
        )
    return result


def judge_report(judge: Judge, compared: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Return `judges.bias.report` on each held-out set; the answer before is the first response."""
    result = {}
    for name, rows in compared.items():
        judged = [row | {"responses": [{"text": row[f"{side}_text"]} for side in ("before", "after")]} for row in rows]
        result[name] = bias.report(judge, judged, bias.figures(judged))
    return result


def summarise(rows: Sequence[Row], *, language: str = "", seed: int = 0) -> dict[str, Any]:
    """Return the numbers of one held-out set; intervals are 95%, by bootstrap over topics.

    `passed_all` is the share of answers with the judge's highest score (for the verifier: every check passed).
    `tokens_ratio` and `distinct_2` are there to be distrusted: see RESULTS.md.

    Args:
        language: expected of the answers, ISO 639-1. `wrong_language` is then the share told to be in another one;
            empty for any, where it is None.
    """
    rows = [row | {"category": row["category"] or row["prompt_id"]} for row in rows]  # without one, each its own topic
    frame = pd.DataFrame(rows)
    scored = frame.dropna(subset=["before_score", "after_score"])
    if scored.empty:
        raise InputError("the judge gave no readable score for any held-out answer; look at its replies in the store")
    result: dict[str, Any] = {
        "prompts": int(frame.prompt_id.nunique()),
        "answers": len(frame),
        "topics": int(frame.category.nunique()),
        "unparsed": len(frame) - len(scored),
        "score": _change(scored.before_score, scored.after_score, scored.category, seed),
        "passed_all": _change(scored.before_score >= 1 - 1e-9, scored.after_score >= 1 - 1e-9, scored.category, seed),
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
    for unit in ("tokens", "characters"):
        result[f"{unit}_ratio"] = result[unit]["after"] / max(result[unit]["before"], 1e-9)
    return result


def same_judge_warnings(training: Iterable[str], judge: str) -> list[str]:
    """Return a sentence if the judge of the proof is among those that made the training pairs, otherwise nothing.

    Args:
        training: the `judge` of every training pair.
    """
    pairs = list(training)
    if not (own := pairs.count(judge)):
        return []
    return [
        f"the judge {judge} also made {own} of the {len(pairs)} training pairs: the policy was trained to please it, "
        "so its verdict may flatter; name another judge in eval_judge"
    ]


def headline(summary: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """Return the change that the verdict goes by, with its name: the share that passed all checks, or the mean score.

    Only where prompts carry checks has the highest score a meaning of its own; a reward model never gives it.
    """
    return ("all passed", summary["passed_all"]) if summary["checks"] else ("mean score", summary["score"])


def in_words(summary: Mapping[str, Any]) -> str:
    """Return the verdict: better, worse or not shown, by the interval of the headline's change."""
    name, change = headline(summary)
    word = "better" if change["low"] > 0 else "worse" if change["high"] < 0 else "not shown to differ"
    return (
        f"{word}: {name} {100 * change['before']:.1f}% to {100 * change['after']:.1f}%, "
        f"{100 * change['change']:+.1f} points [{100 * change['low']:+.1f}, {100 * change['high']:+.1f}] "
        f"on {summary['prompts']} prompts, {summary['topics']} topics"
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
        if row["checks"]:
            sides = [check(row["checks"], row[f"{side}_text"]) for side in ("before", "after")]
            topic = row["category"]
            names = [
                "topic named" if name == "keywords:existence" and options["keywords"] == [topic] else name
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
