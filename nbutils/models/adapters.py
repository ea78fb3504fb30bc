"""LoRA adapters: compared with the base model they are to be put on, loaded, merged."""

from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
)

from nbutils.core.errors import InputError, first_line, writing
from nbutils.files import owned
from nbutils.models import weights
from nbutils.models.load import attention, config, load_model, load_tokenizer, load_weights, model_type, without_weights
from nbutils.models.lora import lora_settings
from nbutils.models.preflight import Device


def check_adapter(path: str, adapter: str) -> str:
    """Compare a LoRA adapter with the base model it is to be put on, before any weight is loaded; return its folder.

    Names and shapes are compared, the base's taken from its config; bases that agree in all of them, two fine-tunes of
    one model for example, cannot be told apart.

    Args:
        path: of the base model, from `resolve`.
        adapter: folder or Hub id.

    Raises:
        InputError: if there is no LoRA adapter, it asks for what this kit does not load, or it was trained on another
            base model.
    """
    from peft import PeftModel, get_peft_model_state_dict

    base = without_weights(AutoModelForCausalLM, path)
    try:
        folder = weights.folder(adapter, "adapter")
        lora, named = _lora(folder, base)
        [file] = weights.with_weights(folder, weights.ADAPTER)
        saved = weights.shapes(file)
    except (InputError, OSError) as error:
        raise InputError(f"adapter: {adapter} holds no adapter ({first_line(error)})") from None
    lora.init_lora_weights = False  # some ways to begin need the weights of the base
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            blank = PeftModel(cast(Any, base), lora)
        places = get_peft_model_state_dict(blank, save_embedding_layers=False)
        for name in sorted(saved.keys() | places.keys()):
            # peft would pass over a weight that has no place here, and over a place that no weight was saved for
            there, here = saved.get(name), tuple(places[name].shape) if name in places else None
            mine, its = (str(shape) if shape is not None else "missing" for shape in (there, here))
            if mine != its and ("lora_" in name or here is not None):
                raise ValueError(f"{name} is {mine} in the adapter and {its} on this base")
    except Exception as error:  # or peft's own: the base has none of the layers that were trained
        reason = first_line(error).partition(". ")[0]
        raise InputError(
            f"adapter: {adapter} was trained on another base model ({reason}); set model to {named}"
        ) from None
    return str(folder)


def _lora(folder: Path, base: PreTrainedModel) -> tuple[Any, str]:
    """Return an adapter's configuration, looked at and bound to this base, and the base that it names itself."""
    from peft import LoraConfig, PeftConfig

    modules = dict(base.named_modules())
    settings = lora_settings(folder, list(modules))
    for name in settings.get("modules_to_save") or []:
        if held := [m for m in modules if (m == name or m.endswith(f".{name}")) and any(modules[m].children())]:
            raise InputError(f"its modules_to_save names {held[0]}, which holds others; expected single layers")
    try:
        lora = PeftConfig.from_pretrained(str(folder))
    except Exception as error:
        raise InputError(f"its configuration cannot be read: {first_line(error)}") from None
    if not isinstance(lora, LoraConfig):
        raise InputError(f"it is of type {lora.peft_type}, expected LORA")
    named = settings.get("base_model_name_or_path")
    # peft looks this name up when it saves, here and on the Hub
    lora.base_model_name_or_path, lora.revision, lora.auto_mapping = base.name_or_path, None, None
    return lora, str(named)[:200] if isinstance(named, str) and named.isprintable() else "the one it was trained on"


def load_adapter(model: PreTrainedModel, adapter: str, *, trainable: bool = False) -> PreTrainedModel:
    """Attach a LoRA adapter that `check_adapter` has found to fit, unmerged; in float32 if it is to be trained."""
    from peft import PeftModel

    folder = weights.folder(adapter, "adapter")
    lora, _ = _lora(folder, model)
    loaded = PeftModel.from_pretrained(cast(Any, model), str(folder), config=lora, is_trainable=trainable)
    if trainable:
        return cast(PreTrainedModel, loaded)
    # peft keeps adapters in float32, which training wants and sampling pays for with a cast at every layer; the base
    # stays as it is: casting it whole would round its rotary frequencies, which it keeps in float32
    for name, parameter in loaded.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(model.dtype)
    return cast(PreTrainedModel, loaded.eval())


def load_tuned(path: str, adapter: str, device: Device, *, four_bit: bool = False) -> PreTrainedModel:
    """Load a base with a LoRA adapter that `check_adapter` has found to fit, ready for inference.

    On a CPU the adapter is merged in float32, before weights are rounded to the device's format: unmerged its small
    matrices take a quarter of the time. On a GPU it stays unmerged, where half precision would lose part of it.
    """
    if device.name != "cpu" or four_bit:
        return load_adapter(load_model(path, device, four_bit=four_bit), adapter)
    dtype = device.dtype(model_type(path))
    base = load_weights(AutoModelForCausalLM, path, dtype=torch.float32, **attention(device, dtype))
    merged = cast(Any, load_adapter(base, adapter)).merge_and_unload()
    # parameter by parameter: rotary frequencies are a buffer and stay in float32, as a base's that is loaded rounded
    for parameter in merged.parameters():
        parameter.data = parameter.data.to(dtype)
    return cast(PreTrainedModel, merged.eval())


def merge(path: str, adapter: str, folder: Path) -> Path:
    """Save the base with a LoRA adapter merged into its weights, in the base's own format; return the folder.

    Merged in float32 on the CPU: half precision would lose part of what the adapter adds.
    """
    check_adapter(path, adapter)
    kind = getattr(config(path), "dtype", None) or torch.float32
    base = load_weights(AutoModelForCausalLM, path, dtype=torch.float32)
    merged = cast(Any, load_adapter(base, adapter)).merge_and_unload()
    with writing(folder), owned.renewed(folder) as made:
        merged.to(kind).save_pretrained(made)
        load_tokenizer(path).save_pretrained(made)
    return folder


def adapter_rank(adapter: str) -> int:
    """Return the highest rank among the matrices of an adapter that `check_adapter` has found to fit."""
    [file] = weights.with_weights(weights.folder(adapter, "adapter"), weights.ADAPTER)
    return max((shape[0] for name, shape in weights.shapes(file).items() if "_A." in name), default=0)
