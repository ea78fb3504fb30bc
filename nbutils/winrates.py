"""How often the tuned model's answer beats the base's, and whether length alone would explain it.

Used by `evaluation` (04). Judges, people among them, like longer answers; so the wins are counted by what became of the
length, and for large sets a model takes it out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nbutils.records import Row
from nbutils.stats import wilson

# Two answers are alike in length if they differ by at most this share of the longer one.
ALIKE = 0.1
# With fewer prompts the controlled share is too uncertain to be of use.
LEAST_PROMPTS = 800


def win_rate(rows: Sequence[Row], *, seed: int = 0) -> dict[str, dict[str, float | None]]:
    """Return how often the tuned model won, of all answers and by what became of their length in tokens.

    An answer may win for its length alone: then the win share of the answers alike in length is near one half.

    Returns:
        For all, shorter, alike and longer answers (after against before): `win`, `tie` (flips among them) and `loss`,
        `share` of the wins in wins and losses with its 95% Wilson interval `low`, `high` (None where nothing was
        decided). It takes answers for independent, so with several to a prompt it is somewhat too narrow.
        From LEAST_PROMPTS prompts on also `length-controlled`, see there.
    """
    parts: dict[str, Counter[str]] = {name: Counter() for name in ("all", "shorter", "alike", "longer")}
    rows = [row for row in rows if row["verdict"] != "unparsed"]
    for row in rows:
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
    if len({row["prompt_id"] for row in rows}) >= LEAST_PROMPTS and result["all"]["share"] not in (None, 0.0, 1.0):
        share, low, high = length_controlled(rows, seed=seed)
        result["length-controlled"] = result["all"] | {"share": share, "low": low, "high": high}
    return result


def length_controlled(rows: Sequence[Row], *, seed: int = 0, resamples: int = 200) -> tuple[float, float, float]:
    """Return the win share expected if both answers were equally long, with a 95% interval by bootstrap over topics.

    A logistic model of win against loss on tanh of the standardised difference in tokens; the share is the model's at
    a difference of zero. As in length-controlled AlpacaEval (Dubois et al. 2024), without its per-prompt difficulty.
    """
    decided = [row for row in rows if row["verdict"] in ("win", "loss")]
    gap = np.array([row["after_tokens"] - row["before_tokens"] for row in decided], dtype=float)
    features = np.stack([np.ones(len(gap)), np.tanh(gap / (gap.std() or 1.0))], axis=1)
    wins = np.array([row["verdict"] == "win" for row in decided], dtype=float)
    topics: dict[str, list[int]] = {}
    for i, row in enumerate(decided):
        topics.setdefault(row["category"], []).append(i)
    groups = [np.array(group) for group in topics.values()]
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        index = np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])
        draws.append(_share_at_zero(features[index], wins[index]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return _share_at_zero(features, wins), float(low), float(high)


def _share_at_zero(features: np.ndarray, wins: np.ndarray) -> float:
    """Fit by Newton's method; a ridge too small to matter keeps separable draws finite."""
    weights, ridge = np.zeros(2), 1e-3 * np.eye(2)
    for _ in range(25):
        chance = 1 / (1 + np.exp(-features @ weights))
        curvature = features.T @ (features * (chance * (1 - chance))[:, None]) + ridge
        step = np.linalg.solve(curvature, features.T @ (wins - chance) - ridge @ weights)
        weights = weights + np.clip(step, -4, 4)
        if np.abs(step).max() < 1e-9:
            break
    return float(1 / (1 + np.exp(-weights[0])))


def win_rates(proof: Mapping[str, dict[str, Any]]) -> pd.DataFrame:
    """Return the win rates of every held-out set as a table, one row per set and kind of length."""
    table = {(name, kind): row for name, summary in proof.items() for kind, row in summary["win_rate"].items()}
    frame = pd.DataFrame.from_dict(table, orient="index").rename_axis(index=["prompts", "length after"])
    return frame.astype(dict.fromkeys(("share", "low", "high"), "float")).round(3)
