"""Which pairs are trained on, and which are held out for the curves."""

from collections.abc import Sequence

from nbutils.core.records import Row, digest

HELD_OUT = 0.1  # share of the prompts kept for the curves


def held_out_count(prompts: int, share: float = HELD_OUT) -> int:
    """Return how many of so many prompts are held out: their share, at least one, and none of a single one."""
    return max(1, round(prompts * share)) if prompts > 1 else 0


def split(pairs: Sequence[Row], *, seed: int, held_out: float = HELD_OUT) -> tuple[list[Row], list[Row]]:
    """Split pairs into training and held-out ones by prompt, so that no prompt stands on both sides.

    Args:
        held_out: share of the prompts to hold out, at least one prompt; prompts are chosen by a hash of their id.
    """
    prompts = sorted({p["prompt_id"] for p in pairs}, key=lambda i: digest([seed, i]))
    held = set(prompts[: held_out_count(len(prompts), held_out)])
    return [p for p in pairs if p["prompt_id"] not in held], [p for p in pairs if p["prompt_id"] in held]
