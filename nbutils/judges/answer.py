"""Judging by key: is the answer the right one? The key stands in the row, as `reference`.

Nothing but being right wins, so pairs, re-ranking and proof are exact, and what an LLM judge says can be held against
it. The judge file says what an answer is and where it stands:

    kind: answer
    answer: number       # or text
    language: it         # how numbers are written, see `judges.numbers`
    marker: "Risposta:"  # the answer stands after it

After the marker a right answer scores 1. Where there is no marker the last number of the response counts, or for a text
the whole response, and a right answer scores 0.5: right, but not in the asked form. A wrong answer, two answers and one
that cannot be read score 0; nothing is ever unparsed. Where a row carries `checks` too, the answer is one more of them
and the score is the share that holds. A key may list several right answers: `Roma | la capitale`.
"""

import itertools
import re
import unicodedata
from collections.abc import Sequence

from nbutils.core.errors import InputError, shown
from nbutils.core.records import Row
from nbutils.judges.files import AnswerFile
from nbutils.judges.judge import Judgement
from nbutils.judges.numbers import Number, numbers
from nbutils.judges.rules import RuleJudge
from nbutils.judges.verifier import check, faults_of

SEPARATOR = "|"
UNMARKED = 0.5  # of a right answer that does not stand where it was asked to stand
_LABEL = re.compile(r"^[ \t]*(?:[-*•]|[0-9]{1,2}[.)])[ \t]+", re.MULTILINE)
_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
_SENTENCE = re.compile(r"(?<=[^\W_])[.;!?](?=\s|$)|(?<=[^\w\s])[;!?](?=\s|$)")
# "non 12 ma 15", "not 12 but 15": the number that follows is none of the answers
_NOT = re.compile(
    r"(?:\b(?:non|not|né|nor|anziché|invece di|instead of)|n't)(?:\s+(?:è|sono|fa|di|is|are))?\s+\W*$", re.I
)
# "3 x 5 = 15", "il totale è 15": the number that follows is the answer
_EQUALS = re.compile(
    r"(?:[=≈→]|\b(?:è|sono|fa|fanno|vale|is|are|equals|makes)\s)\s*(?:(?:di|pari a|circa|of|about)\s+)?[^\w\s]*\s*$",
    re.I,
)
# between two numbers: a choice, a range or a list, or a sum left undone
_EITHER = re.compile(r"\b(?:o|oppure|ovvero|or|forse|maybe|perhaps)\b", re.I)
_BOTH = re.compile(r"\b(?:e|and)\b|[,;/–]|^\s*(?:a|to|-)\s*$", re.I)
_UNDONE = re.compile(r"^\s*[×x*·+:÷/−–-]\s*$", re.I)
_ARTICLE = re.compile(r"^(?:(?:il|lo|la|i|gli|le|un|uno|una|the|an?)\s+|(?:l|un)['’]\s*)", re.I)


class AnswerJudge(RuleJudge):
    """Compares the answer a response states with the row's key."""

    def __init__(self, name: str, file: AnswerFile):
        self.name, self.file = name, file

    def hopeless(self, rows: Sequence[Row]) -> str:
        """Return a sentence for rows of which none has a key of the declared kind."""
        first = next((row["reference"] for row in rows if row.get("reference")), "")
        held = f"the first says {shown(first)}" if first else "`reference` is empty in all of them"
        return (
            f"judge {self.name}: none of {len(rows)} rows has a {self.file.answer} as right answer ({held}); "
            "name its column in reference_column"
        )

    def doubt(self, rows: Sequence[Row]) -> str:
        """Return how many right answers stand in their own prompt, or nothing."""
        told = sum(map(self._tells, rows))
        return f"{told} of {len(rows)} right answers stand in their own prompt: repeating it may be enough" * bool(told)

    def fault(self, row: Row) -> str:
        """Return why a row cannot be judged, or nothing: it has no key, or key or checks cannot be used."""
        if not row.get("reference"):
            return "no_reference"
        try:
            keys(row["reference"], self.file)
            return "checks" if row["checks"] and faults_of(row["checks"], self.file.language) else ""
        except InputError:
            return "reference"

    def _tells(self, row: Row) -> bool:
        """Tell whether the last turn of the prompt holds the answer itself."""
        right, prompt = keys(row["reference"], self.file), row["prompt"][-1]["content"]
        if self.file.answer == "text":
            return any(f" {key} " in f" {plain(prompt)} " for key in right)
        return any(_is_right(number, right) for number in numbers(prompt, self.file.language))

    def explain(self, row: Row) -> str:
        """Return the key of a row and where its answer is looked for."""
        where = f"after {self.file.marker!r}" if self.file.marker else "last in the response"
        return f"right: {row['reference']} (a {self.file.answer}, {where})"

    def judge(self, row: Row) -> Judgement:
        """Compare every response."""
        scores, feedback = [], []
        for response in row["responses"]:
            score = grade(response["text"], row["reference"], self.file)
            said = {1.0: "right", UNMARKED: "right, not in the asked form"}.get(score, "wrong")
            checked = check(row["checks"], response["text"])
            failed = [name for name, passed in checked if not passed]
            scores.append((len(checked) - len(failed) + score) / (len(checked) + 1))
            feedback.append(said + (f"; failed: {', '.join(failed)}" if failed else ""))
        return Judgement([scores], [feedback])


def grade(response: str, reference: str, file: AnswerFile) -> float:
    """Return 1 for a right answer in the asked form, 0.5 for one in another form, else 0.

    >>> file = AnswerFile(kind="answer", language="it", marker="Risposta:")
    >>> [grade(text, "12,5", file) for text in ("Risposta: 12,50 euro", "Sono 12,5.", "Risposta: 12 o 12,5")]
    [1.0, 0.5, 0.0]
    """
    right = keys(reference, file)
    marked = stated(response, file.marker)
    answers: list[Number | str | None]
    if file.answer == "number":
        answers = [_only_number(part, file.language) for part in marked] or [_last_number(response, file.language)]
    else:
        answers = [_text(part, right) for part in marked or [response]]
    if not all(_is_right(answer, right) for answer in answers):
        return 0.0
    return 1.0 if marked or not file.marker else UNMARKED


def keys(reference: str, file: AnswerFile) -> list[Number | str]:
    """Return the right answers that a row's reference lists.

    Raises:
        InputError: if one of them is not of the kind that the judge file declares.
    """
    parts = [part.strip() for part in reference.split(SEPARATOR)]
    if file.answer == "text":
        texts = [plain(part) for part in parts]
        if not all(texts):
            raise InputError(f"reference: {shown(reference)} holds an empty answer; write the right answer there")
        return list(texts)
    found: list[Number | str] = []
    for part in parts:
        read = numbers(part, file.language)
        if len(read) != 1:
            raise InputError(
                f"reference: {shown(part)} holds {len(read)} numbers, expected one; write it as a figure, and several "
                f"right answers with {SEPARATOR!r} between them"
            )
        found += read
    return found


def stated(response: str, marker: str) -> list[str]:
    """Return what stands after each marker, up to the end of its line or, where that is empty, of the next one."""
    if not marker:
        return []
    words = r"\s*".join(map(re.escape, marker.removesuffix(":").split()))
    sign = r"(?<!\w)" + words + (r"[ *_]*:" if marker.endswith(":") else "") + r"[*_]*"
    _, *rests = re.split(sign, response, flags=re.IGNORECASE)
    return [rest.lstrip().partition("\n")[0] for rest in rests]


def plain(text: str) -> str:
    """Return a text without case, accents, punctuation and a leading article.

    >>> plain("**L'Università.**"), plain("The  Po")
    ('universita', 'po')
    """
    letters = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    letters = _ARTICLE.sub("", letters.strip(" \t\n*_#\"'“”«».:"))
    return " ".join(re.findall(r"\w+", letters))


def _is_right(answer: Number | str | None, right: Sequence[Number | str]) -> bool:
    if isinstance(answer, Number):
        return any(isinstance(key, Number) and answer.equals(key) for key in right)
    return answer is not None and answer in right


def _text(part: str, right: Sequence[Number | str]) -> str:
    """Return the whole of what was stated, or its first clause where only that is among the right answers."""
    clause = plain(re.split(r"[,;(–]|\.(?=\s|$)| - ", part, maxsplit=1)[0])
    return clause if clause in right else plain(part)


def _asserted(text: str, language: str) -> list[Number]:
    """Return the numbers of a text that it does not deny; words that may be articles only where nothing else is."""
    found = [n for n in numbers(text, language) if not _NOT.search(_before(text, n))]
    return [n for n in found if not n.weak] or found


def _before(text: str, number: Number) -> str:
    return text[max(number.start - 40, 0) : number.start]


def _only_number(part: str, language: str) -> Number | None:
    """Return the one number that is stated; None where there is none, or more than one."""
    part = part.replace("**", " ").replace("$", " ")
    outside = _BRACKETS.sub(" ", part)
    sentences = _SENTENCE.split(outside if numbers(outside, language) else part)
    text = next((sentence for sentence in sentences if numbers(sentence, language)), "")
    found = _asserted(text, language)
    if len(found) > 1 and _EQUALS.search(_before(text, found[-1])):  # 3 x 5 = 15
        return found[-1]
    if len(found) > 1 and "=" in text[found[0].end : found[1].start]:  # 15 = 3 x 5
        return found[0]
    for one, other in itertools.pairwise(found):
        gap = text[one.end : other.start]
        if not one.equals(other) and any(sign.search(gap) for sign in (_EITHER, _BOTH, _UNDONE)):
            return None
    return found[0] if found else None


def _last_number(text: str, language: str) -> Number | None:
    """Return the last number of a response, none where it leaves two to choose from or a sum undone."""
    text = _LABEL.sub(lambda label: " " * len(label[0]), text)
    found = _asserted(text, language)
    gap = text[found[-2].end : found[-1].start] if len(found) > 1 else ""
    if _EITHER.search(gap) or _UNDONE.search(gap):
        return None
    return found[-1] if found else None
