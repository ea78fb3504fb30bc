"""A pair's common beginning computed once: chosen and rejected share their prompt, most of a pair with short answers.

Used by `patches.Trainer` on a CPU. A decoder sees only what stands before a token, so what two rows begin alike with
gives them the same numbers. Each pair becomes one row, the first text and what the second has of its own behind it; a
mask hides the first answer from the second, which counts its positions on from the common beginning. Everything above
the decoder (TRL's heads, losses and measures) sees the batch it always saw.
"""

import functools
import logging
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

log = logging.getLogger(__name__)

WORTH = 0.9  # of the tokens computed; above it packing costs more than it saves


class Packed(NamedTuple):
    """A batch of 2n rows as n: what the decoder takes, and where the rows' tokens then stand."""

    input_ids: torch.Tensor  # (n, length)
    sees: torch.Tensor  # (n, 1, length, length), True where a token sees another
    position_ids: torch.Tensor  # (n, length)
    places: torch.Tensor  # (2n, row length), into the n * length hidden states; padding points at the first


def pack(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Packed | None:
    """Return rows i and n + i of 2n as one, or nothing where that saves too little or rows are not padded on the right.

    Args:
        input_ids, attention_mask: (2n, row length).
    """
    n, width = len(input_ids) // 2, input_ids.shape[1]
    columns = torch.arange(width, device=input_ids.device)
    lengths = attention_mask.sum(1)
    real = columns < lengths[:, None]
    if len(input_ids) % 2 or not real.equal(attention_mask.bool()):
        return None
    first, second = lengths[:n], lengths[n:]
    both = real[:n] & real[n:] & (input_ids[:n] == input_ids[n:])
    alike = both.long().cumprod(1).sum(1)
    total = first + second - alike
    length = int(total.max())
    if length > WORTH * 2 * width:
        return None

    order = torch.arange(length, device=input_ids.device)
    behind = (order >= first[:, None]) & (order < total[:, None])  # of the second text alone
    positions = torch.where(behind, order - (first - alike)[:, None], order.clamp(max=width - 1))
    ids = torch.cat([input_ids[:n], input_ids[n:]], 1).gather(1, positions + width * behind)
    hidden = behind[:, :, None] & ~behind[:, None] & (order >= alike[:, None])[:, None]
    sees = (order[:, None] >= order) & ~hidden

    shift = torch.where(columns < alike[:, None], 0, (first - alike)[:, None])
    places = torch.cat([columns.expand(n, -1), columns + shift]) * real
    rows = torch.arange(n, device=input_ids.device).repeat(2)[:, None]
    return Packed(ids, sees[:, None], positions, places + rows * length)


def share(model: PreTrainedModel) -> bool:
    """Let the decoder of `model` compute common beginnings once, and tell whether it can.

    It can where each layer attends to all that stands before and takes a mask for it, which is tried: a decoder that
    looks through a window or carries a state from token to token is left as it is.
    """
    config, decoder = model.config.get_text_config(), model.base_model
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        return False
    original, lowest = decoder.forward, torch.finfo(model.dtype).min

    @functools.wraps(original)
    def forward(*args: Any, **given: Any) -> Any:
        asked = {name for name, value in given.items() if value is not None}  # peft fills in what is not given
        if args or asked != {"input_ids", "attention_mask", "use_cache"} or given["use_cache"]:
            return original(*args, **given)
        packed = pack(given["input_ids"], given["attention_mask"])
        if packed is None:
            return original(**given)
        ids, sees, positions, places = packed
        mask = torch.zeros(sees.shape, dtype=model.dtype, device=sees.device).masked_fill(~sees, lowest)
        out = original(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        states = out.last_hidden_state.flatten(0, 1).index_select(0, places.flatten())
        out.last_hidden_state = states.view(*places.shape, -1)
        return out

    probe = {
        "input_ids": torch.tensor([[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 0]], device=model.device) % config.vocab_size
    }
    probe |= {"attention_mask": torch.ones_like(probe["input_ids"]), "use_cache": False}
    try:
        with torch.no_grad():
            plain, shared = (call(**probe).last_hidden_state for call in (original, forward))
    except Exception as error:  # whatever its library makes of such a mask
        log.info("%s computes every prompt twice: %s", type(decoder).__name__, error)
        return False
    if not torch.allclose(plain, shared, rtol=0.05, atol=0.05 * plain.abs().max().item()):
        return False
    decoder.forward = forward
    return True
