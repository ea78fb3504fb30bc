import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbutils.core.stats import bootstrap_mean, crossed_mean, distinct, kappa, wilson


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    # by hand: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.96
    [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (7, 100, 0.0343, 0.1375)],
)
def test_wilson_gives_the_textbook_interval(hits, total, low, high):
    interval = wilson(hits, total)
    assert interval.value == hits / total
    assert interval[1:] == pytest.approx((low, high), abs=1e-4)


def test_of_nothing_wilson_knows_nothing():
    value, low, high = wilson(0, 0)
    assert math.isnan(value)
    assert (low, high) == (0, 1)


def test_the_bootstrap_mean_weighs_rows_not_clusters():
    assert bootstrap_mean([1, 1, 1, 0], ["a", "a", "a", "b"], resamples=100).value == 0.75


def test_rows_of_one_topic_count_as_little_more_than_one_draw():
    values = [i % 2 for i in range(12) for _ in range(20)]
    by_topic = bootstrap_mean(values, [i // 20 for i in range(240)], resamples=2000)
    by_row = bootstrap_mean(values, list(range(240)), resamples=2000)
    assert by_topic.high - by_topic.low > 3 * (by_row.high - by_row.low)
    # 12 topics of which half are 1: half width about 1.96 * 0.5 / sqrt(12)
    assert by_topic.high - by_topic.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(12), rel=0.15)


def test_one_topic_gives_no_interval():
    assert bootstrap_mean([0.2, 0.4], ["a", "a"])[1:] == (-math.inf, math.inf)


def test_equal_values_in_every_topic_give_a_point():
    assert bootstrap_mean([0.5] * 6, [0, 0, 1, 1, 2, 2], resamples=100) == pytest.approx((0.5, 0.5, 0.5))


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_mean([], [])


@given(st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 5)), min_size=2))
def test_the_interval_is_repeatable_and_holds_the_extremes_of_the_topics(rows):
    values, topics = zip(*rows, strict=True)
    interval = bootstrap_mean(values, topics, seed=1, resamples=50)
    assert interval == bootstrap_mean(values, topics, seed=1, resamples=50)
    if len(set(topics)) > 1:
        assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9


def test_distinct_falls_with_repetition():
    assert distinct(["the cat sat", "a dog ran"]) == 1
    assert distinct(["the cat sat", "the cat sat"]) == 0.5
    assert distinct(["so so so so so"]) == 0.25


def test_distinct_of_texts_too_short_is_nan():
    assert math.isnan(distinct(["one", ""]))


def ratings(**counts):
    """What two raters said: `ab=3` are three items that the first called a and the second b."""
    pairs = [pair for pair, count in counts.items() for _ in range(count)]
    return [first for first, _ in pairs], [second for _, second in pairs]


@pytest.mark.parametrize(
    ("counts", "value"),
    [
        # by hand: both agree on 0.7; by chance on 0.5 * 0.6 + 0.5 * 0.4 = 0.5
        ({"yy": 20, "yn": 5, "ny": 10, "nn": 15}, 0.4),
        # three kinds: agree on 0.6, by chance on 0.4 * 0.5 + 0.4 * 0.3 + 0.2 * 0.2 = 0.36
        ({"aa": 3, "ab": 1, "bb": 2, "ba": 1, "bt": 1, "ta": 1, "tt": 1}, 0.24 / 0.64),
        # agree on 0.8, but both call nearly all a: by chance on 0.9 * 0.9 + 0.1 * 0.1 = 0.82
        ({"aa": 8, "ab": 1, "ba": 1}, -0.02 / 0.18),
        ({"aa": 3, "bb": 4, "tt": 1}, 1),
        ({"aa": 1, "ab": 1, "ba": 1, "bb": 1}, 0),
        ({"ab": 5, "ba": 5}, -1),
        ({"aa": 4, "ba": 4}, 0),  # one who always says the same agrees by chance only
    ],
)
def test_kappa_is_the_agreement_beyond_chance(counts, value):
    assert kappa(*ratings(**counts), resamples=10).value == pytest.approx(value)


@pytest.mark.parametrize("said", [[], ["a"], ["a"] * 9])
def test_kappa_knows_nothing_of_raters_who_leave_nothing_to_chance(said):
    value, low, high = kappa(said, said)
    assert math.isnan(value)
    assert (low, high) == (-1, 1)


def test_the_interval_of_kappa_is_as_wide_as_the_formula_says_and_repeatable():
    said = ratings(yy=80, yn=20, ny=40, nn=60)
    interval = kappa(*said)
    # Cohen's standard error: sqrt(0.7 * 0.3 / 200) / (1 - 0.5)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * math.sqrt(0.7 * 0.3 / 200) / 0.5, rel=0.15)
    assert interval.low < 0.4 < interval.high
    assert interval == kappa(*said) != kappa(*said, seed=1)


def test_kappa_does_not_depend_on_who_is_named_first():
    first, second = ratings(yy=20, yn=5, ny=10, nn=15)
    assert kappa(first, second) == pytest.approx(kappa(second, first))


def test_kappa_needs_two_opinions_on_every_item():
    with pytest.raises(ValueError, match="zip"):
        kappa(["a"], ["a", "b"])


def test_over_several_trainings_topics_and_trainings_both_count():
    # two trainings that differ by 0.4 throughout: by topics there is no luck, by trainings all of it
    values = np.array([[0.1] * 6, [0.5] * 6])
    mean, low, high = crossed_mean(values, list("aabbcc"))
    assert (mean, low, high) == pytest.approx((0.3, 0.1, 0.5))
    # and the other way round: trainings that agree, topics of which half are 1; half width about 1.96 * 0.5 / sqrt(12)
    topics = np.array([[i % 2 for i in range(12)]] * 3, dtype=float)
    alike = crossed_mean(topics, list(range(12)))
    assert alike.high - alike.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(12), rel=0.15)


@pytest.mark.parametrize(("values", "topics"), [([[0.2, 0.4]], "ab"), ([[0.2, 0.4], [0.1, 0.3]], "aa")])
def test_one_training_or_one_topic_gives_no_interval_over_both(values, topics):
    assert crossed_mean(np.array(values), topics)[1:] == (-math.inf, math.inf)


def test_topics_of_different_size_weigh_by_their_prompts():
    values = np.array([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    assert crossed_mean(values, "aaab", resamples=50).value == 0.625
    assert crossed_mean(values, "aaab", seed=1) == crossed_mean(values, "aaab", seed=1)
