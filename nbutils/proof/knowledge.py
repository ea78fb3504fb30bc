"""Did the training cost knowledge? Two-choice accuracy by log-probability on a labelled set, before and after.

Used by 04 where such a set is at hand, e.g. XCOPA (Ponti et al. 2020), whose rows have `premise`, `question` (cause or
effect), `choice1`, `choice2` and `label` (0 or 1). Prompts and measures are those of EleutherAI's lm-evaluation-harness
(tasks `xcopa_it`, `copa`): no chat template, the premise without its full stop, a connector, the choice in lower case.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOTrainer

from nbutils.core.errors import InputError
from nbutils.core.records import Row
from nbutils.core.stats import bootstrap_mean
from nbutils.files import sources

log = logging.getLogger(__name__)

# "because" and "therefore"; Italian and English as in lm-evaluation-harness
CONNECTORS = {
    language: {"cause": because, "effect": therefore}
    for language, because, therefore in (
        ("de", "weil", "deshalb"),
        ("en", "because", "therefore"),
        ("es", "porque", "por lo tanto"),
        ("fr", "parce que", "donc"),
        ("id", "karena", "maka"),
        ("it", "perché", "quindi"),
        ("pt", "porque", "portanto"),
        ("tr", "çünkü", "bu yüzden"),
        ("vi", "bởi vì", "vì vậy"),
    )
}
COLUMNS = ("premise", "question", "choice1", "choice2", "label")


class Choice(NamedTuple):
    """Whether the right choice of a row is the likelier one: by its log-probability, and by that per character."""

    acc: bool
    acc_norm: bool


def read(name: str, language: str, *, run_dir: Path) -> list[Row]:
    """Return the rows of a labelled set, checked before a model is loaded; none for an empty name.

    A row that lacks a column, or has a question or label that is not expected, is left out with a warning.

    Raises:
        InputError: if no connectors are known for the language, or more than half of the rows would be left out.
    """
    rows = sources.read(name, run_dir=run_dir) if name else []
    kept, said = [], ""
    for row in rows:
        label = str(row.get("label")).strip().removesuffix(".0")  # a column with a gap is read as 1.0, nan
        row = row | {"label": int(label)} if label in ("0", "1") else row  # noqa: PLW2901
        try:
            _texts(row, language)
            kept.append(row)
        except InputError as error:
            said = said or str(error)
    if 2 * len(kept) < len(rows) or (rows and not kept):
        raise InputError(f"{name}: {len(rows) - len(kept)} of {len(rows)} rows cannot be asked; the first: {said}")
    if said:
        log.warning("%s: %d of %d rows are left out; the first: %s", name, len(rows) - len(kept), len(rows), said)
    return kept


def choose(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    language: str = "it",
    batch_size: int = 16,
) -> list[Choice]:
    """Return for every row whether the model finds the right choice likelier.

    A choice's log-probability is the sum over its tokens given the context; `acc` compares the sums and `acc_norm` the
    sums divided by the characters of the choice, as lm-evaluation-harness does. Of equal ones the first is taken.

    Raises:
        InputError: as `read`.
    """
    texts = [side for row in rows for side in _texts(row, language)]
    sums: list[float] = []
    training = model.training
    model.eval()
    for start in range(0, len(texts), batch_size):
        sums += log_probabilities(model, tokenizer, texts[start : start + batch_size])
    model.train(training)
    result = []
    for i, row in enumerate(rows):
        first, second = sums[2 * i : 2 * i + 2]
        lengths = [len(row[name]) for name in ("choice1", "choice2")]
        picks = second > first, second / lengths[1] > first / lengths[0]
        known = math.isfinite(first) and math.isfinite(second)  # a model that overflows knows neither
        result.append(Choice(*(known and pick == row["label"] for pick in picks)))
    return result


def measure(trainer: DPOTrainer, rows: Sequence[Mapping[str, Any]], *, language: str) -> list[Choice]:
    """Return `choose` of a trainer's policy as it is, in the trainer's precision before and after training."""
    with trainer.accelerator.autocast():
        return choose(trainer.model, trainer.processing_class, rows, language=language)


@torch.no_grad()
def log_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str]]
) -> list[float]:
    """Return the log-probability of every (context, continuation)'s continuation, in nats; one batch."""
    encoded = []
    for context, continuation in texts:
        # tokenized together, since a tokenizer may join across the border; what the context has alone is the context
        ids = tokenizer(context + continuation)["input_ids"]
        encoded.append((ids, len(tokenizer(context)["input_ids"])))
    longest = max(len(ids) for ids, _ in encoded)
    pad = tokenizer.pad_token_id
    # padding on the right: causal attention never looks at it, and positions need no care
    batch = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in encoded], device=model.device)
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in encoded], device=model.device)
    logits = model(input_ids=batch, attention_mask=mask).logits
    result = []
    for row, (ids, start) in zip(logits, encoded, strict=True):
        scores = row[start - 1 : len(ids) - 1].float().log_softmax(-1)
        wanted = torch.tensor(ids[start:], device=scores.device)
        result.append(float(scores.gather(1, wanted[:, None]).double().sum()))
    return result


def compare(before: Sequence[Choice], after: Sequence[Choice], *, seed: int = 0) -> dict[str, dict[str, float]]:
    """Return `acc` and `acc_norm` before and after, and the change with its 95% interval, paired by row (bootstrap).

    Empty where nothing was asked.
    """
    result = {}
    for name in Choice._fields if before else ():
        old, new = ([float(getattr(choice, name)) for choice in side] for side in (before, after))
        change = bootstrap_mean([b - a for a, b in zip(old, new, strict=True)], range(len(old)), seed=seed)
        result[name] = {
            "before": sum(old) / len(old),
            "after": sum(new) / len(new),
            "change": change.value,
            "low": change.low,
            "high": change.high,
        }
    return result


def table(compared: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Return what `compare` found, one row per measure, in percent and points."""
    columns = ["before", "after", "change", "low", "high"]
    return (100 * pd.DataFrame(compared, index=columns, dtype=float).T).round(1)


def _texts(row: Mapping[str, Any], language: str) -> list[tuple[str, str]]:
    if language not in CONNECTORS:
        raise InputError(
            f"knowledge: no words for because and therefore are known in language {language!r} (known: "
            f"{', '.join(CONNECTORS)}); set language, or add them to CONNECTORS in nbutils/proof/knowledge.py"
        )
    texts = [name for name in COLUMNS if name != "label"]
    missing = [name for name in texts if not isinstance(row.get(name), str) or not row[name].strip()]
    missing += ["label"] if row.get("label") in (None, "") else []
    connectors = CONNECTORS[language]
    if missing or row["question"] not in connectors or row["label"] not in (0, 1):
        what = f"no {missing[0]}" if missing else f"question {row['question']!r}, label {row['label']!r}"
        raise InputError(f"knowledge: rows need {', '.join(COLUMNS)}, with cause or effect and 0 or 1; one has {what}")
    context = f"{row['premise'].strip()[:-1]} {connectors[row['question']]}"
    return [(context, f" {row[name][:1].lower()}{row[name][1:]}") for name in ("choice1", "choice2")]
