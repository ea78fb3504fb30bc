"""The README of a trained model, as the Hub shows it: what it came from, what was proved of it, what to distrust."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from nbutils import __version__
from nbutils.core import secrets
from nbutils.core.errors import InputError
from nbutils.core.markup import code, plain
from nbutils.files import identity, sources
from nbutils.files.card import frame_table, pairs_table, parameters_table
from nbutils.proof import winrates
from nbutils.proof.doubts import side_effects
from nbutils.proof.knowledge import table as knowledge_table
from nbutils.proof.summary import findings

ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({base}{at})
model = PeftModel.from_pretrained(base, "path/to/this/folder")"""
# what the words below mean to someone who has not seen the notebook
PROOF = """Both models answered prompts that nobody trained on, and a judge compared them. "All passed" is the share
of answers that pass every check of their prompt; rules check form, not truth or style. The interval is 95%, by
bootstrap over topics; it covers the luck of prompts and samples, not that of this one training. distinct-2 is the
share of word pairs that differ."""
WHOLE = """from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")"""


def of_model(
    params: Mapping[str, Any],
    *,
    pairs: Mapping[str, int],
    proof: Mapping[str, dict[str, Any]],
    knowledge: Mapping[str, Mapping[str, float]],
    options: Mapping[str, Any],
    warnings: Sequence[str] = (),
    merged: bool = False,
) -> ModelCard:
    """Return the card of a trained adapter, or of whole weights: data, parameters and the proof with its doubts.

    Args:
        params: of 04.
        pairs: counts of the training's pairs.
        proof: held-out set -> `summary.summarise` of it.
        knowledge: from `knowledge.compare`.
        options: of the training, from `settings.read_options`.
        warnings: sentences that belong beside the result.
        merged: whether the adapter was merged into the base's weights.
    """
    whole = merged or params["tuning"] == "full"
    name = params["model"]
    base = _linked(name)
    data = ModelCardData(
        base_model=base, library_name="transformers" if whole else "peft", tags=["dpo", "trl", params["tuning"]]
    )
    kind = "Weights" if whole else "A LoRA adapter"
    verdicts = "\n".join(f"- {plain(line)}" for line in findings(proof))
    tables = (side_effects(proof).T, winrates.win_rates(proof), knowledge_table(knowledge))
    effects, wins, known = (frame_table(frame) for frame in tables)
    revision = identity.hub_name(name).revision if base else ""  # of a checked form
    at = f', revision="{revision}"' if revision else ""
    use = WHOLE if whole else ADAPTER.format(base=json.dumps(base or "path/to/the/base"), at=at)
    doubts = "\n".join(f"- {plain(sentence)}" for sentence in warnings) or "- no warning was raised"
    return ModelCard(
        secrets.masked(
            f"---\n{data.to_yaml()}\n---\n\n# {kind} for {plain(name)}, trained with DPO\n\n"
            f"## Did it help?\n\n{PROOF}\n\n{verdicts}\n\n{effects}\n\nWins by what became of the answers' length; "
            f"`share` is of wins and losses:\n\n{wins}\n\n"
            + (f"Two-choice questions answered rightly, in percent:\n\n{known}\n\n" if knowledge else "")
            + f"## What to distrust\n\n{doubts}\n\n"
            f"## Use\n\n```python\n{use}\n```\n\n"
            f"## How it was made\n\nBy the notebook `04_dpo` of nbutils {__version__}\n\n"
            f"{pairs_table('pairs', 'count', pairs)}\n\n{parameters_table(params)}\n\n"
            f"{pairs_table('training option', 'value', {key: code(value) for key, value in options.items()})}\n"
        )
    )


def _linked(name: str) -> str | None:
    """Return the name of a model that the Hub can link to and a reader can load, without its revision, else None."""
    try:
        repository = identity.hub_name(name).repository
        validate_repo_id(repository)
    except (HFValidationError, InputError):
        return None
    return repository if repository.count("/") == 1 and sources.find(name) is None else None
