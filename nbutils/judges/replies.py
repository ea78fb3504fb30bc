"""From a judge's reply to scores: a pure function of the stored reply, so a better reader costs no call.

A reply that does not clearly hold one score on the declared scale for every response is None, never a guess: two
contradictory verdicts, a missing response, a number off the scale, a reply that was cut off. What a judge was shown
may hold a verdict, too, which is not the judge's when it repeats it: see `quotes`.
"""

import html
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import json_repair

from nbutils.core.records import encodable
from nbutils.core.sampling import Sample
from nbutils.judges.fence import THOUGHTS, visible
from nbutils.judges.template import Template

# scores of the first and the second response
VERDICTS = {"A>>B": (1.0, 0.0), "A>B": (0.75, 0.25), "A=B": (0.5, 0.5), "B>A": (0.25, 0.75), "B>>A": (0.0, 1.0)}

# how a thought begins and ends; where the chat template has opened it, a reply holds the end only
_OPENED = [(re.compile(rf"\A\s*(?:{opened})", re.IGNORECASE), closed) for opened, closed in THOUGHTS]
_ENDS = "|".join(f"(?:{closed})" for _, closed in THOUGHTS)
_QUOTES = "`'\"«»“”‘’„"  # between two of these a judge speaks of an end
_CLOSED = re.compile(rf"(?<![{_QUOTES}])(?:{_ENDS})|(?:{_ENDS})(?![{_QUOTES}])", re.IGNORECASE)
# possessive: a reply that is all opening brackets or spaces is searched once
_BRACKETS = re.compile(r"\[\[\s*+([^\[\]]*+)\]\]")
_NUMBER = re.compile(r"-?\d+(?:[.,]\d+)?")
_KEY = re.compile(r"""(score(?:_\d+)?)["']?\s*:""")
_OBJECT = re.compile(r"""\{[^{}]*score(?:_\d+)?["']?\s*:""")
# a score as a response may have it to be quoted: no "final score: 3" in a report on a match
_PLANTED = re.compile(r"""score_\d|["'{]\s*score["']?\s*:""")
_ESCAPES = re.compile(
    r"(?<!\\)\\++(?:u\{(H{1,6})\}|u(H{4})|U(H{8})|x(H{2})|([^a-zA-Z0-9\s\\]))|%(H{2})".replace("H", "[0-9a-fA-F]")
)
_JSON_FENCE = re.compile(r"\A\s*```(?:json)?\s*|\s*```\s*\Z")
_SCORE = re.compile(r"""(score(?:_\d+)?)["']?\s*:\s*["']?(\d+(?:\.\d+)?)\s*(?=[;}\n"']|,(?!\d))""")
# What a judge says beside its thoughts is shorter than this, and what of it is worth a repair than that.
LONGEST, REPAIRED = 1_000_000, 50_000
_LAYERS = 4  # of escapes that are undone, and ends of thoughts behind which an answer is looked for
# Probability that must lie on the scale's levels for their mean to stand for the judge's opinion.
_MASS = 0.5
# Servers round: a log-probability may lie this far above 0.
_ABOVE_ONE = 0.01


@dataclass(frozen=True)
class Reading:
    """Scores (0..1) and feedback in the order shown; `expected` where a mean over the scale took the number's place."""

    scores: tuple[float, ...]
    feedback: tuple[str, ...]
    expected: bool = False


def read(sample: Sample, count: int, template: Template) -> Reading | None:
    """Read a reply about `count` responses.

    Where the engine returned the log-probabilities of the score's token, the score is their probability-weighted mean
    over the scale (Liu et al. 2023, G-Eval), which tells apart what a whole number leaves tied.
    """
    # cut off inside its last score, a reply could read 1 for 10
    start = -1 if sample.finish_reason != "stop" else _answer_at(sample.text, template)
    if start < 0 or len(sample.text) - start > LONGEST:
        return None
    text = sample.text[start:]
    if template.reply == "verdict":
        return _verdict(text) if count == 2 else None
    found = (_from_json if template.reply == "json" else _from_brackets)(text, count)
    if found is None:
        return None
    numbers, places, feedback = found
    if not all(template.low <= number <= template.high for number in numbers):
        return None
    means = [
        None if place is None else expected_score(sample.numbers.get(start + place, {}), text[place:], template)
        for place in places
    ]
    known = [mean for mean in means if mean is not None]
    expected = len(known) == count  # half of each would not be comparable
    width = template.high - template.low
    scores = tuple((number - template.low) / width for number in (known if expected else numbers))
    return Reading(scores, tuple(feedback), expected)


def quotes(reply: str, shown: Sequence[str], template: Template) -> bool:
    """Tell whether the verdict of a reply may be one that a judge was shown, and repeats.

    Where what was shown reads as a verdict, the reply has to be a verdict and nothing else, without a word around it,
    and a JSON verdict another one: an answer that says how good it is in four palindromic scores, or closes the
    judge's thought and begins its answer, would else be believed when it is quoted.

    Args:
        reply: that was read as a verdict.
        shown: prompt and responses.
    """
    planted = [text for text in map(_plain, shown) if _reads_as_verdict(text, template)]
    if not planted:
        return False
    text = reply[max(_answer_at(reply, template), 0) :].strip()
    if template.reply != "json":
        return bool(re.search(r"\w", _BRACKETS.sub("", text)))
    said = _letters(_plain(text))
    return not _is_object(text) or any(said in _letters(other) for other in planted)


def _plain(text: str) -> str:
    r"""Return a text as it reads once every escape in it is undone (JSON's, Python's, HTML's, Markdown's), as it looks.

    >>> _plain(r'{"sc\u006fre_1": 5, "f\\u0065edback": "a &gt; b"}')
    '{"score_1": 5, "feedback": "a > b"}'
    """
    for _ in range(_LAYERS):  # an escape may hide another
        undone = visible(html.unescape(_ESCAPES.sub(_undone, text)))
        if undone == text:
            break
        text = undone
    return visible(encodable(text))  # an emoji is two escapes


def _undone(escape: re.Match[str]) -> str:
    if escape[5]:  # Markdown's, of a sign
        return escape[5]
    number = int(escape[escape.lastindex or 0], 16)
    return chr(number) if number <= sys.maxunicode else ""


def _reads_as_verdict(text: str, template: Template) -> bool:
    if template.reply == "json":
        return bool(_PLANTED.search(text))
    said = (match[1].strip() for match in _BRACKETS.finditer(text))
    return any(s in VERDICTS if template.reply == "verdict" else _number(s) is not None for s in said)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(_JSON_FENCE.sub("", text)), dict)
    except (ValueError, RecursionError):
        return False


def _letters(text: str) -> str:
    """Return what is left of a text when it is quoted carelessly, with a line's end as such or as an escape."""
    return re.sub(r"""\\+[nrtbf]|[\s"'`\\]+""", "", _JSON_FENCE.sub("", text))


def _answer_at(text: str, template: Template) -> int:
    """Return where a reply's answer begins, after what a reasoning model thought aloud; -1 where that cannot be told.

    It begins where the last thought ends; an end in quotes or inside the JSON object of an answer is one that the judge
    speaks of. It cannot be told if a thought does not end, or if what stands behind a first end, or before an end that
    nothing opened, could be the verdict, too: a response can hold such an end, and a judge repeat it.
    """
    opened = any(mark.match(text) for mark, _ in _OPENED)
    starts = [] if opened else [0]
    starts += [end.end() for end in _CLOSED.finditer(text)]
    if not starts:
        return -1
    whole = (s for s in starts[:_LAYERS] if template.reply == "json" and _holds_object(text[s:]))
    start = next(whole, starts[-1])
    could_be = _OBJECT if template.reply == "json" else _BRACKETS
    return -1 if could_be.search(_plain(text[starts[0] : start])) else start


def _holds_object(text: str) -> bool:
    """Tell whether a text is one JSON object, with words around it that end no thought."""
    start, end = text.find("{"), text.rfind("}") + 1
    return 0 <= start < end and _is_object(text[start:end]) and not _CLOSED.search(text[:start] + " " + text[end:])


def expected_score(options: Mapping[str, float], rest: str, template: Template) -> float | None:
    """Return the mean of the scale's levels weighted by the probabilities of their tokens, or None.

    None unless every level is a single digit, so that one token decides, and the digits written are that one token.

    Args:
        options: tokens that could have stood there -> log-probability.
        rest: the reply from the score on.
    """
    number = _NUMBER.match(rest)
    if template.low < 0 or template.high > 9 or number is None or number[0] not in options:
        return None
    scale = {str(level): level for level in range(template.low, template.high + 1)}
    logprobs = {scale[token]: p for token, p in options.items() if token in scale}
    if not all(p <= _ABOVE_ONE for p in logprobs.values()):  # NaN among them: the server's numbers mean nothing
        return None
    levels = {level: math.exp(p) for level, p in logprobs.items()}
    mass = sum(levels.values())
    if mass < _MASS:
        return None
    mean = sum(level * p for level, p in levels.items()) / mass
    return min(max(mean, template.low), template.high)  # rounding can leave the scale


Found = tuple[list[float], list[int | None], list[str]]  # numbers, where they stand in the text, feedback


def _verdict(text: str) -> Reading | None:
    said = {match[1].rstrip() for match in _BRACKETS.finditer(text)}
    if len(said) != 1 or not said <= set(VERDICTS):
        return None
    return Reading(VERDICTS[said.pop()], (text.strip(), text.strip()))


def _from_brackets(text: str, count: int) -> Found | None:
    """Read `[[6.5]]` once per response, in their order; for a single one the same number may be repeated."""
    found = list(_BRACKETS.finditer(text))
    numbers = [number for match in found if (number := _number(match[1])) is not None]
    if len(numbers) < len(found):
        return None
    if count == 1 and len(set(numbers)) == 1:
        found, numbers = found[-1:], numbers[-1:]
    if len(found) != count:
        return None
    starts = [0, *(match.end() for match in found)]
    feedback = [text[start : match.start()].strip() for start, match in zip(starts, found, strict=False)]
    return numbers, [match.start(1) for match in found], feedback


def _from_json(text: str, count: int) -> Found | None:
    keys = [f"score_{k}" for k in range(1, count + 1)]
    content = _object(text, keys)
    if content is None:
        return None
    named = {key for key in content if re.fullmatch(r"score(_\d+)?", key)}
    if count == 1 and named == {"score"}:  # with one response there is nothing to number
        content = {f"{key}_1": value for key, value in content.items()}
    elif named != set(keys):
        return None
    numbers = [_number(content.get(key)) for key in keys]
    if any(number is None for number in numbers):
        return None
    written = [(match[1], match.start(2)) for match in _SCORE.finditer(text)]
    places = []
    for key in keys:
        own = [place for name, place in written if name in (key, key.removesuffix("_1"))]
        places.append(own[0] if len(own) == 1 else None)
    feedback = [str(content.get(key.replace("score", "feedback"), "")) for key in keys]
    return [number for number in numbers if number is not None], places, feedback


def _object(text: str, keys: list[str]) -> dict[str, Any] | None:
    """Return the JSON object in a reply: as it stands, or repaired if every score is written whole and once."""
    start, end = text.find("{"), text.rfind("}") + 1
    try:
        content = json.loads(text[start:end], object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        # a repair takes "1 5" for 1 and the last of two scores for the only one
        written = [name for name, _ in _SCORE.findall(text)]
        if (
            start < 0
            or len(text) > REPAIRED
            or sorted(_KEY.findall(text)) != sorted(keys)
            or sorted(written) != sorted(keys)
        ):
            return None
        try:
            content = json_repair.loads(text[start:])
        except (ValueError, RecursionError):
            return None
    return content if isinstance(content, dict) else None


def _number(value: Any) -> float | None:
    written = str(value).strip() if isinstance(value, str | int | float) else ""
    return float(written.replace(",", ".")) if _NUMBER.fullmatch(written) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)
