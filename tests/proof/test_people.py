"""people.py of the proof, and `stats.prediction_powered`: a win rate that owns up to its judge."""

import numpy as np
import pytest

from nbutils.core.stats import bootstrap_mean, prediction_powered
from nbutils.proof import figures, people, summary

CHOICE = {0.0: "first", 0.5: "tie", 1.0: "second"}
VERDICT = {0.0: "loss", 0.5: "tie", 1.0: "win"}


def run_of(rng, *, prompts=250, samples=1, truth=0.5, right=0.75, favour=0.6):
    """Simulate a proof: what people would say of every pair, and what a judge says that errs.

    Args:
        truth: how often people prefer the tuned model; a prompt is nearer to one side or the other.
        right: how often the judge says what people would; else it says "win" with the probability `favour`.
    """
    lean = np.clip(rng.normal(truth, 0.15, prompts), 0, 1)
    people_say = (rng.random((prompts, samples)) < lean[:, None]).astype(float)
    guess = (rng.random((prompts, samples)) < favour).astype(float)
    judge = np.where(rng.random((prompts, samples)) < right, people_say, guess)
    return judge, people_say


def compared(judge):
    """Rows of `proof.compare` with these results, a topic for every two prompts."""
    return [
        {
            "prompt_id": f"{i:04}", "category": str(i // 2), "prompt": [{"role": "user", "content": f"p {i}"}],
            "before_text": f"b {i} {n}", "after_text": f"a {i} {n}", "verdict": VERDICT[value],
        }
        for i, values in enumerate(judge)
        for n, value in enumerate(values)
    ]  # fmt: skip


def labelled(rows, says, tmp_path, count):
    """Fill in the first `count` lines of the sheet of these rows as people would."""
    sheet = people.sheet(rows, tmp_path)
    truth = {(f"b {i} {n}", f"a {i} {n}"): value for i, v in enumerate(says) for n, value in enumerate(v)}
    for name in sheet.asked[:count]:
        texts = sheet.answers(name)
        turned = texts[0].startswith("a")
        value = truth[tuple(texts[::-1] if turned else texts)]
        sheet.choices[name] = {0.0: "2" if turned else "1", 0.5: "0", 1.0: "1" if turned else "2"}[value]
    return sheet.labelled


@pytest.mark.parametrize(
    ("right", "favour", "truth"), [(0.75, 0.9, 0.5), (0.6, 0.1, 0.6), (0.9, 1.0, 0.4), (0.3, 0.8, 0.55)]
)
def test_the_corrected_interval_covers_the_truth_and_the_judges_own_does_not(right, favour, truth):
    """1,000 simulated runs of 250 prompts each, 60 of them labelled; the share of intervals that hold the truth:

        judge right   else "win"   people's rate   corrected   the judge's own
        75%           90%          50%             93.7%       12%
        60%           10%          60%             96.0%        0%
        90%           100%         40%             95.6%       51%
        30%           80%          55%             95.8%        0%

    Between 93% and 97% are asked for.
    """
    rng = np.random.default_rng(0)
    held = np.zeros((1000, 2))
    for i in range(1000):
        judge, says = run_of(rng, right=right, favour=favour, truth=truth)
        f, y = judge[:, 0], np.full(250, np.nan)
        some = rng.choice(250, 60, replace=False)
        y[some] = says[some, 0]
        interval = prediction_powered(f, y, range(250)).interval
        raw = f.mean(), 1.96 * f.std() / 250**0.5
        held[i] = interval.low <= truth <= interval.high, abs(raw[0] - truth) <= raw[1]
    assert 0.93 <= held[:, 0].mean() <= 0.97
    assert held[:, 1].mean() < 0.6


def test_several_answers_to_a_prompt_are_not_taken_for_independent():
    """Three answers to each of 200 prompts that are all alike: the interval is that of 200, not of 600."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(500):
        says = np.repeat(rng.random((200, 1)) < 0.6, 3, axis=1).astype(float)
        judge = np.repeat(np.where(rng.random((200, 1)) < 0.8, says[:, :1], rng.random((200, 1)) < 0.5), 3, axis=1)
        y = np.full((200, 3), np.nan)
        some = rng.choice(200, 70, replace=False)
        y[some, 0] = says[some, 0]
        interval = prediction_powered(judge.ravel(), y.ravel(), np.repeat(np.arange(200), 3)).interval
        held += interval.low <= 0.6 <= interval.high
    assert 0.92 <= held / 500 <= 0.98


def test_with_a_perfect_judge_both_rates_agree():
    rng = np.random.default_rng(2)
    f = rng.choice([0.0, 0.5, 1.0], 300)
    y = np.where(np.arange(300) < 50, f, np.nan)
    found = prediction_powered(f, y, range(300))
    raw = bootstrap_mean(list(f), range(300))
    assert found.weight == pytest.approx(1)
    assert found.interval.value == pytest.approx(raw.value)
    assert found.interval.low == pytest.approx(raw.low, abs=0.01)
    assert found.interval.high == pytest.approx(raw.high, abs=0.01)


@pytest.mark.parametrize("f", [np.ones(100), np.tile([0.0, 1.0], 50)])
def test_a_judge_that_says_nothing_about_people_leaves_the_labels_alone(f):
    y = np.full(100, np.nan)
    y[:40] = np.repeat([1.0, 1.0, 0.0, 0.0], 10)
    found = prediction_powered(f, y, range(100))
    assert found.weight == pytest.approx(0, abs=1e-9)
    assert found.interval.value == pytest.approx(0.5)
    assert found.interval.high - 0.5 == pytest.approx(2.0227 * 0.5 / 39**0.5, rel=1e-3)  # Student's, 39 degrees


def test_the_estimate_is_that_of_the_published_program():
    """`ppi_mean_pointestimate` and `ppi_mean_ci` of ppi-python 0.2.3 on the same numbers print 0.65020911 and, with
    the normal distribution and without regard to the few labels, 0.41238688 to 0.88803134."""
    y = np.array([1, 0, 1, 1, 0, 0.5, 1, 0, 1, 1, 0, 1])
    f = np.array([1, 0, 1, 0.5, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 0, 1, 0.5, 0, 1, 1, 1, 0, 1, 1, 0, 0.5, 1, 1, 1, 0, 1, 1])
    found = prediction_powered(f, [*y, *[np.nan] * 20], range(32))
    assert found.interval.value == pytest.approx(0.65020911, abs=1e-8)
    half = (found.interval.high - found.interval.value) / 2.2009852 * 1.9599640 * (11 / 12) ** 0.5
    assert half == pytest.approx((0.88803134 - 0.41238688) / 2, abs=2e-3)


def test_one_topic_tells_nothing_and_one_label_is_refused():
    f = [1.0, 0.0, 1.0]
    assert prediction_powered(f, [1.0, 0.0, np.nan], "aaa").interval.high == float("inf")
    with pytest.raises(ValueError, match="two labels"):
        prediction_powered(f, [1.0, np.nan, np.nan], "abc")


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "; 0 labels of people: fewer than 30 are too few to correct it"),
        (20, "; 20 labels of people: fewer than 30 are too few to correct it"),
        (60, " as 60 labels of people correct it, who agree with the judge on "),
    ],
)
def test_a_rate_is_corrected_by_labels_enough(count, said, tmp_path):
    judge, says = run_of(np.random.default_rng(3), truth=0.5, right=0.7, favour=1.0, samples=3)
    rows = compared(judge)
    found = people.corrected(rows, labelled(rows, says, tmp_path, count))
    assert said in people.in_words(found)
    assert found["labels"] == count
    assert found["pairs"] == 750
    assert bool(found["corrected"]) == (count >= 30)
    assert found["judge"]["value"] == pytest.approx(judge.mean())
    assert found["judge"]["low"] > 0.5  # the judge, which likes the tuned model, calls it better
    if found["corrected"]:
        assert found["corrected"]["low"] < 0.5


def test_ties_alone_correct_nothing(tmp_path):
    judge, says = run_of(np.random.default_rng(4))
    rows = compared(judge)
    found = people.corrected(rows, labelled(rows, np.full_like(says, 0.5), tmp_path, 40))
    assert found["corrected"] is None
    assert "40 labels of people: they are all ties" in people.in_words(found)


@pytest.mark.parametrize(
    ("truth", "prompts", "said"),
    [(0.8, 250, ""), (0.6, 250, "labels more might tell it"), (0.5, 45, "no number of labels on these prompts would")],
)
def test_how_many_more_labels_would_tell(truth, prompts, said, tmp_path):
    judge, says = run_of(np.random.default_rng(11), truth=truth, right=0.8, favour=0.5, prompts=prompts)
    rows = compared(judge)
    words = people.in_words(people.corrected(rows, labelled(rows, says, tmp_path, 40)))
    assert said in words
    assert ("not told from one half" in words) == bool(said)


def test_so_many_labels_as_are_said_to_be_needed_do_tell(tmp_path):
    """Of 200 runs in which more labels are asked for, most are told when they are given."""
    rng = np.random.default_rng(8)
    told = []
    for _ in range(200):
        judge, says = run_of(rng, truth=0.62, right=0.85, favour=0.5, prompts=900)
        f, y = judge[:, 0], np.full(900, np.nan)
        y[:40] = says[:40, 0]
        found = prediction_powered(f, y, range(900))
        if not found.interval.low <= 0.5 <= found.interval.high:
            continue
        allowed = ((found.interval.value - 0.5) / 1.96) ** 2 - found.shared
        if allowed <= 0 or (needed := int(np.ceil(found.own * 40 / allowed))) > 900:
            continue
        y[:needed] = says[:needed, 0]
        more = prediction_powered(f, y, range(900)).interval
        told.append(not more.low <= 0.5 <= more.high)
    assert len(told) > 30
    assert np.mean(told) > 0.5


def test_pairs_that_were_not_measured_are_in_neither_rate(tmp_path):
    judge, says = run_of(np.random.default_rng(5), prompts=100)
    rows = compared(judge)
    for row in rows[:30]:
        row["verdict"] = "unparsed"
    found = people.corrected(rows, labelled(rows, says, tmp_path, 50))
    assert found["pairs"] == 70
    assert found["labels"] == 50


def test_the_figure_and_the_card_hold_both_rates(tmp_path):
    judge, says = run_of(np.random.default_rng(6))
    rows = compared(judge)
    found = people.corrected(rows, labelled(rows, says, tmp_path, 60))
    axes = figures.plot_people(found)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["by the judge", "corrected by 60 labels"]
    score = {"before": 0.4, "after": 0.6, "change": 0.2, "low": 0.1, "high": 0.3}
    of_set = {"checks": {}, "score": score, "measured": {"prompts": 9, "topics": 9, "answers": 9}, "prompts": 9,
              "answers": 9, "bounds": None, "unparsed": 0, "unanswered": 0, "people": found}  # fmt: skip
    assert summary.findings({"test": of_set})[1] == f"test, people: {people.in_words(found)}"
