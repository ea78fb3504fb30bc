"""The README of what a run leaves behind, as the Hub shows it: of a stage's datasets, and of the trained model.

Used by `stages` and by 04. Whoever finds the folder later must see what it came from and what was proved of it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from PIL import Image

from nbutils import __version__, choices, evaluation, identity, secrets, sources, winrates
from nbutils.errors import InputError
from nbutils.markup import code, plain

# where each notebook's numbers and prose are explained to someone who only sees the dataset
ABOUT = {
    "01_rerank": "An off-policy preference dataset whose `chosen` side was only assumed, re-ranked by a judge.",
    "02_sample": "Several responses per prompt, sampled from the model that is going to be trained.",
    "03_judge": "On-policy preference pairs: a judge scored a model's own samples.",
    "04_dpo": "A model's answers on held-out prompts before and after DPO, with the adapter and the evidence.",
}
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


def of_stage(
    stem: str, draft: Path, files: dict[str, str], counts: dict[str, int], params: Mapping[str, Any], summary: str
) -> DatasetCard:
    """Return the card of a stage folder.

    Args:
        draft: the folder, whose figures are shown.
        files, counts: configuration name -> its file, its number of rows.
    """
    configs = [
        {"config_name": name, "data_files": [{"split": "train", "path": path}], **({"default": True} if not i else {})}
        for i, (name, path) in enumerate(files.items())
    ]
    data = DatasetCardData(configs=configs, tags=["preference-data", stem])
    images = sorted((draft / "figures").iterdir())
    figures = "\n".join(f"![{plain(caption(p))}](figures/{quote(p.name)})" for p in images)
    said = "\n".join(f"- {plain(line[2:])}" if line.startswith("- ") else plain(line) for line in summary.splitlines())
    return DatasetCard(
        secrets.masked(
            f"---\n{data.to_yaml()}\n---\n\n# {stem}\n\n{ABOUT[stem]}\n\n{said}\n\n"
            f"{_two('configuration', 'rows', counts)}\n\n"
            f"## How it was made\n\nBy the notebook `{stem}` of nbutils {__version__} with\n\n"
            f"{_parameters(params)}\n\n## Figures\n\n{figures}\n"
        )
    )


def caption(image: Path) -> str:
    """Return the sentence that `Stage.figure` wrote into a PNG, empty if there is none."""
    with Image.open(image) as png:
        return str(png.info.get("Description", ""))


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
        proof: held-out set -> `evaluation.summarise` of it.
        knowledge: from `choices.compare`.
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
    verdicts = "\n".join(f"- {plain(line)}" for line in evaluation.findings(proof))
    tables = (evaluation.side_effects(proof).T, winrates.win_rates(proof), choices.table(knowledge))
    effects, wins, known = (_frame(frame) for frame in tables)
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
            f"{_two('pairs', 'count', pairs)}\n\n{_parameters(params)}\n\n"
            f"{_two('training option', 'value', {key: code(value) for key, value in options.items()})}\n"
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


def _parameters(params: Mapping[str, Any]) -> str:
    return _two("parameter", "value", {name: code(value) for name, value in params.items() if name != "run_dir"})


def table(names: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table with these column names; its cells are Markdown."""
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (names, ["---"] * len(names), *rows))


def _two(first: str, second: str, rows: Mapping[str, Any]) -> str:
    return table([first, second], [(code(key), value) for key, value in rows.items()])


def _frame(frame: pd.DataFrame) -> str:
    """Return a table with its index as the first column."""
    rows = [[" ".join(map(str, np.atleast_1d(name))), *values] for name, *values in frame.itertuples()]
    return table(["", *map(_cell, frame.columns)], [list(map(_cell, row)) for row in rows])


def _cell(value: Any) -> str:
    return plain(value) if isinstance(value, str) else str(value)
