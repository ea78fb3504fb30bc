"""Reading numbers as Italians and English people write them: `1.234,5`, `1,234.5`, `3/4`, `25%`, `2 e mezzo`, `venti`.

Used by the judge by key (`judges.answer`). A number is exact, a `Fraction`, so that `12,50` is `12.5` and nothing else.
A form that only one of the two languages knows is read by it (`12.50` is no Italian thousand); where both know it the
given language decides (`1.234` is 1234 in Italian). What only looks like a number is none: the time of a clock, a date,
an ordinal, the digits of a name (`CO2`).
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

WORDS = {
    "it": "zero uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici "
    "diciassette diciotto diciannove venti",
    "en": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty",
}
# these stand for 1 or 1/2 or are an article or part of a phrase: whoever asks decides whether to count them
_ONE, _HALF_WORD = Fraction(1), Fraction(1, 2)
_WEAK = {
    "it": dict.fromkeys(("un", "uno", "una", "un'", "un’"), _ONE) | dict.fromkeys(("mezzo", "mezza"), _HALF_WORD),
    "en": {"one": _ONE, "half": _HALF_WORD},
}
_UNICODE = {"½": Fraction(1, 2), "¼": Fraction(1, 4), "¾": Fraction(3, 4), "⅓": Fraction(1, 3), "⅔": Fraction(2, 3)}
_SPACE = r"[ \u00a0\u2009\u202f]"
# thousands in groups of three with one and the same mark, then decimals after another mark; or plain digits
_DIGITS = (
    rf"[0-9]{{1,3}}(?:(?P<group>[.,'’]|{_SPACE})[0-9]{{3}})(?:(?P=group)[0-9]{{3}})*(?:(?!(?P=group))[.,][0-9]+)?"
    r"|[0-9]+(?:[.,][0-9]+)?"
)
_TOKEN = re.compile(
    r"""
    (?P<none>                                              # consumed, and no number
        (?<![\w.,])[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?(?![\w:])                # a clock
      | (?<![\w.,])[0-9]{1,4}(?P<date>[/.\-])[0-9]{1,2}(?P=date)[0-9]{2,4}(?!\w)   # a date
      | (?<!\w)[0-9]+(?:[.,][0-9]+)*(?:[ºª]|(?:st|nd|rd|th)\b)               # an ordinal
      | (?<!\w)[0-9]+(?:[.,][0-9]+)?[eE][+-]?[0-9]+(?!\w)                    # 1e3
      | (?<!\w)[^\W0-9_]+[0-9]\w*                                                # CO2
      | [0-9]{31,}
    )
  | (?P<sign>(?<![\w)%.,])[-−–+])?(?P<digits>DIGITS)(?![0-9])
    (?:SPACE?/SPACE?(?P<under>[0-9]{1,6})(?![0-9/])(?![.,][0-9]))?
    (?:SPACE(?P<over2>[0-9]{1,6})/(?P<under2>[0-9]{1,6})(?![0-9/]))?
    (?P<glyph>[½¼¾⅓⅔])?
  | (?P<alone>[½¼¾⅓⅔])
  | (?P<word>(?<![\w'’])(?:WORDS)(?![\w]))
    """.replace("DIGITS", _DIGITS)
    .replace("SPACE", _SPACE)
    .replace(
        "WORDS",
        "|".join(sorted({*" ".join(WORDS.values()).split(), *_WEAK["it"], *_WEAK["en"]}, key=len, reverse=True)),
    ),
    re.VERBOSE | re.IGNORECASE,
)
_RUN = re.compile(r"[0-9]+(?:[.,][0-9]+)*")
_PERCENT = re.compile(rf"{_SPACE}*(?:%|per{_SPACE}?cento\b|percento\b|percent\b|per{_SPACE}cent\b)", re.IGNORECASE)
_HALF = re.compile(rf"(?:{_SPACE}[^\W\d_]+)?{_SPACE}(?:e{_SPACE}mezz[oa]|and{_SPACE}a{_SPACE}half)\b", re.IGNORECASE)
_CENTS = re.compile(
    rf"{_SPACE}?(?:€|euro|dollari|dollars?|sterline|pounds?|franchi){_SPACE}(?:e|and|,){_SPACE}?"
    rf"([0-9]{{1,2}})(?![0-9.,/]*[0-9])({_SPACE}cent\w*)?",
    re.IGNORECASE,
)


class Number(NamedTuple):
    """A number in a text."""

    value: Fraction
    percent: bool  # written with a percent sign; `value` is what stands before it
    weak: bool  # a word that may be an article
    start: int  # its place in the text, in characters
    end: int

    def equals(self, other: "Number") -> bool:
        """Tell whether both mean the same: 25% is 0.25, and 25 where one side leaves out the sign."""
        if self.value == other.value:
            return True
        return self.percent != other.percent and self.fraction() == other.fraction()

    def fraction(self) -> Fraction:
        """Return the value with a percent sign taken into account."""
        return self.value / 100 if self.percent else self.value


def numbers(text: str, language: str) -> list[Number]:
    """Return the numbers of a text in their order.

    Args:
        language: `it` or `en`: whose number words, and whose reading where a form has two.

    >>> [str(n.value) for n in numbers("1.234,5 euro, cioè venti volte 3/4", "it")]
    ['2469/2', '20', '3/4']
    """
    return list(_numbers(text, language))


def _numbers(text: str, language: str) -> Iterator[Number]:
    place = 0
    while match := _TOKEN.search(text, place):
        place = match.end()
        if match["none"]:
            continue
        if match["digits"] and (run := _RUN.match(text, match.start("digits"))) and run.end() > match.end("digits"):
            place = run.end()  # 12,34,567 is nobody's number
            continue
        value, weak = _value(match, language)
        if value is None:
            continue
        if (cents := _CENTS.match(text, place)) and (cents[2] or len(cents[1]) == 2) and value.denominator == 1:
            value, place = value + Fraction(int(cents[1]), 100), cents.end()
        elif half := _HALF.match(text, place):
            value, weak, place = value + Fraction(1, 2), False, half.end()
        percent = _PERCENT.match(text, place)
        place = percent.end() if percent else place
        yield Number(value, bool(percent), weak, match.start(), place)


def _value(match: re.Match[str], language: str) -> tuple[Fraction | None, bool]:
    if word := (match["word"] or "").lower():
        if (weak := _WEAK[language].get(word)) is not None:
            return weak, True
        names = WORDS[language].split()
        return (Fraction(names.index(word)) if word in names else None), False
    if match["alone"]:
        return _UNICODE[match["alone"]], False
    value = _read(match["digits"], language)
    for over, under in ((None, match["under"]), (match["over2"], match["under2"])):
        if under:
            if not int(under):
                return None, False
            value = value / int(under) if over is None else value + Fraction(int(over), int(under))
    if match["glyph"]:
        value += _UNICODE[match["glyph"]]
    return (-value if match["sign"] and match["sign"] != "+" else value), False


def _read(digits: str, language: str) -> Fraction:
    """Return the value of digits with marks; a form that both languages know is read by `language`."""
    marks = [c for c in digits if not c.isdigit()]
    if not marks:
        return Fraction(int(digits))
    last = marks[-1]
    head, _, tail = digits.rpartition(last)
    if len(set(marks)) == 2:  # both kinds: the last is the decimal mark
        decimal = True
    elif len(marks) > 1 or last not in ".,":
        decimal = False
    elif len(tail) == 3 and 1 <= len(head) <= 3 and head[0] != "0":  # 1.234: a thousand or a decimal
        decimal = last == ("," if language == "it" else ".")
    else:
        decimal = True
    whole = "".join(filter(str.isdigit, head if decimal else digits))
    return Fraction(f"{whole}.{tail}") if decimal else Fraction(int(whole))
