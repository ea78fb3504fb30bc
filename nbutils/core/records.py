"""The row schemas that the notebooks exchange and write, and the ids that join them.

Used by every notebook. A row is a plain dict; `dataset` checks it against its schema before it reaches a file.
An example of the `prompts` schema:

    {"prompt_id": "6b1c5e0d9f0e3c1a", "prompt": [{"role": "user", "content": "Name three rivers of Italy."}],
     "checks": "", "reference": "", "category": "geography"}
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset, Features, Json, List, Value, concatenate_datasets

from nbutils.core.errors import InputError, shown

Row = dict[str, Any]
# Servers say in many words why an answer ended. It is whole if each word is one of these (end_turn, <|im_end|>, eos);
# it is cut off where one speaks of a limit; and whatever else ended it, a filter, an error or a user, it is not whole.
_WHOLE = re.compile(
    r"[\W\d_]*+(?:(?:stop(?:ped)?|eo[stmg]|end(?:ed)?|complet(?:ed?|ion)|finish(?:ed)?|done|normal|natural|success|of|id"
    r"|im|str(?:ing)?|words?|text|turn|token|sequence|message|response|found|reached)[\W\d_]*+)+"
)
_LIMIT = re.compile(
    r"length|max|limit|context|window|budget|exhaust|out_of_tokens|too_(?:many|long)|exceed|overflow|truncat"
)
_REASON = re.compile(
    r"(?!(?:null|none|unknown)\Z|.*unspecified)(?=.*[^\W\d_]{2})[\w\s.:'|<>/-]{2,80}"
)  # and no printed list
_PREFIX = re.compile(r"\A(?:finish|stop)_?reason[._:]|\Areason_")  # FINISH_REASON_OTHER, FinishReason.STOP, REASON_STOP
Messages = list[dict[str, str]]

_text = Value("string")
_messages = List({"role": _text, "content": _text})

# every reply of a judge as it came, the ones it was not understood in included
_replies = List(
    {
        "order": Value("int32"),
        "attempt": Value("int32"),
        "text": _text,
        # expected (the score is a mean over probabilities) | parsed | unparsed | cut off | refused | unanswered
        "outcome": _text,
        "prompt_tokens": Value("int32"),  # -1 where the server does not count them
        "completion_tokens": Value("int32"),
        "shortened": Value("int32"),  # responses that were cut to what the judge reads
    }
)

PROMPTS = Features(
    {
        "prompt_id": _text,
        "prompt": _messages,
        "checks": _text,
        "reference": _text,  # the right answer, or a good one; empty where none is known
        "category": _text,
    }
)
# what a column holds in files from before it was there
DEFAULTS: Row = {"reference": "", "further": []}

SAMPLES = Features(
    {
        **PROMPTS,
        "responses": List({"text": _text, "n_tokens": Value("int32"), "finish_reason": _text}),
        "model": _text,
        "adapter": _text,
        "sampling": _text,
        "chat_template_kwargs": Json(),
    }
)

JUDGED = Features(
    {
        **PROMPTS,
        "responses": List(
            {
                "text": _text,
                "n_tokens": Value("int32"),
                "finish_reason": _text,
                "model": _text,
                # why no pair may contain it: empty | control | looping | truncated | language | identical, or nothing
                "mark": _text,
            }
        ),
        # one list per order the judge answered, each with one normalised score (0..1) per response
        "scores": List(List(Value("float64"))),
        "replies": _replies,
        "feedback": List(List(_text)),
        "judge": _text,
        "label": _text,  # what a person said where the source holds it: first | second | tie
        "verdict": _text,
        "chosen": Value("int32"),  # index into responses; -1 where there is no pair
        "rejected": Value("int32"),
        "further": List({"chosen": Value("int32"), "rejected": Value("int32")}),  # pairs of the same prompt
        "chat_template_kwargs": Json(),
    }
)

PAIRS = Features(
    {
        "id": _text,
        "prompt_id": _text,
        "prompt": _messages,
        "chosen": _messages,
        "rejected": _messages,
        "chosen_score": Value("float64"),
        "rejected_score": Value("float64"),
        "margin": Value("float64"),
        "verdict": _text,
        "origin": _text,
        "chosen_model": _text,
        "rejected_model": _text,
        "judge": _text,
        "checks": _text,
        "reference": _text,
        "category": _text,
        "chat_template_kwargs": Json(),
    }
)

EVALUATION = Features(
    {
        **PROMPTS,
        "before_text": _text,
        "before_score": Value("float64"),  # 0..1, NaN where the judge was not understood
        "before_tokens": Value("int32"),
        "before_finish_reason": _text,
        "after_text": _text,
        "after_score": Value("float64"),
        "after_tokens": Value("int32"),
        "after_finish_reason": _text,
        "scores": List(List(Value("float64"))),  # per order: before, after
        "replies": _replies,
        "verdict": _text,  # as seen from the tuned model
        "judge": _text,
    }
)


def digest(value: Any, length: int = 16) -> str:
    """Return a short stable hash of any JSON-able value.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    # ensure_ascii keeps lone surrogates, which real web text contains, encodable
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:length]


def row_name(value: Any) -> str:
    """Return the id of a row as a sentence can hold it."""
    text = value if isinstance(value, str) else shown(value)
    return text if text.isprintable() and len(text) <= 60 else shown(text)


def encodable(value: Any) -> Any:
    r"""Join or replace surrogates in a text, or in all texts of a row: JSON can hold single ones, which no file, no
    tokenizer and no notebook takes.

    >>> encodable("\ud83d\ude00"), encodable("\ud83d")
    ('😀', '�')
    """
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [encodable(v) for v in value]
    return {k: encodable(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def prompt_text(prompt: Messages) -> str:
    """Return a prompt as judges and people are shown it: the text of its only turn, or all turns with their roles."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def prompt_id(prompt: Messages) -> str:
    """Return the id of a prompt: a hash of the source messages, before any system prompt or suffix."""
    return digest([[m["role"], m["content"]] for m in prompt])


def pair_id(prompt: Messages, chosen: str, rejected: str) -> str:
    """Return the id of a pair: a hash of the prompt and both responses."""
    return digest([prompt_id(prompt), chosen, rejected])


def dataset(rows: Iterable[Row], features: Features) -> Dataset:
    """Make a dataset with exactly these features; an empty one keeps its columns.

    Raises:
        InputError: naming the column and row id of the first value that does not fit.
    """
    rows = [complete(row, features) for row in rows]
    for row in rows:
        check(row, features)
    # in parts: the copy that turns rows into columns is never one of everything
    parts = [rows[start : start + 1000] for start in range(0, len(rows) or 1, 1000)]
    columns = ({name: [encodable(row[name]) for row in part] for name in features} for part in parts)
    return concatenate_datasets([Dataset.from_dict(part, features=features) for part in columns])


def complete(row: Row, features: Features) -> Row:
    """Return the row with the columns of the schema that it is too old to have."""
    return {name: value for name, value in DEFAULTS.items() if name in features} | row


def finish_reason(said: object) -> str:
    """Return why an answer ended, in whatever words of which server: stop, length, other, or unknown if none is given.

    >>> finish_reason("MAX_TOKENS"), finish_reason("content_filter"), finish_reason(None), finish_reason("end_turn")
    ('length', 'other', 'unknown', 'stop')
    """
    text = _PREFIX.sub("", said.strip().lower()) if isinstance(said, str) else ""
    if not _REASON.fullmatch(text):
        return "unknown"
    if _WHOLE.fullmatch(text):
        return "stop"
    return "length" if _LIMIT.search(text) else "other"


def check(row: Row, features: Features) -> None:
    """Raise InputError naming column and row id if a row lacks a column, has one too many or a wrong type."""
    name = row_name(row.get("id") or row.get("prompt_id") or "without id")
    odd = sorted((set(features) ^ set(row)) - (features.keys() & DEFAULTS.keys()))
    if odd:
        raise InputError(f"row {name}: column {odd[0]!r} is {'missing' if odd[0] in features else 'not in the schema'}")
    for column, feature in features.items():
        if column in row and not _fits(row[column], feature):
            raise InputError(f"row {name}: column {column!r} should be {_kind(feature)}, got {_show(row[column])}")


def _fits(value: Any, feature: Any) -> bool:  # noqa: PLR0911 - one line per kind of feature
    if isinstance(feature, Json):
        return isinstance(value, Mapping)
    if isinstance(feature, List):
        return isinstance(value, list) and all(_fits(v, feature.feature) for v in value)
    if isinstance(feature, dict):
        return (
            isinstance(value, Mapping)
            and set(value) == set(feature)
            and all(_fits(value[k], feature[k]) for k in feature)
        )
    if feature.dtype == "string":
        return isinstance(value, str)
    if feature.dtype == "bool":
        return isinstance(value, bool)
    if feature.dtype.startswith("int"):  # of 32 bits
        return isinstance(value, int) and not isinstance(value, bool) and -(2**31) <= value < 2**31
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(feature: Any) -> str:
    if isinstance(feature, List):
        return f"a list of {_kind(feature.feature)}"
    if isinstance(feature, dict):
        return "{" + ", ".join(feature) + "}"
    return "a mapping" if isinstance(feature, Json) else {"string": "text"}.get(feature.dtype, feature.dtype)


def _show(value: Any) -> str:
    return f"{type(value).__name__} {shown(value, 60)}"
