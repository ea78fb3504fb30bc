"""Between messages and token ids, by a model's own chat template.

`render` is the one place where messages become token ids, for sampling and for looking at what the trainer sees."""

import functools
import re
from contextlib import suppress
from typing import Any, cast

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from nbutils.core.errors import InputError
from nbutils.core.records import Messages
from nbutils.models.adapters import check_adapter, load_adapter
from nbutils.models.load import config, from_pretrained, load_model
from nbutils.models.preflight import Device

# How models spell what frames a turn, a thought, a tool or a place in code; HTML's elements and words are none.
_FRAME = re.compile(
    r"<[|\uff5c][^<>|\uff5c\n]{1,60}[|\uff5c]?>|<[^<>|\uff5c\n]{1,60}[|\uff5c]>|\[\|[^\[\]|\n]{1,60}\|\]|\u25c1[^\n]{1,60}\u25b7|<</?[A-Z]{2,20}>>"
    r"|</?[A-Za-z]+[_:-][\w:-]{1,60}>|<[A-Za-z]{3,30}\d{1,5}>"
    r"|</?(?i:bos|eos|pad|unk|mask|cls|sep|sop|eop|eod|eot|mid|suf|pre|think|thinking|tools|function|escape|role)>"
    r"|\[[/@]?[a-z]?[A-Z]{2,}[A-Z_]{0,40}@?\]|\[[A-Za-z]{2,20}_?\d{1,5}\]"
)

_SIGN = re.compile(r"(?=.*[^\W\d_]).*[^\w\s'\u2019.,:;!?-]", re.DOTALL)  # a word with a sign that no sentence has


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

    Beside the declared ones the added tokens that the chat template writes around turns, or that look like what frames
    one: others are words, the names of roles too, runs of spaces or HTML.
    """
    emitted = _emitted(tokenizer)
    return tuple(
        t.content
        for i, t in tokenizer.added_tokens_decoder.items()
        if t.special or (i in emitted and _SIGN.search(t.content)) or _FRAME.fullmatch(t.content)
    )


def _emitted(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens of a short conversation as the chat template renders it; none where it renders nothing."""
    turns = [{"role": role, "content": "1"} for role in ("system", "user", "assistant", "user")]
    for shape in (turns, turns[1:], turns[1:2]):
        with suppress(Exception):  # whatever a template raises: it is a program of the model's makers
            return set(render(tokenizer, shape, {}))
    return set()


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
        declared = from_pretrained(GenerationConfig, path).eos_token_id
    except InputError:  # a model saved without them
        declared = config(path).get_text_config().eos_token_id
    ids = {*(declared if isinstance(declared, list) else [declared]), tokenizer.eos_token_id}
    return {i for i in ids if i is not None}
