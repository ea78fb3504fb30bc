"""What can be told from a text alone: does it repeat itself without end, and in which language is it written.

Used by `pairs` to mark responses that must not enter a pair. Small models loop, and fall back into English; a judge
that reads for content may not mind either.
"""

import re
from functools import cache
from typing import Any

_SPAN = 20  # characters that have to come back to count as repeated
_LEAST = 120  # characters of a loop
_COPIES = 4  # of its unit, one after the other
_NUMBER = re.compile(r"^[ \t]*\d+[.)]\s", re.MULTILINE)
_RULE = re.compile(r"[\s\-–—|=:_.*#~+/\\,;()\[\]{}<>\"'`]+")
_NO_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|www\.\S+", re.DOTALL)


def loops(text: str) -> bool:
    """Tell whether a text repeats itself without end, as small models do (Holtzman et al. 2020, section 6.3).

    Either some unit, a word or a paragraph, stands four times in a row or more and fills 120 characters, or nine
    tenths of the text have been said before in the same text. Case, punctuation and the numbers of a list do not
    count: "1. Yes. 2. Yes." says one thing twice. What is only digits or rules (a table of zeros, a row of dashes)
    is no loop. The thresholds were set on 6,000 answers of several models, by reading the hits and what was nearly
    one: two or three copies in a row are often a form to fill in or a song, four hardly ever.

    >>> loops("It is a big city. " * 10), loops("Let it be, let it be, let it be, let it be.")
    (True, False)
    """
    plain = _RULE.sub(" ", _NUMBER.sub(" ", f"{text.casefold()} "))
    seen: dict[str, int] = {}
    gap = run = repeated = end = 0
    for i in range(len(plain) - _SPAN + 1):
        span = plain[i : i + _SPAN]
        before = seen.get(span)
        seen[span] = i
        if before is None or span.replace(" ", "").isdecimal():
            gap = run = 0
            continue
        # spans that come back at one and the same distance are a unit that follows itself
        run = run + 1 if i - before == gap else 1
        gap = i - before
        if run + _SPAN - 1 >= max(_LEAST, (_COPIES - 1) * gap):
            return True
        repeated += i + _SPAN - max(i, end)
        end = i + _SPAN
    return len(plain) >= 200 and repeated >= 0.9 * len(plain)


def language(text: str) -> str:
    """Return the ISO 639-1 code of the language most of a text is in, or "" where that cannot be told.

    Nothing is told of 40 characters or fewer, code and URLs left out, nor where the detector is less than half sure:
    lists of names, tables, formulas. The detector is py3langid, a naive Bayes model over byte n-grams (Lui and
    Baldwin 2012).

    >>> language("Il Po nasce dal Monviso e sfocia nel mare Adriatico."), language("Il Po.")
    ('it', '')
    """
    prose = _NO_PROSE.sub(" ", text).strip()
    if len(prose) <= 40:
        return ""
    code, probability = _detector().classify(prose)
    return str(code) if probability >= 0.5 and len(code) == 2 else ""


@cache
def _detector() -> Any:
    # a detector of our own: the package's shared one tells no probabilities
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
