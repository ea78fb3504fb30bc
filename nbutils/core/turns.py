"""Turns of a conversation, in every shape that datasets hold them: role and text."""

import re
from collections.abc import Mapping
from typing import Any

from nbutils.core.errors import shown
from nbutils.core.printed import ROLE_KEYS, ROLE_OF, ROLES, TEXT_KEYS, Unusable, first, printed
from nbutils.core.records import Messages, encodable

# A model's context is some hundred thousand characters; a row beyond these is no prompt but a mistake.
LONGEST, MOST_TURNS = 1_000_000, 1_000
# as Anthropic's sets have them, and Guanaco's
_TRANSCRIPTS = (re.compile(r"(?:\A\s*|(?:\r?\n){2})(Human|Assistant):"), re.compile(r"###[ \t]*(Human|Assistant):"))
_FRAMED = re.compile(r"(?:\r?\n){2}Human:")


def messages(value: Any, notes: set[str] | None = None) -> Messages:
    """Turn text, a message or a list of messages into messages, roles in today's words; empty turns stay.

    Args:
        notes: gets what was left out, keys of NOTES.

    Raises:
        Unusable: if it is none of them, or a turn holds what is no text.
    """
    notes = set() if notes is None else notes
    value = value.tolist() if hasattr(value, "tolist") else value  # an array of NumPy
    if isinstance(value, str):
        refuse_long(value)
        inside = printed(value)
        if inside is None:
            told = _told(value)
            notes.update({"transcript"} if told else ())
            return told or [{"role": "user", "content": str(encodable(value))}]
        notes.add("printed")
        value = inside
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, list | tuple) or not turns:
        raise Unusable(f"expected text or a list of messages, got {type(value).__name__} {shown(value)}")
    if len(turns) > MOST_TURNS:
        raise Unusable(f"a conversation of {len(turns):,} turns, of {MOST_TURNS:,} at most", "size")
    if all(isinstance(turn, Mapping) and first(turn, ROLE_KEYS) is None and "type" in turn for turn in turns):
        return [{"role": "user", "content": _text(turns)}]
    kept = [turn for turn in turns if not _is_padding(turn)]
    if len(kept) < len(turns):
        notes.add("nothing")
    if not all(isinstance(turn, Mapping) for turn in kept):
        raise Unusable(f"expected text or a list of messages, got {type(value).__name__} {shown(value)}")
    said = [_turn(turn, notes) for turn in kept]
    if any(turn["role"] == "system" for turn in said[1:]):
        notes.add("moved")
    return said


def transcript(text: str) -> Messages | None:
    r"""Return the turns of a text like "\n\nHuman: ...\n\nAssistant: ...", as old preference sets have them."""
    for form in _TRANSCRIPTS:
        parts = form.split(text)
        if not parts[0].strip() and len(parts) >= 5:
            pairs = zip(parts[1::2], parts[2::2], strict=True)
            return [{"role": ROLE_OF[who.lower()], "content": str(encodable(said.strip()))} for who, said in pairs]
    return None


def _told(text: str) -> Messages | None:
    """Return the turns of a transcript in the place of a prompt, without the mark that an answer is to follow.

    Only one that is framed as those sets have it, with an empty line before its first turn or a mark for the answer at
    its end: a person may quote a dialogue and ask about it.
    """
    turns = transcript(text) if _FRAMED.match(text) or text.rstrip().endswith("\n\nAssistant:") else None
    return turns[:-1] if turns and turns[-1] == {"role": "assistant", "content": ""} else turns


def _turn(turn: Mapping[str, Any], notes: set[str]) -> dict[str, str]:
    role = first(turn, ROLE_KEYS)
    if not isinstance(role, str) or not any(key in turn for key in TEXT_KEYS):
        raise Unusable(f"a message needs a text role and content, got {shown(dict(turn))}")
    if role.strip().lower() not in ROLE_OF:
        raise Unusable(f"the role {shown(role)} is none of {', '.join(ROLES)}")
    if calls := next((key for key in ("tool_calls", "function_call") if not is_absent(turn.get(key))), ""):
        raise Unusable(f"a turn holds {calls}, which a text cannot")
    if any(not is_absent(turn.get(key)) for key in ("thinking", "reasoning", "reasoning_content")):
        notes.add("thought")
    text = _text(first(turn, TEXT_KEYS))
    refuse_long(text)
    return {"role": ROLE_OF[role.strip().lower()], "content": text}


def _text(content: Any) -> str:
    """Return a turn's content as text: parts, printed or not, are joined line by line; None is nothing."""
    if isinstance(content, str):
        refuse_long(content)
        parts = printed(content, wrapped=False)
        return str(encodable(content)) if parts is None else _text(parts)
    if content is None:
        return ""
    content = content.tolist() if hasattr(content, "tolist") else content
    texts = []
    for part in content if isinstance(content, list | tuple) else [content]:
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = (part.get("type") or "text") if isinstance(part, Mapping) else "text"
        if isinstance(part, Mapping) and (not str(kind).endswith("text") or first(part, ROLE_KEYS) is not None):
            raise Unusable(f"a part of a turn is no text but {shown(kind)}")
        if not isinstance(text, str):
            raise Unusable(f"a message needs a text role and content, got the content {shown(content)}")
        texts.append(str(encodable(text)))
    return "\n".join(texts)


def refuse_long(text: str) -> None:
    if len(text) > LONGEST:
        raise Unusable(f"a text of {len(text):,} characters, of {LONGEST:,} at most", "size")


def _is_padding(turn: Any) -> bool:
    return turn is None or (isinstance(turn, Mapping) and all(value is None for value in turn.values()))


def is_absent(value: Any) -> bool:
    """Tell whether nobody wrote anything: None, NaN, or an empty text or list."""
    if value is None or (isinstance(value, float) and value != value):  # noqa: PLR0124 - NaN
        return True
    return hasattr(value, "__len__") and len(value) == 0
