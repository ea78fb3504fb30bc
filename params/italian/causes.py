"""Why answers are wrong, before and after: `python params/italian/causes.py runs/demo` reads a finished 04's proof.

An answer's sum is its last row of numbers with signs between them, units left out. What it comes to tells whether the
wrong operation was chosen or the right one was worked out wrongly, and whether a right answer stands on a right sum.
"""

import re
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

from nbutils.files import sources

NUMBER = r"\d+(?:[.,]\d+)?"
UNIT = r"(?:\s*(?:[^\W\d_]|[%°€$²³/'’](?!\s*\d))+){0,6}"  # words, no signs between numbers
SUM = re.compile(rf"{NUMBER}{UNIT}(?:\s*[-+*/×x÷:−]\s*{NUMBER}{UNIT})+", re.IGNORECASE)
SIGNS = {"×": "*", "x": "*", "X": "*", "÷": "/", ":": "/", "−": "-"}
CAUSES = (
    "right, by a sum that comes to it", "right, by a sum that does not", "right, without a sum",
    "wrong, by the right sum worked out wrongly", "wrong, by another sum", "wrong, without a sum", "wrong, cut off",
)  # fmt: skip


def cause(text: str, key: str, right: bool, cut: bool) -> str:
    """Return which of CAUSES an answer is."""
    found = [value for part in SUM.findall(text) if (value := worth(part)) is not None]
    comes_to_it = Fraction(key.replace(",", ".")) in found
    if right:
        return CAUSES[0] if comes_to_it else CAUSES[1] if found else CAUSES[2]
    if comes_to_it:
        return CAUSES[3]
    return CAUSES[4] if found else CAUSES[6] if cut else CAUSES[5]


def worth(text: str) -> Fraction | None:
    """Return what a sum comes to, times and divided before plus and minus."""
    parts = re.findall(rf"{NUMBER}|(?<![^\W\d_])[-+*/×xX÷:−](?![^\W\d_])", text)
    tokens = [SIGNS.get(part, part.replace(",", ".")) for part in parts]
    if len(tokens) % 2 == 0 or any(t[0].isdigit() == bool(i % 2) for i, t in enumerate(tokens)):
        return None
    terms, signs = [Fraction(tokens[0])], []
    for sign, number in zip(tokens[1::2], map(Fraction, tokens[2::2]), strict=True):
        if sign == "*":
            terms[-1] *= number
        elif sign == "/":
            if not number:
                return None
            terms[-1] /= number
        else:
            signs.append(1 if sign == "+" else -1)
            terms.append(number)
    return terms[0] + sum(sign * term for sign, term in zip(signs, terms[1:], strict=True))


def main(run_dir: Path) -> None:
    rows = sources.read(str(run_dir / "04_dpo"), "evaluation_test")
    counts = {
        side: Counter(
            cause(row[f"{side}_text"], row["reference"], row[f"{side}_score"] == 1,
                  row[f"{side}_finish_reason"] == "length")
            for row in rows
        )
        for side in ("before", "after")
    }  # fmt: skip
    for name in CAUSES:
        print(f"{name:45} {counts['before'][name]:5} {counts['after'][name]:5}  of {len(rows)}")
    steps = {1: Counter(), 2: Counter()}
    by_prompt = {row["prompt"]: row["steps"] for row in sources.read(str(Path(__file__).parent / "test.jsonl"))}
    for row in rows:
        count = steps[1 if by_prompt[row["prompt"][-1]["content"]] == 1 else 2]
        count += Counter(n=1, before=row["before_score"] == 1, after=row["after_score"] == 1)
        steps[1 if by_prompt[row["prompt"][-1]["content"]] == 1 else 2] = count
    for number, count in steps.items():
        more = " or more" * (number > 1)
        shares = " to ".join(f"{count[side] / count['n']:.1%}" for side in ("before", "after"))
        print(f"problems of {number} step{more}: {shares} right, {count['n']} answers")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
