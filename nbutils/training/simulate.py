"""One training step of TRL's trainer on fake tensors, which have shapes and no numbers; used by `memory`.

Model, adapter, loss and optimizer are the real ones, made from the model's config alone, in seconds and without a GPU.
The bytes of all live tensors are counted on the way. What fake tensors cannot know is approximated:

- float16 is planned as bfloat16, which is as large: a CPU, where the fake step runs, has no autocast to float16.
- attention is that of the CPU: like the memory-efficient kernel of a GPU it keeps its output and one number per row.
- both answers of every pair are as long as allowed, with a prompt of one token: the most there can be to score.
- a weight of QLoRA takes its 4 bits and scales, and its dequantised copy lives for one product, forward and backward;
  the scales unpacked for that copy (3% of it) are left out.
- reference numbers computed before the training come from a pass without gradients, batch by batch of the size
  `precompute_ref_batch_size` or else a step's: with a batch no larger than a step's it takes less than the step.
"""

import math
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, cast
from unittest.mock import patch

import torch
import trl.kernels.chunked_logprob
from datasets import Dataset
from peft.helpers import disable_input_dtype_casting
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module
from trl import DPOConfig, DPOTrainer
from trl.kernels import ChunkedLogProbFunction

from nbutils import models
from nbutils.models.preflight import Device
from nbutils.training.patches import answers_only
from nbutils.training.settings import apart
from nbutils.training.trainer import arguments, precision

# what the memory of a step is for
KINDS = {
    "weights": "the model itself",
    "reference": "the frozen copy it is compared with",
    "adapter": "the small matrices that LoRA trains",
    "gradients": "one number per trained weight",
    "optimizer": "what it remembers of earlier gradients",
    "logits": "scoring the answers' tokens",
    "activations": "kept for the backward pass",
}


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

    def add_model(self, model: Any, kind: str) -> None:
        """Count a model's parameters and buffers; None has none."""
        self.add([] if model is None else [*model.parameters(), *model.buffers()], kind)

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """Count what is made inside as of this kind."""
        with patch.object(self, "kind", kind):
            yield

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


def peak(config: Any, *, tuning: str, options: Mapping[str, Any], device: Device, length: int) -> dict[str, int]:
    """Return the bytes by kind at the largest moment of one step, as `trainer.train` makes it in the middle of a run.

    Args:
        config: of the model.
        tuning: `lora`, `qlora` or `full`.
        options: from `settings.read_options`.
        device: that the step is planned for.
        length: of every answer with its prompt, in tokens.
    """
    row: dict[str, Any] = {"prompt_ids": [0], "chosen_ids": [0] * (length - 1), "rejected_ids": [0] * (length - 1)}
    if options.get("precompute_ref_log_probs"):
        row |= {"ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(apart())
        # as on a GPU, and as `loop.train` does on a CPU, TRL 1.16 scores the answers' positions only ...
        stack.enter_context(answers_only(True))
        if device.name == "cuda":  # ... where its kernels also work in place
            for name in ("_forward_tile", "_backward_tile", "_addmm_fp32"):
                stack.enter_context(patch.object(trl.kernels.chunked_logprob, name, lambda *_, **__: None))
        stack.enter_context(patch.object(torch.nn.Module, "to", lambda module, *_, **__: module))  # fakes cannot move
        stack.enter_context(FakeTensorMode())
        stack.enter_context(_Guess())  # type: ignore[no-untyped-call]
        trainer = _trainer(config, tuning, options, device, folder)
        return _step(trainer, trainer.data_collator([row] * options["per_device_train_batch_size"]), tuning)


class _Blank(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer without data: its batch is given to it."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def _trainer(config: Any, tuning: str, options: Mapping[str, Any], device: Device, folder: str) -> DPOTrainer:
    """Return a trainer of fake models, made as `trainer.build_trainer` makes a real one."""
    dtype, flags = precision(device, config.model_type, tuning)
    dtype = torch.bfloat16 if dtype == torch.float16 else dtype
    settings, lora = arguments(options)
    computed = settings.pop("precompute_ref_log_probs", False)
    settings.pop("activation_offloading", None)  # moves what fake tensors cannot; the plan is then too high
    if settings.get("optim", "").removeprefix("paged_").endswith("8bit"):  # its kernels know no fake tensors; too high
        del settings["optim"]
    settings |= {
        "lr_scheduler_type": "constant",  # some follow held-out losses, and all take no memory
        "lr_scheduler_kwargs": None,
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "bf16": any(flags.values()),
    }
    one_word = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0})), pad_token="a")  # noqa: S106
    full = tuning == "full"
    attention = models.attention(device, dtype)
    made = [
        AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False, **attention)
        for _ in range(1 + full)
    ]
    if tuning == "qlora":
        _quantize(made[0])
    trainer = _Blank(
        model=made[0],
        ref_model=made[1] if full else None,
        args=DPOConfig(output_dir=folder, report_to="none", disable_tqdm=True, **settings),
        train_dataset=Dataset.from_list([{"prompt": "a"}]),
        processing_class=one_word,
        peft_config=None if full else lora,
    )
    if computed:  # by an earlier pass, whose model is gone again
        trainer.precompute_ref_logps, trainer.ref_model = True, None
    return trainer


def _step(trainer: DPOTrainer, inputs: Mapping[str, torch.Tensor], tuning: str) -> dict[str, int]:
    """Make a step with the gradients and the optimizer's state of earlier ones in place; return the peak by kind."""
    tracker = Tracker()
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    tracker.add_model(trainer.model, "weights")
    tracker.add_model(trainer.ref_model, "reference")
    if tuning != "full":
        tracker.add(trained, "adapter")
    if trainer.args.gradient_checkpointing:
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.create_optimizer())
    # unlike its layer for plain weights, peft's layer for 4-bit ones leaves its input as it is
    uncast = disable_input_dtype_casting(trainer.model) if tuning == "qlora" else nullcontext()
    with _scoring(tracker), uncast, tracker:
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


@contextmanager
def _scoring(tracker: Tracker) -> Iterator[None]:
    """Let the tracker count what the scoring of the answers' tokens takes apart from the rest."""

    def counted(method: Any) -> Any:
        def run(*args: Any) -> Any:
            with tracker.of("logits"):
                return method(*args)

        return staticmethod(run)

    methods = {name: counted(getattr(ChunkedLogProbFunction, name)) for name in ("forward", "backward")}
    with patch.multiple(ChunkedLogProbFunction, **methods):
        yield


class _Guess(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers what fake tensors cannot: a number read from one is 1, a mask is true everywhere."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].dtype.is_floating_point else 1
        if func is torch.ops.aten.index.Tensor and args[1][0] is not None and args[1][0].dtype == torch.bool:
            picked, mask = args[0], args[1][0]
            return picked.new_empty((mask.numel(), *picked.shape[mask.dim() :]))
        return func(*args, **(kwargs or {}))


class _FourBit(torch.nn.Linear):
    """A linear layer whose weight is bytes: 4-bit values, an 8-bit scale per 64, a float32 scale per 256 of those."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product: Any = _Product
        return cast(torch.Tensor, product.apply(x, self.weight, self.bias, (self.out_features, self.in_features)))


class _Product(torch.autograd.Function):
    """The weight is unpacked for the product and again for the gradient of its input, and kept by neither."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, shape: Any) -> torch.Tensor:
        ctx.shape = shape
        return torch.nn.functional.linear(x, packed.new_empty(shape, dtype=x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient @ gradient.new_empty(ctx.shape), None, None, None


def _quantize(model: torch.nn.Module) -> None:
    """Hold every linear layer but the head in 4 bits, those that transformers chooses."""
    kept = get_keys_to_not_convert(model)
    for name, layer in model.named_modules():
        if type(layer) is torch.nn.Linear and should_convert_module(name, kept):
            blocks = math.ceil(layer.weight.numel() / 64)
            size = math.ceil(layer.weight.numel() / 2) + blocks + 4 * math.ceil(blocks / 256)
            layer.__class__ = _FourBit
            layer.weight = torch.nn.Parameter(torch.empty(size, dtype=torch.uint8), requires_grad=False)
