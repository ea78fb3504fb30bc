"""reference.py: the numbers are the model's, computed once, and survive a kill; and TRL's losses are the formulas'."""

import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import tiny
import torch
from builders import children
from dpo import CPU, dpo_params, pair, small_trainer, some_pairs, templated

from nbutils import models
from nbutils.core.errors import InputError, Interrupted
from nbutils.training import patches, reference
from nbutils.training.loop import train
from nbutils.training.settings import read_options
from nbutils.training.trainer import build_trainer

LIVE = {"precompute_ref_log_probs": False}
SIDES = ("chosen", "rejected")


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """The number of pairs in every batch that the reference model has scored since the test began."""
    batches = []
    compute = patches.Trainer.compute_ref_log_probs

    def counted(self, model, inputs):
        batches.append(len(inputs["input_ids"]) // 2)
        return compute(self, model, inputs)

    monkeypatch.setattr(patches.Trainer, "compute_ref_log_probs", counted)
    return batches


def numbers(trainer, data="train_dataset") -> list[tuple[float, float]]:
    rows = getattr(trainer, data)
    return list(zip(rows["ref_chosen_logps"], rows["ref_rejected_logps"], strict=True))


def shards(folder) -> list[Path]:
    return sorted((folder / "scratch/reference").iterdir())


def from_plain_logits(folder, trainer) -> list[tuple[float, float]]:
    """The log-probabilities of every pair's answers under the untrained model, one answer at a time, in float64."""
    model, result = models.load_model(str(folder), CPU, torch.float32), []
    for row in trainer.train_dataset:
        sums = []
        for side in SIDES:
            ids, start = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]]), len(row["prompt_ids"])
            with torch.no_grad():
                logps = model(ids).logits[0, start - 1 : -1].double().log_softmax(-1)
            sums.append(logps.gather(1, ids[0, start:, None]).sum().item())
        result.append(tuple(sums))
    return result


# --- the numbers


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize(
    "batching",
    [{"precompute_ref_batch_size": 1}, {"precompute_ref_batch_size": 5}, {"pad_to_multiple_of": 64}],
    ids=["one by one", "by five", "much padding"],
)
def test_cached_numbers_are_the_models_whatever_the_batch(kind, tuning, batching, tmp_path):
    model = tiny.make(tmp_path / kind, kind)
    trainer = small_trainer(model, tmp_path, some_pairs(7), options=batching, tuning=tuning)
    expected = from_plain_logits(model, trainer)
    torch.testing.assert_close(torch.tensor(numbers(trainer)), torch.tensor(expected), atol=1e-4, rtol=0)
    assert len({round(number, 2) for pair_ in expected for number in pair_}) == 14  # no two that could be mixed up


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_training_with_cached_numbers_logs_what_a_live_one_does(tuning, tiny_llama, tmp_path):
    logs, rows = [], some_pairs(18)
    both = {"eval_steps": 4, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    for name, own in (("cached", {}), ("live", LIVE)):
        trainer = small_trainer(tiny_llama, tmp_path / name, rows[:16], rows[16:], options=both | own, tuning=tuning)
        assert (trainer.ref_model is not None) == (tuning == "full" and name == "live")
        assert ("ref_chosen_logps" in trainer.train_dataset.column_names) == (name == "cached")
        logs.append(train(trainer, csv=tmp_path / "log.csv"))
    columns = ["loss", "eval_loss", "rewards/margins", "logps/chosen"]
    pd.testing.assert_frame_equal(logs[0][columns], logs[1][columns], atol=1e-4, rtol=0)
    assert abs(logs[0]["rewards/margins"].iloc[-1]) > 0.01  # the reference has come to matter
    assert not (tmp_path / "live/scratch/reference").exists()


def test_an_answer_that_is_cut_has_the_numbers_of_what_is_left(tiny_llama, tmp_path, computed):
    rows = [pair("Name a river.", "The river runs to the sea.", "Bread."), pair("Name one.", "Sand.", "Salt.")]
    lengths = [
        [len(row["prompt_ids"] + row[f"{side}_ids"]) for side in SIDES]
        for row in small_trainer(tiny_llama, tmp_path, rows, options=LIVE).train_dataset
    ]
    whole = small_trainer(tiny_llama, tmp_path, rows)
    cut = small_trainer(tiny_llama, tmp_path, rows, options={"max_length": lengths[0][0] - 1})
    assert computed == [2, 1]  # the second pair is as it was
    assert numbers(cut)[1] == numbers(whole)[1]
    assert numbers(cut)[0][0] > numbers(whole)[0][0]  # a token's log-probability is missing
    assert numbers(cut)[0][1] == pytest.approx(numbers(whole)[0][1], abs=1e-4)


# --- TRL's losses under our settings


def formula(name, policy, base, beta):
    """The loss of a batch of token log-probabilities: [(chosen, rejected), ...] of policy and reference, float64."""
    losses = []
    for (chosen, rejected), (ref_chosen, ref_rejected) in zip(policy, base, strict=True):
        gain, other = sum(chosen) - ref_chosen, sum(rejected) - ref_rejected
        if name == "sigmoid_norm":
            gain, other = gain / len(chosen), other / len(rejected)
        losses.append(math.log1p(math.exp(-beta * (gain - other))))
    if name == "sigmoid+sft":
        tokens = [token for chosen, _ in policy for token in chosen]
        return sum(losses) / len(losses) - 0.25 * sum(tokens) / len(tokens)
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sigmoid", {"loss_type": ["sigmoid"]}),
        ("sigmoid_norm", {"loss_type": ["sigmoid_norm"]}),
        ("sigmoid+sft", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.25]}),
    ],
)
@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_the_trainers_loss_of_toy_log_probabilities_is_the_formulas(name, options, beta, tiny_llama, tmp_path):
    policy = [
        ([-1.5, -0.25, -3.0], [-2.0]),
        ([-0.125], [-4.0, -1.0, -0.5, -2.5]),
        ([-5.0, -1.0], [-0.75, -0.5]),
    ]
    base = [(-6.0, -1.5), (-0.5, -9.0), (-4.5, -2.0)]
    prompts, width = [2, 5, 1], 9
    scored, mask = torch.zeros(6, width - 1, dtype=torch.float64), torch.zeros(6, width, dtype=torch.long)
    for row, (start, sides) in enumerate(zip(prompts, policy, strict=True)):
        for half, tokens in enumerate(sides):  # the log-probability of token i stands at i - 1
            scored[row + 3 * half, start - 1 : start - 1 + len(tokens)] = torch.tensor(tokens, dtype=torch.float64)
            mask[row + 3 * half, start : start + len(tokens)] = 1
    beside = {name: torch.zeros_like(scored) for name in ("entropy", "mean_logits")}  # for the log, not for the loss
    outputs = SimpleNamespace(log_probs=scored, is_top1=scored > 0, **beside)
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(2), options=options, beta=beta)
    columns = torch.tensor(base, dtype=torch.float64).T
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": columns[0],
        "ref_rejected_logps": columns[1],
    }
    loss = trainer._compute_loss(lambda **_: outputs, inputs, return_outputs=False)
    assert loss.item() == pytest.approx(formula(name, policy, base, beta), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "end"), [("llama", "<|im_end|>\n"), ("qwen3", "<|im_end|>\n"), ("gemma2", "<end_of_turn>\n")]
)
def test_what_is_scored_in_a_batch_is_the_answer_with_its_end_and_nothing_else(kind, end, tmp_path):
    rows = templated(some_pairs(6), {"enable_thinking": False} if kind == "qwen3" else {})
    model = tiny.make(tmp_path / kind, kind)
    tokenizer = models.load_tokenizer(str(model))
    seen = []
    for batch in small_trainer(model, tmp_path, rows).get_train_dataloader():
        assert not batch["completion_mask"][batch["attention_mask"] == 0].any()
        sides = zip(batch["input_ids"], batch["completion_mask"].bool(), strict=True)
        seen += [tokenizer.decode(ids[mask]).removeprefix("<think>\n\n</think>\n\n") for ids, mask in sides]
    assert sorted(seen) == sorted(row[side][0]["content"] + end for row in rows for side in SIDES)


# --- what is computed again, and what is not


@pytest.mark.parametrize(
    "changed",
    [
        {"beta": 0.5},
        {"learning_rate": 1e-4},
        {"epochs": 3.0},
        {"seed": 1},
        {"tuning": "full"},
        {"options": {"loss_type": ["sigmoid_norm"]}},
        {"options": {"lora_r": 4, "per_device_train_batch_size": 4, "lr_scheduler_type": "constant"}},
    ],
    ids=lambda changed: ",".join(changed.get("options", changed)),
)
def test_what_does_not_touch_the_reference_computes_nothing_again(changed, tiny_llama, tmp_path, computed, caplog):
    caplog.set_level("INFO", logger="nbutils")
    rows = some_pairs(6)
    first = small_trainer(tiny_llama, tmp_path, rows[:4], rows[4:])
    assert sum(computed) == 6
    again = small_trainer(tiny_llama, tmp_path, rows[3::-1], rows[4:], **changed)  # in another order, too
    assert sum(computed) == 6
    assert numbers(again) == numbers(first)[::-1]
    assert numbers(again, "eval_dataset") == numbers(first, "eval_dataset")
    assert "4 train pairs, 0 to compute" in caplog.text
    assert "2 eval pairs, 0 to compute" in caplog.text


def test_other_text_is_computed_and_only_that(tiny_llama, tmp_path, computed):
    rows = some_pairs(4)
    small_trainer(tiny_llama, tmp_path, rows)
    trainer = small_trainer(
        tiny_llama, tmp_path, [*rows[:3], pair("Something else."), rows[0], pair("Something else.")]
    )
    assert sum(computed) == 4 + 1  # a pair that stands there twice is computed once
    assert numbers(trainer)[0] == numbers(trainer)[4]
    assert numbers(trainer)[3] == numbers(trainer)[5]


def test_other_template_arguments_are_computed(tiny_qwen, tmp_path, computed):
    rows = some_pairs(4)
    for template in ({}, {"enable_thinking": False}, {}):
        small_trainer(tiny_qwen, tmp_path, templated(rows, template))
    assert sum(computed) == 4 + 4


def test_other_weights_under_the_same_name_are_computed(tmp_path, computed):
    rows, found = some_pairs(4), []
    for seed in (0, 1, 0):
        tiny.make(tmp_path / "model", seed=seed)
        found.append(numbers(small_trainer(tmp_path / "model", tmp_path, rows)))
    assert sum(computed) == 4 + 4
    assert found[0] == found[2]
    assert found[0] != found[1]


# --- interruptions


def compute_and_die(model, folder):
    """Compute with shards of four pairs and be killed in the fourth shard, after two of its pairs."""
    reference.SHARD, compute, batches = 4, patches.Trainer.compute_ref_log_probs, []

    def dies(self, model, inputs):
        if len(batches) == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        batches.append(inputs)
        return compute(self, model, inputs)

    patches.Trainer.compute_ref_log_probs = dies
    small_trainer(model, Path(folder), some_pairs(20))


def test_after_kill_9_the_finished_shards_are_used_to_the_same_numbers(tiny_llama, tmp_path, computed, monkeypatch):
    code = "import sys; from test_reference import compute_and_die; compute_and_die(*sys.argv[1:])"
    command = [sys.executable, "-c", code, tiny_llama, tmp_path]
    killed = subprocess.run(command, env=children(__file__), capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(shards(tmp_path)) == 3
    monkeypatch.setattr(reference, "SHARD", 4)
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(20))
    assert sum(computed) == 20 - 3 * 4
    assert len(shards(tmp_path)) == 5
    unbroken = small_trainer(tiny_llama, tmp_path / "unbroken", some_pairs(20))
    assert numbers(trainer) == numbers(unbroken)  # to the last bit


@pytest.mark.parametrize("torn", ["", '{"0123456789abcdef": [-1.5, -2', "5"])
def test_a_torn_shard_is_computed_again_and_no_other(torn, tiny_llama, tmp_path, computed, monkeypatch, caplog):
    monkeypatch.setattr(reference, "SHARD", 4)
    first = small_trainer(tiny_llama, tmp_path, some_pairs(12))
    names = shards(tmp_path)
    names[1].write_text(torn)
    (names[1].parent / "0.draft").write_text("{")  # left by a kill while writing
    again = small_trainer(tiny_llama, tmp_path, some_pairs(12))
    assert sum(computed) == 12 + 4
    assert numbers(again) == numbers(first)
    assert re.findall(r"removing .*/(\w+\.json), which cannot be read", caplog.text) == [names[1].name]
    assert set(names) < set(shards(tmp_path))


def test_the_time_budget_stops_after_a_shard_and_the_next_call_goes_on(tiny_llama, tmp_path, computed, monkeypatch):
    monkeypatch.setattr(reference, "SHARD", 4)
    options = read_options("") | {"gradient_accumulation_steps": 1}
    folders = {"cache": tmp_path, "scratch": tmp_path / "scratch"}
    for _ in range(2):
        with pytest.raises(
            Interrupted, match=r"log-probabilities of 4 of \d+ pairs; everything done .* the same command or cell again"
        ):
            build_trainer(dpo_params(tiny_llama), options, some_pairs(10), [], device=CPU, **folders, deadline=1.0)
    # two pairs are left: there is nothing to stop for
    trainer = build_trainer(dpo_params(tiny_llama), options, some_pairs(10), [], device=CPU, **folders, deadline=1.0)
    assert sum(computed) == 10
    assert all(math.isfinite(number) for pair_ in numbers(trainer) for number in pair_)


def test_numbers_that_are_not_finite_are_refused_and_not_kept(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(patches.Trainer, "compute_ref_log_probs", lambda *_: (torch.tensor([float("nan")] * 2),) * 2)
    with pytest.raises(InputError, match="gives 8 of 8 log-probabilities that are not finite: it overflows this"):
        small_trainer(tiny_llama, tmp_path, some_pairs(4))
    assert not list((tmp_path / "scratch" / "reference").glob("*"))
