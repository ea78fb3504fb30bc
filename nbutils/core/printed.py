"""Lists of messages that were printed into a text, on their way through CSV or JSON: found, read back, or refused.

Used by `conversations`. A text is taken for one only if it begins like a list of objects in which a known role speaks
(or like parts of a turn) and holds nothing else: an ordinary text may begin with a bracket, a person may ask about
JSON, and an answer may be JSON of its own. Every pattern here is linear in the text.
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

_BEGINS = re.compile(r"""[\s"'\\\ufeff]*+(?:(?:array)?[\[(]\s*+|(?:None|null)[\s,]*+)*+\{[\s\\]*+["']""")
_SPEAKS = re.compile(
    rf"""["'](?:{"|".join(ROLE_KEYS)})\\*["']+\s*:\s*(?:(?:array\()?\[\s*)?\\*["']+(?:{"|".join(ROLE_OF)})\\*["']""",
    re.IGNORECASE,
)
_SAYS = re.compile(rf"""["'](?:{"|".join(TEXT_KEYS)})\\*["']+\s*:""", re.IGNORECASE)
_PART = re.compile(rf"""["']type\\*["']+\s*:\s*\\*["']+(?:\w*text|{"|".join(NO_TEXT)})""")
# turns as pairs of a role and a text, and as Python shows objects: no list of either is read
_PAIRS = re.compile(rf"""[\s\ufeff]*+\[\s*[\[(]\s*["'](?:{"|".join(ROLE_OF)})["']\s*,""", re.IGNORECASE)
_OBJECTS = re.compile(r"[\s\ufeff]*+(?:\w++[=(])*+\[\s*+[A-Z]\w*+\(")
_OBJECT_SPEAKS = re.compile(
    rf"""(?:\b(?:{"|".join(ROLE_KEYS)})=(?:<[\w.]+:\s)?|(?:Message|Turn)\()["'](?:{"|".join(ROLE_OF)})["']"""
    r"|\b(?:Human|User|AI|Assistant)Message\(",
    re.IGNORECASE,
)
_OBJECT_SAYS = re.compile(rf"""\b(?:{"|".join(TEXT_KEYS)})=|["'],\s*["']""")
# a vocabulary has words beside the names of roles, and no sentence
_TERM = re.compile(r"[^\W\d_]+(?: [^\W\d_]+){0,3}")
_BETWEEN = re.compile(r"[\s,]*")
# columns under which a row holds its turns; beside the name of a model they are a request to a server
_HOLDERS = {"messages", "conversations", "conversation", "chat", "dialog", "dialogue", "turns", "messaggi",
            "conversazione", "dialogo"}  # fmt: skip
_LITERAL = re.compile(r"""("(?:[^"\\]|\\.)*+"?|'(?:[^'\\]|\\.)*+'?)""", re.DOTALL)
_BRACKET, _OPENS, _WORD = re.compile(r"[\[\](){}]"), re.compile(r"[\s,]*[\[({]"), re.compile(r"[^\W\d_]{2}")
_WORDS = {"null": "None", "nan": "None", "true": "True", "false": "False", "array": ""}


class Unusable(InputError):  # noqa: N818 - a row is, not the program
    """A row that no prompt or pair can come from; `reason` ends its verdict `filtered:<reason>`."""

    def __init__(self, sentence: str, reason: str = "shape"):
        super().__init__(sentence)
        self.reason = reason


def printed(text: str, *, wrapped: bool = True) -> list[Any] | None:
    """Return the messages or parts that a text was printed from (JSON, Python, NumPy); None for ordinary text.

    Args:
        wrapped: also return turns that stand under a name, in columns or beside one of an unknown role, for `messages`
            to refuse as it refuses their list.

    Raises:
        Unusable: if it begins like such a list and cannot be read as one, a list that was cut off say.
    """
    if wrapped and _is_other_list(text):
        raise _unreadable(text)
    if not _BEGINS.match(text) or not ((_SPEAKS.search(text) and _SAYS.search(text)) or _PART.search(text)):
        return None
    value: Any = text
    for _ in range(4):  # JSON in a text of JSON
        value = _parsed(value) if isinstance(value, str) else value
    value = [value] if isinstance(value, Mapping) else value
    while isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], list | tuple):
        value = value[0]
    if value is None:
        return None
    if isinstance(value, list | tuple) and any(map(_is_other, value)) and not (wrapped and _speaks(value)):
        return None
    if not isinstance(value, list | tuple) or not value:
        raise _unreadable(text)
    return list(value)


def listed(text: str) -> Any:
    """Return what a text holds that was printed from a list; None for another text.

    Raises:
        Unusable: if it begins like a list and cannot be read.
    """
    value: Any = text
    for _ in range(4):
        if isinstance(value, str):
            value = _parsed(value) if value.strip()[:1] in ("[", "(", "{", '"') else None
    return value


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


def _speaks(value: Any, depth: int = 6, *, held_here: bool = True) -> bool:
    """Tell whether a person or an assistant says something in a value: a turn, turns, or what they stand under.

    Args:
        held_here: whether turns may stand here: those under a name that no set gives its turns are somebody's data.
    """
    if isinstance(value, list | tuple):
        return depth > 0 and any(_speaks(part, depth - 1, held_here=held_here) for part in value)
    if not isinstance(value, Mapping):
        return False
    held = {str(name).lower(): part for name, part in value.items()}
    role = first(held, ROLE_KEYS)
    roles = role if isinstance(role, list | tuple) else [role]
    who = [ROLE_OF.get(name.strip().lower()) if isinstance(name, str) else None for name in roles]
    if held_here and any(key in held for key in TEXT_KEYS) and all(who) and {"user", "assistant"} & set(who):
        return True
    parts = held.items() if depth > 0 and "model" not in held else ()
    return any(_speaks(part, depth - 1, held_here=name in _HOLDERS) for name, part in parts)


def _is_other_list(text: str) -> bool:
    """Tell whether a text is a list of pairs of a role and a text, or of objects, and nothing else."""
    if _OBJECTS.match(text):
        whole = text.rstrip().endswith((")]", ")])"))
        return whole and bool(_OBJECT_SPEAKS.search(text) and _OBJECT_SAYS.search(text))
    if not _PAIRS.match(text):
        return False
    try:
        value = _parsed(text) or ()
    except Unusable:
        return False
    pairs = [pair for pair in value if isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[1], str)]
    if not pairs or len(pairs) < len(value) or any(str(pair[0]).lower() not in ROLE_OF for pair in pairs):
        return False
    return not all(_TERM.fullmatch(word) and (word.islower() or word.lower() in ROLE_OF) for _, word in pairs)


def _parsed(text: str) -> Any:
    """Return what a text was printed from, the list of several objects one after another; None if there is more."""
    text, decoder, values, at = text.strip("\ufeff \t\r\n\f\v"), json.JSONDecoder(strict=False), list[Any](), 0
    try:
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            values.append(value)
            at = found.end() if (found := _BETWEEN.match(text, at)) else at
    except (ValueError, RecursionError):
        if values:
            return None
    if values:
        several = len(values) > 1 and all(isinstance(value, Mapping | list) for value in values)
        return values[0] if len(values) == 1 else values if several else None
    pieces = _LITERAL.split(text)
    for i in range(0, len(pieces), 2):  # what stands between the texts
        piece = re.sub(r"\}(\s*)\{", r"},\1{", re.sub(r",\s*dtype=\w+", "", pieces[i]))
        pieces[i] = re.sub(r"[a-z]+", lambda word: _WORDS.get(word[0], word[0]), piece)
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.literal_eval(f"({''.join(pieces)}\n)")
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        if _goes_on(pieces):
            return None
        raise _unreadable(text) from None


def _goes_on(pieces: Sequence[str]) -> bool:
    """Tell whether words follow behind the last bracket's end: somebody asks about what they show."""
    depth = 0
    for i in range(0, len(pieces), 2):
        for found in _BRACKET.finditer(pieces[i]):
            depth += 1 if found[0] in "[({" else -1
            if not depth and not _OPENS.match(pieces[i], found.end()):
                return bool(_WORD.search("".join([pieces[i][found.end() :], *pieces[i + 1 :]])))
    return False


def _unreadable(text: str) -> Unusable:
    return Unusable(f"a list of messages was printed into this text and cannot be read back: {shown(text)}")
