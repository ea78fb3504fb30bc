"""Whether a training fits a card, found out before any weight is loaded; used by 04.

From the model's config alone TRL's own trainer is built of fake tensors, which have shapes and no numbers, and makes
one step: the same loss, adapter and optimizer, in seconds and without a GPU. The bytes of all live tensors are counted
on the way. What fake tensors cannot know is approximated:

- float16 is planned as bfloat16, which is as large: a CPU, where the fake step runs, has no autocast to float16.
- attention is that of the CPU: like the memory-efficient kernel of a GPU it keeps its output and one number per row.
- both answers of every pair are as long as allowed, with a prompt of one token: the most there can be to score.
- what the CUDA context and the allocator take beside the tensors is the headroom of `Card`.
"""

import os
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
import trl.kernels.chunked_logprob
import trl.trainer.utils
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer
from trl.kernels import ChunkedLogProbFunction

from nbutils import models
from nbutils.errors import InputError
from nbutils.preflight import Device
from nbutils.trainers import arguments, precision

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


KINDS = ("weights", "reference", "adapter", "gradients", "optimizer", "logits", "activations")

# Less than on the box: the totals that torch reports, with error correction on.
CARDS = {
    "t4": _gpu("T4", (7, 5), 14.56),
    "p100": _gpu("P100", (6, 0), 15.89),
    "l4": _gpu("L4", (8, 9), 22.03),
}


def detected(device: Device) -> Card:
    """Return this machine's card: its GPU, or the CPU with all of its memory."""
    if device.name == "cpu":
        return Card("CPU", device, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), here=True)
    found = torch.cuda.get_device_properties(0)
    return Card(found.name, device, int(found.total_memory), here=True)


@dataclass(frozen=True)
class Plan:
    """The largest moment of a training step on a card: `parts` in bytes, and the settings it was planned with."""

    card: Card
    parts: dict[str, int]
    length: int
    batch: int
    accumulation: int
    checkpointing: bool

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

    @property
    def options(self) -> dict[str, Any]:
        """The settings of this plan under their names in a `training` file.

        Evaluation takes as many pairs at a time: with the trainer's default of 8 it could take more than a step.
        """
        return {
            "per_device_train_batch_size": self.batch,
            "per_device_eval_batch_size": self.batch,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_checkpointing": self.checkpointing,
        }

    def frame(self) -> pd.DataFrame:
        """Return the parts with headroom and sum, one row each, in MiB."""
        rows = self.parts | {"headroom": self.needed - self.tensors, "all": self.needed}
        return pd.DataFrame({"part": list(rows), "MiB": [round(size / MIB) for size in rows.values()]})

    def __str__(self) -> str:
        place = (
            f"planned for this machine's {self.card.name}" if self.card.here else f"simulated for a {self.card.name}"
        )
        return (
            f"{place}: {self.needed / GIB:.1f} of {self.card.memory / GIB:.1f} GiB with batch {self.batch} x "
            f"{self.accumulation}, checkpointing {'on' if self.checkpointing else 'off'}, {self.length} tokens"
        )


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of live tensors, fake or real, by kind; shared storage counts once.

    New tensors are of the kind that `kind` names at the time. Memory that a kernel takes and gives back unseen is not
    counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = "activations"
        self.live: Counter[str] = Counter()
        self.peak: dict[str, int] = {}  # bytes by kind when their sum was largest
        self._highest = 0
        self._known: dict[int, tuple[str, int]] = {}

    def add(self, tensors: Any, kind: str) -> None:
        """Count the tensors somewhere in `tensors` as of this kind, also if they were of another."""
        for tensor in tree_leaves(tensors):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._known:
                self.live[self._known[key][0]] -= size
            else:
                weakref.finalize(storage, self._forget, key)
            self._known[key] = (kind, size)
            self.live[kind] += size
        total = sum(self.live.values())
        if total > self._highest:
            self._highest, self.peak = total, dict(self.live)

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """Count what is made inside as of this kind."""
        outer, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = outer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        new = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor) and self._unknown(t)]
        self.add(new, self.kind)
        return result

    def _unknown(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata not in self._known

    def _forget(self, key: int) -> None:
        kind, size = self._known.pop(key)
        self.live[kind] -= size


def plan(path: str, *, tuning: str, options: Mapping[str, Any], card: Card, length: int | None = None) -> Plan:
    """Return the peak of one training step on a card, with the earlier steps' gradients and optimizer in place.

    Args:
        path: of the model, from `models.resolve`; only its config is read.
        tuning: `lora` or `full`.
        options: from `training.read_options`; without `gradient_checkpointing` TRL's default holds, which is on.
        length: of the longest pair in tokens, prompt and answer together; `max_length` when not given.

    Raises:
        InputError: if there is no such model, or no length.
    """
    kind = models.model_type(path)
    longest = length or options["max_length"]
    if not longest:
        raise InputError("training file: max_length is empty, expected a number of tokens; the plan needs one")
    batch, accumulation = options["per_device_train_batch_size"], options["gradient_accumulation_steps"]
    dtype, flags = precision(card.device, kind, tuning)
    guess = _Guess()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as folder, _aside(), _kernels(card), FakeTensorMode(), guess:
        trainer = _blank(
            AutoConfig.from_pretrained(path),
            tuning,
            options,
            torch.bfloat16 if dtype == torch.float16 else dtype,
            output_dir=folder,
            bf16=any(flags.values()),
        )
        row: dict[str, Any] = {
            "prompt_ids": [0],
            "chosen_ids": [0] * (longest - 1),
            "rejected_ids": [0] * (longest - 1),
        }
        if options.get("precompute_ref_log_probs"):
            row |= {"ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0}
        parts = _step(trainer, trainer.data_collator([row] * batch), tuning)
    return Plan(card, parts, longest, batch, accumulation, bool(trainer.args.gradient_checkpointing))


def fit(path: str, *, tuning: str, options: Mapping[str, Any], card: Card, length: int | None = None) -> Plan:
    """Return the plan with the largest batch that fits a card, at the effective batch that the options name.

    Checkpointing computes every forward pass twice, which costs more than a smaller batch does: without it is tried
    first, down to one pair at a time. A choice made in the `training` file is kept. Arguments are those of `plan`.

    Raises:
        InputError: if nothing fits, naming the smallest change found that would.
    """
    effective = options["per_device_train_batch_size"] * options["gradient_accumulation_steps"]
    batches = [n for n in range(1, effective + 1) if effective % n == 0]

    def at(batch: int, checkpointing: bool, **changed: Any) -> Plan:
        own = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": effective // batch,
            "gradient_checkpointing": checkpointing,
        }
        given: dict[str, Any] = {"tuning": tuning, "options": dict(options) | own, "card": card, "length": length}
        return plan(path, **given | changed)

    choices = [bool(options["gradient_checkpointing"])] if "gradient_checkpointing" in options else [False, True]
    for checkpointing in choices:
        best = at(1, checkpointing)
        if best.fits:
            low, high = 0, len(batches) - 1  # more pairs at a time take more
            while low < high:
                middle = (low + high + 1) // 2
                larger = at(batches[middle], checkpointing)
                low, high, best = (middle, high, larger) if larger.fits else (low, middle - 1, best)
            return best
    raise InputError(
        f"model {path!r} does not fit a {card.name} with {tuning} tuning: one pair of {best.length} tokens takes "
        f"{best.needed / GIB:.1f} of {card.memory / GIB:.1f} GiB; {_remedy(best, tuning, at)}"
    )


def _remedy(least: Plan, tuning: str, at: Callable[..., Plan]) -> str:
    """Return the first change that makes one pair fit: checkpointing, shorter pairs, an adapter, a smaller model."""
    first = "" if least.checkpointing else "set gradient_checkpointing: true"
    if first and at(1, True).fits:
        return f"{first} in the training file"
    for length in (least.length * share // 8 for share in (6, 4, 2)):
        if at(1, True, length=length).fits:
            return f"{first}{' and ' if first else ''}lower max_length to {length} in the training file"
    if tuning == "full" and at(1, True, tuning="lora").fits:
        return "set tuning to lora"
    return "choose a smaller model"


class _Blank(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer without data: its batch is given to it."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def _blank(config: Any, tuning: str, options: Mapping[str, Any], dtype: torch.dtype, **changed: Any) -> DPOTrainer:
    """Return a trainer of a model with this config, made under the caller's FakeTensorMode."""
    settings, lora = arguments(options)
    computed = settings.pop("precompute_ref_log_probs", False)
    settings |= {"eval_strategy": "no", "use_cpu": True, "dataloader_pin_memory": False, "fp16": False}
    settings |= {"report_to": "none", "disable_tqdm": True}
    one_word = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0})))
    one_word.pad_token = "a"  # noqa: S105
    full = tuning == "full"
    policy, reference = (AutoModelForCausalLM.from_config(config, dtype=dtype) if n else None for n in (True, full))
    trainer = _Blank(
        model=policy,
        ref_model=reference,
        args=DPOConfig(**settings | changed),
        train_dataset=Dataset.from_list([{"prompt": "a"}]),
        processing_class=one_word,
        peft_config=None if full else lora,
    )
    if computed:  # by an earlier pass, whose model is gone again
        trainer.precompute_ref_logps, trainer.ref_model = True, None
    return trainer


def _step(trainer: DPOTrainer, inputs: Mapping[str, torch.Tensor], tuning: str) -> dict[str, int]:
    """Make a step on fake tensors, as `trainer.train` would one in the middle, and return its peak bytes by kind."""
    tracker = Tracker()
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    tracker.add([list(trainer.model.parameters()), list(trainer.model.buffers())], "weights")
    if trainer.ref_model is not None:
        tracker.add([list(trainer.ref_model.parameters()), list(trainer.ref_model.buffers())], "reference")
    if tuning == "lora":
        tracker.add(trained, "adapter")
    if trainer.args.gradient_checkpointing:
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.create_optimizer())
    with _head(tracker), tracker:
        with tracker.of("gradients"):
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
                parameter.register_post_accumulate_grad_hook(lambda p: tracker.add(p.grad, "gradients"))
        with tracker.of("optimizer"):
            optimizer.step()
        if trainer.args.gradient_accumulation_steps == 1:
            optimizer.zero_grad()
        trainer.training_step(model, inputs)
        trainer.accelerator.clip_grad_norm_(trained, trainer.args.max_grad_norm)
        optimizer.step()
    return {kind: tracker.peak[kind] for kind in KINDS if tracker.peak.get(kind)}


class _Guess(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers what fake tensors cannot: a number read from one is 0, a mask is true everywhere."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.0 if args[0].dtype.is_floating_point else 0
        if func is torch.ops.aten.index.Tensor and args[1][0] is not None and args[1][0].dtype == torch.bool:
            picked, mask = args[0], args[1][0]
            return picked.new_empty((mask.numel(), *picked.shape[mask.dim() :]))
        return func(*args, **(kwargs or {}))


@contextmanager
def _replaced(owner: Any, **new: Any) -> Iterator[None]:
    old = {name: getattr(owner, name) for name in new}
    try:
        for name, value in new.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in old.items():
            setattr(owner, name, value)


@contextmanager
def _kernels(card: Card) -> Iterator[None]:
    """Let TRL 1.16 score the answers' positions only, as on a GPU, where its kernels also work in place.

    Modules stay where they are, since fake weights cannot be moved.
    """
    kernels = trl.kernels.chunked_logprob
    in_place = {name: lambda *_, **__: None for name in ("_forward_tile", "_backward_tile", "_addmm_fp32")}
    with (
        _replaced(trl.trainer.utils, _use_triton=lambda device: True),
        _replaced(kernels, **in_place if card.device.name == "cuda" else {}),
        _replaced(torch.nn.Module, to=lambda module, *_, **__: module),
    ):
        yield


@contextmanager
def _head(tracker: Tracker) -> Iterator[None]:
    """Let the tracker count what the scoring of the answers' tokens takes apart from the rest."""

    class Head(ChunkedLogProbFunction):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            with tracker.of("logits"):
                return ChunkedLogProbFunction.forward(ctx, *args)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            with tracker.of("logits"):
                return ChunkedLogProbFunction.backward(ctx, *grads)

    with _replaced(trl.trainer.utils, _ChunkedLogProbFunction=Head):
        yield


@contextmanager
def _aside() -> Iterator[None]:
    """Keep accelerate's settings, which all trainers of a process share, and the random numbers as they were."""
    shared = [state._shared_state for state in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in shared]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for state, old in zip(shared, before, strict=True):
            state.clear()
            state.update(old)
