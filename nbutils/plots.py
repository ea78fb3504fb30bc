"""One function per figure of the notebooks, each drawn from the data a stage saves; they return their axes.

Each also gives its figure a caption, one sentence that says what is drawn and what to look for, as the figure's label:
`Stage.figure` hands it on to the notebook, to the image and from there to the card.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nbutils.evaluation import headline
from nbutils.health import Finding, unmeasured
from nbutils.judges.bias import LEAST, MOST, TASTES
from nbutils.markup import printable
from nbutils.pairs import MARKS
from nbutils.stats import Interval, wilson
from nbutils.verdicts import mean_scores

# a label is somebody's word: two dollar signs in it are no formula, and a formula that is none would end the run
plt.rcParams["text.parse_math"] = False
LONGEST = 40  # characters of a label; an image of a label of thousands cannot be drawn
FIRST, SECOND, GREY = "#2a6f97", "#e07a5f", "#8d99ae"
# centred on the values that scores of a few checks or levels can take
SCORE_BINS = list(np.linspace(-0.025, 1.025, 22))

# the curve that shows a finding of `health.check`; the others are seen in the loss
SEEN_IN = {
    "falling": "rewards/chosen",
    "fleeing": "rewards/chosen",
    "trivial": "rewards/accuracies",
    "contradicted": "rewards/margins",
}


def _axes(ax: Axes | None, title: str, x: str, y: str, *, size: tuple[float, float] = (6.4, 3.6)) -> Axes:
    if ax is None:
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    ax.set(title=title, xlabel=x, ylabel=y)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _label(text: str) -> str:
    """Return somebody's word as a figure can show it: on one line, of no more than LONGEST characters."""
    line = " ".join(printable(text).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def _caption(ax: Axes, text: str) -> None:
    cast(Figure, ax.get_figure(root=True)).set_label(text)


def plot_verdicts(counts: Mapping[str, int], *, ax: Axes | None = None) -> Axes:
    """Draw each verdict's share of the rows with its 95% Wilson interval."""
    total = sum(counts.values())
    shares = [wilson(count, total) for count in counts.values()]
    ax = _axes(ax, f"What became of {total} rows?", "share of rows (%), 95% interval", "")
    _forest(ax, list(counts), shares)
    for i, count in enumerate(counts.values()):
        ax.annotate(str(count), (100 * shares[i].high, i), (5, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set_xlim(left=0)
    _caption(ax, f"Share of {total} rows that each verdict got, in percent; a wide 95% interval means few rows.")
    return ax


def plot_scores(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw how often the judge gave which score; one colour per response place if `names` are given, else all alike."""
    scored = [mean_scores(row["scores"]) for row in rows if row["scores"]]
    places = len(names) if names else 1
    groups = [
        [s for row in scored for s in (row[i : i + 1] if names else row) if not math.isnan(s)] for i in range(places)
    ]
    ax = _axes(ax, "Which scores does the judge give?", "score, averaged over the orders (0 to 1)", "responses")
    ax.hist(groups, bins=SCORE_BINS, color=[FIRST, SECOND][:places], label=list(names) if names else None)
    if names:
        ax.legend(frameon=False)
    sides = f", {' and '.join(names)} side by side" if names else ""
    _caption(ax, f"How many responses got which score from 0 to 1{sides}; a useful judge uses the whole scale.")
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
        _axes(ax, title, "probability (%)", "")
        ax.title.set_fontsize(10)
        inside = np.where(np.arange(len(p)) < n, 100 * p, 0)
        # one bar for each token, and their sum for the rest
        drawn, all_of = (np.append(v[: len(tokens)], v[len(tokens) :].sum()) for v in (inside, 100 * p))
        ax.barh(rows, drawn, color=FIRST, label="can be drawn")
        ax.barh(rows, all_of - drawn, left=drawn, color=SECOND, label="cut off")
        if n < len(tokens):
            ax.axhline(n - 0.5, color=SECOND, linestyle="--", linewidth=1)
    first: Axes = grid[0, 0]
    first.set_yticks(rows, [*(_label(repr(token)) for token in tokens), "all others"])  # quotes show its spaces
    first.set_ylim(len(tokens) + 0.5, -0.5)
    grid[0, -1].legend(frameon=False, fontsize=8, loc="center right")
    shown = ", ".join(f"{temperature:g}" for temperature in chances)
    text = f"Probability of the likeliest next tokens at temperature {shown}; the orange ones cannot be drawn."
    _caption(first, text)
    return first


def plot_lengths(lengths: Sequence[int], limit: int, *, ax: Axes | None = None) -> Axes:
    """Draw the lengths of samples in tokens and the limit they may not pass."""
    ax = _axes(ax, "How long are the answers?", "tokens in an answer", "answers")
    ax.hist(lengths, bins=30, color=FIRST)
    ax.axvline(limit, color=SECOND, linestyle="--", label=f"max_tokens = {limit}: cut off here")
    ax.legend(frameon=False)
    _caption(ax, f"How many answers have how many tokens; those at the dashed line ({limit}) were cut off there.")
    return ax


def plot_waterfall(counts: Mapping[str, int], *, ax: Axes | None = None) -> Axes:
    """Draw how the prompts that gave no pair were lost, step by step, down to the pairs that remain."""
    lost = {name.removeprefix("filtered:"): n for name, n in counts.items() if name != "on_policy"}
    # in the order of the pipeline; what is not in the list keeps its place before the thresholds
    steps = [*MARKS, "unparsed", "flip", "tie", "min_chosen", "max_length_gap"]
    lost = dict(sorted(lost.items(), key=lambda item: steps.index(item[0] if item[0] in steps else "flip")))
    left = [sum(counts.values())]
    for n in lost.values():
        left.append(left[-1] - n)
    ax = _axes(ax, "From prompts to pairs", "", "prompts")
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
    ax.set_xticks(range(len(labels)), list(map(_label, labels)), rotation=30, ha="right")
    _caption(ax, f"Where {left[0]} prompts were lost, step by step from left to right, down to {left[-1]} pairs.")
    return ax


def plot_margins(margins: Sequence[float], *, ax: Axes | None = None) -> Axes:
    """Draw the score differences between chosen and rejected."""
    ax = _axes(
        ax, "How clear is the judge's preference?", "margin: chosen score minus rejected score (0 to 1)", "pairs"
    )
    ax.hist(margins, bins=SCORE_BINS, color=FIRST)
    _caption(ax, "How many pairs have which margin between 0 and 1; a heap at the left is many doubtful pairs.")
    return ax


def plot_length_gap(gaps: Sequence[float], *, ax: Axes | None = None) -> Axes:
    """Draw the length differences between chosen and rejected; a shift to one side is something DPO will learn."""
    ax = _axes(ax, "Is the chosen answer the longer one?", "chosen minus rejected length (characters)", "pairs")
    ax.hist(gaps, bins=min(30, max(5, len(gaps) // 3)), color=FIRST)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.axvline(0, color="black", linewidth=0.8)
    if len(gaps):
        ax.axvline(float(np.mean(gaps)), color=SECOND, linestyle="--", label=f"mean {np.mean(gaps):+.0f} characters")
        ax.legend(frameon=False)
    text = "How many characters longer the chosen answer is; right of zero there is a taste for length that DPO learns."
    _caption(ax, text)
    return ax


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
        _axes(ax, title, "", unit)
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
    _caption(first, text)
    return first


def plot_before_after(summary: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    """Draw the change of the headline figure, and of each kind of check, from a proof's summary.

    In percentage points with 95% intervals; one that crosses zero is not shown to exist.
    """
    name, overall = headline(summary)
    changes = ({name: overall} if overall else {}) | summary["checks"]
    title = "Did it help on held-out prompts?"
    if unmeasured(summary):
        title += f"\nmeasured: {summary['measured']['answers']} of {summary['answers']} answers"
    ax = _axes(ax, title, "change (percentage points), 95% interval", "")
    names = [name.rpartition(":")[2] for name in changes]
    _forest(ax, names, [[c[k] for k in ("change", "low", "high")] for c in changes.values()])
    ax.axvline(0, color="black", linewidth=0.8)
    text = "Change by the training in percentage points, first overall, then by kind; one across zero shows nothing."
    _caption(ax, text)
    return ax


def plot_bias(tables: Mapping[str, pd.DataFrame], *, ax: Axes | None = None) -> Axes:
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
    ax = _axes(ax, "Can this judge be trusted?", "share (%), 95% interval", "", size=(6.4, height))
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
    _forest(ax, names, table[["share", "low", "high"]].where(table.rows > 0).to_numpy())
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
    _caption(ax, text)
    return ax


def plot_ablation(frame: pd.DataFrame, contrasts: Mapping[str, Interval], *, ax: Axes | None = None) -> Axes:
    """Draw what each arm changed, a dot per seed and a bar for their mean, and below how far arms are apart.

    Args:
        frame: one row per arm and seed with `arm`, `seed`, `headline` and, from -1 to 1, `change`, `low`, `high`.
        contrasts: how much better one arm is than another, from -1 to 1, with what that is called.
    """
    arms, seeds = list(frame.arm.unique()), sorted(frame.seed.unique())
    title = "Which pairs help, at equal pairs and steps?"
    label = "percentage points, 95% interval"
    ax = _axes(ax, title, label, "", size=(7.2, 1.8 + 0.5 * (len(arms) + len(contrasts))))
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
    _forest(ax, [*arms, *contrasts], [*[unknown] * len(arms), *contrasts.values()])
    if arms:
        ax.axhline(len(arms) - 0.5, color=GREY, linewidth=0.8)
        ax.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    _caption(ax, "Change by each arm's training in points, below one arm minus another; across zero nothing is shown.")
    return ax


def plot_repeat(frame: pd.DataFrame, changes: Mapping[str, Interval], *, ax: Axes | None = None) -> Axes:
    """Draw the change of the headline by each training, and by all together, for every held-out set.

    Args:
        frame: one row per held-out set and training with `held_out`, `seed` and, from -1 to 1, `change`, `low`, `high`.
        changes: of all trainings of a held-out set together, from -1 to 1.
    """
    title = "The same pairs, trained several times"
    label = "change against the base model (percentage points), 95% interval"
    ax = _axes(ax, title, label, "", size=(7.2, 1.4 + 0.3 * (len(frame) + len(changes))))
    lines: list[tuple[str, Interval]] = []
    for name, change in changes.items():
        runs = frame[frame.held_out == name]
        ends = runs[["change", "low", "high"]].to_numpy(dtype=float).tolist()
        lines += [(f"{name}, seed {seed}", Interval(*line)) for seed, line in zip(runs.seed, ends, strict=True)]
        lines.append((f"{name}, all together", change))
    _forest(ax, [name for name, _ in lines], [line for _, line in lines])
    for i, (name, line) in enumerate(lines):
        if name.endswith("all together"):
            ax.plot([100 * line.low, 100 * line.high], [i, i], color=SECOND, linewidth=3)
            ax.plot(100 * line.value, i, "D", color=SECOND, markersize=8)
    ax.axvline(0, color="black", linewidth=0.8)
    _caption(ax, "Change by each training in percentage points, and together; an interval across zero shows nothing.")
    return ax


def plot_rounds(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the headline after each round, a line per held-out set; bars are the intervals of each round's change.

    Args:
        frame: one row per round (from 1) and held-out set with `round`, `held_out`, `headline` and, from 0 to 1,
            `before`, `after`, `change`, `low`, `high`.
    """
    title = "Does another round help?\n(bars: 95% interval of the change in that round)"
    ax = _axes(ax, title, "", "headline (% of answers or of the score)")
    names = list(frame.held_out.unique())
    for i, name in enumerate(names):
        rows = frame[frame.held_out == name].sort_values("round")
        x = np.array([0, *rows["round"]]) + 0.06 * (i - (len(names) - 1) / 2)  # bars beside each other
        color = (FIRST, SECOND, GREY)[i % 3]
        y = 100 * np.array([rows.before.iloc[0], *rows.after])
        ax.plot(x, y, "o-", color=color, label=f" {_label(f'{name}: {rows.headline.iloc[0]}')}")
        ax.vlines(x[1:], 100 * (rows.before + rows.low), 100 * (rows.before + rows.high), color=color, linewidth=1)
    last = int(frame["round"].max()) if len(frame) else 0
    ax.set_xticks(range(last + 1), ["base", *(f"round {i}" for i in range(1, last + 1))])
    ax.set_ylim(bottom=0)
    if names:
        ax.legend(frameon=False, fontsize=8, loc="upper left")
    text = "The headline in percent after each round; a bar that reaches down to the dot before it shows no gain."
    _caption(ax, text)
    return ax


def _forest(ax: Axes, labels: Sequence[str], shares: Iterable[Sequence[float]]) -> None:
    """Draw a value with the ends of its interval for each label, from 0 to 1, in percent."""
    for i, (value, low, high) in enumerate(shares):
        ax.plot([100 * low, 100 * high], [i, i], color=FIRST)
        ax.plot(100 * value, i, "o", color=FIRST)
    ax.set_yticks(range(len(labels)), list(map(_label, labels)))
    ax.set_ylim(max(len(labels), 1) - 0.5, -0.5)
