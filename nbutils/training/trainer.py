"""Building the trainer of 04: number formats for the card, the adapter, and where TRL 1.16 needs a hand.

Used by 04, `launch` and the memory plan.
"""

import ctypes
import gc
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl import DPOConfig

from nbutils import models, params
from nbutils.core.errors import InputError, shown, telling
from nbutils.core.records import PAIRS, Row, dataset, digest
from nbutils.files import mounts
from nbutils.models import weights
from nbutils.models.preflight import Device
from nbutils.training.checkpoints import take_checkpoints
from nbutils.training.job import write_job
from nbutils.training.patches import Trainer, answers_only
from nbutils.training.settings import CHANGE, OURS, apart, of_trainer, try_out

log = logging.getLogger(__name__)

# How a step is divided to fit a card: another card goes on from the same checkpoints.
PLANNED = {
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "gradient_checkpointing", "gradient_checkpointing_kwargs",
}  # fmt: skip


def precision(device: Device, model_type: str, tuning: str) -> tuple[torch.dtype, dict[str, bool]]:
    """Return the dtype to load the weights in, and the trainer's autocast flags.

    Adapters are trained in float32 (`Trainer` sees to it) over a frozen base in the device's own format; with QLoRA its
    4-bit layers compute in that. Weights that are trained themselves are kept in float32, since float16 cannot hold
    small updates. Autocast never uses bfloat16 below compute capability 8.0, and models that overflow float16 run
    without autocast there, all in float32.

    Raises:
        InputError: if 4-bit weights are wanted where bitsandbytes has no kernels for them.
    """
    if tuning == "qlora" and device.capability < (6, 0):
        raise InputError(
            f"tuning: qlora needs a GPU of compute capability 6.0 or higher, this run is on a {device.name} "
            f"({device.reason}); choose such a GPU, or set tuning to lora"
        )
    base = device.dtype(model_type)
    flags = {"fp16": base == torch.float16, "bf16": base == torch.bfloat16}
    return (torch.float32 if tuning == "full" else base), flags


def arguments(options: Mapping[str, Any]) -> tuple[dict[str, Any], LoraConfig]:
    """Return what TRL's DPOConfig takes of the options, and the adapter they describe."""
    lora = LoraConfig(
        r=options["lora_r"],
        lora_alpha=options["lora_alpha"],
        lora_dropout=options["lora_dropout"],
        target_modules=options["lora_target_modules"],
        task_type="CAUSAL_LM",
    )
    return of_trainer(options), lora


def divided(options: Mapping[str, Any], processes: int) -> tuple[int, int]:
    """Return batch and accumulation of one of several processes, which together take the pairs of one alone.

    Raises:
        InputError: if so many cannot share a step.
    """
    batch, steps = options["per_device_train_batch_size"], options["gradient_accumulation_steps"]
    shared = math.gcd(steps, processes)
    if batch % (processes // shared):
        raise InputError(
            f"a step takes {batch} x {steps} pairs (per_device_train_batch_size x gradient_accumulation_steps), which "
            f"{processes} processes cannot divide; set --num_processes to a divisor of {batch * steps}"
        )
    return batch // (processes // shared), steps // shared


def release() -> None:
    """Give memory back for a next model: accelerate leaves a cycle on the last one, which only a collection frees.

    On a CPU the allocator of glibc keeps a training's freed tensors, gigabytes of them, until it is told to let go.
    """
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def updates(count: int, options: Mapping[str, int]) -> int:
    """Return the optimizer steps of one pass over so many pairs; the trainer makes one of what is left at the end."""
    batches = math.ceil(count / options["per_device_train_batch_size"])
    return math.ceil(batches / options["gradient_accumulation_steps"])


def check(given: params.Dpo, options: Mapping[str, Any], path: str, pairs: int, held_out: int) -> None:
    """Refuse what cannot be done with so many pairs and this model; its config is read, no weight is loaded.

    Args:
        options: from `read_options`.
        path: of the model, from `models.resolve`.

    Raises:
        InputError: if the pairs are fewer than one batch, a setting waits for more steps than there are or for
            held-out pairs that there are not, or the adapter's modules are not in the model.
    """
    try_out(options, f"trying the training file with learning_rate {given.learning_rate}", **_of_notebook(given))
    batch = options["per_device_train_batch_size"] * options["gradient_accumulation_steps"]
    if pairs < batch:
        raise InputError(
            f"{pairs} training pairs are fewer than one batch of {batch}; lower "
            "gradient_accumulation_steps in the training file, or see the drop reports of 01 and 03 for more pairs"
        )
    steps = max(options.get("max_steps", -1), 0) or math.ceil(given.epochs * updates(pairs, options))
    for name in ("warmup_steps", "logging_steps"):
        if 1 <= options[name] > steps:
            raise InputError(
                f"training file: {name} is {options[name]} and this training has {steps} steps; lower it, or write a "
                "share of all steps (0.1)"
            )
    waits = options.get("load_best_model_at_end") or options.get("save_strategy") == "best"
    if not held_out and (waits or options["lr_scheduler_type"] in ("reduce_lr_on_plateau", "greedy")):
        raise InputError(
            "training file: load_best_model_at_end, save_strategy best and schedules that follow the held-out loss "
            "need held-out pairs, and there are none (all pairs are of one prompt); leave them out"
        )
    if options.get("router_aux_loss_coef") and not _has_experts(path):
        raise InputError(
            "training file: router_aux_loss_coef is for models with experts, and this has none; leave it out"
        )
    if given.adapter or given.tuning == "full":
        return
    with apart(), torch.device("meta"), telling(f"looking for lora_target_modules in {given.model}", CHANGE):
        model = AutoModelForCausalLM.from_config(models.config(path), trust_remote_code=False)
        names = [name for name, _ in model.named_modules()]
        wanted = options["lora_target_modules"]
        for module in [] if wanted == "all-linear" else wanted:
            if not any(f".{name}".endswith(f".{module}") for name in names):
                linear = (name for name, layer in model.named_modules() if type(layer) is torch.nn.Linear)
                leaves = sorted({name.rpartition(".")[2] for name in linear})
                raise InputError(
                    f"training file: lora_target_modules: the model has no {shown(module)}; its linear layers are "
                    + ", ".join(leaves)
                )
        get_peft_model(model, arguments(options)[1])


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
) -> Trainer:
    """Load the policy and return a trainer whose checkpoints stand under a name that changes with data and settings.

    Beside the checkpoints a job is left from which `nbutils.launch` can train the same on several GPUs. What an earlier
    session's output holds of the same training, and of the reference's numbers, is copied in first.

    Args:
        scratch: folder for unfinished work, and for the reference's numbers, computed until the deadline.

    Raises:
        InputError: if `check` finds a fault, the adapter does not fit, or there is no room for the copies.
        Interrupted: at the deadline; the same call goes on.
    """
    release()
    path = models.resolve(given.model, cache)
    adapter = _checked_adapter(given, path) if given.adapter else ""
    tokenizer = models.load_tokenizer(path)
    dtype, flags = precision(device, models.model_type(path), given.tuning)
    check(given, options, path, len(pairs), len(held_out))
    start = [models.weights_digest(folder) for folder in (path, adapter) if folder]
    work = scratch / _name(given, options, pairs, start)
    config, lora = _config(given, options, work, device=device, held_out=bool(held_out), flags=flags)
    if config.world_size == 1:
        _take_over(work, job=(given, options, pairs, held_out, cache))
    config.per_device_train_batch_size, config.gradient_accumulation_steps = divided(options, config.world_size)
    model = models.load_model(path, device, dtype=dtype, four_bit=(four_bit := given.tuning == "qlora"))
    if adapter:  # its frozen copy becomes the reference
        model = models.load_adapter(model, adapter, trainable=True)
    with telling(f"building the trainer of {given.model}", CHANGE), answers_only(config.use_cpu):
        return Trainer(
            folder=scratch / "reference",
            reference=digest([weights.plain(given.model), *start, four_bit, str(dtype), flags]),
            deadline=deadline,
            model=model,
            args=config,
            train_dataset=dataset(pairs, PAIRS),
            eval_dataset=dataset(held_out, PAIRS) if held_out else None,
            processing_class=tokenizer,
            peft_config=lora,
        )


def _checked_adapter(given: params.Dpo, path: str) -> str:
    """Return the folder of the adapter to go on from, looked at before a weight is loaded."""
    if given.tuning == "full":
        raise InputError(
            f"adapter: {given.adapter} cannot be trained further with tuning full, which trains the model itself; "
            "set tuning to lora or qlora, or leave adapter empty"
        )
    adapter = models.check_adapter(path, given.adapter)
    rank = models.adapter_rank(adapter)
    log.info("going on from %s as it is, rank %d: lora_* options do not apply", given.adapter, rank)
    return adapter


def _take_over(work: Path, job: tuple[Any, ...]) -> None:
    """Leave a job for `launch`, and copy in what an earlier session left of this training and its reference."""
    write_job(work / "job", *job)
    take_checkpoints(work)
    shards = work.parent / "reference"
    mounts.bring(mounts.taken(f"{shards.parent.name}/reference/*.json"), shards)


def _name(given: params.Dpo, options: Mapping[str, Any], pairs: Sequence[Row], start: Sequence[str]) -> str:
    """Return a training's name: it changes with the weights it starts from, its pairs, and whatever decides a step."""
    return digest(
        [
            weights.plain(given.model),
            given.model_dump(include={"tuning", "learning_rate", "epochs", "beta", "seed"}),
            *start,
            options["per_device_train_batch_size"] * options["gradient_accumulation_steps"],
            {k: v for k, v in options.items() if k not in OURS | PLANNED},
            [[p["id"], p["chat_template_kwargs"]] for p in pairs],
        ]
    )


def _of_notebook(given: params.Dpo) -> dict[str, Any]:
    rates = {"learning_rate": given.learning_rate, "num_train_epochs": given.epochs}
    return rates | {"beta": given.beta, "seed": given.seed}


def _has_experts(path: str) -> bool:
    return hasattr(models.config(path).get_text_config(), "output_router_logits")


def _config(
    given: params.Dpo,
    options: Mapping[str, Any],
    work: Path,
    *,
    device: Device,
    held_out: bool,
    flags: Mapping[str, bool],
) -> tuple[DPOConfig, LoraConfig | None]:
    settings, lora = arguments(options)
    if settings.get("activation_offloading") and device.name == "cpu":
        raise InputError("training file: activation_offloading moves tensors off a GPU, and here is none; leave it out")
    if not held_out:
        settings["eval_strategy"] = "no"
    with telling("reading the settings of the training", CHANGE):
        config = DPOConfig(
            output_dir=str(work),
            **_of_notebook(given),
            use_cpu=device.name == "cpu",
            dataloader_pin_memory=device.name != "cpu",
            report_to="none",
            disable_tqdm=True,
            trust_remote_code=False,
            **flags,
            **settings,
        )
    return config, None if given.adapter or given.tuning == "full" else lora
