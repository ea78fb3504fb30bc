"""The `training` file of 04: TRL's own names, each value checked by type and range before a weight is loaded.

What TRL, transformers, torch and peft would refuse half-way, or take and do something else with, is one sentence here.
"""

import dataclasses
import math
import os
import re
import typing
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from pydantic import AfterValidator, ConfigDict, Field, ValidationError, create_model
from transformers import SchedulerType, Trainer, get_scheduler
from transformers.training_args import OptimizerNames
from trl import DPOConfig

from nbutils import params
from nbutils.core.errors import InputError, shown, telling
from nbutils.files import sources

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
    "save_minutes": 20,  # a checkpoint at least this often, beside save_steps; 0 for those only
}
OURS = {"stop_on_warning", "save_minutes"}  # read here and not by the trainer: they change no weight
# Named here, in the notebook or by the machine; a `training` file must not fight them.
RESERVED = {
    "output_dir", "learning_rate", "num_train_epochs", "beta", "seed", "fp16", "bf16", "fp16_full_eval",
    "bf16_full_eval", "use_cpu", "report_to", "trust_remote_code", "model_init_kwargs", "push_to_hub", "hub_token",
    "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision", "resume_from_checkpoint",
    "disable_tqdm", "dataloader_pin_memory", "pad_token", "local_rank", "debug", "deepspeed", "fsdp", "fsdp_config",
    "parallelism_config", "accelerator_config", "auto_find_batch_size", "sync_ref_model", "use_liger_kernel",
}  # fmt: skip
# A checkpoint written or read so cannot be gone on from to the same weights.
UNSAFE = {"ignore_data_skip", "save_only_model", "restore_callback_states_from_checkpoint", "enable_jit_checkpoint"}
CHANGE = "look at the training file, and change or leave out what this names"
_STEPS = 100  # of the schedule that is tried out
LOSSES = ({"sigmoid"}, {"sigmoid_norm"}, {"sigmoid", "sft"})
METRICS = ("loss", *(f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins")))

Count = Annotated[int, Field(ge=1, le=2**16)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Least0 = Annotated[float, Field(ge=0)]


def _modules(value: Any) -> Any:
    """Take names of modules and no pattern: peft would try it on every module, and a pattern may run for ever."""
    names = _listed(value)
    if names != "all-linear" and not (
        isinstance(names, list) and names and all(isinstance(n, str) and _NAME.fullmatch(n) for n in names)
    ):
        raise ValueError("expected all-linear, or a list of names such as [q_proj, v_proj], no pattern")
    return names


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) and value != "all-linear" else value


_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
Modules = Annotated[Any, AfterValidator(_modules)]
# Where TRL's own type says too little. From `logging_steps` on a value below 1 is a share of all steps.
RULES: dict[str, Any] = {
    "max_length": Annotated[int, Field(ge=2, le=2**24)],
    "per_device_train_batch_size": Count,
    "per_device_eval_batch_size": Count,
    "gradient_accumulation_steps": Count,
    "precompute_ref_batch_size": Count | None,
    "eval_accumulation_steps": Count | None,
    "torch_empty_cache_steps": Count | None,
    "save_total_limit": Count | None,
    "max_steps": Literal[-1] | Annotated[int, Field(ge=1, le=2**31)],
    "data_seed": Annotated[int, Field(ge=0, lt=2**32)] | None,
    "dataloader_num_workers": Annotated[int, Field(ge=0, le=256)],
    "dataloader_prefetch_factor": Count | None,
    "dataloader_multiprocessing_context": Literal["fork", "spawn", "forkserver"] | None,
    "dataset_num_proc": Annotated[int, Field(ge=1, le=256)] | None,
    "pad_to_multiple_of": Literal["auto"] | Count | None,
    "warmup_steps": Least0,
    "eval_delay": Least0,
    "eval_steps": Positive | None,
    "logging_steps": Positive,
    "save_steps": Positive,
    "logging_strategy": Literal["steps"],
    "eval_strategy": Literal["no", "steps", "epoch"],
    "save_strategy": Literal["no", "steps", "epoch", "best"],
    "metric_for_best_model": Literal[tuple(f"{start}{name}" for start in ("", "eval_") for name in METRICS)] | None,
    "lr_scheduler_type": Literal[tuple(kind.value for kind in SchedulerType)],
    "lr_scheduler_kwargs": dict[str, Any] | None,
    "optim": Literal[tuple(kind.value for kind in OptimizerNames)],
    "gradient_checkpointing_kwargs": dict[Literal["use_reentrant"], bool] | None,
    "weight_decay": Least0,
    "adam_beta1": Share,
    "adam_beta2": Share,
    "adam_epsilon": Positive,
    "max_grad_norm": Least0,
    "neftune_noise_alpha": Annotated[float, Field(gt=0, le=1000)] | None,
    "label_smoothing_factor": Annotated[float, Field(ge=0, le=0)],  # of a loss that DPO does not use
    "label_smoothing": Annotated[float, Field(ge=0, lt=0.5)],
    "ld_alpha": Annotated[float, Field(ge=0, le=1)] | None,
    "f_divergence_type": Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"],
    "f_alpha_divergence_coef": Annotated[float, Field(gt=0, lt=1)],
    "discopop_tau": Positive,
    "router_aux_loss_coef": Least0 | None,
    "train_sampling_strategy": Literal["random", "sequential"],
    "truncation_mode": Literal["keep_start", "keep_end"],
    "log_level": Literal["debug", "info", "warning", "error", "critical", "passive"],
    "log_level_replica": Literal["debug", "info", "warning", "error", "critical", "passive"],
    "include_num_input_tokens_seen": Literal["no", "all", "non_padding"] | bool,
    "loss_type": str | list[str],
    "loss_weights": list[Least0] | None,
    "lora_r": Count,
    "lora_alpha": Positive,
    "lora_dropout": Share,
    "lora_target_modules": Modules,
    "optim_target_modules": Modules | None,
    "stop_on_warning": bool,
    "save_minutes": Least0,
}


def _fields() -> dict[str, Any]:
    hints = typing.get_type_hints(DPOConfig)
    known = {field.name: hints[field.name] for field in dataclasses.fields(DPOConfig)} | RULES
    return {name: (kind, None) for name, kind in known.items() if name not in RESERVED | UNSAFE}


_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
File = create_model("File", __config__=_STRICT, **_fields())


def read_options(name: str) -> dict[str, Any]:
    """Return DEFAULTS overridden by a `training` file; an empty name overrides nothing.

    Raises:
        InputError: if there is no such file, or from `checked`.
    """
    path = sources.find(name) if name else None
    if name and path is None:
        raise InputError(f"training: there is no file {shown(name)}; check the path (relative to {Path.cwd()})")
    return checked(params.read_overrides(path) if path else {})


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return DEFAULTS overridden by these settings.

    Raises:
        InputError: naming every setting that is unknown, reserved, of a wrong type or out of range; or the first that
            does not go with the others, or that the installed TRL and transformers refuse.
    """
    for key in given:
        if key in RESERVED:
            raise InputError(f"training file: {key} is set by a parameter of the notebook or by the machine, not here")
        if key in UNSAFE:
            raise InputError(f"training file: {key} would leave checkpoints that cannot be gone on from; leave it out")
        if key not in File.model_fields:
            raise InputError(
                f"training file: unknown key {shown(key)}; it takes TRL's DPOConfig fields, lora_*, "
                f"{' and '.join(sorted(OURS))}"
            )
    try:
        File.model_validate(dict(given))
    except ValidationError as error:
        faults: dict[str, str] = {}  # the first of each: a value is held against every kind that it may be of
        for each in error.errors():
            name = str(each["loc"][0])
            faults.setdefault(name, params.fault(dict(each) | {"loc": [name], "input": given[name]}, File))
        raise InputError(f"training file: {'; '.join(faults.values())}") from None
    options = DEFAULTS | dict(given)  # as they were written: 2 and 2.0 would be two trainings
    options["lora_target_modules"] = _listed(options["lora_target_modules"])
    options["loss_type"] = _listed(options["loss_type"])
    _agree(options)
    # a rate above any that a schedule may be told to end at
    try_out(options, f"reading the training file ({', '.join(given)})", learning_rate=1.0)
    return options


def _agree(options: Mapping[str, Any]) -> None:
    """Refuse settings that do not go together."""
    if options["lora_dropout"] and options.get("disable_dropout", True):
        raise InputError(
            f"training file: lora_dropout {shown(options['lora_dropout'])} has no effect as disable_dropout is on by "
            "default; add disable_dropout: false"
        )
    losses, weights = options["loss_type"], options.get("loss_weights")
    if set(losses) not in LOSSES or len(set(losses)) < len(losses):
        raise InputError(
            f"training file: loss_type is {shown(losses)}, expected sigmoid, sigmoid_norm or [sigmoid, sft]"
        )
    if (len(losses) > 1 or weights) and (len(weights or ()) != len(losses) or not any(weights or ())):
        raise InputError(
            f"training file: loss_type {losses} needs loss_weights with {len(losses)} numbers, one above 0 at least"
        )
    workers = ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context")
    if not options.get("dataloader_num_workers") and (idle := [name for name in workers if options.get(name)]):
        raise InputError(
            f"training file: {idle[0]} needs workers; set dataloader_num_workers to 1 or more, or leave it out"
        )


def try_out(options: Mapping[str, Any], what: str, **of_notebook: Any) -> None:
    """Let TRL, transformers and torch look at the settings; make the optimizer that they name and its schedule.

    Args:
        what: is being done, for the errors.
        of_notebook: TRL's names for its parameters; what is left out is TRL's own default.
    """
    with apart(), telling(what, CHANGE):
        config = DPOConfig("unused", use_cpu=True, bf16=False, report_to="none", **of_trainer(options), **of_notebook)
        kind, rules = Trainer.get_optimizer_cls_and_kwargs(config)
        optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **rules)
        _rates(config, optimizer)
        if config.torch_compile:  # compiles nothing yet, but looks the names up
            torch.compile(torch.nn.Identity(), backend=config.torch_compile_backend, mode=config.torch_compile_mode)
        if config.save_strategy == "best" and not config.metric_for_best_model:
            raise InputError(
                "training file: save_strategy best needs a metric to go by; add metric_for_best_model: loss, or one of "
                + ", ".join(METRICS[1:])
            )


def _rates(config: DPOConfig, optimizer: torch.optim.Optimizer) -> None:
    """Go through the schedule of a short training: most of what it is given is looked at no earlier."""
    steps = {"num_warmup_steps": _STEPS // 10, "num_training_steps": _STEPS}
    schedule = get_scheduler(
        config.lr_scheduler_type, optimizer, **steps, scheduler_specific_kwargs=config.lr_scheduler_kwargs
    )
    by_steps = isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)  # the others follow a loss
    with warnings.catch_warnings(action="ignore"):  # the optimizer makes no step
        for step in range(1, _STEPS + 1):
            schedule.step(*(() if by_steps else (1.0,)))
            rate = optimizer.param_groups[0]["lr"]
            if not 0 <= rate < math.inf:
                raise InputError(
                    f"training file: with lr_scheduler_kwargs {shown(config.lr_scheduler_kwargs)} the learning rate "
                    f"becomes {rate} at step {step} of {_STEPS}; expected a number from 0 up, look at what they mean"
                )


def of_trainer(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what TRL's DPOConfig takes of the options."""
    return {name: value for name, value in options.items() if not name.startswith("lora_") and name not in OURS}


@contextmanager
def apart() -> Iterator[None]:
    """Leave what all trainers of this process share, accelerate's settings and the random numbers, as it was."""
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ))  # where transformers puts how to compile
        for state in (PartialState, AcceleratorState, GradientState):
            stack.enter_context(patch.dict(state._shared_state))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        yield
