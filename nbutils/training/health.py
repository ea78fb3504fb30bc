"""Is the training going wrong? What its log shows, each with a remedy.

Used by 04, while it trains and beside its curves. `check` reads the trainer's log:

    not finite     a figure of the forward pass is NaN or infinite, or gradients are for several logged steps
    no gradient    gradients are exactly zero for several logged steps
    falling        chosen answers have become much less likely than they were before training
    fleeing        the margin grows while chosen falls: both answers lose, rejected faster
    trivial        almost from the start every pair is ordered rightly
    contradicted   held-out pairs are ordered the other way than training pairs
    still          to the end no answer has become more or less likely: the loss stays where it began, at log 2
    unseen         the same, in a log so short that it shows no step behind the first updates

The first three are serious: going on costs time and mends nothing. `proof.drift` tells what the answers have lost.

A reward is beta * (log p - log p before training), so reward / beta is an answer's change in nats. Batches are of
different pairs: their figures are averaged over a window of steps. Held-out points are always of the same pairs.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

# Chosen may fall this far. DPO sees only the difference of two answers, and in most runs both fall (Rafailov et al.
# 2024, arXiv 2404.12358; Razin et al. 2024, arXiv 2410.08847, on when that makes a model worse). The published run of
# the recipe behind this kit lost about 17 nats (read off its curves) on answers of some 250 words, which at about a nat
# a token is a twentieth, and gained next to nothing. A tenth is twice that; answers of a few words, where a tenth is
# little, may lose 10 nats.
FALL_NATS, FALL_SHARE = 10.0, 0.1
FLEE = 0.5  # of that fall, once the margin grows at its cost
LEAST_MARGIN = 1.0  # nats; a smaller margin says nothing yet
AGAINST = 2.0  # nats on the wrong side, and a quarter of the training margin: a few held-out pairs lie off by chance
# Loss scaling in float16 skips a few first steps on purpose, with infinite gradients: only a series is a fault.
SERIES = 5
# Window: a twentieth of the training, at least five steps.
WINDOW_STEPS, WINDOW_SHARE = 5, 0.05
EARLY = 0.1  # share of the training in which no honest pairs are all told apart

STILL = (
    0.05  # nats, on average over the second half, or in the last of a few rows: rounding alone moves an answer by less
)

FORWARD = ["loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"]
_REWARDS = ["rewards/chosen", "rewards/rejected"]


class Finding(NamedTuple):
    """Something that went wrong: since which optimizer step (none for drift), in a sentence that ends in the remedy."""

    name: str
    step: int | None
    sentence: str
    serious: bool = False


def check(log: pd.DataFrame, *, beta: float, steps: int = 0) -> list[Finding]:
    """Return what is wrong with a training, in the order of the steps, each kind once; nothing for a good one.

    Args:
        log: as `loop.table` gives it, of a whole training or of its beginning.
        beta: of the training.
        steps: optimizer steps of the whole training; 0 if the log is complete.
    """
    rows = log[log.filter(["learning_rate", "grad_norm", *FORWARD]).notna().any(axis=1)]
    if rows.empty:
        return []
    last = int(rows.step.max())
    complete, steps = not steps, steps or last
    # a row may stand for several steps (logging_steps)
    window = max(1, round(max(WINDOW_STEPS, WINDOW_SHARE * steps) * len(rows) / last))
    held_out, training = _moved(log, beta, "eval_"), _moved(rows, beta, window=window)
    # what is held out counts; until its first point there are only the batches
    early = training if held_out.empty else training[training.step < held_out.step.iloc[0]]
    moved = pd.concat([early, held_out])
    found = [_not_finite(rows), _no_gradient(rows), _trivial(rows, window, steps)]
    found += [_falling(moved), _fleeing(moved), _contradicted(held_out, training)]
    if last >= steps and not any(found):
        found.append(_still(rows, log, beta, complete))
    return sorted((f for f in found if f), key=lambda f: f.step or 0)


def _still(rows: pd.DataFrame, log: pd.DataFrame, beta: float, complete: bool) -> Finding | None:
    moved = rows.filter(_REWARDS).dropna().abs() / beta
    if moved.empty or len(moved.columns) < 2:
        return None
    # the first row is of the model as it was, and a few steps of warm-up move it little; of a few rows the last tells,
    # and a single one, from the first step on, tells half
    late = moved[len(moved) // 2 if len(moved) >= WINDOW_STEPS else -1 :].mean() * (2 if len(moved) == 1 else 1)
    ends = (log[log.step >= rows.step.max()].filter([f"eval_{name}" for name in _REWARDS]).abs() / beta).max()
    # what a row of one step tells is from before its own update, and the first updates may be of a rate of 0
    span = rows.step.diff().fillna(rows.step).iloc[-1]
    unseen = (
        len(rows) < WINDOW_STEPS
        and span < (WINDOW_STEPS if len(rows) == 1 else 2)
        and not (rows.get("learning_rate", rows.step)[:-1] > 0).any()
    )
    most = max([late.max(), *ends.dropna()])
    if not most < STILL:
        return None
    if unseen and ends.dropna().empty:
        sentence = (
            f"the log ends at step {rows.step.max():.0f} and shows no step behind the first updates, so it cannot be "
            "told whether anything was learnt; lower logging_steps, or train on more pairs"
        )
        return Finding("unseen", int(rows.step.max()), sentence) if complete else None
    sentence = (
        f"to the end answers moved by {most:.3f} nats on average, the loss stayed where it began and nothing was "
        "learnt; raise learning_rate, and look whether warmup_steps leave any step to train and the adapter fits"
    )
    return Finding("still", int(rows.step.max()), sentence)


def _not_finite(rows: pd.DataFrame) -> Finding | None:
    # the trainer logs a loss of NaN as 0, the other columns tell
    figures = rows.filter(FORWARD)
    wrong = figures.isna() | figures.isin([np.inf, -np.inf])
    step = _first(rows.step, wrong.any(axis=1))
    if step is not None:
        names = ", ".join(wrong.columns[wrong[rows.step == step].any()])
        remedy = "lower learning_rate, or max_grad_norm in the training file, and train from the start"
        return Finding("not finite", step, f"{names}: not a finite number at step {step}; {remedy}", serious=True)
    step = (
        _series(rows, rows.grad_norm.isna() | rows.grad_norm.isin([np.inf, -np.inf])) if "grad_norm" in rows else None
    )
    if step is None:
        return None
    sentence = (
        f"gradients were not finite {SERIES} times in a row up to step {step}, none of these steps taught anything; "
        "lower learning_rate, and if this is float16, take a model that does not overflow it"
    )
    return Finding("not finite", step, sentence, serious=True)


def _no_gradient(rows: pd.DataFrame) -> Finding | None:
    step = _series(rows, rows.grad_norm == 0) if "grad_norm" in rows else None
    if step is None:
        return None
    sentence = (
        f"gradients were exactly zero {SERIES} times in a row up to step {step}, nothing is learnt; look whether "
        "chosen and rejected are the same, and if the margin is far above 100 nats, lower learning_rate"
    )
    return Finding("no gradient", step, sentence, serious=True)


def _trivial(rows: pd.DataFrame, window: int, steps: int) -> Finding | None:
    """A first pass over the pairs orders pairs it has not seen, so its batches are as good as held-out pairs."""
    if "rewards/accuracies" not in rows:
        return None
    right = (rows["rewards/accuracies"] == 1).rolling(window).sum() == window
    began = rows.step.shift(window - 1)
    step = _first(rows.step, right & (began <= max(EARLY * steps, WINDOW_STEPS)))
    if step is None:
        return None
    sentence = (
        f"every pair up to step {step} of {steps} was ordered rightly for {window} logged steps on end, so something "
        "trivial tells chosen from rejected; compare the lengths, endings and formats of a few pairs"
    )
    return Finding("trivial", step, sentence)


def _falling(moved: pd.DataFrame) -> Finding | None:
    step = _first(moved.step, moved.fall > moved.limit)
    if step is None:
        return None
    at = moved[moved.step == step].iloc[0]
    sentence = (
        f"chosen answers became less likely, by {at.fall:.0f} nats each on {at.pairs} at step {step}, "
        f"{at.fall / at.before:.0%} of their log-probability before training; lower learning_rate, raise beta, or add "
        "sft to loss_type"
    )
    return Finding("falling", step, sentence, serious=True)


def _fleeing(moved: pd.DataFrame) -> Finding | None:
    step = _first(moved.step, (moved.fall > FLEE * moved.limit) & (moved.margin > LEAST_MARGIN))
    if step is None:
        return None
    at = moved[moved.step == step].iloc[0]
    sentence = (
        f"the margin grows while chosen falls: at step {step} chosen lost {at.fall:.0f} nats and rejected "
        f"{at.fall + at.margin:.0f} on {at.pairs}; add sft to loss_type or lower learning_rate, and look for pairs "
        "whose answers are nearly the same"
    )
    return Finding("fleeing", step, sentence)


def _contradicted(held_out: pd.DataFrame, training: pd.DataFrame) -> Finding | None:
    if held_out.empty or training.empty:
        return None
    trained = training.set_index("step").margin.reindex(held_out.step, method="ffill").set_axis(held_out.index)
    limit = -(trained / 4).clip(lower=AGAINST)
    against = (trained > LEAST_MARGIN) & (held_out.margin < limit) & (held_out.accuracy < 0.5)
    step = _first(held_out.step, against)
    if step is None:
        return None
    at = held_out.assign(trained=trained)[held_out.step == step].iloc[0]
    sentence = (
        f"held-out pairs are ordered against training pairs: at step {step} their margin is {at.margin:+.1f} nats and "
        f"{at.accuracy:.0%} are right, while the training margin is {at.trained:+.1f}; look whether chosen and "
        "rejected are swapped in a source"
    )
    return Finding("contradicted", step, sentence)


def _moved(rows: pd.DataFrame, beta: float, prefix: str = "", window: int = 1) -> pd.DataFrame:
    """Return step, chosen's fall, its limit, the margin and chosen's size before training (nats), and the accuracy.

    Averaged over the window; empty if the log has no such figures.
    """
    names = [f"{prefix}{name}" for name in ("rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/chosen")]
    figures = rows.reindex(columns=names).replace([np.inf, -np.inf], np.nan).dropna().rolling(window).mean().dropna()
    reward, margin, accuracy, now = (figures[name] for name in names)
    before = (reward / beta - now).abs()
    return pd.DataFrame(
        {
            "step": rows.step[figures.index],
            "fall": -reward / beta,
            "limit": (FALL_SHARE * before).clip(lower=FALL_NATS),
            "margin": margin / beta,
            "before": before,
            "accuracy": accuracy,
            "pairs": "held-out pairs" if prefix else "training pairs",
        }
    )


def _first(steps: pd.Series, wrong: pd.Series) -> int | None:
    return int(steps[wrong].iloc[0]) if wrong.any() else None


def _series(rows: pd.DataFrame, wrong: pd.Series) -> int | None:
    return _first(rows.step, wrong.rolling(SERIES).sum() == SERIES)
