"""Pairs, parameters and trainers for the tests of the training."""

from pathlib import Path

from builders import scored
from tiny import SENTENCES

from nbutils.core.pairs import build
from nbutils.models.preflight import Device
from nbutils.params import Dpo
from nbutils.training.settings import read_options
from nbutils.training.trainer import build_trainer

CPU = Device("cpu", (0, 0), "a test")
WORDS = " ".join(SENTENCES[:3]).split()


def pair(prompt="Name a river.", chosen="The river runs.", rejected="Bread.", **columns):
    """A pair as `pairs.build` makes it from a judged row."""
    judged = scored([chosen, rejected], [[1.0, 0.5]], text=prompt, verdict="kept", chosen=0, rejected=1, **columns)
    return build([judged])[0]


def some_pairs(count: int) -> list[dict]:
    """Pairs with prompts and answers of different lengths."""
    return [
        pair(f"Name {i} things.", " ".join(WORDS[i : i + 3 + i % 5]), " ".join(WORDS[i + 9 : i + 11 + i % 6]))
        for i in range(count)
    ]


def templated(rows, template):
    """The rows as a training with these template arguments takes them."""
    return [row | {"chat_template_kwargs": template} for row in rows]


def dpo_params(model: str | Path, **changed) -> Dpo:
    """The parameters of 04_dpo that the training reads."""
    values = {"seed": 0, "model": str(model), "adapter": "", "tuning": "lora"}
    return Dpo.model_construct(**values | {"learning_rate": 1e-2, "epochs": 1.0, "beta": 0.1} | changed)


def small_trainer(model, folder, pairs, held_out=(), *, options=None, **params):
    """A trainer of the tiny model: batches of 2, a checkpoint every second step."""
    small = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "save_steps": 2, "max_length": 128}
    return build_trainer(
        dpo_params(model, **params),
        read_options("") | small | (options or {}),
        pairs,
        held_out,
        device=CPU,
        cache=folder,
        scratch=folder / "scratch",
    )
