"""Solves the word problems of this folder from their text and compares the keys: `python params/italian/solve.py`.

Written apart from `make.py` and sharing nothing with it: it takes the numbers out of a prompt in their order and puts
them into the sum below that belongs to the prompt's family and wording. Prints how many keys it confirms; exit status 1
where one differs.
"""

import json
import re
import sys
from fractions import Fraction
from pathlib import Path

UNITS = "due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici".split()
UNITS += "diciassette diciotto diciannove venti".split()
NUMBER = re.compile(r"\d+(?:,\d+)?|\b(?:" + "|".join(sorted(UNITS, key=len, reverse=True)) + r")\b", re.IGNORECASE)
ASIDE = re.compile(
    r"^(?:Oggi è il \d+ maggio|\w+ abita al numero \d+ di via Verdi|Il telefono di \w+ è carico al \d+%"
    r"|Il paese conta \d+ mila abitanti)\. "
)
PLUS, MINUS, TIMES, PARTS, PARTS_TURNED = "x+y", "x-y", "x*y", "x/y", "y/x"
# family -> the sum of each wording over its numbers x, y, z, w; one sum stands for all wordings
SUMS = {
    "frutta": [PLUS], "resto": ["y-x", MINUS, MINUS, MINUS], "prezzo": [TIMES],
    "divisione": [PARTS, PARTS, PARTS_TURNED, PARTS], "futuro": [PLUS], "differenza": [MINUS, MINUS, "y-z", "y-x"],
    "viaggio": [PLUS], "minuti": ["x*60"], "pendolare": ["2*x*y", "(x+y)*z", "2*x*y"], "ricetta": [TIMES],
    "ribasso": [MINUS, "y-x", "y-x", MINUS], "percento": ["x*(100-y)/100"], "lettura": [TIMES], "rimaste": ["x-y*z"],
    "uova": ["x*y+z", "x+y*z", "x*y+z"], "autobus": ["x-y+z"], "risparmio": [TIMES],
    "obiettivo": ["(x-y)/z", "(x-y)/z", "(z-x)/y"], "perimetro": ["2*(x+y)"], "area": [TIMES], "perse": [MINUS],
    "scambi": ["x-y+z"], "litri": [TIMES], "meta": ["x/2"], "triplo": ["x*3", TIMES, TIMES], "classi": [TIMES],
    "tavoli": [PARTS, PARTS, PARTS_TURNED], "fette": ["x*y-z"], "benzina": [TIMES],
    "biglietti": ["x*z+y*w", "x*y+z*w", "x*y+z*w"], "filari": ["x*y+z", "x+y*z", "x*y+z"], "settimane": ["x*7"],
    "dozzine": ["x*12"], "corda": [PARTS, PARTS_TURNED, PARTS_TURNED], "vasche": [TIMES],
    "media": ["(x+y+z)/w", "(x+y+z)/3", "(x+y+z)/3"],
    "palline": [TIMES], "vagone": [MINUS], "conto": [PARTS, PARTS, PARTS_TURNED], "palestra": [TIMES],
    "nastro": ["x-y*z", "z-x*y", "x-y*z"], "cassette": [TIMES], "prestiti": ["x-y+z"], "gradi": [PLUS],
    "mance": ["(y+z)/x", "(y+z)/w", "(y+z)/x"],
    "pizzeria": [TIMES], "parcheggio": [MINUS], "corsa": [TIMES], "mazzi": [PARTS, PARTS_TURNED, PARTS],
    "orchestra": [TIMES], "cinema": ["z-x*y", "x-y*z", "x-y*z"], "galline": [TIMES],
    "trasloco": [MINUS, "y-x", MINUS], "coro": ["x+y+z"], "pillole": [TIMES], "noleggio": [TIMES],
    "mattoni": ["x*y-z"], "zaino": ["x+y+z", "x+y+z", "y+z+w"], "mercatino": ["x*y-z"],
    "bicchieri": [PARTS, PARTS, PARTS_TURNED], "dislivello": [MINUS, "y-x", "y-x"],
    "abbonamento": ["x*12", TIMES, "x*12"], "semi": [PARTS],
}  # fmt: skip


def solve(row: dict) -> Fraction:
    """Return the answer to a row's prompt."""
    story = ASIDE.sub("", row["prompt"])
    values = [
        Fraction(UNITS.index(word) + 2) if word in UNITS else Fraction(word.replace(",", "."))
        for word in map(str.lower, NUMBER.findall(story))
    ]
    sums = SUMS[row["category"].partition(":")[0]]
    total = sums[row["wording"] if len(sums) > 1 else 0]
    last = max("xyzw".index(name) for name in re.findall(r"[wxyz]", total))
    if last + 1 != len(values):
        raise ValueError(f"{len(values)} numbers where {total} takes {last + 1}: {row['prompt']}")
    return evaluate(total, dict(zip("xyzw", values, strict=False)))


def evaluate(total: str, values: dict[str, Fraction]) -> Fraction:
    """Return the value of a sum in x, y, z, w and whole numbers."""
    exact = re.sub(r"\d+", lambda digits: f"Fraction({digits[0]})", total)
    return Fraction(eval(exact, {"__builtins__": {}, "Fraction": Fraction}, values))  # from the table above


def main() -> int:
    wrong = 0
    for split in ("train", "off_policy", "dev", "test"):
        lines = (Path(__file__).parent / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        bad = [row for row in rows if solve(row) != Fraction(row["reference"].replace(",", "."))]
        print(f"{split}: {len(rows) - len(bad)} of {len(rows)} keys confirmed")
        wrong += len(bad)
        for row in bad[:3]:
            print("  differs:", row["prompt"], "| key", row["reference"], "| solved", solve(row))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
