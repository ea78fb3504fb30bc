"""health.py: handmade logs at the bounds, and small trainings made to go wrong on purpose."""

import math
import random

import pandas as pd
import pytest
from dpo import WORDS, pair, small_trainer

from nbutils.core.errors import InputError, Interrupted
from nbutils.proof.doubts import drift
from nbutils.training.checkpoints import last_complete
from nbutils.training.health import check
from nbutils.training.loop import train
from nbutils.training.settings import read_options

# The demo's own training: 39 steps, beta 0.1, held-out points at steps 20 and 39.
DEMO = {
    "rewards/chosen": [
        0, 0, -0.03, -0.03, 0.01, 0, 0, 0.02, 0.02, 0.04, 0.03, 0.05, 0.03, 0.21, 0.09, 0.17, 0.18, 0.06, 0.06, 0.16,
        0.05, 0.19, 0.21, 0.13, 0.1, 0.19, 0.19, 0.2, 0.24, 0.15, 0.19, 0.31, 0.27, 0.21, 0.18, 0.16, 0.25, 0.16, 0.27,
    ],
    "rewards/margins": [
        0, 0, -0.02, -0.03, 0.04, 0.04, -0.01, 0.03, 0, 0.04, 0.01, 0.04, 0, 0.27, 0.13, 0.22, 0.22, 0.02, 0.12, 0.22,
        0.11, 0.21, 0.31, 0.21, 0.12, 0.25, 0.23, 0.26, 0.37, 0.2, 0.26, 0.45, 0.31, 0.35, 0.22, 0.22, 0.39, 0.37, 0.38,
    ],
    "rewards/accuracies": [
        0, 0, 0.25, 0.5, 1, 0.75, 0.375, 0.5, 0.5, 0.875, 0.5, 0.5, 0.5, 1, 0.875, 1, 0.875, 0.625, 1, 0.875,
        0.875, 1, 1, 1, 0.75, 1, 1, 0.875, 1, 0.875, 0.875, 1, 0.875, 1, 0.75, 0.875, 1, 1, 1,
    ],
    "logps/chosen": [
        -66, -62, -85, -99, -77, -80, -33, -55, -88, -67, -79, -56, -73, -107, -54, -64, -91, -57, -70, -75,
        -60, -79, -84, -54, -46, -61, -57, -70, -57, -65, -72, -81, -75, -81, -67, -58, -80, -56, -76,
    ],
}  # fmt: skip
HELD_OUT = {
    "eval_rewards/chosen": {20: 0.07, 39: 0.1},
    "eval_rewards/margins": {20: 0.04, 39: 0.09},
    "eval_rewards/accuracies": {20: 0.58, 39: 0.67},
    "eval_logps/chosen": {20: -70.3, 39: -70.0},
}


def log_of(steps=20, held_out=(), every=1, **changed):
    """A log in which little happens but what is changed; held-out points are (step, chosen, margin, accuracy)."""
    columns = {
        "loss": 0.7, "grad_norm": 1.0, "learning_rate": 1e-5, "rewards/chosen": 0.0, "rewards/rejected": -0.01,
        "rewards/margins": 0.0, "rewards/accuracies": 0.5, "logps/chosen": -50.0, "logps/rejected": -50.0,
    }  # fmt: skip
    changed = {name.replace("__", "/"): value for name, value in changed.items()}
    frame = pd.DataFrame({"step": range(every, every * steps + 1, every)} | columns | changed)
    for step, chosen, margin, accuracy in held_out:
        names = ["eval_rewards/chosen", "eval_rewards/margins", "eval_rewards/accuracies", "eval_logps/chosen"]
        frame.loc[frame.step == step, names] = [chosen, margin, accuracy, -200 + 10 * chosen]
    return frame


def found(log, **options):
    return {finding.name: finding.step for finding in check(log, beta=0.1, **options)}


# --- handmade logs


def test_the_log_of_the_demo_shows_nothing():
    frame = log_of(39, **DEMO)
    for name, points in HELD_OUT.items():
        frame[name] = frame.step.map(points)
    assert check(frame, beta=0.1) == []
    assert [check(frame[:n], beta=0.1, steps=39) for n in range(1, 39)] == [[]] * 38


def test_an_empty_log_shows_nothing():
    assert check(pd.DataFrame({"step": []}), beta=0.1) == []


def test_chosen_may_lose_ten_nats_in_short_answers_and_a_tenth_in_long_ones():
    # 50 nats at the start: 10 count, not 5; 300: 30 count
    for start, limit in ((-50, 10), (-300, 30)):
        for lost, tripped in ((limit - 0.1, False), (limit + 0.1, True)):
            frame = log_of(rewards__chosen=-0.1 * lost, logps__chosen=start - lost)
            assert found(frame) == ({"falling": 5} if tripped else {}), (start, lost)


def test_batches_count_as_a_mean_of_a_window_since_each_is_of_other_pairs():
    one_batch = [0.0] * 9 + [-4.0] + [0.0] * 10  # 40 nats, 8 in the mean of five
    assert found(log_of(rewards__chosen=one_batch)) == {}
    assert found(log_of(rewards__chosen=[0.0] * 9 + [-4.0] * 2 + [0.0] * 9)) == {"falling": 11}
    # of 200 steps a twentieth is ten: two batches are no longer enough
    assert found(log_of(rewards__chosen=[0.0] * 9 + [-4.0] * 2 + [0.0] * 9), steps=200) == {}


def test_a_logged_row_may_stand_for_several_steps():
    assert found(log_of(10, every=10, rewards__chosen=[0.0] * 4 + [-4.0] + [0.0] * 5)) == {"falling": 50}


def test_from_its_first_point_what_is_held_out_counts_and_not_the_batches():
    falls = [0.0] * 10 + [-4.0] * 10
    assert found(log_of(rewards__chosen=falls, held_out=[(5, 0.0, 0.0, 0.5), (20, -1.9, 0.0, 0.5)])) == {}
    assert found(log_of(rewards__chosen=falls, held_out=[(5, 0.0, 0.0, 0.5), (20, -2.1, 0.0, 0.5)])) == {"falling": 20}
    assert found(log_of(rewards__chosen=falls, held_out=[(20, 0.0, 0.0, 0.5)])) == {"falling": 12}


def test_the_sentence_about_falling_gives_nats_share_and_remedy():
    [finding] = check(log_of(held_out=[(20, -4.0, 0.0, 0.5)]), beta=0.1)
    assert finding.serious
    assert finding.sentence == (
        "chosen answers became less likely, by 40 nats each on held-out pairs at step 20, 20% of their log-probability "
        "before training; lower learning_rate, raise beta, or add sft to loss_type"
    )


def test_a_margin_that_grows_while_both_fall_is_told_before_chosen_has_fallen_for_good():
    fleeing = check(log_of(held_out=[(20, -1.1, 3.0, 1.0)]), beta=0.1)  # 11 nats of 200: more than half of a tenth
    assert [(f.name, f.serious) for f in fleeing] == [("fleeing", False)]
    assert "chosen lost 11 nats and rejected 41 on held-out pairs; add sft to loss_type" in fleeing[0].sentence
    assert found(log_of(held_out=[(20, -0.9, 3.0, 1.0)])) == {}
    assert found(log_of(held_out=[(20, -1.1, 0.05, 1.0)])) == {}  # half a nat


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([0.0, 0.0] + [1.0] * 18, {"trivial": 7}),  # step 1 cannot be right: nothing has moved
        ([0.0] * 5 + [1.0] * 15, {}),  # learnt, if fast
        ([0.0, 1.0, 1.0, 1.0, 0.9] + [1.0] * 15, {}),
        ([0.0] + [0.9] * 19, {}),
    ],
)
def test_pairs_that_are_all_told_apart_in_the_first_tenth_are_told_apart_by_something_trivial(accuracies, expected):
    # of so short a training, the first five steps
    assert found(log_of(rewards__accuracies=accuracies)) == expected


def test_in_a_long_training_a_few_batches_without_a_fault_are_chance():
    accuracies = [0.5] * 50 + [1.0] * 40 + [0.5] * 910
    assert found(log_of(1000, rewards__accuracies=accuracies)) == {}
    assert found(log_of(1000, rewards__accuracies=[0.5] * 50 + [1.0] * 60 + [0.5] * 890)) == {"trivial": 100}
    assert found(log_of(1000, rewards__accuracies=[0.5] * 110 + [1.0] * 890)) == {}


def test_held_out_pairs_ordered_against_the_training_pairs_are_a_contradiction():
    margins = {"rewards__margins": 1.0}  # 10 nats: a quarter is 2.5
    assert found(log_of(held_out=[(10, 0.0, -0.24, 0.4), (20, 0.0, -0.26, 0.4)], **margins)) == {"contradicted": 20}
    assert found(log_of(held_out=[(20, 0.0, -0.3, 0.5)], **margins)) == {}
    assert found(log_of(held_out=[(20, 0.0, -0.3, 0.4)], rewards__margins=0.05)) == {}  # nothing learnt yet
    assert found(log_of(held_out=[(20, 0.0, -0.21, 0.4)], rewards__margins=0.3)) == {"contradicted": 20}
    assert found(log_of(held_out=[(20, 0.0, -0.19, 0.4)], rewards__margins=0.3)) == {}  # chance


@pytest.mark.parametrize("column", ["loss", "rewards/chosen", "logps/rejected"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_not_finite_is_told_at_once(column, value):
    frame = log_of()
    frame.loc[3:, column] = value
    [finding] = [f for f in check(frame, beta=0.1) if f.name == "not finite"]
    assert (finding.step, finding.serious) == (4, True)
    assert finding.sentence.startswith(f"{column}: not a finite number at step 4; lower learning_rate")


def test_the_first_steps_that_loss_scaling_skips_are_no_fault_and_a_series_is_one():
    assert found(log_of(grad_norm=[math.inf] * 4 + [1.0] * 16)) == {}
    assert found(log_of(grad_norm=[math.inf, math.nan] * 2 + [math.inf] * 16)) == {"not finite": 5}


def test_gradients_of_zero_are_told_once_they_are_a_series():
    assert found(log_of(grad_norm=[0.0] * 4 + [1.0] * 16)) == {}
    [finding] = check(log_of(grad_norm=[1.0] * 10 + [0.0] * 10), beta=0.1)
    assert (finding.name, finding.step, finding.serious) == ("no gradient", 15, True)


def test_rows_that_hold_only_held_out_figures_are_not_taken_for_broken_steps():
    frame = log_of(4, every=10)
    only = pd.DataFrame({"step": [15], "eval_loss": [0.7], "eval_rewards/chosen": [0.0]})
    assert check(pd.concat([frame, only]).sort_values("step", ignore_index=True), beta=0.1) == []


# --- what the answers have lost


def summary(tokens, variety):
    sides = ("before", "after")
    return {
        "answers": 10,
        "measured": {"answers": 10},
        "tokens": dict(zip(sides, tokens, strict=True)),
        "tokens_ratio": tokens[1] / tokens[0],
        "distinct_2": dict(zip(sides, variety, strict=True)),
    }


@pytest.mark.parametrize(
    ("tokens", "variety", "names"),
    [
        ((39.9, 13), (0.73, 0.73), ["length"]),  # the collapse of the design
        ((39.9, 26), (0.73, 0.73), ["length"]),  # a gain that left the topic
        ((39.9, 29), (0.73, 0.73), []),  # the gain that was one
        ((46.8, 48.2), (0.73, 0.70), []),  # the demo
        ((40, 60), (0.73, 0.73), ["length"]),
        ((40, 40), (0.8, 0.6), ["variety"]),
        ((40, 80), (0.8, 0.2), ["length", "variety"]),
        ((40, 40), (math.nan, math.nan), []),  # answers of one word
    ],
)
def test_length_and_variety_far_from_before_are_told_for_each_set(tokens, variety, names):
    findings = drift({"fine": summary((40, 40), (0.7, 0.7)), "set": summary(tokens, variety)})
    assert [f.name for f in findings] == names
    assert all(f.step is None and f.sentence.startswith("set: ") for f in findings)


def test_the_sentences_of_drift_give_numbers_and_remedy():
    length, variety = (f.sentence for f in drift({"s": summary((40, 10), (0.8, 0.4))}))
    assert length.startswith("s: answers are 0.25 times as long as before (40 to 10 tokens)")
    assert "max_length_gap" in length
    assert variety.startswith("s: distinct-2 fell from 0.80 to 0.40")


# --- trainings

GOOD = ["river", "mountains", "sea", "sand", "leaves", "stones"]
BAD = ["flour", "water", "salt", "oven", "bread", "train"]


def wordy(count, prompt, seed=0):
    """Pairs in which chosen tends to one set of words and rejected to another."""
    rng = random.Random(seed)

    def said(words):
        return " ".join(rng.choices(WORDS + 3 * words, k=rng.randint(5, 9)))

    return [pair(f"{prompt} {i} things.", said(GOOD), said(BAD)) for i in range(count)]


def swapped(pairs):
    texts = [[p[side][-1]["content"] for side in ("prompt", "rejected", "chosen")] for p in pairs]
    return [pair(*three) for three in texts]


def noisy(pairs):
    """Rejected is chosen and two words that are always the same."""
    texts = [[p[side][-1]["content"] for side in ("prompt", "chosen")] for p in pairs]
    return [pair(prompt, chosen, f"{chosen} xq zz") for prompt, chosen in texts]


def trained(model, folder, pairs, held_out, *, stop=False, options=None, **params):
    options = {"per_device_train_batch_size": 4, "eval_steps": 0.1, "stop_on_warning": stop} | (options or {})
    trainer = small_trainer(model, folder, pairs, held_out, options=options, **params)
    return train(trainer, csv=folder / "log.csv", stop_on_warning=stop)


def test_a_good_training_shows_nothing(tiny_llama, tmp_path, caplog):
    log = trained(tiny_llama, tmp_path, wordy(120, "Name"), wordy(16, "Say", 1), learning_rate=3e-4)
    assert log["eval_rewards/accuracies"].dropna().iloc[-1] > 0.7  # it did learn
    assert check(log, beta=0.1) == []
    assert not [r for r in caplog.records if r.name == "nbutils.training.loop" and r.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("remedy", "names"),
    [({}, {"fleeing", "falling"}), ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 1]}, set())],
)
def test_a_rate_of_a_hundredth_makes_chosen_fall_and_sft_holds_it_up(remedy, names, tiny_llama, tmp_path):
    pairs, held_out = wordy(120, "Name"), wordy(16, "Say", 1)
    log = trained(tiny_llama, tmp_path, pairs, held_out, options=remedy, learning_rate=1e-2)
    assert set(found(log)) == names


def test_swapped_labels_contradict_what_is_held_out(tiny_llama, tmp_path):
    log = trained(tiny_llama, tmp_path, swapped(wordy(120, "Name")), wordy(16, "Say", 1), learning_rate=1e-3)
    [finding] = check(log, beta=0.1)
    assert finding.name == "contradicted"
    assert finding.step <= 15  # of 30


def test_a_rejected_answer_that_is_chosen_with_noise_is_told_apart_at_once_and_drags_chosen_down(tiny_llama, tmp_path):
    log = trained(tiny_llama, tmp_path, noisy(wordy(120, "Name")), noisy(wordy(16, "Say", 1)), learning_rate=1e-3)
    steps = found(log)
    assert set(steps) == {"trivial", "falling", "fleeing"}
    assert max(steps.values()) <= 10  # of 30


def test_a_training_that_overflows_is_stopped_with_a_checkpoint_until_told_to_go_on(tiny_llama, tmp_path, caplog):
    pairs, options = wordy(40, "Name"), {"save_steps": 100}
    for _ in range(2):  # the same command is no way round
        with pytest.raises(Interrupted, match=r"stop_on_warning: training stopped at step [34] of 10 .* not a finite"):
            trained(tiny_llama, tmp_path, pairs, [], stop=True, options=options, learning_rate=1e30)
    [folder] = (f for f in (tmp_path / "scratch").iterdir() if f.name != "reference")
    assert last_complete(folder).name == "checkpoint-4"
    caplog.clear()
    caplog.set_level("INFO", logger="nbutils")
    log = trained(tiny_llama, tmp_path, pairs, [], options=options, learning_rate=1e30)
    assert log.step.max() == 10
    assert "resuming from checkpoint-4" in caplog.text
    assert [r.getMessage().partition(":")[0] for r in caplog.records if r.levelname == "WARNING"].count(
        "not finite"
    ) == 1


def test_the_training_file_says_whether_to_stop(tmp_path):
    file = tmp_path / "training.yaml"
    file.write_text("stop_on_warning: true")
    assert (read_options(str(file))["stop_on_warning"], read_options("")["stop_on_warning"]) == (True, False)
    file.write_text("stop_on_warning: always")
    with pytest.raises(InputError, match="stop_on_warning is 'always': Input should be a valid boolean"):
        read_options(str(file))


def test_a_warning_that_is_not_serious_stops_nothing(tiny_llama, tmp_path):
    swapped_pairs, held_out = swapped(wordy(120, "Name")), wordy(16, "Say", 1)
    log = trained(tiny_llama, tmp_path, swapped_pairs, held_out, stop=True, learning_rate=1e-3)
    assert log.step.max() == 30


def test_a_fall_stops_a_training_that_asks_for_it_and_the_warning_is_logged_once(tiny_llama, tmp_path, caplog):
    pairs, held_out = noisy(wordy(60, "Name")), noisy(wordy(8, "Say", 1))
    with pytest.raises(Interrupted, match=r"with a checkpoint: chosen answers became less likely, by \d+ nats"):
        trained(tiny_llama, tmp_path, pairs, held_out, stop=True, learning_rate=1e-2)
    warned = [r.getMessage() for r in caplog.records if r.name == "nbutils.training.loop" and r.levelname == "WARNING"]
    assert [w.startswith("falling: chosen answers") for w in warned].count(True) == 1


# --- nothing learnt, nothing measured


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, False),
        ({"rewards__rejected": 0.0}, True),
        ({"rewards__rejected": 0.004, "rewards__chosen": -0.004}, True),  # 0.04 nats
        ({"rewards__rejected": 0.0, "rewards__chosen": 0.006}, False),
        ({"rewards__rejected": [0.0] * 10 + [0.1] * 10}, False),
        ({"rewards__rejected": [0.1] * 10 + [0.0] * 10}, True),  # moved and came back to where it was
        ({"rewards__rejected": 0.0, "grad_norm": 0.0}, False),  # told already, as no gradient
        ({"rewards__rejected": 0.0, "loss": 1.9}, True),  # with sft the loss does not begin at log 2
    ],
    ids=str,
)
def test_a_training_after_which_no_answer_has_moved_has_learnt_nothing(changed, told):
    assert ("still" in found(log_of(20, **changed))) == told
    assert "still" not in found(log_of(20, **changed), steps=40)  # it may yet


@pytest.mark.parametrize("every", [1, 2, 25])
def test_a_whole_training_of_a_few_rows_is_told_to_have_stood_still_and_the_beginning_of_one_is_not(every):
    unmoved = [log_of(n, every=every, rewards__rejected=0.0) for n in range(1, 7)]
    single = {1: {"unseen": 1}, 2: {"unseen": 2}, 25: {"still": 25}}
    assert [found(log) for log in unmoved] == [single[every], *({"still": n * every} for n in range(2, 7))]
    assert not any(found(log, steps=1000) for log in unmoved)


@pytest.mark.parametrize(
    ("every", "moved", "held_out", "expected"),
    [
        (1, 0.0, None, "unseen"),
        (4, 0.002, None, "unseen"),
        (4, 0.003, None, ""),  # half of it is more than 0.05 nats at the end
        (5, 0.002, None, "still"),
        (100, 0.0, None, "still"),
        (100, 0.01, None, ""),
        (1, 0.0, 0.0, "still"),
        (1, 0.0, 0.01, ""),
        (4, 0.0, -0.01, ""),
        (100, 0.0, 0.001, "still"),
    ],
)
def test_a_log_of_one_row_tells_what_it_can_or_that_it_cannot(every, moved, held_out, expected):
    log = log_of(1, every=every, rewards__chosen=moved, rewards__rejected=0.0)
    if held_out is not None:  # after the last row that was logged
        end = {"step": every + 1, "eval_rewards/chosen": held_out, "eval_rewards/rejected": 0.0}
        log = pd.concat([log, pd.DataFrame([end])], ignore_index=True)
    assert list(found(log)) == ([expected] if expected else [])
    assert "unseen" not in found(log, steps=every)  # what is held out may come yet


def test_a_log_that_cannot_tell_says_what_would():
    [finding] = check(log_of(1, every=2, rewards__rejected=0.0), beta=0.1)
    assert finding.sentence == (
        "the log ends at step 2 and shows no step behind the first updates, so it cannot be told whether "
        "anything was learnt; lower logging_steps, or train on more pairs"
    )
    assert not finding.serious


WARM = {"learning_rate": [0.0, 1e-5]}  # the first update is of nothing, and no row shows the second


@pytest.mark.parametrize(
    ("rows", "changed", "held_out", "told"),
    [
        (2, WARM, None, False),  # nobody can tell
        (2, WARM, 0.0, True),
        (2, WARM, -0.02, False),  # 0.2 nats
        (2, {"learning_rate": [1e-9, 1e-9]}, None, True),
        (3, {"learning_rate": [0.0, 0.0, 1e-5]}, None, False),
        (3, {"learning_rate": [0.0, 1e-5, 1e-5], "rewards__chosen": [0.0, 0.0, 0.006]}, None, False),
        (3, {"learning_rate": [0.0, 1e-5, 1e-5], "rewards__chosen": [0.0, 0.0, 0.004]}, None, True),
        (4, {"rewards__chosen": [0.0, 0.0, 0.001, -0.006]}, None, False),
        (4, {"rewards__chosen": [0.0, 0.0, 0.001, -0.004]}, 0.003, True),
        (4, {}, 0.006, False),
        (20, {}, 0.006, False),
    ],
)
def test_a_training_of_a_few_steps_that_moved_in_its_last_ones_is_not_told_to_have_stood_still(
    rows, changed, held_out, told
):
    log = log_of(rows, **({"rewards__rejected": 0.0} | changed))
    if held_out is not None:
        log.loc[log.step == rows, ["eval_rewards/chosen", "eval_rewards/rejected"]] = [held_out, 0.0]
    assert ("still" in found(log)) == told


@pytest.mark.parametrize(("rate", "told"), [(1e-9, True), (3e-3, False)])
@pytest.mark.parametrize("pairs", [8, 12, 16])
def test_trainings_of_two_to_four_steps(pairs, rate, told, tiny_llama, tmp_path):
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "warmup_steps": 0}
    log = trained(tiny_llama, tmp_path, wordy(pairs, "Name"), [], options=options, learning_rate=rate)
    assert log.step.max() == pairs / 4
    assert ("still" in found(log)) == told


@pytest.mark.parametrize("rate", [1e-9, 1e-12])
def test_a_rate_too_low_to_move_anything_is_told(rate, tiny_llama, tmp_path):
    log = trained(tiny_llama, tmp_path, wordy(24, "Name"), [], learning_rate=rate)
    [finding] = check(log, beta=0.1)
    assert (finding.name, finding.step) == ("still", 6)
    assert "answers moved by 0.000 nats" in finding.sentence
    assert "raise learning_rate" in finding.sentence
