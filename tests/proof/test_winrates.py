"""winrates.py: wins by length, worked out by hand."""

import json
import math

import pytest

from nbutils.proof.winrates import win_rate, win_rates


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
