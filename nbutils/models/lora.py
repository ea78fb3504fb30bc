"""A stranger's adapter_config.json: every value of it checked before a library reads it."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nbutils.core.bounded import within
from nbutils.core.errors import InputError, shown
from nbutils.files import documents
from nbutils.models.weights import LORA

NAMES = 2000  # modules that a list may name
PATTERNS = 512  # modules with a rank of their own; of more expressions than that Python forgets the first again
LAYERS = 16  # names that the lists of a model's layers may have
RANK = 8192
_EMBEDDINGS = ("embed_tokens", "lm_head")  # tried alone, too
# what peft looks for in the modules of a mixture of experts, by its present and its earlier names
_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3")
_WORD = re.compile(r"[\w.\-]{1,300}", re.ASCII)
_Match = Callable[[str, str], re.Match[str] | None]
_FLAGS = ("inference_mode", "fan_in_fan_out", "use_rslora", "use_dora", "lora_bias", "ensure_weight_tying")
_TOLD = ("peft_version", "base_model_name_or_path", "revision", "task_type", "auto_mapping", "megatron_core",
         "qalora_group_size", "runtime_config")  # of no weight here: set anew, or without use  # fmt: skip


def lora_settings(path: Path, modules: Sequence[str]) -> dict[str, Any]:
    """Return what a LoRA adapter's configuration says, after a look at everything that its library would believe.

    Args:
        path: folder of the adapter.
        modules: names of the base model's modules.

    Raises:
        InputError: naming the setting that this kit does not load, or a number or pattern that cannot be meant.
    """
    content = documents.read_json(path / LORA)
    if not isinstance(content, dict):
        raise InputError(f"{path / LORA} holds a {type(content).__name__}, expected names and values")
    if content.get("peft_type") != "LORA":
        raise InputError(f"it is of type {shown(content.get('peft_type'))}, expected LORA")
    checks: dict[str, Callable[[Any], bool]] = {
        "peft_type": lambda value: True,
        "r": lambda value: _whole(value, 1, RANK),
        "lora_alpha": _number,
        "lora_dropout": lambda value: _number(value) and 0 <= value < 1,
        "bias": lambda value: value in ("none", "all", "lora_only"),
        "init_lora_weights": lambda value: isinstance(value, bool | str | None),
        "target_modules": lambda value: isinstance(value, str) or _names(value),
        "exclude_modules": lambda value: isinstance(value, str) or _names(value),
        "target_parameters": _names,
        "modules_to_save": lambda value: _names(value) and len(value) <= 16,
        "layers_pattern": lambda value: (
            _names([value] if isinstance(value, str) else value) and (isinstance(value, str) or len(value) <= LAYERS)
        ),
        "layers_to_transform": lambda value: _whole(value, 0, 2048) or _listed(value, lambda v: _whole(v, 0, 2048)),
        "trainable_token_indices": _tokens,
        "rank_pattern": lambda value: _pattern(value, lambda v: _whole(v, 1, RANK)),
        "alpha_pattern": lambda value: _pattern(value, _number),
    }
    for name, value in content.items():
        if name in _TOLD or value is None or value is False or value in ({}, []):
            continue
        if name in _FLAGS and value is True:
            continue
        if name not in checks:
            raise InputError(f"it sets {shown(name)}, which this kit does not load; expected a plain LoRA adapter")
        if not checks[name](value):
            raise InputError(f"its {name} is {shown(value)}, which no adapter needs")
    whole = [value for name in ("target_modules", "exclude_modules") if isinstance(value := content.get(name), str)]
    ends = {*(content.get("rank_pattern") or {}), *(content.get("alpha_pattern") or {})}
    if len(ends) > PATTERNS:
        raise InputError(f"its rank_pattern and alpha_pattern name {len(ends)} modules, which no adapter needs")
    check_patterns(whole, sorted(ends), modules)
    return content


def check_patterns(whole: Sequence[str], ends: Sequence[str], modules: Sequence[str]) -> None:
    """Try regular expressions on the names of a model's modules as peft does, for two seconds at most.

    Args:
        whole: expressions for whole names.
        ends: expressions for the ends of names.

    Raises:
        InputError: if one is none, or they take longer.
    """
    risky = [*_risky(whole, re.fullmatch), *_risky(ends, lambda p, name: re.match(rf"(.*\.)?({p})$", name))]
    if risky:
        names = list(_tried(modules))
        within(
            lambda: sum(match(pattern, name) is not None for pattern, match in risky for name in names),
            f"the regular expression {shown(max((pattern for pattern, _ in risky), key=len))}",
            seconds=2,
        )


def _risky(patterns: Sequence[str], match: _Match) -> list[tuple[str, _Match]]:
    """Return the patterns that are no plain names, with the call that peft makes for each: another may end sooner."""
    return [(pattern, match) for pattern in patterns if not _WORD.fullmatch(pattern)]


def _tried(modules: Sequence[str]) -> Iterator[str]:
    """Yield the names that peft matches: of modules, of embeddings alone, and of the parameters of experts."""
    yield from modules
    yield from _EMBEDDINGS
    experts = [name for name in modules if name.endswith("experts")]
    for name in modules if experts else ():
        yield from (f"{name}.weight", f"{name}.bias")
    for name in experts:
        yield from (f"{name}.{part}" for part in _EXPERTS)


def _whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def _listed(value: Any, check: Any) -> bool:
    return isinstance(value, list) and len(value) <= NAMES and all(map(check, value))


def _names(value: Any) -> bool:
    return _listed(value, lambda name: isinstance(name, str) and bool(_WORD.fullmatch(name)))


def _tokens(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else [value]
    return len(parts) <= 16 and all(isinstance(v, list) and len(v) <= 2**16 and all(_whole(i, 0, 2**24) for i in v)
                                    for v in parts)  # fmt: skip


def _pattern(value: Any, check: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= PATTERNS
        and all(len(name) <= 300 for name in value)
        and all(map(check, value.values()))
    )
