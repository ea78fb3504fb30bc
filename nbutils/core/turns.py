"""Turns of a conversation, in every shape that datasets hold them: role and text."""

import re
from collections.abc import Mapping
from typing import Any

from nbutils.core.errors import shown
from nbutils.core.printed import ROLE_KEYS, ROLE_OF, ROLES, TEXT_KEYS, Unusable, first, printed
from nbutils.core.records import Messages, encodable

# A model's context is some hundred thousand characters; a row beyond these is no prompt but a mistake.
LONGEST, MOST_TURNS = 1_000_000, 1_000
_NAMES = "user|human|utente|umano|assistant|assistente|ai|bot|chatbot|chatgpt|gpt|system|sistema"
_TASK = "instruction|istruzione|response|risposta"
_WHO = ROLE_OF | dict(zip(_TASK.split("|"), ("user", "user", "assistant", "assistant"), strict=True))
_WHO |= {"inst": "user", "/inst": "assistant", "sys": "system", "/sys": "user"}
_EVERY, _INLINE = "|".join(ROLE_OF), "|".join(f"{name.capitalize()}|{name.upper()}" for name in _NAMES.split("|"))
# What opens a turn, by family of sets and templates, the first that fits being taken. The marks of a template are code,
# and nobody's words; the others a person writes, too, who quotes a dialogue.
_CODE = (
    re.compile(
        rf"<(?=[^<>\s]{{0,30}}(?:[|\uff5c]|turn|start))[^<>\s]{{1,30}}>\s?({_EVERY})\b"
        r"(?:<\|channel\|>\w+<\|message\|>|<[^<>\s]{1,30}>)?"
        rf"|<[|\uff5c]({_EVERY})[|\uff5c]>|\[\|({_EVERY})\|\]",
        re.IGNORECASE,
    ),
    re.compile(r"\[INST\]\s*<<(SYS)>>|<<(/SYS)>>|\[(/?INST)\]"),
)
_WORDS = (
    re.compile(r"(?:\A|(?:\r?\n){2})(Human|Assistant):"),
    re.compile(rf"#{{2,4}}[ \t]*({_NAMES}|{_TASK})[ \t]*(?::|(?=\r?\n))", re.IGNORECASE),
    re.compile(rf"^[ \t]*\**({_NAMES})[ \t]*\**:\**", re.IGNORECASE | re.MULTILINE),
    re.compile(rf"(?:\A|(?<=\s)|</s>)({_INLINE}):"),
)
_STARTS = re.compile(
    r"\s*+(?:<s>|<bos>|<\|begin_?of_?text\|>)?\s*+"
    r"(Below is an instruction[^#]*+|A chat between a curious[^:]*?\s(?=(?:###\s?)?(?:user|human):))?",
    re.IGNORECASE,
)
_ENDS = re.compile(r"(?:</?s>|<eos>|<end_of_turn>|<[|\uff5c][^<>\s]{1,40}[|\uff5c]>|\[\|\w{1,40}\|\])")
_FRAMED = re.compile(r"(?:\r?\n){2}\w")  # as Anthropic's sets have them
_OWN_LINE = re.compile(r"[ \t]*\r?\n")


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
    r"""Return the turns of a text like "\n\nHuman: ...\n\nAssistant: ...", where a person and an assistant speak."""
    found = _spoken(text)
    return found[0] if found else None


def is_framed(text: str) -> bool:
    """Tell whether empty lines stand before a text, as old preference sets write each of their turns."""
    return bool(_FRAMED.match(text))


def _spoken(text: str) -> tuple[Messages, bool] | None:
    """Return the turns of a text and whether they are marked as a set or a template does it, and no person."""
    starts = _STARTS.match(text)
    body = text[starts.end() :] if starts else text
    for form in (*_CODE, *_WORDS):
        marks = list(form.finditer(body)) if form.match(body) else []
        roles = [_WHO[mark[mark.lastindex or 1].lower()] for mark in marks]
        if not {"user", "assistant"} <= set(roles):
            continue
        places = [(mark.end(), end) for mark, end in zip(marks, [*(m.start() for m in marks[1:]), None], strict=True)]
        said = [_without_ends(body[start:end]) for start, end in places]
        if form in _CODE and any(map(_ENDS.search, said)):  # somebody goes on behind the end of a turn
            return None
        turns = [{"role": role, "content": str(encodable(part))} for role, part in zip(roles, said, strict=True)]
        sure = form in _CODE or bool(starts and starts[1]) or is_framed(text)
        return turns, sure or all(_OWN_LINE.match(body, start) for start, _ in places)
    return None


def _without_ends(text: str) -> str:
    text = text.strip()
    for _ in range(3):
        *_, last = [None, *_ENDS.finditer(text, max(len(text) - 60, 0))]
        text = text[: last.start()].rstrip() if last and last.end() == len(text) else text
    return text


def _told(text: str) -> Messages | None:
    """Return the turns of a transcript in the place of a prompt, without the mark that an answer is to follow.

    Marked in words, and not framed as sets do it, it ends in an answer of one line: a person may quote a dialogue and
    ask about it.
    """
    found = _spoken(text)
    if not found:
        return None
    turns, sure = found
    *rest, last = turns
    if last == {"role": "assistant", "content": ""}:
        goes_on = sure and any(turn["role"] == "assistant" for turn in rest)
        return rest if goes_on or text.rstrip().endswith("\n\nAssistant:") else None
    return turns if sure or (last["role"] == "assistant" and "\n" not in last["content"]) else None


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
