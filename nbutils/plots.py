"""One function per figure of the notebooks, each drawn from the data a stage saves; they return their axes.

Each also gives its figure a caption, one sentence that says what is drawn and what to look for, as the figure's label:
`Stage.figure` hands it on to the notebook, to the image and from there to the card.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nbutils.core.markup import printable
from nbutils.core.screen import MARKS
from nbutils.core.stats import wilson
from nbutils.core.verdicts import mean_scores

# a label is somebody's word: two dollar signs in it are no formula, and a formula that is none would end the run
plt.rcParams["text.parse_math"] = False
LONGEST = 40  # characters of a label; an image of a label of thousands cannot be drawn
FIRST, SECOND, GREY = "#2a6f97", "#e07a5f", "#8d99ae"
# centred on the values that scores of a few checks or levels can take
SCORE_BINS = list(np.linspace(-0.025, 1.025, 22))


def make_axes(title: str, x: str, y: str, *, size: tuple[float, float] = (6.4, 3.6)) -> Axes:
    ax = plt.subplots(figsize=size, layout="constrained")[1]
    label_axes(ax, title, x, y)
    return ax


def label_axes(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set(title=title, xlabel=x, ylabel=y)
    ax.spines[["top", "right"]].set_visible(False)


def shorten_label(text: str) -> str:
    """Return somebody's word as a figure can show it: on one line, of no more than LONGEST characters."""
    line = " ".join(printable(text).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def set_caption(ax: Axes, text: str) -> None:
    cast(Figure, ax.get_figure(root=True)).set_label(text)


def plot_verdicts(counts: Mapping[str, int]) -> Axes:
    """Draw each verdict's share of the rows with its 95% Wilson interval."""
    total = sum(counts.values())
    shares = [wilson(count, total) for count in counts.values()]
    ax = make_axes(f"What became of {total} rows?", "share of rows (%), 95% interval", "")
    draw_forest(ax, list(counts), shares)
    for i, count in enumerate(counts.values()):
        ax.annotate(str(count), (100 * shares[i].high, i), (5, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set_xlim(left=0)
    set_caption(ax, f"Share of {total} rows that each verdict got, in percent; a wide 95% interval means few rows.")
    return ax


def plot_scores(rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None) -> Axes:
    """Draw how often the judge gave which score; one colour per response place if `names` are given, else all alike."""
    scored = [mean_scores(row["scores"]) for row in rows if row["scores"]]
    places = len(names) if names else 1
    groups = [
        [s for row in scored for s in (row[i : i + 1] if names else row) if not math.isnan(s)] for i in range(places)
    ]
    ax = make_axes("Which scores does the judge give?", "score, averaged over the orders (0 to 1)", "responses")
    ax.hist(groups, bins=SCORE_BINS, color=[FIRST, SECOND][:places], label=list(names) if names else None)
    if names:
        ax.legend(frameon=False)
    sides = f", {' and '.join(names)} side by side" if names else ""
    set_caption(ax, f"How many responses got which score from 0 to 1{sides}; a useful judge uses the whole scale.")
    return ax


def plot_next_token(tokens: Sequence[str], chances: Mapping[float, np.ndarray], kept: Mapping[float, int]) -> Axes:
    """Draw how likely the next tokens are at several temperatures and which of them may be drawn, a panel each.

    Args:
        tokens: the likeliest tokens' texts; all others share the last bar.
        chances: temperature -> probability of every token of the vocabulary, falling.
        kept: temperature -> how many of them may be drawn. Temperature keeps their order: they are always the first.
    """
    figure, grid = plt.subplots(
        1, len(chances), figsize=(9, 4), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    figure.suptitle("Which token comes next?")
    rows = np.arange(len(tokens) + 1)
    for ax, (temperature, p) in zip(grid[0], chances.items(), strict=True):
        n = kept[temperature]
        title = f"temperature {temperature:g}:\n{n:,} token{'s' if n > 1 else ''} can be drawn"
        label_axes(ax, title, "probability (%)", "")
        ax.title.set_fontsize(10)
        inside = np.where(np.arange(len(p)) < n, 100 * p, 0)
        # one bar for each token, and their sum for the rest
        drawn, all_of = (np.append(v[: len(tokens)], v[len(tokens) :].sum()) for v in (inside, 100 * p))
        ax.barh(rows, drawn, color=FIRST, label="can be drawn")
        ax.barh(rows, all_of - drawn, left=drawn, color=SECOND, label="cut off")
        if n < len(tokens):
            ax.axhline(n - 0.5, color=SECOND, linestyle="--", linewidth=1)
    first: Axes = grid[0, 0]
    first.set_yticks(rows, [*(shorten_label(repr(token)) for token in tokens), "all others"])  # quotes show its spaces
    first.set_ylim(len(tokens) + 0.5, -0.5)
    grid[0, -1].legend(frameon=False, fontsize=8, loc="center right")
    shown = ", ".join(f"{temperature:g}" for temperature in chances)
    text = f"Probability of the likeliest next tokens at temperature {shown}; the orange ones cannot be drawn."
    set_caption(first, text)
    return first


def plot_lengths(lengths: Sequence[int], limit: int) -> Axes:
    """Draw the lengths of samples in tokens and the limit they may not pass."""
    ax = make_axes("How long are the answers?", "tokens in an answer", "answers")
    ax.hist(lengths, bins=30, color=FIRST)
    ax.axvline(limit, color=SECOND, linestyle="--", label=f"max_tokens = {limit}: cut off here")
    ax.legend(frameon=False)
    set_caption(ax, f"How many answers have how many tokens; those at the dashed line ({limit}) were cut off there.")
    return ax


def plot_waterfall(counts: Mapping[str, int]) -> Axes:
    """Draw how the prompts that gave no pair were lost, step by step, down to the pairs that remain."""
    lost = {name.removeprefix("filtered:"): n for name, n in counts.items() if name != "on_policy"}
    # in the order of the pipeline; what is not in the list keeps its place before the thresholds
    steps = [*MARKS, "unparsed", "flip", "tie", "min_chosen", "max_length_gap"]
    lost = dict(sorted(lost.items(), key=lambda item: steps.index(item[0] if item[0] in steps else "flip")))
    left = [sum(counts.values())]
    for n in lost.values():
        left.append(left[-1] - n)
    ax = make_axes("From prompts to pairs", "", "prompts")
    ax.bar(0, left[0], color=GREY)
    ax.bar(range(1, len(lost) + 1), list(lost.values()), bottom=left[1:], color=SECOND)
    ax.bar(len(lost) + 1, left[-1], color=FIRST)
    labels = ["prompts", *lost, "pairs"]
    for i, (n, top) in enumerate(
        zip([left[0], *lost.values(), left[-1]], [left[0], *left[:-1], left[-1]], strict=True)
    ):
        ax.annotate(
            f"{n if i in (0, len(labels) - 1) else -n}",
            (i, top),
            (0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    ax.set_xticks(range(len(labels)), list(map(shorten_label, labels)), rotation=30, ha="right")
    set_caption(ax, f"Where {left[0]} prompts were lost, step by step from left to right, down to {left[-1]} pairs.")
    return ax


def plot_margins(margins: Sequence[float]) -> Axes:
    """Draw the score differences between chosen and rejected."""
    ax = make_axes(
        "How clear is the judge's preference?", "margin: chosen score minus rejected score (0 to 1)", "pairs"
    )
    ax.hist(margins, bins=SCORE_BINS, color=FIRST)
    set_caption(ax, "How many pairs have which margin between 0 and 1; a heap at the left is many doubtful pairs.")
    return ax


def plot_length_gap(gaps: Sequence[float]) -> Axes:
    """Draw the length differences between chosen and rejected; a shift to one side is something DPO will learn."""
    ax = make_axes("Is the chosen answer the longer one?", "chosen minus rejected length (characters)", "pairs")
    ax.hist(gaps, bins=min(30, max(5, len(gaps) // 3)), color=FIRST)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.axvline(0, color="black", linewidth=0.8)
    if len(gaps):
        ax.axvline(float(np.mean(gaps)), color=SECOND, linestyle="--", label=f"mean {np.mean(gaps):+.0f} characters")
        ax.legend(frameon=False)
    text = "How many characters longer the chosen answer is; right of zero there is a taste for length that DPO learns."
    set_caption(ax, text)
    return ax


def draw_forest(ax: Axes, labels: Sequence[str], shares: Iterable[Sequence[float]]) -> None:
    """Draw a value with the ends of its interval for each label, from 0 to 1, in percent."""
    for i, (value, low, high) in enumerate(shares):
        ax.plot([100 * low, 100 * high], [i, i], color=FIRST)
        ax.plot(100 * value, i, "o", color=FIRST)
    ax.set_yticks(range(len(labels)), list(map(shorten_label, labels)))
    ax.set_ylim(max(len(labels), 1) - 0.5, -0.5)
