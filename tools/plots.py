"""One function per figure of the experiments, each drawn from their table; they return their axes."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from nbutils.core.stats import Interval
from nbutils.plots import FIRST, GREY, SECOND, draw_forest, make_axes, set_caption, shorten_label


def plot_ablation(frame: pd.DataFrame, contrasts: Mapping[str, Interval]) -> Axes:
    """Draw what each arm changed, a dot per seed and a bar for their mean, and below how far arms are apart.

    Args:
        frame: one row per arm and seed with `arm`, `seed`, `headline` and, from -1 to 1, `change`, `low`, `high`.
        contrasts: how much better one arm is than another, from -1 to 1, with what that is called.
    """
    arms, seeds = list(frame.arm.unique()), sorted(frame.seed.unique())
    title = "Which pairs help, at equal pairs and steps?"
    label = "percentage points, 95% interval"
    ax = make_axes(title, label, "", size=(7.2, 1.8 + 0.5 * (len(arms) + len(contrasts))))
    for i, arm in enumerate(arms):
        rows = frame[frame.arm == arm]
        name = None if i else "mean of the seeds"
        ax.barh(i, 100 * rows.change.mean(), 0.7, color=GREY, edgecolor=GREY, alpha=0.4, label=name)
        for _, row in rows.iterrows():
            place = seeds.index(row.seed)
            y = i + (place - (len(seeds) - 1) / 2) * 0.6 / len(seeds)
            color = (FIRST, SECOND, "#3d405b", "#81b29a")[place % 4]
            ax.plot([100 * row.low, 100 * row.high], [y, y], color=color, linewidth=1)
            ax.plot(100 * row.change, y, "o", color=color, markersize=5, label=f"seed {row.seed}" if not i else None)
    ax.axvline(0, color="black", linewidth=0.8)
    unknown = [math.nan] * 3  # drawn above already
    draw_forest(ax, [*arms, *contrasts], [*[unknown] * len(arms), *contrasts.values()])
    if arms:
        ax.axhline(len(arms) - 0.5, color=GREY, linewidth=0.8)
        ax.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    set_caption(
        ax, "Change by each arm's training in points, below one arm minus another; across zero nothing is shown."
    )
    return ax


def plot_repeat(frame: pd.DataFrame, changes: Mapping[str, Interval]) -> Axes:
    """Draw the change of the headline by each training, and by all together, for every held-out set.

    Args:
        frame: one row per held-out set and training with `held_out`, `seed` and, from -1 to 1, `change`, `low`, `high`.
        changes: of all trainings of a held-out set together, from -1 to 1.
    """
    title = "The same pairs, trained several times"
    label = "change against the base model (percentage points), 95% interval"
    ax = make_axes(title, label, "", size=(7.2, 1.4 + 0.3 * (len(frame) + len(changes))))
    lines: list[tuple[str, Interval]] = []
    for name, change in changes.items():
        runs = frame[frame.held_out == name]
        ends = runs[["change", "low", "high"]].to_numpy(dtype=float).tolist()
        lines += [(f"{name}, seed {seed}", Interval(*line)) for seed, line in zip(runs.seed, ends, strict=True)]
        lines.append((f"{name}, all together", change))
    draw_forest(ax, [name for name, _ in lines], [line for _, line in lines])
    for i, (name, line) in enumerate(lines):
        if name.endswith("all together"):
            ax.plot([100 * line.low, 100 * line.high], [i, i], color=SECOND, linewidth=3)
            ax.plot(100 * line.value, i, "D", color=SECOND, markersize=8)
    ax.axvline(0, color="black", linewidth=0.8)
    set_caption(
        ax, "Change by each training in percentage points, and together; an interval across zero shows nothing."
    )
    return ax


def plot_rounds(frame: pd.DataFrame) -> Axes:
    """Draw the headline after each round, a line per held-out set; bars are the intervals of each round's change.

    Args:
        frame: one row per round (from 1) and held-out set with `round`, `held_out`, `headline` and, from 0 to 1,
            `before`, `after`, `change`, `low`, `high`.
    """
    title = "Does another round help?\n(bars: 95% interval of the change in that round)"
    ax = make_axes(title, "", "headline (% of answers or of the score)")
    names = list(frame.held_out.unique())
    for i, name in enumerate(names):
        rows = frame[frame.held_out == name].sort_values("round")
        x = np.array([0, *rows["round"]]) + 0.06 * (i - (len(names) - 1) / 2)  # bars beside each other
        color = (FIRST, SECOND, GREY)[i % 3]
        y = 100 * np.array([rows.before.iloc[0], *rows.after])
        ax.plot(x, y, "o-", color=color, label=f" {shorten_label(f'{name}: {rows.headline.iloc[0]}')}")
        ax.vlines(x[1:], 100 * (rows.before + rows.low), 100 * (rows.before + rows.high), color=color, linewidth=1)
    last = int(frame["round"].max()) if len(frame) else 0
    ax.set_xticks(range(last + 1), ["base", *(f"round {i}" for i in range(1, last + 1))])
    ax.set_ylim(bottom=0)
    if names:
        ax.legend(frameon=False, fontsize=8, loc="upper left")
    text = "The headline in percent after each round; a bar that reaches down to the dot before it shows no gain."
    set_caption(ax, text)
    return ax
