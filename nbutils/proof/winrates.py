"""How often the tuned model's answer beats the base's, and whether length alone would explain it.

Judges, people among them, like longer answers; so the wins are counted by what became of the
length.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from nbutils.core.records import Row
from nbutils.core.stats import wilson

# Two answers are alike in length if they differ by at most this share of the longer one.
ALIKE = 0.1


def win_rate(rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """Return how often the tuned model won, of all answers and by what became of their length in tokens.

    An answer may win for its length alone: then the win share of the answers alike in length is near one half.

    Returns:
        For all, shorter, alike and longer answers (after against before): `win`, `tie` (flips among them) and `loss`,
        `share` of the wins in wins and losses with its 95% Wilson interval `low`, `high` (None where nothing was
        decided). It takes answers for independent, so with several to a prompt it is somewhat too narrow.
    """
    parts: dict[str, Counter[str]] = {name: Counter() for name in ("all", "shorter", "alike", "longer")}
    rows = [row for row in rows if row["verdict"] not in ("unparsed", "unanswered")]
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
    return result


def win_rates(proof: Mapping[str, dict[str, Any]]) -> pd.DataFrame:
    """Return the win rates of every held-out set as a table, one row per set and kind of length."""
    table = {(name, kind): row for name, summary in proof.items() for kind, row in summary["win_rate"].items()}
    frame = pd.DataFrame.from_dict(table, orient="index").rename_axis(index=["prompts", "length after"])
    return frame.astype(dict.fromkeys(("share", "low", "high"), "float")).round(3)
