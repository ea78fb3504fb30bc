"""Did the training help? Base and tuned model answer the same held-out prompts, and the same judge compares them.

Used by 04. Intervals resample whole topics (the `category` of a prompt), since answers about one topic resemble each
other. Beside the score stand length, variety and truncation: a score that rises while these fall is not a gain.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from nbutils.engines import Engine, Request, Sample, Sampling
from nbutils.errors import InputError
from nbutils.judges import Judge, bias
from nbutils.judges.verifier import check, parse_checks
from nbutils.records import Row
from nbutils.stats import bootstrap_mean, distinct, wilson
from nbutils.store import Store, answer
from nbutils.verdicts import decide, mean_scores

# Two answers are alike in length if they differ by at most this share of the longer one.
ALIKE = 0.1


def sample(
    engine: Engine, rows: Sequence[Row], sampling: Sampling, *, n: int, seed: int, store: Store, deadline: float
) -> list[tuple[Sample, ...]]:
    """Return n samples for every prompt, in the order of the rows.

    Raises:
        InputError: if there is no prompt, or the server left prompts unanswered.
    """
    if not rows:
        raise InputError("no held-out prompt is left: all of a set resemble training prompts; name other eval_prompts")
    requests = [Request(tuple(row["prompt"]), n=n, sampling=sampling) for row in rows]
    replies = answer(store, engine, requests, seed=seed, deadline=deadline, title="sampling")
    samples = [reply.samples for reply in replies if reply is not None]
    if len(samples) < len(rows):
        raise InputError(f"{len(rows) - len(samples)} of {len(rows)} prompts got no answer; run the same command again")
    return samples


def compare(
    judge: Judge,
    rows: Sequence[Row],
    before: Sequence[Sequence[Sample]],
    after: Sequence[Sequence[Sample]],
    *,
    store: Store,
    deadline: float = float("inf"),
) -> list[Row]:
    """Judge the i-th answer before against the i-th after, for every prompt.

    Returns:
        One row per pair of answers with text, score (0..1, NaN if unparsed), tokens and finish reason of both, and
        `verdict` as seen from the tuned model: win, tie, loss, flip or unparsed.
    """
    asked = [
        row | {"responses": [{"text": s.text} for s in couple]}
        for row, olds, news in zip(rows, before, after, strict=True)
        for couple in zip(olds, news, strict=True)
    ]
    couples = [c for olds, news in zip(before, after, strict=True) for c in zip(olds, news, strict=True)]
    result = []
    for row, couple, said in zip(asked, couples, judge.score(asked, store, deadline=deadline), strict=True):
        scores = mean_scores(said.scores) or [math.nan, math.nan]
        record = {key: row[key] for key in ("prompt_id", "prompt", "category", "checks")}
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


def summarise(rows: Sequence[Row], *, seed: int = 0) -> dict[str, Any]:
    """Return the numbers of one held-out set; intervals are 95%, by bootstrap over topics.

    `passed_all` is the share of answers with the judge's highest score (for the verifier: every check passed).
    `tokens_ratio` and `distinct_2` are there to be distrusted: see the README.
    """
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
        "win_rate": win_rate(rows),
        "checks": _per_check(rows, seed),
        "truncated": _change(
            frame.before_finish_reason == "length", frame.after_finish_reason == "length", frame.category, seed
        ),
        "characters": {side: float(frame[f"{side}_text"].str.len().mean()) for side in ("before", "after")},
        "tokens": {side: float(frame[f"{side}_tokens"].mean()) for side in ("before", "after")},
        "distinct_2": {side: distinct(frame[f"{side}_text"]) for side in ("before", "after")},
    }
    for unit in ("tokens", "characters"):
        result[f"{unit}_ratio"] = result[unit]["after"] / max(result[unit]["before"], 1e-9)
    return result


def win_rate(rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """Return how often the tuned model won, of all answers and by what became of their length in tokens.

    An answer may win for its length alone: then the win share of the answers alike in length is near one half.

    Returns:
        For all, shorter, alike and longer answers (after against before): `win`, `tie` (flips among them) and `loss`,
        `share` of the wins in wins and losses with its 95% Wilson interval `low`, `high` (None where nothing was
        decided). It takes answers for independent, so with several to a prompt it is somewhat too narrow.
    """
    parts: dict[str, Counter[str]] = {name: Counter() for name in ("all", "shorter", "alike", "longer")}
    for row in rows:
        if row["verdict"] != "unparsed":
            verdict = "tie" if row["verdict"] == "flip" else row["verdict"]
            before, after = row["before_tokens"], row["after_tokens"]
            alike = abs(after - before) <= ALIKE * max(before, after)
            for name in ("all", "alike" if alike else "shorter" if after < before else "longer"):
                parts[name][verdict] += 1
    result: dict[str, dict[str, float | None]] = {}
    for name, counts in parts.items():
        decided = counts["win"] + counts["loss"]
        share, low, high = wilson(counts["win"], decided) if decided else (None, None, None)
        result[name] = {v: counts[v] for v in ("win", "tie", "loss")} | {"share": share, "low": low, "high": high}
    return result


def win_rates(proof: Mapping[str, dict[str, Any]]) -> pd.DataFrame:
    """Return the win rates of every held-out set as a table, one row per set and kind of length."""
    table = {(name, kind): row for name, summary in proof.items() for kind, row in summary["win_rate"].items()}
    frame = pd.DataFrame.from_dict(table, orient="index").rename_axis(index=["prompts", "length after"])
    return frame.astype(dict.fromkeys(("share", "low", "high"), "float")).round(3)


def same_judge_warning(training: Iterable[str], judge: str) -> str:
    """Return a sentence if the judge of the proof is among those that made the training pairs, otherwise nothing.

    Args:
        training: the `judge` of every training pair.
    """
    pairs = list(training)
    if not (own := pairs.count(judge)):
        return ""
    return (
        f"the judge {judge} also made {own} of the {len(pairs)} training pairs: the policy was trained to please it, "
        "so its verdict may flatter; name another judge in eval_judge"
    )


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


def side_effects(proof: Mapping[str, dict[str, Any]]) -> pd.DataFrame:
    """Return what a collapse would move, one row per held-out set: length (tokens), variety, truncation (shares)."""
    table = {
        name: {
            "tokens before": summary["tokens"]["before"],
            "tokens after": summary["tokens"]["after"],
            "tokens ratio": summary["tokens_ratio"],
            "distinct-2 before": summary["distinct_2"]["before"],
            "distinct-2 after": summary["distinct_2"]["after"],
            "cut off before": summary["truncated"]["before"],
            "cut off after": summary["truncated"]["after"],
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
