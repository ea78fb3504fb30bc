"""Whether a training fits a card, found out before any weight is loaded; used by 04.

The largest moment of a step comes from `simulate`, which says what it leaves out. What the CUDA context and the
allocator take beside the tensors is the headroom of `Card`.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from nbutils import models
from nbutils.core.errors import InputError, telling
from nbutils.models.preflight import Device
from nbutils.training import simulate
from nbutils.training.settings import CHANGE

MIB, GIB = 2**20, 2**30
# The CUDA context with the kernels of torch and cuBLAS and their workspaces: some 0.3 to 0.5 GiB on these cards.
CONTEXT = 600 * MIB
# What torch's allocator holds in pieces that no tensor fits, as a share of the tensors. An estimate, not measured here.
FRAGMENTATION = 0.08
# On a CPU a step that tracked 3,718 MiB of tensors took 5,646 MiB of memory: scratch space and what malloc keeps.
CPU_SLACK = 0.52


@dataclass(frozen=True)
class Card:
    """A GPU or this machine's CPU: what torch can use of its memory, in bytes, and whether it is this machine's."""

    name: str
    device: Device
    memory: int
    here: bool = False

    def needed(self, tensors: int) -> int:
        """Return the bytes that so many bytes of tensors take with their headroom."""
        if self.device.name == "cpu":
            return round(tensors * (1 + CPU_SLACK))
        return round(tensors * (1 + FRAGMENTATION)) + CONTEXT


def _gpu(name: str, capability: tuple[int, int], gib: float) -> Card:
    return Card(name, Device("cuda", capability, f"planned for a {name}"), round(gib * GIB))


# Less than on the box: the totals that torch reports, with error correction on.
LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container
CARDS = {
    "t4": _gpu("T4", (7, 5), 14.56),
    "p100": _gpu("P100", (6, 0), 15.89),
    "l4": _gpu("L4", (8, 9), 22.03),
}


def detected(device: Device) -> Card:
    """Return this machine's card: its GPU, or the CPU with all of its memory."""
    if device.name == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
            memory = min(memory, int(LIMIT.read_text()))
        return Card("CPU", device, memory, here=True)
    free, total = torch.cuda.mem_get_info(0)  # another kernel or a judge may hold part of it
    # what this process holds is its own to use again; the context is counted as headroom
    free += torch.cuda.memory_reserved(0) + CONTEXT
    return Card(torch.cuda.get_device_name(0), device, min(total, free), here=True)


@dataclass(frozen=True)
class Plan:
    """The largest moment of a training step on a card: `parts` in bytes, and the settings it was planned with."""

    card: Card
    parts: dict[str, int]
    length: int
    batch: int
    accumulation: int
    checkpointing: bool
    eval_batch: int

    @property
    def tensors(self) -> int:
        """Bytes of all tensors at the peak."""
        return sum(self.parts.values())

    @property
    def needed(self) -> int:
        """Bytes with the card's headroom."""
        return self.card.needed(self.tensors)

    @property
    def fits(self) -> bool:
        return self.needed <= self.card.memory

    def foretold(self, batch: int) -> int:
        """Return about what another batch would need: logits and activations grow with it, the rest does not."""
        growing = self.parts.get("logits", 0) + self.parts.get("activations", 0)
        return self.card.needed(self.tensors + growing * (batch - self.batch) // self.batch)

    @property
    def options(self) -> dict[str, Any]:
        """The settings of this plan under their names in a `training` file.

        Evaluation takes as many pairs at a time unless told otherwise: the trainer's default of 8 could take more than
        a step.
        """
        return {
            "per_device_train_batch_size": self.batch,
            "per_device_eval_batch_size": self.eval_batch,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_checkpointing": self.checkpointing,
        }

    def frame(self) -> pd.DataFrame:
        """Return the parts with headroom and sum, one row each: its name, MiB, and what it is."""
        rows = self.parts | {"headroom": self.needed - self.tensors, "all": self.needed}
        meaning = simulate.KINDS | {"headroom": "what the device and the allocator take beside", "all": ""}
        return pd.DataFrame(
            [{"part": name, "MiB": round(size / MIB), "is": meaning[name]} for name, size in rows.items()]
        )

    def __str__(self) -> str:
        place = "planned for this machine's" if self.card.here else "simulated for a"
        return (
            f"{place} {self.card.name}: a training step takes {self.needed / GIB:.1f} of {self.card.memory / GIB:.1f} "
            f"GiB with {self.batch} x {self.accumulation} pairs of up to {self.length} tokens, gradient checkpointing "
            f"{'on' if self.checkpointing else 'off'}"
        )


def plan(path: str, *, tuning: str, options: Mapping[str, Any], card: Card, length: int | None = None) -> Plan:
    """Return the peak of one training step on a card.

    Args:
        path: of the model, from `models.resolve`; only its config is read.
        tuning: `lora`, `qlora` or `full`.
        options: from `settings.read_options`; without `gradient_checkpointing` TRL's default holds, which is on.
        length: of the longest pair in tokens, prompt and answer together; `max_length` when not given.

    Raises:
        InputError: if there is no such model, or no length.
    """
    longest = length or options["max_length"]
    if not longest:
        raise InputError("training file: max_length is empty, expected a number of tokens; the plan needs one")
    options = {"gradient_checkpointing": True} | dict(options)
    with telling(f"planning a training step of {path}", CHANGE):
        parts = simulate.peak(models.config(path), tuning=tuning, options=options, device=card.device, length=longest)
    batch, accumulation = options["per_device_train_batch_size"], options["gradient_accumulation_steps"]
    evaluated: int = options.get("per_device_eval_batch_size") or batch
    return Plan(card, parts, longest, batch, accumulation, options["gradient_checkpointing"], evaluated)


def fit(path: str, *, tuning: str, options: Mapping[str, Any], card: Card, length: int | None = None) -> Plan:
    """Return the plan with the largest batch that fits a card, at the effective batch that the options name.

    On a CPU a batch larger than the options' own saves no time and is not looked for. Checkpointing computes every
    forward pass twice, which costs more than a smaller batch does: without it is tried first, down to one pair at a
    time. A choice made in the `training` file is kept. Arguments are those of `plan`.

    Raises:
        InputError: if nothing fits, naming the smallest change found that would.
    """
    own = options["per_device_train_batch_size"]
    effective = own * options["gradient_accumulation_steps"]
    most = own if card.device.name == "cpu" else effective
    batches = [n for n in range(1, most + 1) if effective % n == 0]

    def at(batch: int, checkpointing: bool, **changed: Any) -> Plan:
        sizes = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": effective // batch,
            "gradient_checkpointing": checkpointing,
        }
        given: dict[str, Any] = {"tuning": tuning, "options": dict(options) | sizes, "card": card, "length": length}
        return plan(path, **given | changed)

    choices = [bool(options["gradient_checkpointing"])] if "gradient_checkpointing" in options else [False, True]
    for checkpointing in choices:
        best, low, high, index = None, 0, len(batches), batches.index(own)
        while low < high:  # more pairs at a time take more
            made = at(batches[index], checkpointing)
            best, low, high = (made, index + 1, high) if made.fits else (best, low, index)
            index = low + sum(made.foretold(n) <= card.memory for n in batches[low : high - 1])
        if best:
            return best
    raise InputError(  # the last plan was for one pair
        f"model {path!r} does not fit a {card.name} with {tuning} tuning: one pair of {made.length} tokens takes "
        f"{made.needed / GIB:.1f} of {card.memory / GIB:.1f} GiB; {_remedy(made, tuning, at)}"
    )


def _remedy(least: Plan, tuning: str, at: Callable[..., Plan]) -> str:
    """Return the first change found that makes one pair fit, from the smallest to another model."""
    first = "" if least.checkpointing else "set gradient_checkpointing: true"
    if first and at(1, True).fits:
        return f"{first} in the training file"
    also = f"{first} and " if first else ""
    for length in (least.length * share // 8 for share in (6, 4, 2)):
        if at(1, True, length=length).fits:
            return f"{also}lower max_length to {length} in the training file"
    lighter = {"full": ["lora", "qlora"], "lora": ["qlora"], "qlora": []}[tuning]
    for other in lighter if least.card.device.name == "cuda" else lighter[:-1]:  # a CPU trains no 4-bit weights
        if at(1, True, tuning=other).fits:
            return f"{also}set tuning to {other}"
    return "choose a smaller model"
