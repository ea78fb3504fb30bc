"""Judging by rules: which of a prompt's checkable instructions (IFEval, Zhou et al. 2023) a response follows.

The rules are `if-verifiable`'s, in their strict reading. A row with a rule that this machine or language cannot check
rightly, or with options no rule can go by, is never judged: it is `filtered:checks`, counted, and named where all rows
are. Checks come from strangers, and some rules take a word for a pattern: they are bounded in size and in time.
"""

import functools
import inspect
import json
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import langdetect
from if_verifiable.common import evaluate_instructions
from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

from nbutils.core import bounded
from nbutils.core.errors import InputError, first_line, shown
from nbutils.core.records import Row
from nbutils.judges.files import VerifierFile
from nbutils.judges.judge import Judgement
from nbutils.judges.rules import RuleJudge

# langdetect draws random numbers: without a seed the same text can get two answers
langdetect.DetectorFactory.seed = 0

NEEDS_NLTK_DATA = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
ENGLISH_ONLY = (
    "change_case:english_capital",
    "change_case:english_lowercase",
    "detectable_format:constrained_response",
)

LONGEST, MOST, SECONDS = 100_000, 1_000_000, 3.0  # characters of checks, any number in them, and the time they may take
# What repeats in a pattern: two of these in one another never end, and one is quadratic at worst.
PATTERNS = ("keywords", "keyword", "forbidden_words", "section_spliter", "postscript_marker")
_REPEATS, _ESCAPED = re.compile(r"[*+?{]+"), re.compile(r"\\.")


class Verifier(RuleJudge):
    """Scores a response by the share of its prompt's checks that it passes."""

    def __init__(self, name: str, file: VerifierFile):
        self.name, self.file, self.language = name, file, file.language

    def fault(self, row: Row) -> str:
        """Return why a row cannot be judged, or nothing."""
        return "checks" if faults_of(row["checks"], self.language) else ""

    def hopeless(self, rows: Sequence[Row]) -> str:
        """Return a sentence that names the faults and how many rows hold them."""
        faults = Counter(fault for row in rows for fault in faults_of(row["checks"], self.language))
        listed = "; ".join(f"{fault} ({count} rows)" for fault, count in faults.most_common(5))
        return f"judge {self.name} cannot check: {listed}; remove these rows or choose another judge"

    def explain(self, row: Row) -> str:
        """Return the checks of a row, one per line."""
        return "\n".join(f"{name} {json.dumps(options)}" for name, options in parse_checks(row["checks"]))

    def judge(self, row: Row) -> Judgement:
        """Check every response."""
        results = [check(row["checks"], response["text"]) for response in row["responses"]]
        scores = [sum(passed for _, passed in result) / len(result) for result in results]
        failed = [", ".join(name for name, passed in result if not passed) for result in results]
        return Judgement([scores], [["failed: " + names if names else "passed all" for names in failed]])


@functools.lru_cache(maxsize=4)  # a row's checks are asked about several times in a row
def parse_checks(checks: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Return (instruction id, its options) for a row's `checks`; a language prefix as in `en:` is dropped."""
    if not checks:
        return ()
    if len(checks) > LONGEST:
        raise InputError(f"checks of {len(checks):,} characters, of {LONGEST:,} at most")
    try:
        content = json.loads(checks)
        names, options = list(map(str, content["instruction_id_list"])), list(map(dict, content["kwargs"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"checks should be JSON with instruction_id_list and kwargs of equal length, got {shown(checks, 80)}"
        ) from None
    if len(names) != len(options):
        raise InputError(f"checks name {len(names)} instructions but hold {len(options)} kwargs: {shown(checks, 80)}")
    names = [name.split(":", 1)[1] if name.count(":") == 2 else name for name in names]
    return tuple((name, {k: v for k, v in o.items() if v is not None}) for name, o in zip(names, options, strict=True))


@functools.lru_cache(maxsize=10_000)
def faults_of(checks: str, language: str) -> tuple[str, ...]:
    """Return why a row's checks cannot be used, one short text per fault; empty if they can."""
    try:
        parsed = parse_checks(checks)
    except InputError as error:
        return (str(error),)
    return tuple(fault for name, options in parsed if (fault := _fault(name, options, language))) or (
        () if parsed else ("no checks",)
    )


def check(checks: str, response: str) -> list[tuple[str, bool]]:
    """Return (instruction id, passed) for every check of a row; an empty response passes none.

    Raises:
        TimeoutError: if the rules take longer than SECONDS; outside the main thread an InputError.
    """
    parsed = parse_checks(checks)
    names, options = [name for name, _ in parsed], [given for _, given in parsed]

    def passed() -> list[tuple[str, bool]]:
        results, _ = evaluate_instructions(response, names, options, "", INSTRUCTION_DICT)
        return [(r.instruction_id, r.strict_pass) for r in results]

    return _within_time(passed) or [(name, False) for name in names]


def _within_time(work: Callable[[], Any]) -> Any:
    """Return what work gives, or raise an error after SECONDS of this process's time; patterns heed it, too."""
    if threading.current_thread() is not threading.main_thread():  # where signals arrive
        return bounded.within(work, "a check", seconds=SECONDS)

    def late(*_: object) -> None:
        raise TimeoutError(f"not checked within {SECONDS} seconds")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        return work()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _fault(name: str, options: dict[str, Any], language: str) -> str:  # noqa: PLR0911 - one line per kind of fault
    if name not in INSTRUCTION_DICT:
        return f"{shown(name)[1:-1]} (unknown instruction)"
    if name in NEEDS_NLTK_DATA and not _nltk_data():
        return f"{name} (needs NLTK data this machine lacks)"
    if name in ENGLISH_ONLY and language != "en":
        return f"{name} (right for English only)"
    # a missing option would be drawn at random by the rule, and the score with it
    missing = sorted(
        set(inspect.signature(INSTRUCTION_DICT[name].build_description).parameters) - {"self"} - set(options)
    )
    if missing:
        return f"{name} (without {', '.join(missing)})"
    for option, value in options.items():
        if not _is_sound(value, pattern=option in PATTERNS):
            return f"{name} ({shown(option)[1:-1]} is {shown(value, 60)})"

    def goes() -> dict[str, Any]:
        evaluate_instructions("a", [name], [options], "", INSTRUCTION_DICT)
        taken = INSTRUCTION_DICT[name](name)
        taken.build_description(**options)
        return taken.get_instruction_args() or {}

    try:
        goes_by = _within_time(goes)
        if options.get("nth_paragraph", 0) > options.get("num_paragraphs", 0):  # it might draw the very number
            raise ValueError(f"nth_paragraph is {shown(options['nth_paragraph'], 60)}")
    except Exception as error:  # each rule refuses options it cannot use in its own way
        return f"{name} ({first_line(error)})"
    # so would an option that the rule cannot use: a number below zero, an empty list, two letters for one
    drawn = next(
        (option for option in options if option in goes_by and not _same(options[option], goes_by[option])), ""
    )
    return f"{name} ({drawn} is {shown(options[drawn], 60)})" if drawn else ""


def _is_sound(value: Any, *, pattern: bool) -> bool:
    """Tell whether a rule can go by this: a whole number, a text (as a pattern it must end), or a list of texts."""
    if isinstance(value, list):
        return len(value) <= 100 and all(isinstance(v, str) and _is_sound(v, pattern=pattern) for v in value)
    if isinstance(value, str):
        return not pattern or len(_REPEATS.findall(_ESCAPED.sub("", value))) < 2
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= MOST and value == int(value)


def _same(given: Any, taken: Any) -> bool:
    if isinstance(given, list):
        return sorted(set(given)) == sorted(set(taken))
    if isinstance(given, str):
        return isinstance(taken, str) and given.strip().lower() == taken.strip().lower()
    return bool(given == taken)


@functools.cache
def _nltk_data() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True
