"""What stands beside a prompt in columns of its own: a system turn, earlier turns, the input of an instruction.

Used by `conversations`.
"""

from collections.abc import Mapping
from typing import Any

from nbutils.core.errors import shown
from nbutils.core.printed import Unusable, listed, printed
from nbutils.core.records import Messages, encodable
from nbutils.core.turns import is_absent, refuse_long, transcript

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")


def system(row: Mapping[str, Any], column: str, notes: set[str]) -> Messages:
    """Return the system turn that stands in a column of its own."""
    for name in {"image", "images"} - {column}:
        if not isinstance(row.get(name), str) and not is_absent(row.get(name)):
            raise Unusable(f"the row holds an image, in {name!r}, and the kit reads text alone")
    turns = []
    for name in SYSTEM_COLUMNS:
        if name != column and not is_absent(text := row.get(name)):
            if not isinstance(text, str) or printed(text) is not None:
                raise Unusable(f"the column {name!r} should be text, got {type(text).__name__} {shown(text)}")
            notes.add("system")
            turns.append({"role": "system", "content": str(encodable(text))})
    return turns


def earlier(row: Mapping[str, Any], notes: set[str]) -> Messages:
    """Return the earlier turns that some sets keep beside the prompt, as pairs of a question and an answer."""
    history: Any = row.get("history")
    history = history.tolist() if hasattr(history, "tolist") else history
    if isinstance(history, str):
        history = _read(history, notes)
    if not isinstance(history, list | tuple | Mapping) or not history:
        return []
    if isinstance(history, Mapping) or not all(
        isinstance(h, list | tuple) and len(h) == 2 and all(isinstance(t, str) for t in h) for h in history
    ):
        raise Unusable(f"the column 'history' should hold pairs of a question and an answer, got {shown(history)}")
    notes.add("history")
    roles = ("user", "assistant")
    return [{"role": role, "content": str(encodable(t))} for h in history for role, t in zip(roles, h, strict=True)]


def _read(text: str, notes: set[str]) -> Any:
    """Return what a history that had become text holds; nothing, and a note, for words."""
    refuse_long(text)
    if text.strip().lower() in ("", "null", "none", "nan"):
        return None
    if turns := transcript(text):
        texts = [turn["content"] for turn in turns]
        in_turn = [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        return list(zip(texts[::2], texts[1::2], strict=True)) if in_turn else [text]
    try:
        history = listed(text)
    except Unusable:  # it was cut off
        return [text]
    if isinstance(history, list | tuple) and any(isinstance(h, list | tuple | Mapping) for h in history):
        return history
    if history != []:  # words, or a history of something else: of an illness, of a browser
        notes.add("story")
    return None


def with_input(row: Mapping[str, Any], column: str, turns: Messages, notes: set[str]) -> Messages:
    """Put the `input` of an instruction after it, as Alpaca's sets mean it."""
    text = row.get(column.replace("instruction", "input", 1)) if column.startswith("instruction") else None
    if not isinstance(text, str) or not text.strip():
        return turns
    notes.add("input")
    return [*turns[:-1], turns[-1] | {"content": f"{turns[-1]['content']}\n\n{encodable(text)}".strip()}]
