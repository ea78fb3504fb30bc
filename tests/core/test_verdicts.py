import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbutils.core.verdicts import decide, mean_scores

difference = st.floats(-1, 1)
margin = st.sampled_from([0.0, 0.1, 0.25])
MIRROR = {"win": "loss", "loss": "win", "tie": "tie", "flip": "flip"}


@pytest.mark.parametrize(
    ("d1", "d2", "verdict"),
    [
        # the table of the design, row by row; min_margin is 0.1, the tolerance 0.05
        (0.5, 0.25, "win"),
        (0.5, 0.04, "win"),
        (0.12, 0.04, "tie"),
        (0.5, -0.5, "flip"),
        (0.04, 0.5, "win"),
        (0.04, -0.04, "tie"),
        (0.05, 0.05, "tie"),
        (0.04, -0.5, "loss"),
        (-0.5, 0.5, "flip"),
        (-0.5, 0.04, "loss"),
        (-0.12, 0.04, "tie"),
        (-0.5, -0.25, "loss"),
        # a clear preference in both orders that stays under min_margin
        (0.06, 0.08, "tie"),
        (-0.06, -0.08, "tie"),
        # the edges: a margin that is just reached, a difference that is just within the tolerance
        (0.1, 0.1, "win"),
        (0.5, -0.05, "win"),
        (0.5, -0.06, "flip"),
        (0.6, -0.6, "flip"),
    ],
)
def test_two_orders_give_the_verdict_of_the_table(d1, d2, verdict):
    assert decide([d1, d2], min_margin=0.1) == verdict


@pytest.mark.parametrize(("d", "verdict"), [(0.5, "win"), (-0.5, "loss"), (0.09, "tie"), (0.0, "tie")])
def test_a_judge_without_order_decides_by_its_one_difference(d, verdict):
    assert decide([d], min_margin=0.1) == verdict


def test_no_parsed_order_is_unparsed():
    assert decide([]) == "unparsed"


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, -math.nan])
@pytest.mark.parametrize("others", [[], [0.5], [-0.5], [math.inf], [math.nan]])
def test_a_score_that_is_no_number_is_unparsed_and_never_a_loss(odd, others):
    assert decide([odd, *others]) == decide([*others, odd]) == "unparsed"


def test_no_difference_is_a_tie_whatever_the_margin():
    assert decide([0.04, -0.04], min_margin=0.0) == "tie"


@pytest.mark.parametrize("steps", [3, 4, 9])
def test_a_margin_of_one_step_of_the_scale_is_reached_by_one_step(steps):
    grades = [k / steps for k in range(steps + 1)]
    for low, high in itertools.pairwise(grades):
        assert decide([high - low, high - low], min_margin=1 / steps) == "win"


@given(difference, difference, margin)
def test_swapping_the_responses_mirrors_the_verdict(d1, d2, min_margin):
    assert decide([-d1, -d2], min_margin=min_margin) == MIRROR[decide([d1, d2], min_margin=min_margin)]


@given(difference, difference, margin)
def test_the_sequence_of_the_orders_does_not_matter(d1, d2, min_margin):
    assert decide([d1, d2], min_margin=min_margin) == decide([d2, d1], min_margin=min_margin)


@given(difference, difference)
def test_a_larger_margin_only_turns_verdicts_into_ties(d1, d2):
    assert decide([d1, d2], min_margin=0.3) in (decide([d1, d2], min_margin=0.1), "tie")


def test_scores_are_averaged_over_the_orders():
    assert mean_scores([[1.0, 0.5, 0.0], [0.5, 0.5, 0.25]]) == [0.75, 0.5, 0.125]
    assert mean_scores([]) == []
