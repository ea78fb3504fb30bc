"""Small statistics for the notebooks: intervals, and how varied a set of answers is.

Used by 01 (shares of verdicts), 02 (distinct share) and 04 (the proof).
"""

import itertools
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats as scipy_stats


class Interval(NamedTuple):
    """A value with its 95% interval, in the value's own unit."""

    value: float
    low: float
    high: float


def wilson(hits: int, total: int) -> Interval:
    """Return a share of `total` with its Wilson score interval (Wilson 1927); an empty total gives (nan, 0, 1).

    >>> [round(v, 3) for v in wilson(7, 100)]
    [0.07, 0.034, 0.137]
    """
    if total == 0:
        return Interval(float("nan"), 0.0, 1.0)
    interval = scipy_stats.binomtest(hits, total).proportion_ci(method="wilson")
    return Interval(hits / total, float(interval.low), float(interval.high))


def bootstrap_mean(
    values: Sequence[float], clusters: Sequence[Hashable], *, seed: int = 0, resamples: int = 10_000
) -> Interval:
    """Return the mean of `values` with a percentile bootstrap interval that resamples whole clusters.

    Answers about one topic resemble each other, so rows are not independent draws but topics nearly are. For a
    paired comparison pass per-row differences. Method: Cameron, Gelbach, Miller 2008, the pairs cluster bootstrap.

    Args:
        values: one number per row, any unit.
        clusters: the topic of each row; one cluster only gives an interval of -inf to inf, since nothing is known.
        seed, resamples: of the bootstrap.
    """
    if not len(values):
        raise ValueError("bootstrap_mean needs at least one value")
    index = _numbered(clusters)
    sums = np.bincount(index, weights=np.asarray(values, dtype=float))
    counts = np.bincount(index).astype(float)
    mean = float(sums.sum() / counts.sum())
    if len(counts) == 1:
        return Interval(mean, float("-inf"), float("inf"))
    result = scipy_stats.bootstrap(
        (sums, counts),
        lambda s, n, axis: s.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    )
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high))


def crossed_mean(
    values: np.ndarray, clusters: Sequence[Hashable], *, seed: int = 0, resamples: int = 10_000
) -> Interval:
    """Return the mean of `values` with a percentile bootstrap interval that resamples its rows and its clusters.

    Each training is tried on the same prompts, so what is luck in a mean over several is that of the trainings and
    that of the topics. Both are drawn anew, each for itself. Method: Owen 2007, the pigeonhole bootstrap.

    Args:
        values: shape (trainings, prompts), any unit.
        clusters: the topic of each prompt; one alone, or one training, gives an interval of -inf to inf.
        seed, resamples: of the bootstrap.
    """
    index = _numbered(clusters)
    members = np.eye(len(set(clusters)))[index]
    sums, counts = values @ members, np.ones_like(values) @ members
    mean = float(values.mean())
    if min(sums.shape) < 2:
        return Interval(mean, float("-inf"), float("inf"))
    rng = np.random.default_rng(seed)
    rows, columns = (rng.multinomial(n, np.full(n, 1 / n), resamples).astype(float) for n in sums.shape)
    means = ((rows @ sums) * columns).sum(1) / ((rows @ counts) * columns).sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(mean, float(low), float(high))


def _numbered(clusters: Sequence[Hashable]) -> np.ndarray:
    """Return the number of each row's cluster, from 0 in the order of their first rows."""
    names = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    return np.array([names[c] for c in clusters], dtype=int)


class Corrected(NamedTuple):
    """A mean over all rows, of what a judge says of them and people say of a few."""

    interval: Interval
    weight: float  # of the judge's opinion, 0 to 1
    shared: float  # squared standard error that more labels would not take away
    own: float  # that of the labels


def prediction_powered(judged: Sequence[float], labels: Sequence[float], clusters: Sequence[Hashable]) -> Corrected:
    """Return what people would say in the mean, who labelled a random part of what a judge has judged.

    The judge's mean over all rows, corrected by how much people differ from it where they spoke. The judge counts with
    the weight that makes the variance smallest (0 if it says nothing about them), so the interval is never much wider
    than that of the labels alone. Method: Angelopoulos, Duchi, Zrnic 2023, PPI++, whose estimate this is with the
    labelled rows and the others as its two sets; the error is summed over whole clusters, as in `bootstrap_mean`, and
    the interval is Student's.

    Args:
        judged: a number for each row.
        labels: a person's number on the same scale, NaN where nobody spoke; two at least.
        clusters: the topic of each row.
    """
    f, y = np.asarray(judged, dtype=float), np.asarray(labels, dtype=float)
    spoken = np.isfinite(y)
    if spoken.sum() < 2:
        raise ValueError(f"expected two labels or more, got {spoken.sum()}")
    spread = float(np.var(f, ddof=1))
    weight = float(np.clip(np.cov(f[spoken], y[spoken], bias=True)[0, 1] / spread, 0, 1)) if spread else 0.0
    rest = np.where(spoken, y - weight * f, 0.0)
    gap = rest.sum() / spoken.sum()
    value = weight * f.mean() + gap
    index = _numbered(clusters)
    mine = np.bincount(index, np.where(spoken, rest - gap, 0.0)) / spoken.sum()
    all_ = np.bincount(index, weight * (f - f.mean())) / len(f)
    count = len(set(index[spoken]))
    if count < 2:
        return Corrected(Interval(float(value), float("-inf"), float("inf")), weight, 0.0, float("inf"))
    own = float((mine**2).sum()) * count / (count - 1)
    error = float(((mine + all_) ** 2).sum()) * count / (count - 1)
    half = float(scipy_stats.t.ppf(0.975, count - 1)) * error**0.5
    return Corrected(Interval(float(value), float(value - half), float(value + half)), weight, error - own, own)


def kappa(first: Sequence[str], second: Sequence[str], *, seed: int = 0, resamples: int = 2_000) -> Interval:
    """Return Cohen's kappa of two raters, with a percentile bootstrap interval over the items (Cohen 1960).

    1 is full agreement, 0 what chance would give. Two raters that both use one and the same category only agree
    fully and leave nothing to chance: nan.

    >>> kappa(["a", "b", "b", "a"], ["a", "b", "a", "a"]).value
    0.5
    """
    names = {name: i for i, name in enumerate(dict.fromkeys([*first, *second]))}
    codes = np.array([[names[a], names[b]] for a, b in zip(first, second, strict=True)]).reshape(-1, 2)
    shares = np.eye(len(names))

    def value(index: np.ndarray) -> float:
        a, b = codes[index].T
        chance = float(shares[a].mean(0) @ shares[b].mean(0))
        return (float((a == b).mean()) - chance) / (1 - chance) if chance < 1 else float("nan")

    if not len(codes):
        return Interval(float("nan"), -1.0, 1.0)
    rng = np.random.default_rng(seed)
    draws = [value(rng.integers(0, len(codes), len(codes))) for _ in range(resamples)]
    low, high = np.nanpercentile(draws, [2.5, 97.5]) if not np.isnan(draws).all() else (-1.0, 1.0)
    return Interval(value(np.arange(len(codes))), float(low), float(high))


def distinct(texts: Iterable[str]) -> float:
    """Return distinct-2, the share of word pairs that differ (Li et al. 2016); nan if there are none.

    It falls when a model repeats itself, within one answer or across answers. Compare only sets of similar size.

    >>> distinct(["a b a b"])
    0.6666666666666666
    """
    # hashes, eight bytes each: the pairs of 100,000 answers themselves would take gigabytes
    grams = np.fromiter((hash(pair) for text in texts for pair in itertools.pairwise(text.split())), dtype=np.int64)
    return len(np.unique(grams)) / len(grams) if len(grams) else float("nan")
