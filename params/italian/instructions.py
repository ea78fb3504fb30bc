"""Makes everyday Italian instructions with checks: `python params/italian/instructions.py` writes two `.jsonl` files.

They are there to see what a training on sums costs: a prompt asks for something and for a form that a rule can check.
Dev and test have topics of their own. No prompt resembles another by the kit's own rule.
"""

import json
from pathlib import Path
from random import Random

from nbutils.core.prompts import Near, from_rows

HERE = Path(__file__).parent
# of each line: a topic, the same in English, and four things to ask about it
TOPICS = (HERE / "topics.txt").read_text(encoding="utf-8").splitlines()
# how a form is asked for, and the rule that checks it
FORMS = (
    (("Non usare virgole.", "Scrivi senza nemmeno una virgola."), "punctuation:no_comma", {}),
    (
        (
            "Rispondi con esattamente due punti elenco che cominciano con *.",
            "Usa due voci di elenco, ognuna con * davanti, e nient'altro.",
        ),
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
    ),
    (
        (
            "Comincia con un titolo tra doppie parentesi angolari, <<così>>.",
            "In cima metti un titolo scritto <<in questo modo>>.",
        ),
        "detectable_format:title",
        {},
    ),
    (
        (
            "Metti almeno una parola tra asterischi, *così*.",
            "Evidenzia una parola con un asterisco prima e uno dopo: *parola*.",
        ),
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 1},
    ),
    (
        ("Alla fine aggiungi un poscritto che comincia con P.S.", "Chiudi con una riga che inizia con P.S."),
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
    ),
    (
        (
            "Lascia un dato da completare tra parentesi quadre, come [nome].",
            "Inserisci un segnaposto tra parentesi quadre, per esempio [luogo].",
        ),
        "detectable_content:number_placeholders",
        {"num_placeholders": 1},
    ),
    (
        ("Usa anche la parola {extra}.", "Nel testo deve comparire la parola {extra}."),
        "keywords:existence",
        {"keywords": ["{extra}"]},
    ),
    (
        ("Non usare le parole molto e bello.", "Evita le parole molto e bello."),
        "keywords:forbidden_words",
        {"forbidden_words": ["molto", "bello"]},
    ),
    (
        ("Usa la parola {word} almeno due volte.", "La parola {word} deve comparire due volte o più."),
        "keywords:frequency",
        {"keyword": "{word}", "frequency": 2, "relation": "at least"},
    ),
    (
        ("Racchiudi tutta la risposta tra virgolette doppie.", 'Metti l\'intera risposta fra virgolette, così: "...".'),
        "startend:quotation",
        {},
    ),
)
EXTRA = ("mattina", "amico", "piccolo", "sempre", "strada", "mano")


def main() -> None:
    rng, near = Random(20261127), Near()
    for split, topics in (("dev", TOPICS[::2]), ("test", TOPICS[1::2])):
        rows = [worded(i, *part, rng, near) for i, part in enumerate(tasks(topics))]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (HERE / f"instructions_{split}.jsonl").write_text(text, encoding="utf-8")
        print(split, len(rows), "instructions,", len(topics), "topics")


def tasks(topics: list[str]) -> list[tuple[str, str, str]]:
    """Return (topic, the same in English, question), the first question of every topic first."""
    split = [line.split("|") for line in topics]
    return [(word, english, questions[k]) for k in range(4) for word, english, *questions in split]


def worded(number: int, word: str, english: str, question: str, rng: Random, near: Near) -> dict:
    """Return an instruction that resembles none in `near`."""
    for _ in range(100):
        row = prompt(number, word, question, rng) | {"category": f"{word}: {english}"}
        (seen,) = from_rows([row], "prompt")
        if not near.holds(seen):
            near.add(seen)
            return row
    raise SystemExit(f"{question} resembles another whatever stands behind it; ask otherwise")


def prompt(number: int, word: str, question: str, rng: Random) -> dict:
    """Return an instruction as a row: the question, the topic's word, a length and one form, each as often."""
    wordings, rule, options = FORMS[number % len(FORMS)]
    extra, least = rng.choice(EXTRA), rng.choice((10, 12, 15))
    form = rng.choice(wordings).format(word=word, extra=extra)
    length = rng.choice((f"Scrivi almeno {least} parole.", f"Servono {least} parole o più."))
    text = json.dumps([options, {"num_words": least, "relation": "at least"}], ensure_ascii=False)
    checks = {
        "instruction_id_list": [rule, "length_constraints:number_words"],
        "kwargs": json.loads(text.replace("{word}", word).replace("{extra}", extra)),
    }
    parts = [question, *rng.sample([form, length], 2)]
    return {"prompt": " ".join(parts), "checks": json.dumps(checks, ensure_ascii=False)}


if __name__ == "__main__":
    main()
