"""Judging by rules: which of a prompt's checkable instructions (IFEval, Zhou et al. 2023) a response follows.

The rules are `if-verifiable`'s, in their strict reading. A rule this machine or language cannot check rightly is
refused by name before anything is judged, never skipped in silence.
"""

import functools
import inspect
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import langdetect
from if_verifiable.common import evaluate_instructions
from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

from nbutils.engines import Tally
from nbutils.errors import InputError
from nbutils.judges import Judgement, VerifierFile
from nbutils.records import Row
from nbutils.store import Store

# langdetect draws random numbers: without a seed the same text can get two answers
langdetect.DetectorFactory.seed = 0

NEEDS_NLTK_DATA = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
ENGLISH_ONLY = (
    "change_case:english_capital",
    "change_case:english_lowercase",
    "detectable_format:constrained_response",
)


class Verifier:
    """Scores a response by the share of its prompt's checks that it passes; order has no meaning here."""

    model = ""

    def __init__(self, name: str, file: VerifierFile):
        self.name, self.file, self.language = name, file, file.language

    def tally(self) -> Tally:
        """Return zeros: nothing is ever asked."""
        return Tally()

    def score(
        self, rows: Sequence[Row], store: Store, *, deadline: float = float("inf"), repeat: bool = False
    ) -> list[Judgement]:
        """Check every response. Nothing is stored: checking again is cheaper than looking up. Rules never waver.

        Raises:
            InputError: naming the checks that cannot be used and how many rows hold them, before any is run.
        """
        faults = Counter(fault for row in rows for fault in faults_of(row["checks"], self.language))
        if faults:
            listed = "; ".join(f"{fault} ({count} rows)" for fault, count in faults.most_common())
            raise InputError(f"judge {self.name} cannot check: {listed}; remove these rows or choose another judge")
        return [Judgement() if repeat else self._judge(row) for row in rows]

    def notes(self) -> dict[str, int]:
        """Return nothing: no server stands between."""
        return {}

    def explain(self, row: Row) -> str:
        """Return the checks of a row, one per line."""
        return "\n".join(f"{name} {json.dumps(options)}" for name, options in parse_checks(row["checks"]))

    def _judge(self, row: Row) -> Judgement:
        results = [check(row["checks"], response["text"]) for response in row["responses"]]
        scores = [sum(passed for _, passed in result) / len(result) for result in results]
        failed = [", ".join(name for name, passed in result if not passed) for result in results]
        return Judgement([scores], [["failed: " + names if names else "passed all" for names in failed]])


def parse_checks(checks: str) -> list[tuple[str, dict[str, Any]]]:
    """Return (instruction id, its options) for a row's `checks`; a language prefix as in `en:` is dropped."""
    if not checks:
        return []
    try:
        content = json.loads(checks)
        names, options = list(map(str, content["instruction_id_list"])), list(map(dict, content["kwargs"]))
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"checks should be JSON with instruction_id_list and kwargs of equal length, got {checks[:80]!r}"
        ) from None
    if len(names) != len(options):
        raise InputError(f"checks name {len(names)} instructions but hold {len(options)} kwargs: {checks[:80]!r}")
    names = [name.split(":", 1)[1] if name.count(":") == 2 else name for name in names]
    return [(name, {k: v for k, v in o.items() if v is not None}) for name, o in zip(names, options, strict=True)]


def faults_of(checks: str, language: str) -> list[str]:
    """Return why a row's checks cannot be used, one short text per fault; empty if they can."""
    parsed = parse_checks(checks)
    return (
        [fault for name, options in parsed if (fault := _fault(name, options, language))] if parsed else ["no checks"]
    )


def check(checks: str, response: str) -> list[tuple[str, bool]]:
    """Return (instruction id, passed) for every check of a row; an empty response passes none."""
    parsed = parse_checks(checks)
    names, options = [name for name, _ in parsed], [o for _, o in parsed]
    results, _ = evaluate_instructions(response, names, options, "", INSTRUCTION_DICT)
    return [(r.instruction_id, r.strict_pass) for r in results] or [(name, False) for name in names]


def _fault(name: str, options: dict[str, Any], language: str) -> str:
    if name not in INSTRUCTION_DICT:
        return f"{name} (unknown instruction)"
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
    try:
        evaluate_instructions("a", [name], [options], "", INSTRUCTION_DICT)
    except Exception as error:  # each rule refuses options it cannot use in its own way
        return f"{name} ({error})"
    return ""


@functools.cache
def _nltk_data() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True
