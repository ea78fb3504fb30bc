"""Lists of messages that were printed into a text, on their way through CSV or JSON: found, read back, or refused.

Used by `conversations`. A text is taken for one only if it begins like a list of objects in which a known role speaks
(or like parts of a turn): an ordinary text may begin with a bracket, and an answer may be JSON of its own. Every
pattern here is linear in the text.
"""

import ast
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from nbutils.core.errors import InputError, shown

ROLES = {
    "user": "user human prompter client utente umano",
    "assistant": "assistant gpt bot model chatbot chatgpt ai assistente modello",
    "system": "system developer sistema",
    "tool": "tool function observation ipython tool_response",
}
ROLE_OF = {name: role for role, names in ROLES.items() for name in names.split()}
ROLE_KEYS, TEXT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
NO_TEXT = ("image", "audio", "video", "file", "input_image", "input_audio")  # how the kinds of other parts begin

_BEGINS = re.compile(r"""[\s"'\\]*+(?:(?:array)?[\[(]\s*+|(?:None|null)[\s,]*+)*+\{[\s\\]*+["']""")
_SPEAKS = re.compile(
    rf"""["'](?:{"|".join(ROLE_KEYS)})\\*["']+\s*:\s*\\*["']+(?:{"|".join(ROLE_OF)})\\*["']""", re.IGNORECASE
)
_SAYS = re.compile(rf"""["'](?:{"|".join(TEXT_KEYS)})\\*["']+\s*:""")
_PART = re.compile(rf"""["']type\\*["']+\s*:\s*\\*["']+(?:\w*text|{"|".join(NO_TEXT)})""")
_LITERAL = re.compile(r"""("(?:[^"\\]|\\.)*+"?|'(?:[^'\\]|\\.)*+'?)""", re.DOTALL)
_WORDS = {"null": "None", "nan": "None", "true": "True", "false": "False", "array": ""}


class Unusable(InputError):  # noqa: N818 - a row is, not the program
    """A row that no prompt or pair can come from; `reason` ends its verdict `filtered:<reason>`."""

    def __init__(self, sentence: str, reason: str = "shape"):
        super().__init__(sentence)
        self.reason = reason


def printed(text: str) -> list[Any] | None:
    """Return the messages or parts that a text was printed from (JSON, Python, NumPy); None for ordinary text.

    Raises:
        Unusable: if it begins like such a list and cannot be read as one, a list that was cut off say.
    """
    if not _BEGINS.match(text) or not ((_SPEAKS.search(text) and _SAYS.search(text)) or _PART.search(text)):
        return None
    value: Any = text
    for _ in range(4):  # JSON in a text of JSON
        value = _parsed(value) if isinstance(value, str) else value
    value = [value] if isinstance(value, Mapping) else value
    while isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], list | tuple):
        value = value[0]
    if value is None or (isinstance(value, list | tuple) and any(_is_other(turn) for turn in value)):
        return None
    if not isinstance(value, list | tuple) or not value:
        raise _unreadable(text)
    return list(value)


def is_part(part: Any) -> bool:
    """Tell whether this is a part of a turn's content, a text or an image say, and no turn."""
    if not isinstance(part, Mapping) or first(part, ROLE_KEYS) is not None:
        return False
    kind = str(part.get("type"))
    return (kind.endswith("text") and isinstance(part.get("text"), str)) or kind.startswith(NO_TEXT)


def first(turn: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """Return the value of the first of these keys that holds one."""
    return next((turn[key] for key in keys if turn.get(key) is not None), None)


def _is_other(turn: Any) -> bool:
    """Tell whether an object is neither a turn nor a part of one: the list is somebody's data."""
    if not isinstance(turn, Mapping) or is_part(turn):
        return False
    return str(first(turn, ROLE_KEYS)).strip().lower() not in ROLE_OF and any(v is not None for v in turn.values())


def _parsed(text: str) -> Any:
    """Return what a text was printed from; None for a text that only begins with JSON."""
    text = text.strip()
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text)
    except (ValueError, RecursionError):
        pass
    else:
        return None if text[end:] else value
    pieces = _LITERAL.split(text)
    for i in range(0, len(pieces), 2):  # what stands between the texts
        piece = re.sub(r"\}(\s*)\{", r"},\1{", re.sub(r",\s*dtype=\w+", "", pieces[i]))
        pieces[i] = re.sub(r"[a-z]+", lambda word: _WORDS.get(word[0], word[0]), piece)
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.literal_eval("".join(pieces))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise _unreadable(text) from None


def _unreadable(text: str) -> Unusable:
    return Unusable(f"a list of messages was printed into this text and cannot be read back: {shown(text)}")
