"""Training with TRL's DPOTrainer: few parameters, checkpoints that survive a kill, a log in CSV.

Used by 04. Everything beyond the notebook's parameters comes from one `training` file with TRL's own names.
"""

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import trl.trainer.utils
from peft import LoraConfig
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from trl import DPOConfig, DPOTrainer

from nbutils import health, models, params, reference, sources
from nbutils.errors import InputError, Interrupted
from nbutils.preflight import Device
from nbutils.records import PAIRS, Row, dataset, digest

log = logging.getLogger(__name__)

# What a T4 run starts from; a `training` file overrides any of it.
DEFAULTS: dict[str, Any] = {
    "max_length": 1024,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 8,
    "loss_type": ["sigmoid"],
    "precompute_ref_log_probs": True,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,  # below 1: a share of all steps
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 0.25,
    "save_steps": 0.1,
    "save_total_limit": 2,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "lora_target_modules": "all-linear",
    "stop_on_warning": False,
}
OURS = {"stop_on_warning"}  # read here and not by the trainer: it changes no weight
# Named here, in the notebook or by the machine; a `training` file must not fight them.
RESERVED = {
    "output_dir", "learning_rate", "num_train_epochs", "beta", "seed", "fp16", "bf16", "use_cpu", "report_to",
    "trust_remote_code", "model_init_kwargs", "push_to_hub", "resume_from_checkpoint",
}  # fmt: skip
LOSSES = ({"sigmoid"}, {"sigmoid_norm"}, {"sigmoid", "sft"})


def read_options(name: str) -> dict[str, Any]:
    """Return DEFAULTS overridden by a `training` file; an empty name overrides nothing.

    Raises:
        InputError: if there is no such file, naming an unknown or reserved key, or a loss this kit does not offer.
    """
    path = sources.find(name) if name else None
    if name and path is None:
        raise InputError(f"training: there is no file {name}; check the path (relative to {Path.cwd()})")
    given = params.read_overrides(path) if path else {}
    known = {f.name for f in dataclasses.fields(DPOConfig)} | {k for k in DEFAULTS if k.startswith("lora_")} | OURS
    for key in given:
        if key in RESERVED:
            raise InputError(f"training file: {key} is set by a parameter of the notebook or by the machine, not here")
        if key not in known:
            raise InputError(
                f"training file: unknown key {key!r}; it takes TRL's DPOConfig fields, lora_* and stop_on_warning"
            )
    options = DEFAULTS | given
    if not isinstance(options["stop_on_warning"], bool):
        raise InputError(f"training file: stop_on_warning is {options['stop_on_warning']!r}, expected true or false")
    losses = options["loss_type"] if isinstance(options["loss_type"], list) else [options["loss_type"]]
    if set(losses) not in LOSSES:
        raise InputError(f"training file: loss_type is {losses}, expected sigmoid, sigmoid_norm or [sigmoid, sft]")
    if len(losses) > 1 and len(options.get("loss_weights") or []) != len(losses):
        raise InputError(f"training file: loss_type {losses} needs loss_weights with {len(losses)} numbers")
    return options | {"loss_type": losses}


def precision(device: Device, model_type: str, tuning: str) -> tuple[torch.dtype, dict[str, bool]]:
    """Return the dtype to load the weights in, and the trainer's autocast flags.

    Adapters are trained in float32 over a frozen base in the device's own format. Weights that are trained themselves
    are kept in float32, since float16 cannot hold small updates. Autocast never uses bfloat16 below compute capability
    8.0, and models that overflow float16 run without autocast.
    """
    base = device.dtype(model_type)
    flags = {"fp16": base == torch.float16, "bf16": base == torch.bfloat16}
    return (base if tuning == "lora" else torch.float32), flags


def arguments(options: Mapping[str, Any]) -> tuple[dict[str, Any], LoraConfig]:
    """Return what TRL's DPOConfig takes of the options, and the adapter they describe."""
    lora = LoraConfig(
        r=options["lora_r"],
        lora_alpha=options["lora_alpha"],
        lora_dropout=options["lora_dropout"],
        target_modules=options["lora_target_modules"],
        task_type="CAUSAL_LM",
    )
    ours = {name for name in options if name.startswith("lora_")} | OURS
    return {name: value for name, value in options.items() if name not in ours}, lora


def prepare(pairs: Sequence[Row], template: Mapping[str, Any]) -> list[Row]:
    """Give every pair the template arguments the policy is sampled and trained with.

    Pairs from 01 carry none, since no model was involved; those from 03 carry the ones their samples were drawn with.

    Raises:
        InputError: if pairs were sampled with other arguments than the ones given.
    """
    for pair in pairs:
        own = pair["chat_template_kwargs"]
        if own and own != dict(template):
            raise InputError(
                f"chat_template_kwargs: pair {pair['id']} was sampled with {own}, this run is to train with "
                f"{dict(template)}; set the parameter to the same value"
            )
    return [pair | {"chat_template_kwargs": dict(template)} for pair in pairs]


def drop_long(pairs: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[list[Row], int]:
    """Return the pairs that fit `max_length` tokens whole, and how many did not: TRL would cut their answers' ends."""

    def length(pair: Row, side: str) -> int:
        ids = tokenizer.apply_chat_template(
            pair["prompt"] + pair[side], tokenize=True, return_dict=False, **pair["chat_template_kwargs"]
        )
        return len(ids)

    kept = [p for p in pairs if max(length(p, side) for side in ("chosen", "rejected")) <= max_length]
    return kept, len(pairs) - len(kept)


def split(pairs: Sequence[Row], *, held_out: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split pairs into training and held-out ones by prompt, so that no prompt stands on both sides.

    Args:
        held_out: share of the prompts to hold out, at least one prompt; prompts are chosen by a hash of their id.
    """
    prompts = sorted({p["prompt_id"] for p in pairs}, key=lambda i: digest([seed, i]))
    held = set(prompts[: max(1, round(len(prompts) * held_out))]) if len(prompts) > 1 else set()
    return [p for p in pairs if p["prompt_id"] not in held], [p for p in pairs if p["prompt_id"] in held]


def build_trainer(
    given: params.Dpo,
    options: Mapping[str, Any],
    pairs: Sequence[Row],
    held_out: Sequence[Row],
    *,
    device: Device,
    cache: Path,
    scratch: Path,
    deadline: float = float("inf"),
) -> DPOTrainer:
    """Load the policy and return a trainer whose checkpoints stand under a name that changes with data and settings.

    Args:
        options: from `read_options`.
        scratch: folder for unfinished work, and for the reference model's log-probabilities.
        deadline: `time.time()` at which to stop computing those.

    Raises:
        InputError: if there are fewer pairs than one batch takes.
        Interrupted: at the deadline; the same call goes on.
    """
    path = models.resolve(given.model, cache)
    tokenizer = models.load_tokenizer(path)
    dtype, flags = precision(device, models.model_type(path), given.tuning)
    batch = options["per_device_train_batch_size"] * options["gradient_accumulation_steps"]
    if len(pairs) < batch:
        raise InputError(
            f"{len(pairs)} training pairs are fewer than one batch of {batch}; lower "
            "gradient_accumulation_steps in the training file, or see the drop reports of 01 and 03 for more pairs"
        )
    settings, lora = arguments(options)
    if not held_out:
        settings["eval_strategy"] = "no"
    weights = models.weights_digest(path)
    run = digest(
        [
            given.model_dump(include={"model", "tuning", "learning_rate", "epochs", "beta", "seed"}),
            weights,
            {k: v for k, v in options.items() if k not in OURS},
            [p["id"] for p in pairs],
        ]
    )
    config = DPOConfig(
        output_dir=str(scratch / run),
        learning_rate=given.learning_rate,
        num_train_epochs=given.epochs,
        beta=given.beta,
        seed=given.seed,
        use_cpu=device.name == "cpu",
        dataloader_pin_memory=device.name != "cpu",
        report_to="none",
        disable_tqdm=True,
        **flags,
        **settings,
    )
    with _answers_only(config.use_cpu):
        return reference.Trainer(
            folder=scratch / "reference",
            reference=digest([given.model, weights, str(dtype), flags]),
            deadline=deadline,
            model=models.load_model(path, device, dtype=dtype),
            args=config,
            train_dataset=dataset(pairs, PAIRS),
            eval_dataset=dataset(held_out, PAIRS) if held_out else None,
            processing_class=tokenizer,
            peft_config=lora if given.tuning == "lora" else None,
        )


def train(
    trainer: DPOTrainer, *, csv: Path, deadline: float = float("inf"), stop_on_warning: bool = False
) -> pd.DataFrame:
    """Train from the last complete checkpoint, or from the start, and return the log, one row per step.

    What `health.check` finds on the way is logged as a warning, once each.

    Args:
        csv: where the log is kept up to date.
        deadline: `time.time()` at which to save a checkpoint and stop.
        stop_on_warning: whether to save a checkpoint and stop at a serious finding.

    Raises:
        Interrupted: at the deadline; the same call goes on from the checkpoint. At a serious finding, too; there the
            same call goes on only with `stop_on_warning=False`.
    """
    watch = _Watch(csv, deadline, stop_on_warning)
    trainer.remove_callback(PrinterCallback)  # a page of figures per step; the watch keeps them in a file
    trainer.add_callback(watch)
    checkpoint = last_complete(Path(str(trainer.args.output_dir)))
    if checkpoint:
        log.info("resuming from %s", checkpoint.name)
    try:
        with _answers_only(trainer.args.use_cpu):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        trainer.remove_callback(watch)  # or its deadline would stop the next call in the same kernel
    if watch.stopped:
        step, steps = trainer.state.global_step, trainer.state.max_steps
        if watch.ill:
            raise Interrupted(
                f"stop_on_warning: training stopped at step {step} of {steps} with a checkpoint: {watch.ill} (or "
                "set stop_on_warning to false to go on)"
            )
        raise Interrupted(f"time budget used up at step {step} of {steps}; run the same command or cell again to go on")
    return table(trainer.state.log_history)


@contextmanager
def _answers_only(on_cpu: bool) -> Iterator[None]:
    """Let TRL 1.16 project only the answers' positions onto the vocabulary on a CPU, as it does on a GPU.

    Without Triton it scores prompts and padding as well, for the sake of compilers that a CPU does not use; for short
    answers that is most of a step. The numbers are the same (tested).
    """
    original = trl.trainer.utils._use_triton
    if on_cpu:
        trl.trainer.utils._use_triton = lambda device: True
    try:
        yield
    finally:
        trl.trainer.utils._use_triton = original


def last_complete(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written whole, and remove torn ones.

    The trainer writes trainer_state.json last: a checkpoint without a readable one was interrupted.
    """
    steps = {int(p.name.removeprefix("checkpoint-")): p for p in folder.glob("checkpoint-*")}
    for step in sorted(steps, reverse=True):
        try:
            json.loads((steps[step] / "trainer_state.json").read_text())
            return steps[step]
        except (OSError, ValueError):
            log.warning("removing %s, which was interrupted while being written", steps[step].name)
            shutil.rmtree(steps[step])
    return None


def table(history: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    """Return the trainer's log as one row per step, training and held-out metrics side by side."""
    frame = pd.DataFrame(history).groupby("step", as_index=False).first()
    return frame.drop(columns=[c for c in frame if str(c).endswith(("runtime", "per_second"))])


def save(trainer: DPOTrainer, folder: Path) -> Path:
    """Save the adapter, or the whole model after full tuning, with its tokenizer as safetensors; return the folder."""
    trainer.save_model(str(folder))
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle of this machine's paths
    return folder


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Writes the log after every step, warns of what is wrong in it and ends the training at the deadline."""

    def __init__(self, csv: Path, deadline: float, stop_on_warning: bool):
        self.csv, self.deadline, self.stop_on_warning = csv, deadline, stop_on_warning
        self.stopped, self.ill = False, ""
        self.warned: set[str] = set()

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Mapping[str, float], **_: Any
    ) -> None:
        frame = table(state.log_history)
        frame.to_csv(self.csv, index=False)
        if "loss" in logs and state.global_step % max(state.max_steps // 10, 1) == 0:
            margin = logs["rewards/margins"]
            log.info("step %d of %d: loss %.3f, margin %.3f", state.global_step, state.max_steps, logs["loss"], margin)
        for finding in health.check(frame, beta=args.beta, steps=state.max_steps):
            if finding.name not in self.warned:
                log.warning("%s: %s", finding.name, finding.sentence)
                self.warned.add(finding.name)
            if finding.serious and self.stop_on_warning and state.global_step < state.max_steps:
                self.ill = self.ill or finding.sentence
                self._stop(control)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if time.time() > self.deadline and state.global_step < state.max_steps:
            self._stop(control)

    def _stop(self, control: TrainerControl) -> None:
        self.stopped = control.should_save = control.should_training_stop = True
