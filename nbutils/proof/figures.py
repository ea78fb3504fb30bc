"""Figures of 04: the training's curves, and the answers before and after."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from nbutils.plots import FIRST, GREY, SECOND, draw_forest, label_axes, make_axes, set_caption
from nbutils.proof.doubts import unmeasured
from nbutils.proof.summary import headline
from nbutils.training.health import Finding

# the curve that shows a finding of `health.check`; the others are seen in the loss
SEEN_IN = {
    "falling": "rewards/chosen",
    "fleeing": "rewards/chosen",
    "trivial": "rewards/accuracies",
    "contradicted": "rewards/margins",
}


def plot_training(log: pd.DataFrame, findings: Sequence[Finding] = ()) -> Axes:
    """Draw the four curves that tell a good DPO run from a bad one, from the saved training log.

    Args:
        findings: from `health.check`; each is a thin line at its step, named in the legend of the panel it is seen in.
    """
    _, grid = plt.subplots(2, 2, figsize=(9, 6), layout="constrained", sharex=True)
    panels: list[tuple[str, str, dict[str, str]]] = [
        ("Does the loss fall?", "loss", {"loss": "loss"}),
        ("Does the margin grow?", "reward margin (nats times beta)", {"rewards/margins": "margin"}),
        ("How many pairs are ordered rightly?", "share of pairs", {"rewards/accuracies": "accuracy"}),
        (
            "Which side moved?",
            "reward (nats times beta)",
            {"rewards/chosen": "chosen", "rewards/rejected": "rejected"},
        ),
    ]
    for ax, (title, unit, columns) in zip(grid.flat, panels, strict=True):
        label_axes(ax, title, "", unit)
        for color, (column, label) in zip((FIRST, SECOND), columns.items(), strict=False):
            rows = log.dropna(subset=[column])
            ax.plot(rows.step, rows[column], color=color, label=label)
            if f"eval_{column}" in log:
                held = log.dropna(subset=[f"eval_{column}"])
                ax.plot(held.step, held[f"eval_{column}"], "o--", color=color, markersize=4, label=f"{label}, held-out")
        here = [f for f in findings if f.step is not None and SEEN_IN.get(f.name, "loss") in columns]
        for finding, style in zip(here, itertools.cycle((":", "--", "-.")), strict=False):
            label = f"{finding.name} (step {finding.step})"
            ax.axvline(finding.step, color="black", linewidth=0.8, linestyle=style, label=label)
        # a background, so that no line runs through the words
        ax.legend(edgecolor="none", framealpha=0.9, fontsize=8)
    grid[1, 1].axhline(0, color=GREY, linewidth=0.8)
    for ax in grid[1]:
        ax.set_xlabel("optimizer step")
    first: Axes = grid[0, 0]
    text = "Loss, margin, accuracy and rewards by step; the margin should grow and the chosen side should not fall."
    set_caption(first, text)
    return first


def plot_before_after(summary: Mapping[str, Any]) -> Axes:
    """Draw the change of the headline figure, and of each kind of check, from a proof's summary.

    In percentage points with 95% intervals; one that crosses zero is not shown to exist.
    """
    name, overall = headline(summary)
    changes = ({name: overall} if overall else {}) | summary["checks"]
    title = "Did it help on held-out prompts?"
    if unmeasured(summary):
        title += f"\nmeasured: {summary['measured']['answers']} of {summary['answers']} answers"
    ax = make_axes(title, "change (percentage points), 95% interval", "")
    names = [name.rpartition(":")[2] for name in changes]
    draw_forest(ax, names, [[c[k] for k in ("change", "low", "high")] for c in changes.values()])
    ax.axvline(0, color="black", linewidth=0.8)
    text = "Change by the training in percentage points, first overall, then by kind; one across zero shows nothing."
    set_caption(ax, text)
    return ax


def plot_people(people: Mapping[str, Any]) -> Axes:
    """Draw the win rate by the judge and as people's labels correct it, from `people.corrected`."""
    rates = {"by the judge": people["judge"], f"corrected by {people['labels']} labels": people["corrected"]}
    ax = make_axes("How often is the tuned model's answer better?", "win rate (%), a tie as half, 95% interval", "")
    known = {name: rate for name, rate in rates.items() if rate}
    draw_forest(ax, [*known], [[rate[key] for key in ("value", "low", "high")] for rate in known.values()])
    ax.axvline(50, color="black", linewidth=0.8)
    set_caption(
        ax, "Win rate of the tuned model in percent, by the judge alone and corrected by people; 50% is no gain."
    )
    return ax
