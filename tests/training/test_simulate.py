"""simulate.py: the tracker, the parts of a step on fake tensors, and planned beside real steps."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from dpo import CPU, small_trainer, some_pairs

from nbutils import models
from nbutils.training.loop import train
from nbutils.training.memory import CARDS, Plan, plan
from nbutils.training.settings import read_options
from nbutils.training.simulate import Tracker
from nbutils.training.simulate import _quantize as quantize

ROOT = Path(__file__).resolve().parents[2]


def planned(model, batch=2, checkpointing=True, *, tuning="lora", length=None, card=CARDS["t4"], **changed) -> Plan:
    given = {"max_length": 64, "per_device_train_batch_size": batch, "gradient_accumulation_steps": 4 // batch}
    options = read_options("") | given | {"gradient_checkpointing": checkpointing} | changed
    return plan(str(model), tuning=tuning, options=options, card=card, length=length)


# --- the tracker


def alive(tracker: Tracker) -> dict[str, int]:
    return {kind: size for kind, size in tracker.live.items() if size}


def test_the_tracker_counts_live_storage_once_and_keeps_the_peak():
    first = torch.zeros(1000)
    with Tracker() as tracker:
        tracker.add({"weights": [first, first[:10]]}, "weights")
        with tracker.of("logits"):
            second = first + 1
        view = second.view(10, 100)
        del second
        assert alive(tracker) == {"weights": 4000, "logits": 4000}  # the view keeps it
        del view
        third = torch.zeros(500, dtype=torch.float16)
        assert alive(tracker) == {"weights": 4000, "activations": 1000}
        tracker.add(third, "gradients")
        assert alive(tracker) == {"weights": 4000, "gradients": 1000}
    assert +Counter(tracker.peak) == {"weights": 4000, "logits": 4000}


# --- parts of a plan


def test_an_adapter_its_gradients_and_moments_have_the_sizes_of_its_matrices(tiny_llama):
    parts = planned(tiny_llama, 2).parts
    # rank 16 on a layer: q and o 32 x 32, k and v 32 x 16, gate and up 32 x 48, down 48 x 32; two layers, 4 bytes
    adapter = 2 * 16 * (2 * (32 + 32) + 2 * (32 + 16) + 2 * (32 + 48) + (48 + 32)) * 4
    assert adapter == 59_392
    assert (parts["adapter"], parts["gradients"]) == (adapter, adapter)
    assert parts["optimizer"] == 2 * adapter + 28 * 4  # and a step count for each of the 28 matrices
    assert "reference" not in parts


def test_full_tuning_holds_float32_weights_twice_with_gradients_and_moments(tiny_llama):
    parts = planned(tiny_llama, tuning="full", precompute_ref_log_probs=False).parts
    adapted = planned(tiny_llama).parts
    weights = sum(p.numel() for p in models.load_model(str(tiny_llama), CPU).parameters()) * 4
    assert parts["weights"] == pytest.approx(weights, rel=0.01)  # and the rotary frequencies
    assert (parts["reference"], parts["gradients"]) == (parts["weights"], weights)
    assert parts["optimizer"] == pytest.approx(2 * weights, rel=0.01)
    assert adapted["optimizer"] < parts["optimizer"] / 2
    assert adapted["weights"] == pytest.approx(parts["weights"] / 2, rel=0.01)  # a frozen float16 base
    assert "adapter" not in parts


def test_reference_numbers_computed_before_leave_no_second_model(tiny_llama):
    before, during = (planned(tiny_llama, tuning="full", precompute_ref_log_probs=n).parts for n in (True, False))
    weights = sum(p.numel() for p in models.load_model(str(tiny_llama), CPU).parameters()) * 4
    assert during["reference"] == pytest.approx(weights, rel=0.01)
    assert sum(during.values()) - sum(before.values()) == pytest.approx(weights, rel=0.05)  # and little else
    assert "reference" not in before


def test_qlora_holds_linear_weights_in_4_bits_and_the_rest_in_16(tiny_llama):
    parts, lora = planned(tiny_llama, tuning="qlora").parts, planned(tiny_llama).parts
    # on a layer: q and o 32 x 32, k and v 32 x 16, gate, up and down 32 x 48; all are whole blocks of 64
    shapes = 2 * (2 * [32 * 32] + 2 * [32 * 16] + 3 * [32 * 48])
    packed = sum(n // 2 + n // 64 + 4 for n in shapes)  # 4 bits, a byte for 64, and 4 bytes for up to 256 of those
    assert packed == 7680 + 240 + 56
    assert lora["weights"] - parts["weights"] == 2 * sum(shapes) - packed
    assert [parts[kind] for kind in ("adapter", "gradients", "optimizer")] == [
        lora[kind] for kind in ("adapter", "gradients", "optimizer")
    ]


def test_a_4_bit_weight_is_unpacked_for_a_product_and_again_for_its_gradient():
    layer = torch.nn.Sequential(torch.nn.Linear(256, 512, bias=False), torch.nn.Linear(512, 8, bias=False))
    model = type(
        "Model", (torch.nn.Module,), {"all_tied_weights_keys": {}, "get_output_embeddings": lambda self: None}
    )()
    model.layer, model.head = layer[0], layer[1]
    quantize(model)
    x = torch.zeros(4, 256, requires_grad=True)
    assert type(model.head) is torch.nn.Linear  # the last module stays
    unpacked, output = 256 * 512 * 4, 4 * 512 * 4
    with Tracker() as forward:
        result = model.layer(x)
    assert sum(forward.peak.values()) == unpacked + output
    assert sum(alive(forward).values()) == output
    gradient = torch.ones_like(result)
    with Tracker() as backward:
        result.backward(gradient)
    assert sum(backward.peak.values()) >= unpacked
    assert sum(alive(backward).values()) < unpacked / 8


def test_a_plan_grows_with_length_and_batch_and_shrinks_with_checkpointing(tiny_llama):
    base = planned(tiny_llama, 2, False)
    assert planned(tiny_llama, 2, False, length=32).tensors < base.tensors
    assert planned(tiny_llama, 4, False).tensors > base.tensors
    assert planned(tiny_llama, 2, True).parts["activations"] < base.parts["activations"]


def test_a_model_that_overflows_float16_is_planned_in_float32_for_a_t4_and_not_for_an_l4(tmp_path):
    import tiny

    gemma = tiny.make(tmp_path / "gemma", "gemma2")
    t4, l4 = (planned(gemma, card=CARDS[name]).parts["weights"] for name in ("t4", "l4"))
    assert t4 == pytest.approx(2 * l4, rel=0.01)


def test_planning_leaves_trainers_of_this_process_and_its_random_numbers_alone(tiny_llama, tmp_path):
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(2))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    planned(tiny_llama)  # in mixed precision
    assert torch.equal(torch.rand(3), expected)
    assert trainer.accelerator.mixed_precision == "no"
    log = train(trainer, csv=tmp_path / "log.csv")
    assert log["loss"].notna().any()


# --- a plan against the truth


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_plans_are_within_15_percent_of_real_steps():
    done = subprocess.run(
        [sys.executable, "bench/plan.py", "--truth"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=850,
    )
    print("\n" + done.stdout)
    header, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert header[-1] == "ratio"
    assert len({tuple(row[:4]) for row in rows}) == 13
    assert [row for row in rows if not 0.85 <= float(row[-1]) <= 1.15] == []
