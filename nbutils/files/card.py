"""The README of a stage's folder, as the Hub shows it: whoever finds it later must see what it came from."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from huggingface_hub import DatasetCard, DatasetCardData
from PIL import Image

from nbutils import __version__
from nbutils.core import secrets
from nbutils.core.markup import code, plain

# where each notebook's numbers and prose are explained to someone who only sees the dataset
ABOUT = {
    "01_rerank": "An off-policy preference dataset whose `chosen` side was only assumed, re-ranked by a judge.",
    "02_sample": "Several responses per prompt, sampled from the model that is going to be trained.",
    "03_judge": "On-policy preference pairs: a judge scored a model's own samples.",
    "04_dpo": "A model's answers on held-out prompts before and after DPO, with the adapter and the evidence.",
}


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
            f"{pairs_table('configuration', 'rows', counts)}\n\n"
            f"## How it was made\n\nBy the notebook `{stem}` of nbutils {__version__} with\n\n"
            f"{parameters_table(params)}\n\n## Figures\n\n{figures}\n"
        )
    )


def caption(image: Path) -> str:
    """Return the sentence that `Stage.figure` wrote into a PNG, empty if there is none."""
    with Image.open(image) as png:
        return str(png.info.get("Description", ""))


def parameters_table(params: Mapping[str, Any]) -> str:
    return pairs_table("parameter", "value", {name: code(value) for name, value in params.items() if name != "run_dir"})


def table(names: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table with these column names; its cells are Markdown."""
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (names, ["---"] * len(names), *rows))


def pairs_table(first: str, second: str, rows: Mapping[str, Any]) -> str:
    return table([first, second], [(code(key), value) for key, value in rows.items()])


def frame_table(frame: pd.DataFrame) -> str:
    """Return a table with its index as the first column."""
    rows = [[" ".join(map(str, np.atleast_1d(name))), *values] for name, *values in frame.itertuples()]
    return table(["", *map(_cell, frame.columns)], [list(map(_cell, row)) for row in rows])


def _cell(value: Any) -> str:
    return plain(value) if isinstance(value, str) else str(value)
