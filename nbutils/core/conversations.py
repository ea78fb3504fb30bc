"""Reading prompts and answers of every shape that datasets hold, into messages of a role and a text.

Used by 01, 02 and for 04's held-out prompts. A prompt or an answer may be text, one message or a list of them, in the
words of other kits (`from` and `value`, `human` and `gpt`), with its content in parts, or a list that was printed into
a text on its way through CSV. What is read has one form:

    prompt    the turns before the answer: a system turn first if there is one, a user's or a tool's last
    answer    the last turn of the assistant, as text

Everything that is left out or put elsewhere on the way is a note (NOTES), to be said once with a count. A row that
nothing can be made of raises `Unusable`; the caller counts it and goes on.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from nbutils.core import beside
from nbutils.core.errors import InputError, shown
from nbutils.core.printed import Unusable, is_part, printed
from nbutils.core.records import Messages, encodable, row_name
from nbutils.core.turns import LONGEST, is_absent, is_framed, messages, refuse_long, transcript

T = TypeVar("T")
log = logging.getLogger(__name__)
# what a prompt speaks of that asks for a dialogue, or for messages in some notation
_ASKS = re.compile(
    r"json|python|codice|\bcode\b|dialog|conversa|\bchat|messag|\brole|\bruol|\bturns?\b|\bturni\b|transcri|trascri",
    re.IGNORECASE,
)
_SIGNS = re.compile(r"\\u[0-9a-f]{4}|\\.|[^A-Za-z0-9]", re.DOTALL)

NOTES = {
    "nothing": "turns without anything in them are left out",
    "answer": "what the assistant says last is left out of the prompt, which would hold its own answer",
    "after": "turns after the last answer are left out",
    "thought": "a thought beside a turn's text is left out",
    "moved": "a system turn is put first",
    "system": "the text of the system column is put first, as a system turn",
    "history": "the turns of the column 'history' are put before the prompt",
    "story": "the text of the column 'history' is no list of turns and is left out",
    "input": "the text of the input column is put after the instruction",
    "inside": "the prompt is taken from the conversations that the answers stand in",
    "printed": "a list of messages that had become text is read as messages",
    "transcript": "a transcript (Human: ... Assistant: ...) is read as messages",
}


def each(rows: Iterable[Any], read: Callable[[Mapping[str, Any], set[str]], T]) -> list[T | Unusable]:
    """Read every row, and say once with a count what was left out of rows, and which rows are left out.

    Args:
        read: makes something of a row, adds to the notes, or raises Unusable.

    Returns:
        What was read, or why it was not, in the order of the rows.

    Raises:
        InputError: if more than half of the rows are unusable, naming the first.
    """
    result: list[T | Unusable] = []
    counts: Counter[str] = Counter()
    for number, row in enumerate(rows):
        notes = set[str]()
        try:
            if not isinstance(row, Mapping):
                raise Unusable(f"expected an object with columns, got {type(row).__name__} {shown(row)}")
            result.append(read(row, notes))
            counts.update(notes)
        except Unusable as error:
            said = str(error)
            link = " " if said.startswith("has no column") else ", " if said.startswith("column") else ": "
            result.append(Unusable(f"{where(row, number)}{link}{said}", error.reason))
    lost = [found for found in result if isinstance(found, Unusable)]
    if 2 * len(lost) > len(result):
        raise InputError(f"{len(lost)} of {len(result)} rows cannot be used; the first: {lost[0]}")
    for note in counts:
        log.warning("%d of %d rows: %s", counts[note], len(result), NOTES[note])
    if lost:
        log.warning("%d of %d rows cannot be used and are left out; the first: %s", len(lost), len(result), lost[0])
    return result


def where(row: Any, number: int) -> str:
    """Name a row by its id, or its number where it has none."""
    return f"row {row_name(row.get('id', number) if isinstance(row, Mapping) else number)}"


def prompt_of(row: Mapping[str, Any], column: str, notes: set[str], *, earlier: Messages | None = None) -> Messages:
    """Return the prompt of a row: its column, with what stands beside it, or the turns before an answer.

    Args:
        earlier: the turns that the row's answers stand behind, where they are conversations.

    Raises:
        Unusable: if there is no prompt, an empty one, or the column and the answers contradict each other.
    """
    with _naming(column):
        given = [] if is_absent(row.get(column)) and earlier else _given(row, column, notes)
        if earlier and not given:
            notes.add("inside")
        turns = beside.system(row, column, notes) + _joined(given, earlier or [])
        return _as_prompt(turns, notes)


def _given(row: Mapping[str, Any], column: str, notes: set[str]) -> Messages:
    """Return the turns of the prompt's column, with what stands beside it, up to the last that is no answer."""
    given = messages(_column(row, column), notes)
    while given and given[-1]["role"] == "assistant":
        given.pop()
        notes.add("answer")
    return beside.earlier(row, notes) + beside.with_input(row, column, given, notes) if given else []


def pair_of(
    row: Mapping[str, Any], prompt: str, chosen: str, rejected: str, notes: set[str]
) -> tuple[Messages, list[str]]:
    """Return a row's prompt and its two answers.

    Raises:
        Unusable: naming the column, as `prompt_of`; with the reason `diverging` if the answers stand behind different
            turns, where no prompt is common to both.
    """
    told = _transcripts(row, prompt, (chosen, rejected))
    sides = [_answer(row, column, notes, told.get(column)) for column in (chosen, rejected)]
    behind = [earlier for earlier, _ in sides if earlier]
    if len(behind) == 2 and not _same(*behind):
        raise Unusable("the turns before the two answers differ, so they answer different prompts", "diverging")
    return prompt_of(row, prompt, notes, earlier=behind[0] if behind else None), [text for _, text in sides]


def _transcripts(row: Mapping[str, Any], prompt: str, columns: tuple[str, str]) -> dict[str, Messages]:
    """Return the turns of answers that are transcripts: where a prompt is told, of those that hold it or both go on.

    A dialogue that was asked for, and a model that goes on alone, look like one, too. Of what was asked for in the form
    of messages there are none: it is text.
    """
    texts = {column: text for column in columns if isinstance(text := row.get(column), str) and len(text) <= LONGEST}
    found = {column: turns for column, text in texts.items() if (turns := transcript(text))}
    if is_absent(row.get(prompt)) or not texts:
        return found
    try:
        given = _given(row, prompt, set())
    except Unusable:  # which `prompt_of` says
        return {}
    behind = {column: turns[: _last_answer(turns)] for column, turns in found.items()}
    asked = [turn for turn in given if turn["role"] != "system"]
    both = list(behind.values())
    go_on = len(both) == 2 and _same(*both) and all(map(is_framed, texts.values()))
    go_on = go_on and any(turn["role"] == "assistant" for turn in both[0][:1])
    told = {column: found[column] for column, turns in behind.items() if go_on or _overlap(asked, turns)}
    return told | {column: [] for column, text in texts.items() if column not in found and _is_asked(asked, text)}


def _is_asked(asked: Messages, text: str) -> bool:
    """Tell whether a text in the form of messages is what was asked for: it shows a person, and not who asked."""
    last = asked[-1]["content"] if asked else ""
    if not _ASKS.search(last) or _SIGNS.sub("", last) in _SIGNS.sub("", text):
        return False
    try:
        turns = messages(text)
    except Unusable:  # it was cut off, or is code
        return True
    return any(turn["role"] == "user" for turn in turns)


def _answer(row: Mapping[str, Any], column: str, notes: set[str], told: Messages | None = None) -> tuple[Messages, str]:
    """Return the turns before the answer in this column, and the answer.

    Args:
        told: the column's turns, where it is a transcript; none where it is a text whatever it looks like.
    """
    value = _column(row, column)
    value = value.tolist() if hasattr(value, "tolist") else value
    with _naming(column):
        if isinstance(value, str):
            refuse_long(value)
            if told == [] or (told is None and printed(value) is None):
                return [], str(encodable(value))
            turns = messages(value, notes) if told is None else told
            if told is not None:
                notes.add("transcript")
        elif isinstance(value, list | tuple | Mapping) and value:
            turns = messages(value, notes)
        else:
            raise Unusable(
                f"a response must be text, got {type(value).__name__} {shown(value)}; remove the row or turn the "
                "value into text"
            )
        if (last := _last_answer(turns)) < 0:
            if isinstance(value, list | tuple) and all(map(is_part, value)):
                return [], turns[0]["content"]
            raise Unusable("the conversation holds no turn of an assistant, so no answer")
        if last < len(turns) - 1:
            notes.add("after")
        return turns[:last], turns[last]["content"]


def _last_answer(turns: Messages) -> int:
    """Return the place of the assistant's last turn, -1 where there is none."""
    return max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=-1)


def _overlap(a: Messages, b: Messages) -> bool:
    """Tell whether one list of turns holds the other at its beginning or its end."""
    return bool(a and b) and (_same(a, b[: len(a)]) or _same(a, b[-len(a) :]) or _same(b, a[-len(b) :]))


def _joined(given: Messages, earlier: Messages) -> Messages:
    """Put the prompt's column and the turns before the answers together: one may hold all or the end of the other."""
    systems = [turn for turn in given + earlier if turn["role"] == "system"]
    a, b = ([turn for turn in turns if turn["role"] != "system"] for turns in (given, earlier))
    if _same(a, b[: len(a)]) or (a and _same(a, b[-len(a) :])):
        return systems + b
    if not b or _same(b, a[-len(b) :]):
        return systems + a
    if b[0]["role"] == "assistant" and a[-1]["role"] != "assistant":
        return systems + a + b  # the answers' turns go on where the prompt ends
    raise Unusable(
        "the prompt and the turns before the answers differ, so it is not told what was answered", "diverging"
    )


def _as_prompt(turns: Messages, notes: set[str]) -> Messages:
    systems = list(dict.fromkeys(t["content"].strip() for t in turns if t["role"] == "system" and t["content"].strip()))
    if len(systems) > 1:
        raise Unusable(f"two system turns: {shown(systems[0])} and {shown(systems[1])}")
    head = [turn for turn in turns if turn["role"] == "system" and turn["content"].strip()][:1]
    rest = [turn for turn in turns if turn["role"] != "system"]
    if not rest or rest[-1]["role"] == "assistant":
        raise Unusable("the conversation holds no turn of a user, so no prompt")
    if not rest[-1]["content"].strip():
        raise Unusable("the text is empty")
    if empty := next((i for i, turn in enumerate(rest, 1) if not turn["content"].strip()), 0):
        raise Unusable(f"turn {empty} of {len(rest)} is empty")
    if sum(len(turn["content"]) for turn in head + rest) > LONGEST:
        raise Unusable(f"a prompt of more than {LONGEST:,} characters", "size")
    return head + rest


@contextmanager
def _naming(column: str) -> Iterator[None]:
    """Put the column's name before what is said about its value."""
    try:
        yield
    except Unusable as error:
        if str(error).startswith("has no column"):
            raise
        raise Unusable(f"column {column!r}: {error}", error.reason) from None


def _column(row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise Unusable(f"has no column {column!r}; it has {', '.join(map(repr, row))[:300]}")
    return row[column]


def _same(a: Messages, b: Messages) -> bool:
    """Tell whether two lists say the same; white space does not count."""
    return [(t["role"], t["content"].split()) for t in a] == [(t["role"], t["content"].split()) for t in b]
