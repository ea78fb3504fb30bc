"""From the columns of people's files to rows that can be judged: prompt, two answers, checks, key, label."""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nbutils.core.conversations import each, pair_of, where
from nbutils.core.errors import InputError, shown
from nbutils.core.printed import Unusable
from nbutils.core.records import Messages, Row, encodable, prompt_id
from nbutils.core.screen import screen
from nbutils.core.turns import is_absent

log = logging.getLogger(__name__)

# how a person's choice may be written -> the response meant, in the source's order
LABELS = {"1": "first", "chosen": "first", "2": "second", "rejected": "second", "0": "tie", "tie": "tie"}
LABELS |= {"first": "first", "second": "second", "": "", "none": "", "nan": "", "<na>": "", "skip": ""}


def candidates(
    rows: Iterable[Mapping[str, Any]], *, prompt: str, chosen: str, rejected: str, label: str = "", reference: str = ""
) -> list[Row]:
    """Turn source rows of an off-policy dataset into rows ready to be judged, responses in the source's order.

    Prompt and responses may be of any shape that `conversations` reads; of a conversation the last turn of the
    assistant is the response, and what both stand behind belongs to the prompt. Rows that no pair can come from are
    kept with a `filtered:` verdict, so that the drop report names them. Columns `chosen_model`,
    `chosen_finish_reason` and their twins are used where the source has them.

    Args:
        label: column with a person's choice, empty for none: 1 or `chosen` for the chosen column, 2 or `rejected`,
            0 or `tie`; empty where nobody said anything.
        reference: column with the right answer, or a good one; empty for none.

    Raises:
        InputError: naming row and column of the first, if most rows cannot be read, or most labels are unknown.
    """
    rows = list(rows)
    insist_on(rows, reference)
    labels = _labels(rows, label)

    def read(row: Mapping[str, Any], notes: set[str]) -> Row:
        source, texts = pair_of(row, prompt, chosen, rejected, notes)
        responses = [
            {
                "text": text,
                "n_tokens": -1,
                "finish_reason": plain(row.get(f"{side}_finish_reason"), 200) or "unknown",
                "model": plain(row.get(f"{side}_model"), 200) or side,
            }
            for side, text in zip(("chosen", "rejected"), texts, strict=True)
        ]
        return prompt_columns(row, source, reference) | {"responses": responses}

    result = []
    for found, choice in zip(each(rows, read), labels, strict=True):
        extra = {"chat_template_kwargs": {}, "label": choice}
        if isinstance(found, Unusable):
            result.append(_unusable(found) | extra)
        else:
            # a given answer that loops is the judge's to see: people may have labelled the pair
            result.append(screen(found | extra, looping=False))
    return result


def prompt_columns(row: Mapping[str, Any], source: Messages, reference: str = "") -> Row:
    """Return what the `prompts` schema holds of a source row with this prompt.

    Args:
        reference: column with the right answer, empty for none.
    """
    category = row.get("task_category") if is_absent(row.get("category")) else row["category"]
    return {
        "prompt_id": prompt_id(source),
        "prompt": source,
        "checks": plain(_ifeval(row) if is_absent(row.get("checks")) else row["checks"]),
        "reference": key_text(row.get(reference)) if reference else "",
        "category": plain(category, 200),
    }


def _ifeval(row: Mapping[str, Any]) -> Any:
    """Return the checks as the IFEval datasets have them, in two columns; of a table, empty options are none."""
    names, options = row.get("instruction_id_list"), row.get("kwargs")
    if not (isinstance(names, list) and isinstance(options, list)):
        return None
    filled = [
        {k: v for k, v in one.items() if v is not None} if isinstance(one, Mapping) else one or {} for one in options
    ]
    return {"instruction_id_list": names, "kwargs": filled}


def plain(value: Any, longest: int = 0) -> str:
    """Return a column's value as text: nothing for what is absent, JSON for what is no text.

    Args:
        longest: characters to keep; 0 for all.
    """
    if is_absent(value):
        return ""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError):
        text = shown(value)
    return text[: longest or None]


def insist_on(rows: Sequence[Mapping[str, Any]], reference: str) -> None:
    """Check that the column of right answers is there, where one is named; single rows may lack it.

    Raises:
        InputError: if no row has it.
    """
    if reference and not any(isinstance(row, Mapping) and reference in row for row in rows):
        raise InputError(
            f"reference_column: no row has the column {reference!r}; they have "
            f"{', '.join(map(repr, rows[0] if rows else ()))[:300] or 'none'}"
        )


def key_text(value: Any) -> str:
    """Return a row's right answer as text; empty where it is neither text nor a finite number.

    >>> key_text(" 12,5 "), key_text(3.0), key_text(1.234), key_text(None)
    ('12,5', '3', '1.2340', '')
    """
    if isinstance(value, float) and math.isfinite(value):
        # three decimals could be read as a thousand
        return str(int(value)) if value.is_integer() else f"{value!r}0"
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(encodable(str(value).strip()))
    return ""


def _unusable(fault: Unusable) -> Row:
    """Return the judged row of a source row that cannot be read; the reason stands where its texts would."""
    prompt: Messages = [{"role": "user", "content": f"({fault})"}]
    blank = {"text": "", "n_tokens": -1, "finish_reason": "unknown", "mark": fault.reason}
    return prompt_columns({}, prompt) | {
        "responses": [blank | {"model": side} for side in ("chosen", "rejected")],
        "verdict": f"filtered:{fault.reason}",
    }


def _labels(rows: list[Any], column: str) -> list[str]:
    """Return what people chose in each row; what is no choice is nobody's, unless most are none."""
    if not column:
        return [""] * len(rows)
    if rows and not any(isinstance(row, Mapping) and column in row for row in rows):
        has = ", ".join(map(repr, rows[0])) if isinstance(rows[0], Mapping) else shown(rows[0])
        raise InputError(f"{where(rows[0], 0)} has no column {column!r}; it has {has[:300]}")
    values = [row.get(column) if isinstance(row, Mapping) else None for row in rows]
    # a column of numbers with a gap is read as 1.0, 2.0, nan
    names = [(v if isinstance(v, str) else shown(v)).strip().lower().removesuffix(".0") for v in map(_number, values)]
    odd = [i for i, name in enumerate(names) if name not in LABELS]
    if odd:
        said = (
            f"{where(rows[odd[0]], odd[0])}, column {column!r}: expected 1 (chosen), 2 (rejected), 0 (tie) or nothing, "
            f"got {shown(values[odd[0]], 40)}"
        )
        labelled = sum(LABELS.get(name) != "" for name in names)
        if 2 * len(odd) >= labelled:
            raise InputError(said)
        log.warning("%d of %d labels are no choice and count as none; the first: %s", len(odd), labelled, said)
    labels = [LABELS.get(name, "") for name in names]
    counts = Counter(labels)
    if min(counts["first"], counts["tie"]) >= 5 and not counts["second"]:
        log.warning(
            "column %r holds 0 and 1 but never 2; here 0 is a tie, 1 the chosen and 2 the rejected side", column
        )
    return labels


def _number(value: Any) -> Any:
    """Return a number of NumPy, or a number that is missing in its words, as text."""
    return value if isinstance(value, str | bool | list | tuple | dict) else str(value)
