"""A second reader of answers: `python params/italian/reread.py runs/demo` holds the judge by key against it.

It shares nothing with the judge and is written for word problems alone: going through an answer word by word, it keeps
the last number that is not denied; of two with "o" between them none, nor of a sum that is left undone. Every sample of
a run and every answer of its proof is read by both; each disagreement is printed.
"""

import sys
from fractions import Fraction
from pathlib import Path

from nbutils.files import sources
from nbutils.judges.answer import grade
from nbutils.judges.files import AnswerFile, read_file

HERE = Path(__file__).parent
WORDS = (
    "zero due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici "
    "diciassette diciotto diciannove venti"
).split()
VALUES = {word: Fraction(value) for value, word in enumerate(["zero", "", *WORDS[1:]]) if word}
DIGITS = set("0123456789")
ARTICLES = dict.fromkeys(("un", "uno", "una"), Fraction(1)) | dict.fromkeys(("mezzo", "mezza"), Fraction(1, 2))
DENIALS = ("non", "né", "anziché")
BETWEEN = ("è", "sono", "fa", "di")  # may stand between a denial and its number


def pieces(text: str) -> list[str]:
    """Return runs of digits with the marks inside them, runs of letters, and single signs."""
    found: list[str] = []
    for place, letter in enumerate(text):
        before, after = text[place - 1 : place], text[place + 1 : place + 2]
        if letter.isspace():
            found.append(" ")
        elif found and (part_of(found[-1], letter) or (letter in ".,/" and {before, after} <= DIGITS)):
            found[-1] += letter
        else:
            found.append(letter)
    return found


def part_of(run: str, letter: str) -> bool:
    return (run[0] in DIGITS and letter in DIGITS) or (run.isalpha() and letter.isalpha())


def value_of(digits: str) -> Fraction | None:
    """Return what a run of digits and marks is worth, as Italians write numbers; None for a date."""
    parts = digits.split("/")
    if len(parts) > 2 or (len(parts) == 2 and not int(parts[1].replace(".", "").replace(",", ""))):
        return None
    values = []
    for part in parts:
        if "," in part and "." in part:
            decimal = max(part.rfind(","), part.rfind("."))
            whole, rest = part[:decimal].replace(".", "").replace(",", ""), part[decimal + 1 :]
        elif part.count(",") == 1:
            whole, rest = part.split(",")
        elif part.count(".") == 1 and not (len(part.split(".")[1]) == 3 and part[0] != "0" and part.find(".") <= 3):
            whole, rest = part.split(".")
        else:
            whole, rest = part.replace(".", "").replace(",", ""), "0"
        values.append(Fraction(f"{whole}.{rest}"))
    return values[0] / values[1] if len(values) == 2 else values[0]


def result(text: str) -> Fraction | None:
    """Return the number that an answer ends with."""
    kept: list[tuple[Fraction, int, bool]] = []
    lines = [line.lstrip() for line in text.split("\n")]
    parts = pieces("\n".join(line.partition(" ")[2] if labelled(line) else line for line in lines))
    for place, part in enumerate(parts):
        word, before = part.lower(), [p.lower() for p in parts[:place] if p not in (" ", "*", '"', "(")]
        negative = before[-1:] == ["-"] and parts[place - 1] == "-" and (place < 2 or parts[place - 2] in " (=:")
        if part[0] in DIGITS:
            name = place > 0 and parts[place - 1].isalpha() and (place < 2 or parts[place - 2][0] not in DIGITS)
            value = None if name else value_of(part)
        else:
            value = VALUES.get(word, ARTICLES.get(word))
        if value is None:
            continue
        while before and before[-1] in BETWEEN:
            before.pop()
        if before and before[-1] in DENIALS:
            continue
        kept.append((-value if negative else value, place, word in ARTICLES))
    kept = [number for number in kept if not number[2]] or kept
    if not kept:
        return None
    value, place, _ = kept.pop()
    if kept and spaced(parts, kept[-1][1], place) == ["/"] and value:  # 70 / 2
        value, place = kept[-1][0] / value, kept.pop()[1]
    between = spaced(parts, kept[-1][1], place) if kept else []
    undone = len(between) == 1 and between[0] in "+-*/×x÷:−"
    return None if undone or {"o", "oppure"} & set(between) else value


def labelled(line: str) -> bool:
    """Tell whether a line of a list begins with its number or sign."""
    label = line.partition(" ")[0]
    return label in ("-", "*", "•") or (label[-1:] in (".", ")") and label[:-1].isdigit() and len(label) < 4)


def spaced(parts: list[str], one: int, other: int) -> list[str]:
    """Return what stands between two places but for space, in small letters."""
    return [part.lower() for part in parts[one + 1 : other] if part != " "]


def main(run_dir: Path) -> int:
    """Compare both readers on all answers of a run; 1 if they differ."""
    _, file = read_file(str(HERE / "judge.yaml"))
    assert isinstance(file, AnswerFile)
    sampled = sources.read(str(run_dir / "02_sample"), "samples")
    answers = [(row["reference"], response["text"]) for row in sampled for response in row["responses"]]
    proof = sources.read(str(run_dir / "04_dpo"), "evaluation_test")
    answers += [(row["reference"], row[f"{side}_text"]) for row in proof for side in ("before", "after")]
    differ = [
        (key, text)
        for key, text in answers
        if (grade(text, key, file) == 1) != (result(text) == Fraction(key.replace(",", ".")))
    ]
    for key, text in differ:
        print(f"{key}: {text!r}: the judge says {grade(text, key, file):g}, the second reader reads {result(text)}")
    print(len(answers), "answers,", len(set(answers)), "different ones,", len(differ), "disagreements")
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
