"""From two scores in two orders to one verdict; used by 01, 03 and the before/after proof of 04.

A judge scores the same pair twice, once in the order given and once reversed. With d1 and d2 the score differences
(first minus second response) in the two orders and a tolerance EPS:

    d1 \\ d2       > EPS      within      < -EPS
    > EPS         win        by mean     flip
    within        by mean    by mean     by mean
    < -EPS        flip       by mean     loss

"By mean" is a win or loss when |d1 + d2| / 2 reaches `min_margin`, otherwise a tie; a win or loss whose mean stays
under `min_margin` is a tie as well. A mean of exactly zero is a tie whatever the margin.
"""

import math
from collections.abc import Sequence
from typing import Literal

Verdict = Literal["win", "loss", "tie", "flip", "unparsed"]

# Score differences up to this, on the 0..1 scale, count as "the judge sees no difference".
EPS = 0.05
# Scores are sums and quotients of small integers: keep 0.25 >= 0.25 true after normalisation.
_ROUND = 1e-9


def decide(differences: Sequence[float], *, min_margin: float = 0.0) -> Verdict:
    """Return the verdict on a pair from its score differences, one per order the judge answered.

    Args:
        differences: first minus second response on the 0..1 scale; one value for a judge without order, else two.
        min_margin: smallest absolute mean difference that counts as a preference.

    >>> decide([0.5, 0.25]), decide([0.5, -0.5]), decide([0.5, 0.0]), decide([0.0, 0.0])
    ('win', 'flip', 'win', 'tie')
    """
    if not differences or not all(map(math.isfinite, differences)):
        return "unparsed"
    if max(differences) > EPS + _ROUND and min(differences) < -EPS - _ROUND:
        return "flip"
    mean = sum(differences) / len(differences)
    if abs(mean) <= _ROUND or abs(mean) + _ROUND < min_margin:
        return "tie"
    return "win" if mean > 0 else "loss"


def best_and_worst(means: Sequence[float]) -> list[int]:
    """Return the places of the best and the worst mean score, in their order; of none, where all are NaN, nothing.

    >>> best_and_worst([0.5, 1.0, math.nan, 0.0]), best_and_worst([0.5, 0.5]), best_and_worst([math.nan, 0.5])
    ([1, 3], [0, 1], [1, 1])
    """
    scored = [i for i, mean in enumerate(means) if not math.isnan(mean)]
    key = means.__getitem__
    return sorted((max(scored, key=key), min(reversed(scored), key=key))) if scored else []


def mean_scores(scores: Sequence[Sequence[float]]) -> list[float]:
    """Return each response's score averaged over the orders; empty if no order was parsed.

    >>> mean_scores([[1.0, 0.5], [0.5, 0.5]])
    [0.75, 0.5]
    """
    return [sum(column) / len(column) for column in zip(*scores, strict=True)]
