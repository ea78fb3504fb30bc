"""A language model's folder, tokenizer, weights and limits."""

import logging
import math
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_bitsandbytes_available

from nbutils.core import bounded
from nbutils.core.errors import InputError, first_line
from nbutils.files import identity, sources
from nbutils.models import weights
from nbutils.models.gguf import convert
from nbutils.models.preflight import Device

log = logging.getLogger(__name__)
transformers.utils.logging.disable_progress_bar()  # loading a small model takes a second


def resolve(name: str, cache: Path) -> str:
    """Return the folder of a model, converting a package's GGUF weights on first use.

    A Hub repository's is that of one commit in the Hub's cache, for now without its weights.

    Args:
        cache: folder for converted models.

    Raises:
        InputError: if the folder holds no model or what no model has, the Hub has none of this name, or the package is
            not installed or carries no GGUF file.
    """
    if name.startswith(identity.PACKAGE):
        return str(convert(name, cache))
    if name.startswith((".", "/", "~")) or identity.hub_name(name).repository.count("/") > 1:
        path = sources.located(name)
        if not Path(path).is_dir():
            raise InputError(f"model: there is no folder {name}; name an existing folder or a Hub id like 'org/model'")
    path = str(weights.folder(name))
    if not (Path(path) / weights.CONFIG).exists():
        raise InputError(f"model: the folder {path} holds no config.json, expected a saved transformers model")
    return path


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer that pads on the left and has a chat template.

    Raises:
        InputError: if the model cannot be found, has no chat template, or one that does not come to an end.
    """
    tokenizer = from_pretrained(AutoTokenizer, path)
    if not tokenizer.chat_template:
        raise InputError(f"model {path}: its tokenizer has no chat template; choose the instruct variant of the model")
    bounded.within(lambda: _try_template(tokenizer), f"model {path}: its chat template")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _try_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Render a conversation; what a template refuses is said when it is given that, only its end is looked for here."""
    turns = [{"role": role, "content": "Ciao"} for role in ("user", "assistant", "user")]
    for messages in (turns[:1], turns):
        try:
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except MemoryError:
            raise
        except Exception:
            log.debug("the chat template refuses %d turns", len(messages))


def load_model(
    path: str, device: Device, dtype: torch.dtype | None = None, *, four_bit: bool = False
) -> PreTrainedModel:
    """Load the weights onto the device, ready for inference, by default in the format its preflight chose.

    Args:
        four_bit: hold the linear layers in 4 bits (NF4 with double quantisation, QLoRA, arXiv 2305.14314) and compute
            in `dtype`, which head and embeddings are kept in.

    Raises:
        InputError: if the model cannot be found, or bitsandbytes is wanted and missing.
    """
    dtype = dtype or device.dtype(model_type(path))
    if four_bit:
        if not is_bitsandbytes_available():
            raise InputError(
                "tuning: qlora needs the package bitsandbytes, 0.46.1 or newer; run `pip install -U bitsandbytes` and "
                "restart the kernel, or set tuning to lora"
            )
        quantized = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        # it is put onto the GPU while it is quantised
        model = load_weights(AutoModelForCausalLM, path, dtype=dtype, quantization_config=quantized)
        return cast(PreTrainedModel, model.eval())
    model = load_weights(AutoModelForCausalLM, path, dtype=dtype, **attention(device, dtype))
    return cast(PreTrainedModel, model.to(device.name).eval())


def attention(device: Device, dtype: torch.dtype) -> dict[str, str]:
    """Return the option that chooses a causal model's attention: the library's own choice but on a CPU in bfloat16.

    There torch 2.13's fused attention has no fast path: one token at a time it takes over twice as long.
    """
    return {"attn_implementation": "eager"} if device.name == "cpu" and dtype == torch.bfloat16 else {}


def load_reward_model(path: str, device: Device) -> PreTrainedModel:
    """Load a sequence classifier onto the device, ready for inference, in the format its preflight chose.

    Raises:
        InputError: if the checkpoint lacks weights; transformers would draw a missing head at random.
    """
    own = config(path)
    # the fused attention passes over Gemma 2's cap on attention scores
    attention = {"attn_implementation": "eager"} if getattr(own, "attn_logit_softcapping", None) else {}
    model, info = load_weights(
        AutoModelForSequenceClassification,
        path,
        dtype=device.dtype(str(own.model_type)),
        output_loading_info=True,
        **attention,
    )
    if info["missing_keys"]:
        raise InputError(
            f"model {path!r}: its checkpoint lacks {', '.join(sorted(info['missing_keys'])[:3])}; expected a reward "
            "model with a trained head, not a plain language model"
        )
    return cast(PreTrainedModel, model.to(device.name).eval())


def config(path: str) -> Any:
    """Return the model's config; no weight is loaded for it."""
    return from_pretrained(AutoConfig, path)


def limits(path: str, max_length: int) -> dict[str, int]:
    """Return what bounds a pair, as `fitting.fit` takes it: tokens, no more than the context, and the vocabulary."""
    vocabulary = int(config(path).get_text_config().vocab_size)
    return {"max_length": min(max_length, context_length(path)), "vocabulary": vocabulary}


def model_type(path: str) -> str:
    """Return the architecture name in the model's config, e.g. `qwen3`."""
    return str(config(path).model_type)


def label_count(path: str) -> int:
    """Return how many numbers the model's classification head gives; 2 where the config does not say."""
    return int(config(path).num_labels)


def context_length(path: str) -> int:
    """Return how many tokens prompt and completion may have together."""
    found = getattr(config(path).get_text_config(), "max_position_embeddings", None)
    if not isinstance(found, int) or found < 1:
        raise InputError(f"model {path}: its config.json tells no max_position_embeddings; choose another model")
    return found


def room(path: str, max_tokens: int) -> int:
    """Return how many tokens a prompt may have beside an answer of `max_tokens`.

    Raises:
        InputError: if the answer alone would fill the model's context.
    """
    context = context_length(path)
    if max_tokens >= context:
        raise InputError(
            f"sampling: max_tokens is {max_tokens} and the model's context is {context} tokens; lower max_tokens"
        )
    return context - max_tokens


def weights_digest(path: str) -> str:
    """Return what changes with the answers of a model or an adapter: the commit of a Hub id, or its files' content.

    Raises:
        InputError: if it cannot be told.
    """
    return weights.digest(weights.folder(path))


def without_weights(cls: Any, path: str) -> Any:
    """Return a model of shapes alone, by its config."""
    own = config(path)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):  # shapes draw numbers, too
            model = cls.from_config(own, trust_remote_code=False)
    except Exception as error:
        raise _unloadable(path, error) from None
    model.name_or_path = path
    return model


def load_weights(cls: Any, path: str, **options: Any) -> Any:
    """Load weights that are there and belong to the config: what is missing would be made up, in any size."""
    files = weights.with_weights(weights.folder(path))
    held = sum(math.prod(shape) for file in files for shape in weights.shapes(file).values())
    empty = without_weights(cls, path)
    wanted = sum(tensor.numel() for tensor in (*empty.parameters(), *empty.buffers()))
    packed = 8 if getattr(empty.config, "quantization_config", None) else 1  # of 4 bits in numbers of 32
    if wanted > 2 * packed * held + 2**20:  # a head may be missing
        raise InputError(
            f"model {path}: its config.json tells of {wanted:,} numbers and its weights hold {held:,}; they do not "
            "belong together, copy the folder again"
        )
    return from_pretrained(cls, path, use_safetensors=True, **options)


def from_pretrained(cls: Any, path: str, **options: Any) -> Any:
    """Load what no code of a repository takes part in, from a folder that was looked at."""
    try:
        return cls.from_pretrained(str(weights.folder(path)), trust_remote_code=False, **options)
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the libraries raise many kinds for what is wrong in a folder
        raise _unloadable(path, error) from None


def _unloadable(path: str, error: Exception) -> InputError:
    return InputError(
        f"model {path!r} cannot be loaded ({first_line(error)}); check its files, or choose another model"
    )
