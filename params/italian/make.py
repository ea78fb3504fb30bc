"""Makes the Italian word problems of this folder: `python params/italian/make.py` writes its four `.jsonl` files.

Dev and test have story families of their own. No prompt resembles another in any file by the kit's own rule.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from families import DEV, TEST, TRAIN, Family

from nbutils.core.prompts import Near, from_rows
from nbutils.judges.numbers import WORDS

HERE = Path(__file__).parent
PEOPLE = (
    "Sofia Bruno Carla Dario Elena Fabio Giulia Ivo Lucia Marco Nora Omar Paola Rino Sara Tullio Viola Zeno Rita Berta "
    "Claudio Diego Emma Furio Gino Ilaria Luca Mirta Nino Olga Piero Rosa Silvio Teresa Ugo Vera"
).split()
TOWNS = (
    "Todi Bari Como Erice Fano Gubbio Ivrea Lecce Modica Noto Orte Pavia Rieti Siena Terni Urbino Vasto Bra Cuneo Enna "
    "Imola Lodi Matera Nuoro Pisa Trani Udine Varese Nola Chieti"
).split()
ASIDES = (
    "Oggi è il {k} maggio. ",
    "{n} abita al numero {k} di via Verdi. ",
    "Il telefono di {n} è carico al {k}%. ",
    "Il paese conta {k} mila abitanti. ",
)
FORMS = (
    "Scrivi il calcolo in una riga, con il segno di uguale e il risultato.",
    "Scrivi su una riga l'operazione con il risultato e niente altro.",
)
# split, its families, problems of each; those written later come last, which leaves the earlier ones as they were
DRAWN = (
    ("train", TRAIN, 15),
    ("off_policy", TRAIN, 12),
    ("dev", DEV, 14),
    ("test", TEST, 14),
    ("train", TRAIN, 5),
    ("off_policy", TRAIN, 10),
)


def problems(families: tuple[Family, ...], count: int, rng: Random, near: Near) -> Iterator[dict]:
    """Yield `count` problems of each family, none of which resembles one in `near`."""
    for family in families:
        for number in range(count):
            for _ in range(2000):
                row = problem(family, number, rng)
                (seen,) = from_rows([row], "prompt")
                if not near.holds(seen):
                    near.add(seen)
                    yield row
                    break
            else:
                raise SystemExit(f"{family.name}: no room for problem {number + 1}; write another wording")


def problem(family: Family, number: int, rng: Random) -> dict:
    """Return one problem as a row."""
    drawn = family.draw(rng)
    n, m = rng.sample(PEOPLE, 2)
    town = rng.choice(TOWNS)
    words = {"n": n, "m": m, "o": rng.choice(family.things), "c": town, "c_": town}
    wording = number % len(family.wordings)
    text = family.wordings[wording].format(**words | {name: written(value, rng) for name, value in drawn.items()})
    if rng.random() < 0.1:
        text = rng.choice(ASIDES).format(n=n, k=rng.randint(21, 30)) + text[0].upper() + text[1:]
    return {
        "prompt": f"{text[0].upper()}{text[1:]} {rng.choice(FORMS)}",
        "reference": f"{family.right(**drawn):g}".replace(".", ","),
        "category": f"{family.name}: {family.english}",
        "steps": family.steps,
        "wording": wording,
    }


def written(value: float, rng: Random) -> str:
    """Return a number as a story writes it: sometimes as a word, prices with two decimals."""
    if value != int(value):
        return f"{value:.2f}".replace(".", ",")
    return WORDS["it"].split()[int(value)] if 2 <= value <= 20 and rng.random() < 0.15 else f"{value:g}"


def main() -> None:
    rng, near = Random(20261126), Near()
    lines: dict[str, list[str]] = {split: [] for split, *_ in DRAWN}
    for split, families, count in DRAWN:
        lines[split] += [json.dumps(row, ensure_ascii=False) for row in problems(families, count, rng, near)]
    for split, rows in lines.items():
        (HERE / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in rows), encoding="utf-8")
        print(split, len(rows), "problems")


if __name__ == "__main__":
    main()
