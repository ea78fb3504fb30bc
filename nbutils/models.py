"""Finding, loading and prompting a causal language model; used by the `transformers` engine and by the training.

A model is named by a Hub id, at a revision if one is given (`org/name#revision`), a folder, or `package:<name>`, an
installed Python package that carries one GGUF file (the CPU demo's weights come that way; they are converted to a
folder of safetensors once); a file cut into parts is `package:<name>1..6#<SHA-256 of the whole>`. Whatever the name,
the libraries are given a folder that `weights` has looked at.
`render` is the one place where messages become token ids, for sampling and for looking at what the trainer sees.
"""

import functools
import json
import logging
import math
import os
import shutil
import tempfile
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
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_bitsandbytes_available

from nbutils import bounded, disk, identity, owned, sources, weights
from nbutils.errors import InputError, first_line, writing
from nbutils.preflight import Device
from nbutils.records import Messages

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
        return str(_convert(name, cache))
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
    tokenizer = _from_pretrained(AutoTokenizer, path)
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
        model = _load_weights(AutoModelForCausalLM, path, dtype=dtype, quantization_config=quantized)
        return cast(PreTrainedModel, model.eval())
    model = _load_weights(AutoModelForCausalLM, path, dtype=dtype, **attention(device, dtype))
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
    model, info = _load_weights(
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

    base = _blank(AutoModelForCausalLM, path)
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
    settings = weights.lora_settings(folder, list(modules))
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
    base = _load_weights(AutoModelForCausalLM, path, dtype=torch.float32, **attention(device, dtype))
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
    base = _load_weights(AutoModelForCausalLM, path, dtype=torch.float32)
    merged = cast(Any, load_adapter(base, adapter)).merge_and_unload()
    with writing(folder), owned.renewed(folder) as made:
        merged.to(kind).save_pretrained(made)
        load_tokenizer(path).save_pretrained(made)
    return folder


def config(path: str) -> Any:
    """Return the model's config; no weight is loaded for it."""
    return _from_pretrained(AutoConfig, path)


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
    dtype = config(path).get_text_config().dtype or torch.float32
    model = load_model(path, Device("cpu", (0, 0), "one look at the model"), dtype)
    if adapter:
        model = load_adapter(model, adapter)
    stop = model.generation_config.eos_token_id
    greedily = GenerationConfig(max_new_tokens=steps, do_sample=False, eos_token_id=stop, return_dict_in_generate=True)
    greedily.output_logits = True
    # `generate` would add the model's own defaults, a repetition penalty say
    model.generation_config = GenerationConfig()
    text = torch.tensor([ids])
    with torch.inference_mode():
        output = model.generate(inputs=text, attention_mask=torch.ones_like(text), generation_config=greedily)
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
        declared = _from_pretrained(GenerationConfig, path).eos_token_id
    except InputError:  # a model saved without them
        declared = config(path).get_text_config().eos_token_id
    ids = {*(declared if isinstance(declared, list) else [declared]), tokenizer.eos_token_id}
    return {i for i in ids if i is not None}


def adapter_rank(adapter: str) -> int:
    """Return the highest rank among the matrices of an adapter that `check_adapter` has found to fit."""
    [file] = weights.with_weights(weights.folder(adapter, "adapter"), weights.ADAPTER)
    return max((shape[0] for name, shape in weights.shapes(file).items() if "_A." in name), default=0)


def weights_digest(path: str) -> str:
    """Return what changes with the answers of a model or an adapter: the commit of a Hub id, or its files' content.

    Raises:
        InputError: if it cannot be told.
    """
    return weights.digest(weights.folder(path))


def _blank(cls: Any, path: str) -> Any:
    """Return a model of shapes alone, by its config."""
    own = config(path)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):  # shapes draw numbers, too
            model = cls.from_config(own, trust_remote_code=False)
    except Exception as error:
        raise _unloadable(path, error) from None
    model.name_or_path = path
    return model


def _load_weights(cls: Any, path: str, **options: Any) -> Any:
    """Load weights that are there and belong to the config: what is missing would be made up, in any size."""
    files = weights.with_weights(weights.folder(path))
    held = sum(math.prod(shape) for file in files for shape in weights.shapes(file).values())
    blank = _blank(cls, path)
    wanted = sum(tensor.numel() for tensor in (*blank.parameters(), *blank.buffers()))
    packed = 8 if getattr(blank.config, "quantization_config", None) else 1  # of 4 bits in numbers of 32
    if wanted > 2 * packed * held + 2**20:  # a head may be missing
        raise InputError(
            f"model {path}: its config.json tells of {wanted:,} numbers and its weights hold {held:,}; they do not "
            "belong together, copy the folder again"
        )
    return _from_pretrained(cls, path, use_safetensors=True, **options)


def _from_pretrained(cls: Any, path: str, **options: Any) -> Any:
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


def _convert(name: str, cache: Path) -> Path:
    """Write a package's GGUF weights as safetensors; a half-written folder never gets the final name."""
    packaged = identity.packaged(name)
    target, sha256 = cache / packaged.label, identity.of_package(name)
    origin = {"package": target.name, "file": packaged.files[0].name, "sha256": sha256}
    if _converted(target) == origin:
        return target
    if target.exists() and _converted(target) is None:
        raise InputError(f"{target} was not made by the kit, which keeps converted models there; move it away")
    log.info("converting %s to safetensors in %s", packaged.files[0].name, target)
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    with writing(cache), tempfile.TemporaryDirectory(dir=cache) as folder:
        made = Path(folder) / target.name
        _unpack(_joined(packaged, Path(folder)), made)
        (made / "origin.json").write_text(json.dumps(origin))
        if target.exists() and _converted(target) != origin:  # of another version of the package
            os.rename(target, Path(folder) / "old")
        try:
            os.rename(made, target)
        except OSError:  # another process was faster; its folder is as good
            if _converted(target) != origin:
                raise
    return target


def _joined(packaged: identity.Packaged, folder: Path) -> Path:
    """Return the whole GGUF file, its parts joined in a folder, if its content is what the name says.

    Raises:
        InputError: if it is not.
    """
    if len(packaged.files) == 1:
        [whole] = packaged.files
    else:
        whole = folder / "joined.gguf"
        with whole.open("wb") as stream:
            for file in packaged.files:
                with disk.opened(file) as part:
                    shutil.copyfileobj(part, stream, 2**20)
    if packaged.sha256 and (found := identity.of_file(whole)) != packaged.sha256:
        raise InputError(
            f"model: the weights in {packaged.label} have the SHA-256 {found} and not {packaged.sha256}; install the "
            "packages anew, or name what they hold now"
        )
    return whole


def _unpack(file: Path, folder: Path) -> None:
    """Save the weights and the tokenizer of a GGUF file in a folder."""
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    loaded = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
    )
    # a GGUF-loaded model refuses to be saved: its config still says it is quantised
    settings = {k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = type(loaded)(type(loaded.config)(**settings))
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _converted(target: Path) -> Any:
    """Return what a converted model was made from."""
    try:
        return json.loads((target / "origin.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
