"""memory.py: what a plan says, and what `fit` makes of a card."""

from pathlib import Path

import pytest
import torch
from dpo import CPU

from nbutils.core.errors import InputError
from nbutils.models.preflight import Device
from nbutils.training import memory
from nbutils.training.memory import CARDS, CONTEXT, GIB, MIB, Card, Plan, detected, fit, plan
from nbutils.training.settings import read_options

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


def test_a_plan_without_a_length_is_refused(tiny_llama):
    with pytest.raises(InputError, match="max_length is empty, expected a number of tokens"):
        planned(tiny_llama, max_length=None)


# --- words


def test_a_plan_reads_as_one_sentence_and_one_table():
    made = Plan(CARDS["t4"], {"weights": 4 * GIB, "activations": GIB}, 1024, 2, 8, True, 2)
    # 5 GiB of tensors, 8% and 600 MiB on top
    assert str(made) == (
        "simulated for a T4: a training step takes 6.0 of 14.6 GiB with 2 x 8 pairs of up to 1024 tokens, gradient "
        "checkpointing on"
    )
    frame = made.frame().set_index("part")
    assert frame["is"]["activations"] == "kept for the backward pass"
    assert frame["MiB"].to_dict() == {"weights": 4096, "activations": 1024, "headroom": 1010, "all": 6130}
    assert made.options == {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": 8,
        "gradient_checkpointing": True,
    }


def test_a_plan_for_this_machine_is_not_called_simulated(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "LIMIT", tmp_path / "absent")
    cpu = detected(CPU)
    assert cpu.memory == int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert cpu.needed(100 * MIB) == 152 * MIB
    assert str(Plan(cpu, {"weights": GIB}, 10, 1, 1, False, 1)).startswith(
        "planned for this machine's CPU: a training step takes 1.5 of"
    )


@pytest.mark.parametrize(("text", "limited"), [(f"{GIB}\n", True), ("max\n", False)])
def test_a_containers_limit_counts_where_there_is_one(text, limited, monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text(text)
    monkeypatch.setattr(memory, "LIMIT", tmp_path / "memory.max")
    assert (detected(CPU).memory == GIB) == limited


def test_of_a_detected_gpu_only_what_others_left_free_counts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: GIB)
    device = Device("cuda", (7, 5), "a test")
    for free, expected in ((14 * GIB, 15 * GIB), (8 * GIB, 9 * GIB + memory.CONTEXT)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index, free=free: (free, 15 * GIB))
        assert detected(device) == Card("Tesla T4", device, expected, here=True)


def test_a_batch_for_evaluation_named_in_the_training_file_is_kept(tiny_llama):
    options = read_options("") | {"max_length": 64, "per_device_eval_batch_size": 3}
    made = memory.plan(str(tiny_llama), tuning="lora", options=options, card=CARDS["t4"])
    assert made.options["per_device_eval_batch_size"] == 3


@pytest.mark.parametrize(
    "legal",
    [{"optim": "adamw_torch"}, {"optim": "paged_adamw_8bit"}, {"activation_offloading": True},
     {"load_best_model_at_end": True, "save_steps": 0.25}],
    ids=str,
)  # fmt: skip
def test_what_trl_takes_can_be_planned(legal, tiny_llama):
    options = read_options("") | {"max_length": 64}
    plain, other = (
        memory.plan(str(tiny_llama), tuning="lora", options=options | more, card=CARDS["t4"]) for more in ({}, legal)
    )
    assert other.tensors == pytest.approx(plain.tensors, rel=0.01)


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


def test_four_bits_are_named_when_an_adapter_does_not_fit_over_half_precision(tmp_path):
    import tiny

    wide = tiny.make(tmp_path / "wide", "llama", hidden_size=128, intermediate_size=1024, num_hidden_layers=4)
    short = {"max_length": 8, "lora_r": 1}
    needed = planned(wide, 1, tuning="qlora", **short).needed
    assert needed < planned(wide, 1, **short | {"max_length": 2}).needed
    with pytest.raises(InputError, match=r"with lora tuning.*; set tuning to qlora$"):
        fitted(wide, needed, **short)


def test_a_cpu_keeps_the_batch_of_the_options_when_it_fits_and_lowers_it_when_not(tiny_llama):
    def on_cpu(memory: int, **changed) -> tuple[int, int, bool]:
        made = fit(str(tiny_llama), tuning="lora", options=options(**changed), card=Card("CPU", CPU, memory))
        return made.batch, made.accumulation, made.checkpointing

    needed = planned(tiny_llama, 2, False, card=Card("CPU", CPU, GIB)).needed
    assert on_cpu(GIB) == on_cpu(needed) == (2, 2, False)
    assert on_cpu(needed - 1) == (1, 4, False)
    assert on_cpu(GIB, checkpointing=True) == (2, 2, True)
