"""A win rate is as true as its judge: people choose in a part of the same pairs, and the rate is corrected by them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nbutils.core.records import Row
from nbutils.core.stats import Interval, bootstrap_mean, prediction_powered
from nbutils.judges.form import show
from nbutils.judges.people import Sheet, path_of
from nbutils.proof.answers import as_judged

__all__ = ["corrected", "in_words", "sheet", "show"]

WON = {"win": 1.0, "tie": 0.5, "flip": 0.5, "loss": 0.0}  # the tuned model; what is in no list was not measured
CHOSEN = {"first": 0.0, "tie": 0.5, "second": 1.0}  # the answer after stands second
FEW = 30  # labels: of fewer neither their spread nor an interval can be told


def sheet(rows: Sequence[Row], run_dir: Path, *, seed: int = 0) -> Sheet:
    """Return the sheet on which people choose between answers before and after the training."""
    return Sheet(path_of("04_dpo", run_dir), as_judged([row for row in rows if row["verdict"] in WON]), seed=seed)


def corrected(rows: Sequence[Row], labelled: Sequence[Row]) -> dict[str, Any]:
    """Return the win rate by the judge, and as people's labels correct it.

    The rate counts a tie as half a win, over all pairs of answers that were measured; topics are clusters.

    Args:
        rows: of a held-out set, from `compare`.
        labelled: of the `sheet` of these rows.

    Returns:
        `labels`, `pairs`; `judge` with value, low and high; `corrected` the same, None with fewer than FEW labels or
        ties alone; `agreement`, the share of labels that the judge gave too; `needed`, how many labels in all would
        tell the rate from one half, None where no number would or it is told.
    """
    measured = [row for row in rows if row["verdict"] in WON]
    said = {_key(row): CHOSEN[row["label"]] for row in labelled}
    # one of two pairs with the same text was asked: its label is that of the first
    labels = [said.pop(_key(row), math.nan) for row in as_judged(measured)]
    judged = [WON[row["verdict"]] for row in measured]
    topics = [row["category"] or row["prompt_id"] for row in measured]
    both = [(mine, theirs) for mine, theirs in zip(judged, labels, strict=True) if not math.isnan(theirs)]
    result: dict[str, Any] = {
        "labels": len(both),
        "pairs": len(measured),
        "judge": bootstrap_mean(judged, topics)._asdict() if measured else None,
        "agreement": sum(mine == theirs for mine, theirs in both) / len(both) if both else None,
        "ties": sum(theirs == 0.5 for _, theirs in both),
        "corrected": None,
        "needed": None,
    }
    if len(both) < FEW or result["ties"] == len(both):
        return result
    found = prediction_powered(judged, labels, topics)
    result["corrected"] = found.interval._asdict()
    if _undecided(found.interval) and math.isfinite(found.own):
        allowed = ((found.interval.value - 0.5) / 1.96) ** 2 - found.shared
        more = math.ceil(found.own * len(both) / allowed) if allowed > 0 else math.inf
        result["needed"] = more if more <= len(measured) else None
    return result


def in_words(people: Mapping[str, Any]) -> str:
    """Return the win rate by the judge and as corrected, with what is missing to tell more."""
    count, raw = people["labels"], people["judge"]
    if raw is None:
        return "nothing was measured"
    text = f"win rate {_percent(raw)} by the judge, a tie as half"
    if people["corrected"] is None:
        why = "they are all ties" if FEW <= count == people["ties"] else f"fewer than {FEW} are too few to correct it"
        return f"{text}; {count} labels of people: {why}"
    text += f"; {_percent(people['corrected'])} as {count} labels of people correct it, who agree with the judge on "
    text += f"{people['agreement']:.0%}"
    if not _undecided(people["corrected"]):
        return text
    if people["needed"] is None:
        return f"{text}; not told from one half, and no number of labels on these prompts would: add held-out prompts"
    return f"{text}; not told from one half, some {max(people['needed'] - count, 1)} labels more might tell it"


def _undecided(interval: Interval | Mapping[str, float]) -> bool:
    ends = interval if isinstance(interval, Mapping) else interval._asdict()
    return ends["low"] <= 0.5 <= ends["high"]


def _percent(interval: Mapping[str, float]) -> str:
    return f"{100 * interval['value']:.1f}% [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def _key(row: Row) -> tuple[str, ...]:
    return (row["prompt_id"], *(response["text"] for response in row["responses"]))
