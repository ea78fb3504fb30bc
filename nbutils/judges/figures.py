"""The figure of a judge's trial."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes

from nbutils.judges.bias import LEAST, MOST, TASTES
from nbutils.plots import GREY, SECOND, draw_forest, make_axes, set_caption


def plot_bias(tables: Mapping[str, pd.DataFrame]) -> Axes:
    """Draw the figures of `judges.bias.figures` with the limits that stop a run and the range without a taste.

    Kappa is left out: it is no share.

    Args:
        tables: by the judge's name; a figure of two judges has a line of each.
    """
    table = pd.concat(dict(tables)).drop(index="kappa", level=1, errors="ignore")
    order = {name: i for i, name in enumerate(dict.fromkeys(n for t in tables.values() for n in t.index))}
    table = table.sort_index(level=1, key=lambda names: names.map(order), sort_remaining=False)
    names = [f"{name}: {judge}" if len(tables) > 1 else name for judge, name in table.index]
    height = max(4.2, 0.9 + 0.27 * len(names))
    ax = make_axes("Can this judge be trusted?", "share (%), 95% interval", "", size=(6.4, height))
    stops = {name: (100 * limit, 100.0) for name, limit in MOST.items()}
    stops |= {name: (0.0, 100 * limit) for name, limit in LEAST.items()}
    fair = {name: (100 * low, 100 * high) for name, (low, high) in TASTES.items()}
    for ranges, color, label in (
        (stops, SECOND, "beyond the limit of a trial"),
        (fair, GREY, "a line that reaches here shows no taste"),
    ):
        shown = [(i, *ranges[name]) for i, (_, name) in enumerate(table.index) if name in ranges]
        for i, low, high in shown:
            ax.barh(i, high - low, 0.8, low, color=color, alpha=0.25, label=label if i == shown[0][0] else None)
    draw_forest(ax, names, table[["share", "low", "high"]].where(table.rows > 0).to_numpy())
    for i, rows in enumerate(table.rows):
        ax.annotate(
            f"of {rows}" if rows else "not measured",
            (1, i),
            (5, 0),
            xycoords=ax.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="black" if rows else GREY,
        )
    ax.set_xlim(-2, 102)
    ax.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    text = "The judge's figures with 95% intervals; pale red is beyond a limit, lines that reach grey show no taste."
    set_caption(ax, text)
    return ax
