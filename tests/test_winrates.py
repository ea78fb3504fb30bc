"""winrates.py: wins by length, worked out by hand, and made-up judges whose taste is known."""

import json
import math
import random

import pytest

from nbutils.winrates import LEAST_PROMPTS, length_controlled, win_rate, win_rates


def told(verdict, before, after, prompt_id="p", topic=""):
    """A judged pair of answers of these lengths in tokens."""
    return {
        "prompt_id": prompt_id,
        "category": topic,
        "verdict": verdict,
        "before_tokens": before,
        "after_tokens": after,
    }


def test_wins_are_counted_by_what_became_of_the_length():
    rows = [
        *[told("win", 10, 20)] * 3,
        told("loss", 10, 20),
        told("tie", 10, 10),
        told("win", 100, 110),  # 10 of 110: alike
        told("loss", 100, 90),  # 10 of 100: alike
        told("flip", 100, 112),  # 12 of 112: longer; a flip is no preference
        told("loss", 20, 10),
        told("unparsed", 20, 10),
    ]
    rates = win_rate(rows)
    counts = {name: (r["win"], r["tie"], r["loss"]) for name, r in rates.items()}
    assert counts == {"all": (4, 2, 3), "shorter": (0, 0, 1), "alike": (1, 1, 1), "longer": (3, 1, 1)}
    # Wilson by hand, 3 of 4: (3/4 + z^2/8 -+ z sqrt(3/64 + z^2/64)) / (1 + z^2/4), z = 1.96
    assert [rates["longer"][k] for k in ("share", "low", "high")] == pytest.approx([0.75, 0.3006, 0.9544], abs=1e-4)
    assert rates["all"]["share"] == pytest.approx(4 / 7)


def test_a_gain_of_longer_answers_alone_is_seen_beside_the_overall_rate():
    rows = [told("win", 10, 30)] * 40 + [told("win", 10, 10), told("loss", 10, 10)] * 20
    table = win_rates({"held-out": {"win_rate": win_rate(rows)}})
    assert list(table.index) == [("held-out", kind) for kind in ("all", "shorter", "alike", "longer")]
    assert table.loc[("held-out", "all"), "low"] > 0.5
    alike = table.loc[("held-out", "alike")]
    assert (alike.share, alike.low < 0.5 < alike.high) == (0.5, True)
    assert table.loc[("held-out", "shorter"), ["win", "tie", "loss"]].tolist() == [0, 0, 0]
    assert math.isnan(table.loc[("held-out", "shorter"), "share"])


def test_win_rates_of_nothing_decided_can_be_saved():
    rates = win_rate([told("tie", 0, 0)])
    assert rates["alike"] == {"win": 0, "tie": 1, "loss": 0, "share": None, "low": None, "high": None}
    json.dumps(rates, allow_nan=False)


def judged(chance, *, prompts=LEAST_PROMPTS, seed=0):
    """Pairs of answers, the tuned ones 20 tokens longer on average; `chance` of a win by the gap in tokens."""
    draw = random.Random(seed)
    rows = []
    for i in range(prompts):
        gap = round(draw.gauss(20, 20))
        verdict = "win" if draw.random() < chance(gap) else "loss"
        rows.append(told(verdict, 100, 100 + gap, str(i), f"t{i % 100}"))
    return rows


def logistic(x):
    return 1 / (1 + math.exp(-x))


def test_a_judge_that_only_likes_length_leaves_nothing_once_length_is_taken_out():
    rows = judged(lambda gap: logistic(2 * math.tanh(gap / 20)))
    rates = win_rate(rows)
    assert rates["all"]["low"] > 0.6
    controlled = rates["length-controlled"]
    assert controlled["low"] < 0.5 < controlled["high"]
    assert controlled["share"] == pytest.approx(0.5, abs=0.06)


def test_a_judge_blind_to_length_keeps_its_rate():
    rows = judged(lambda gap: 0.7)
    share, low, high = length_controlled(rows)
    assert low < 0.7 < high
    assert (low, high) == pytest.approx((share - 0.045, share + 0.045), abs=0.02)  # of 800 at zero gap


def test_few_prompts_get_no_length_controlled_rate():
    assert "length-controlled" not in win_rate(judged(lambda gap: 0.7, prompts=LEAST_PROMPTS - 1))


def test_a_judge_of_one_mind_gets_no_length_controlled_rate():
    assert "length-controlled" not in win_rate(judged(lambda gap: 1.0))
