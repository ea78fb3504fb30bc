"""What several runs of 04 came to, as a table in words, numbers and a figure; used by `experiments`."""

import json
import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from nbutils.core.errors import InputError, writing
from nbutils.core.markup import plain, say
from nbutils.core.records import Row
from nbutils.core.stats import Interval, crossed_mean
from nbutils.files import owned, sources
from nbutils.files.card import table
from nbutils.proof import summary as proof

BESIDE = ("before to after", "tokens ratio", "distinct-2", "wins of decided", "last margin", "pairs", "steps")


def measured(run_dir: Path) -> list[Row]:
    """Return one row per held-out set of a finished 04: the headline and its change, and what to distrust beside them.

    Shares and changes are from 0 to 1, `margin` is the reward margin at the last step.

    Raises:
        InputError: if there are no such numbers.
    """
    path = run_dir / "04_dpo/metrics.json"
    try:
        return _measured(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not hold the numbers of this version of 04 ({type(error).__name__}: {error}); remove "
            f"{path.parent} and run the same command again"
        ) from None


def _measured(metrics: dict[str, Any]) -> list[Row]:
    rows = []
    for name, summary in metrics["proof"].items():
        headline, change = proof.headline(summary)
        nothing = dict.fromkeys(("before", "after", "change", "low", "high"), math.nan)  # was measured
        numbers = (change or nothing) | {
            "tokens_ratio": summary["tokens_ratio"],
            **{f"distinct_2_{side}": summary["distinct_2"][side] for side in ("before", "after")},
            "win_share": summary["win_rate"]["all"]["share"],
            "margin": metrics["training"]["rewards/margins"],
        }
        counts = {
            "prompts": summary["prompts"],
            "pairs": metrics["pairs"]["train"],
            "steps": int(metrics["training"]["step"]),
        }
        # null: the ends of an interval over one topic, a share of nothing
        numbers = {key: math.nan if value is None else value for key, value in numbers.items()}
        rows.append({"held_out": name, "headline": headline} | counts | numbers)
    return rows


def gaps_between(previous: Path, current: Path) -> list[str]:
    """Return one sentence per held-out set whose answers before are not those that the previous round gave after."""
    gaps = []
    for name in json.loads((current / "04_dpo/metrics.json").read_text())["proof"]:
        after, before = (
            [(row["prompt_id"], row[column]) for row in sources.read(str(folder / "04_dpo"), f"evaluation_{name}")]
            for folder, column in ((previous, "after_text"), (current, "before_text"))
        )
        if after != before:
            same = (Counter(after) & Counter(before)).total()
            gaps.append(
                f"on {name} only {same} of {len(before)} answers before are among the {len(after)} that the round "
                f"before it gave after, so the changes do not add up; if it was trained anew, remove {current}"
            )
    return gaps


def by_prompt(run_dir: Path, name: str, headline: str) -> pd.DataFrame:
    """Return one row per prompt of a held-out set of a finished 04, by its id: `before`, `after` and its topic.

    Both are the headline's mean over the prompt's answers that were measured, from 0 to 1.
    """
    frame = pd.DataFrame(sources.read(str(run_dir / "04_dpo"), f"evaluation_{name}"))
    sides = frame[["before_score", "after_score"]].astype(float).set_axis(["before", "after"], axis=1)
    if headline == proof.PASSED:
        sides = (sides >= 1 - 1e-9).where(sides.notna())
    topic = frame.category.where(frame.category != "", frame.prompt_id)
    measured = sides.astype(float).dropna()
    return measured.join(topic).groupby(frame.prompt_id).agg({"before": "mean", "after": "mean", "category": "first"})


def pooled(trainings: Sequence[pd.DataFrame], others: Sequence[pd.DataFrame] = ()) -> Interval:
    """Return the mean change over several trainings, or their mean distance from as many others, seed by seed.

    Its interval resamples trainings and topics, see `stats.crossed_mean`. Prompts that one of them lacks are left out.

    Args:
        trainings, others: of `by_prompt`.
    """
    against = [other.after for other in others] if others else [one.before for one in trainings]
    sides = zip(trainings, against, strict=True)
    changes = pd.concat([one.after - other for one, other in sides], axis=1).dropna()
    return crossed_mean(changes.to_numpy().T, list(trainings[0].category.reindex(changes.index)))


def repeat_text(frame: pd.DataFrame, changes: Mapping[str, Interval]) -> str:
    """Return a table with one row per held-out set and training, and what they come to together.

    Args:
        frame: of `measured`, with a column `seed`.
        changes: of `pooled`, for each held-out set.
    """
    rows, told = [], []
    for name, change in changes.items():
        runs = frame[frame.held_out == name]
        rows += [[plain(name), run.seed, _change(run), *_beside(run)] for run in runs.itertuples()]
        word = proof.word(change.low, change.high)
        told.append(
            f"**{plain(name)}: {word}**, {runs.headline.iloc[0]} {_interval(change)} points over {len(runs)} "
            f"trainings; single ones {100 * runs.change.min():+.1f} to {100 * runs.change.max():+.1f}."
        )
    table_of = table(["held-out set", "seed", "change", *BESIDE], rows)
    return (
        "Change of the headline in percentage points; of one training with an interval over topics.\n\n"
        f"{table_of}\n\nTogether, with a 95% interval that resamples trainings and topics:\n\n" + "\n\n".join(told)
    )


def ablation_text(frame: pd.DataFrame, contrasts: Mapping[str, Interval]) -> str:
    """Return a table with one row per arm, one of the contrasts between arms, and how far they may be read.

    Args:
        frame: of `measured`, with the columns `arm` and `seed`.
        contrasts: of `pooled`, by what is compared.
    """
    compared = [[name, _interval(c), "shown" if c.low > 0 else "refuted" if c.high < 0 else "not shown"]
                for name, c in contrasts.items()]  # fmt: skip
    seeds, rows, apart = sorted(frame.seed.unique()), [], []
    for arm, runs in frame.groupby("arm", sort=False):
        mean = runs.mean(numeric_only=True)
        rows.append([arm, *map(_change, runs.itertuples()), f"{100 * mean.change:+.1f}", *_beside(mean)])
        for side, count in (("above", (runs.low > 0).sum()), ("below", (runs.high < 0).sum())):
            apart += [f"{arm} ({side}, {count} of {len(runs)} seeds)"] if count else []
    unequal = [c for c in ("pairs", "steps", "prompts") if frame[c].nunique() > 1]
    return (
        f"Change of `{frame.headline[0]}` on `{frame.held_out[0]}` against the base model, in percentage points with "
        f"95% intervals over topics; other columns are means over the seeds.\n\n"
        + table(["arm", *(f"seed {seed}" for seed in seeds), "mean", *BESIDE], rows)
        + f"\n\nArms with an interval that excludes zero are {len({a.rpartition(' (')[0] for a in apart})} of "
        f"{len(rows)}{': ' if apart else ''}{'; '.join(apart)}. The seeds are {len(seeds)} points, not a distribution."
        + (f" The arms are not equal in {', '.join(unequal)}: see the CSV file." if unequal else "")
        + "\n\nOne arm against another on the same prompts, seed by seed, with 95% intervals that resample trainings "
        "and topics:\n\n" + table(["contrast", "points", "that it is positive"], compared)
    )


def rounds_text(frame: pd.DataFrame) -> str:
    """Return a table with one row per held-out set and round."""
    ordered = frame.sort_values(["held_out", "round"])
    rows = [[plain(f"{r['held_out']}, round {r['round']}"), _change(r), *_beside(r)] for _, r in ordered.iterrows()]
    about = "Change of the headline in each round, in percentage points with 95% intervals over topics."
    return f"{about}\n\n{table(['held-out set', 'change', *BESIDE], rows)}"


def save(stem: Path, text: str, frame: pd.DataFrame, axes: Axes) -> None:
    """Write the text, the numbers and the figure of an experiment, and print the text.

    What a user wrote into a report of an earlier time is kept beside the new one.
    """
    figure: Any = axes.get_figure(root=True)
    caption = figure.get_label() or stem.name
    with writing(stem.parent):
        stem.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=stem.parent) as folder:
            draft = Path(folder) / stem.name
            draft.with_suffix(".md").write_text(
                f"# {stem.name.capitalize()}\n\n{text}\n\n![{plain(caption)}]({stem.name}.png)\n"
            )
            frame.to_csv(draft.with_suffix(".csv"), index=False)
            figure.savefig(draft.with_suffix(".png"), dpi=110, bbox_inches="tight")
            owned.place_all({path.name: path for path in sorted(Path(folder).iterdir())}, stem.parent)
    say(f"\n{text}\n\ndone: {stem.with_suffix('.md')}")


def _change(row: Any) -> str:
    return _interval(Interval(row.change, row.low, row.high))


def _interval(interval: Interval) -> str:
    return f"{100 * interval.value:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def _beside(row: Any) -> list[str]:
    return [
        f"{100 * row.before:.1f}% to {100 * row.after:.1f}%",
        f"{row.tokens_ratio:.2f}",
        f"{row.distinct_2_before:.2f} to {row.distinct_2_after:.2f}",
        "none" if math.isnan(row.win_share) else f"{row.win_share:.0%}",
        f"{row.margin:.2f}",
        f"{row.pairs:.0f}",
        f"{row.steps:.0f}",
    ]
