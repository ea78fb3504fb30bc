"""Finding, loading and prompting a causal language model, and what of it was made by strangers.

A model is named by a Hub id, at a revision if one is given (`org/name#revision`), a folder, or `package:<name>`, an
installed Python package that carries one GGUF file (the CPU demo's weights come that way; they are converted to a
folder of safetensors once); a file cut into parts is `package:<name>1..6#<SHA-256 of the whole>`. Whatever the name,
the libraries are given a folder that `weights` has looked at.
"""

from nbutils.models import fitting
from nbutils.models.adapters import adapter_rank, check_adapter, load_adapter, load_tuned, merge
from nbutils.models.chat import greedy, render, special_tokens, spelled, stop_ids
from nbutils.models.load import (
    attention,
    config,
    context_length,
    label_count,
    limits,
    load_model,
    load_reward_model,
    load_tokenizer,
    model_type,
    resolve,
    room,
    weights_digest,
)  # fmt: skip
from nbutils.models.preflight import pick_device

__all__ = [
    "adapter_rank", "attention", "check_adapter", "config", "context_length", "fitting", "greedy", "label_count",
    "limits", "load_adapter", "load_model", "load_reward_model", "load_tokenizer", "load_tuned", "merge", "model_type",
    "pick_device", "render", "resolve", "room", "special_tokens", "spelled", "stop_ids", "weights_digest",
]  # fmt: skip
