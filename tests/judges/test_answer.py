"""The judge by key: what counts as the right answer, where it is looked for, and what only looks right."""

import json
import logging
from fractions import Fraction

import pytest
from builders import scored
from hypothesis import given, settings
from hypothesis import strategies as st

from nbutils.core.errors import InputError
from nbutils.judges.answer import AnswerJudge, grade, keys, plain, stated
from nbutils.judges.files import AnswerFile
from nbutils.judges.judge import run
from nbutils.judges.loading import load
from nbutils.judges.numbers import WORDS, numbers

IT = AnswerFile(kind="answer", language="it", marker="Risposta:")
EN = AnswerFile(kind="answer", language="en", marker="Answer:")
TEXT = AnswerFile(kind="answer", answer="text", language="it", marker="Risposta:")
BARE = AnswerFile(kind="answer", language="it")

# key, response, score
ITALIAN = [
    # in the asked form
    ("15", "Risposta: 15", 1),
    ("15", "Risposta: 15.", 1),
    ("15", "Risposta:15", 1),
    ("15", "risposta: 15", 1),
    ("15", "RISPOSTA: 15", 1),
    ("15", "**Risposta:** 15", 1),
    ("15", "**Risposta: 15**", 1),
    ("15", "Risposta : 15", 1),
    ("15", "Risposta:\n15", 1),
    ("15", "Risposta:\n\n  15 mele", 1),
    ("15", "Risposta: quindici", 1),
    ("15", "Risposta: Quindici euro", 1),
    ("15", "Risposta: 15 euro", 1),
    ("15", "Risposta: 15€", 1),
    ("15", "Risposta: € 15", 1),
    ("15", "Risposta: euro 15", 1),
    ("15", "Risposta: 15,00 euro", 1),
    ("15", "Risposta: 15,0", 1),
    ("15", "Risposta: 15.00", 1),
    ("15", "Risposta: +15", 1),
    ("15", "Risposta: (15)", 1),
    ("15", "Risposta: 15 (quindici)", 1),
    ("15", "Risposta: 15 (cioè 3 x 5)", 1),
    ("15", "Risposta: 3 x 5 = 15", 1),
    ("15", "Risposta: 3 × 5 = 15 euro.", 1),
    ("15", "Risposta: 15 = 3 x 5", 1),
    ("15", "Risposta: il totale è 15", 1),
    ("15", "Risposta: 5 per 3 fa 15", 1),
    ("15", "Risposta: Anna ha 15 mele.", 1),
    ("15", "Risposta: sono 15", 1),
    ("15", "Risposta: 15 mele su 20", 1),
    ("15", "Risposta: 15 euro. Infatti 3 x 5 fa 15.", 1),
    ("15", "Risposta: 15. Prima erano 20.", 1),
    ("15", "Risposta: non 12 ma 15", 1),
    ("15", "Risposta: non sono 12, sono 15", 1),
    ("15", "Risposta: 15, non 12", 1),
    ("15", "Risposta: 15 anziché 12", 1),
    ("15", "Risposta: circa 15", 1),
    ("15", "Risposta: $15$", 1),
    ("15", "Risposta: $\\boxed{15}$", 1),
    ("15", "Risposta: 15\nSpero che aiuti! 100%", 1),
    ("15", "Ci sono 3 file da 5 sedie, quindi 3 x 5 = 15.\nRisposta: 15", 1),
    ("15", "Prima pensavo 12, poi 20.\nRisposta: 15", 1),
    ("15", "Risposta: 15\nRisposta: 15", 1),
    ("12,5", "Risposta: 12,50 euro", 1),
    ("12,5", "Risposta: 12.50", 1),
    ("12,5", "Risposta: 12,5", 1),
    ("12,5", "Risposta: 12 e mezzo", 1),
    ("12,5", "Risposta: 12 euro e 50 centesimi", 1),
    ("12,5", "Risposta: 12 euro e 50", 1),
    ("12,5", "Risposta: 12½", 1),
    ("12,5", "Risposta: 12 1/2", 1),
    ("12,5", "Risposta: 25/2", 1),
    ("2,5", "Risposta: due e mezzo", 1),
    ("2,5", "Risposta: 2 ore e mezza", 1),
    ("0,5", "Risposta: 1/2", 1),
    ("0,5", "Risposta: mezzo litro", 1),
    ("0,5", "Risposta: ½", 1),
    ("0,75", "Risposta: 3/4", 1),
    ("0,75", "Risposta: tre quarti", 0),  # words name whole numbers only
    ("1234,5", "Risposta: 1.234,5", 1),
    ("1234,5", "Risposta: 1234,50", 1),
    ("1234,5", "Risposta: 1 234,5", 1),
    ("1234,5", "Risposta: 1,234.5", 1),  # English, and nothing else
    ("1234", "Risposta: 1.234", 1),
    ("1234", "Risposta: 1 234 abitanti", 1),
    ("1234", "Risposta: 1,234", 0),  # a decimal in Italian
    ("1,234", "Risposta: 1.234", 0),
    ("1234567", "Risposta: 1.234.567", 1),
    ("1234567", "Risposta: 1'234'567", 1),
    ("25%", "Risposta: 25%", 1),
    ("25%", "Risposta: 25 %", 1),
    ("25%", "Risposta: 25 per cento", 1),
    ("25%", "Risposta: il 25 percento", 1),
    ("25%", "Risposta: 25", 1),
    ("25%", "Risposta: 0,25", 1),
    ("0,25", "Risposta: 25%", 1),
    ("25", "Risposta: 25%", 1),
    ("25", "Risposta: 0,25", 0),
    ("25%", "Risposta: 2,5", 0),
    ("20", "Risposta: il 25% di 80 è 20", 1),
    ("-5", "Risposta: -5 gradi", 1),
    ("-5", "Risposta: −5", 1),
    ("-5", "Risposta: 5", 0),
    ("5", "Risposta: -5", 0),
    ("0", "Risposta: zero", 1),
    ("0", "Risposta: 0 euro", 1),
    ("1", "Risposta: una mela", 1),
    ("1", "Risposta: un'ora", 1),
    ("1", "Risposta: uno", 1),
    ("3", "Risposta: una famiglia di 3 persone", 1),
    ("20", "Risposta: venti", 1),
    ("7 | sette e mezzo", "Risposta: 7,5", 1),
    ("0,5 | 30%", "Risposta: 30%", 1),
    ("12 | 15", "Risposta: 15", 1),
    # right, in another form
    ("15", "15", 0.5),
    ("15", "Sono 15 mele.", 0.5),
    ("15", "La risposta è 15.", 0.5),
    ("15", "La risposta finale: 15", 0.5),
    ("15", "5 + 10 = 15", 0.5),
    ("15", "Prima 20, poi 20 - 5 = 15 euro", 0.5),
    ("15", "Non 12 ma 15", 0.5),
    ("15", "Sono 15, non 12", 0.5),
    ("15", "quindici", 0.5),
    ("15", "1. Sommo 5 e 10.\n2. Ottengo 15.", 0.5),
    ("15", "In tutto 15\n1. \n", 0.5),
    ("12,5", "Il resto è di 12,50 €", 0.5),
    ("1", "Ne resta una.", 0.5),
    # wrong
    ("15", "Risposta: 16", 0),
    ("15", "Risposta: 150", 0),
    ("15", "Risposta: 1,5", 0),
    ("15", "Risposta: 15,5", 0),
    ("15", "Risposta: 12 o 15", 0),
    ("15", "Risposta: 15 o 12", 0),
    ("15", "Risposta: 15 oppure 16", 0),
    ("15", "Risposta: 12 e 15", 0),
    ("15", "Risposta: 12, 15", 0),
    ("15", "Risposta: 15/16", 0),
    ("15", "Risposta: 12-15", 0),
    ("15", "Risposta: da 12 a 15", 0),
    ("15", "Risposta: tra 14 e 15", 0),
    ("15", "Risposta: 15 euro o forse 20", 0),
    ("15", "Risposta: 3 x 5", 0),  # left undone
    ("15", "Risposta: 15 + 0", 0),
    ("15", "Risposta: 20 - 5", 0),
    ("15", "Risposta: non 15", 0),
    ("15", "Risposta: non è 15 ma 12", 0),
    ("15", "Risposta: 12 invece di 15", 0),
    ("15", "Risposta: 15\nRisposta: 12", 0),  # two answers
    ("15", "Risposta: 12\nRisposta: 15", 0),
    ("15", "Sono 15.\nRisposta: 12", 0),  # what is stated counts, not the reasoning
    ("15", "Sono 15.\nRisposta: non so", 0),
    ("15", "Sono 15.\nRisposta:", 0),
    ("15", "12 o 15", 0),
    ("15", "15 oppure 12", 0),
    ("15", "Sono 15 mele in 3 ceste", 0),  # the last number counts
    ("15", "3 x 5 = 15, quindi restano 5", 0),
    ("15", "Non lo so", 0),
    ("15", "", 0),
    ("15", "Risposta: ", 0),
    ("15", "Alle 15:00", 0),
    ("15", "Risposta: 15:30", 0),
    ("15", "Risposta: 15/03/2024", 0),
    ("15", "Risposta: 15º", 0),
    ("15", "Risposta: CO15", 0),
    ("15", "Risposta: 1.5.0", 0),
    ("15", "Risposta: centoquindici", 0),
    ("2", "Risposta: ventidue", 0),
    ("20", "Risposta: ventidue", 0),
    ("8", "Risposta: diciotto", 0),
    ("3", "Risposta: Marco ne ha trenta", 0),
]

ENGLISH = [
    ("15", "Answer: 15", 1),
    ("15", "answer: fifteen apples", 1),
    ("15", "**Answer:** $15", 1),
    ("15", "Answer: $15.00", 1),
    ("15", "Answer: not 12 but 15", 1),
    ("15", "Answer: 15 dollars, not 12", 1),
    ("15", "Answer: it isn't 12, it is 15", 1),
    ("15", "Answer: 3 * 5 = 15", 1),
    ("15", "Answer: the total is 15 pounds.", 1),
    ("15", "Answer: 15 (three times five)", 1),
    ("1234.5", "Answer: 1,234.5", 1),
    ("1234.5", "Answer: 1234.50", 1),
    ("1234.5", "Answer: 1.234,5", 1),  # Italian, and nothing else
    ("1234", "Answer: 1,234", 1),
    ("1234", "Answer: 1.234", 0),
    ("1.234", "Answer: 1.234", 1),
    ("1.5", "Answer: 1,5", 1),  # no English thousand
    ("1000000", "Answer: 1,000,000", 1),
    ("25%", "Answer: 25 percent", 1),
    ("25%", "Answer: 25 per cent", 1),
    ("25%", "Answer: 0.25", 1),
    ("2.5", "Answer: two and a half", 1),
    ("2.5", "Answer: 2 hours and a half", 1),
    ("2.5", "Answer: 2 1/2", 1),
    ("0.5", "Answer: one half", 0),  # two words, each a number of its own
    ("0.5", "Answer: half", 1),
    ("12.5", "Answer: 12 dollars and 50 cents", 1),
    ("1", "Answer: one", 1),
    ("3", "Answer: one of 3", 1),
    ("20", "Answer: Twenty.", 1),
    ("15", "It is 15.", 0.5),
    ("15", "The answer is fifteen", 0.5),
    ("15", "Not 12 but 15", 0.5),
    ("15", "So 20 - 5 = 15 apples", 0.5),
    ("15", "First:\n1. take 20\n2. minus 5 gives 15", 0.5),
    ("15", "Answer: 12 or 15", 0),
    ("15", "Answer: 15 or maybe 16", 0),
    ("15", "Answer: 14 and 15", 0),
    ("15", "Answer: 14 to 15", 0),
    ("15", "Answer: 14–15", 0),
    ("15", "Answer: 15, 16", 0),
    ("15", "Answer: not 15", 0),
    ("15", "Answer: 15th", 0),
    ("15", "Answer: 15:30", 0),
    ("15", "Answer: 1e15", 0),
    ("15", "It is 15.\nAnswer: 12", 0),
    ("15", "Answer: 15\nAnswer: 16", 0),
    ("15", "15 apples in 3 bags", 0),
    ("15", "I do not know.", 0),
    ("3", "Answer: thirty", 0),
    ("10", "Answer: ten.", 1),
]

TEXTS = [
    ("Roma", "Risposta: Roma", 1),
    ("Roma", "Risposta: roma.", 1),
    ("Roma", "Risposta: «Roma»", 1),
    ("Roma", "Risposta: **ROMA**", 1),
    ("Roma", "Risposta: Roma, la capitale d'Italia", 1),
    ("Roma", "Risposta: Roma (nel Lazio)", 1),
    ("Roma | Città Eterna", "Risposta: la citta eterna", 1),
    ("Po", "Risposta: il Po", 1),
    ("il Po", "Risposta: Po", 1),
    ("perché", "Risposta: perche", 1),
    ("l'università", "Risposta: Università", 1),
    ("un'oca", "Risposta: oca", 1),
    ("gli Appennini", "Risposta: Appennini", 1),
    ("the Thames", "Risposta: Thames", 1),
    ("San Marino", "Risposta: san  marino", 1),
    ("Roma", "Roma", 0.5),
    ("Roma", "  roma!\n", 0.5),
    ("Roma", "Risposta: Milano", 0),
    ("Roma", "Risposta: non Roma", 0),
    ("Roma", "Risposta: Roma o Milano", 0),
    ("Roma", "Risposta: Romania", 0),
    ("Roma", "Risposta: Roma\nRisposta: Milano", 0),
    ("Roma", "La capitale è Roma", 0),  # no marker, and more than the answer
    ("Roma", "Roma e Milano", 0),
    ("Roma", "Risposta:", 0),
    ("Roma", "", 0),
]


@pytest.mark.parametrize(("key", "response", "score"), ITALIAN)
def test_an_italian_number_is_right_wrong_or_right_in_another_form(key, response, score):
    assert grade(response, key, IT) == score


@pytest.mark.parametrize(("key", "response", "score"), ENGLISH)
def test_an_english_number(key, response, score):
    assert grade(response, key, EN) == score


@pytest.mark.parametrize(("key", "response", "score"), TEXTS)
def test_a_short_text(key, response, score):
    assert grade(response, key, TEXT) == score


def test_there_are_two_hundred_cases():
    assert len(ITALIAN) + len(ENGLISH) + len(TEXTS) >= 200


@pytest.mark.parametrize(
    ("key", "response", "score"),
    [
        ("15", "Sono 15", 1),
        ("15", "15 o 16", 0),
        ("15", "Risposta: 15", 1),
        ("8", "1 + 40 / 5", 0),  # a sum that is left undone, whatever its last number
        ("5", "3 x 5", 0),
        ("4", "12 + 4", 0),
        ("4", "12 + 4 = 16\n16 : 4", 0),
        ("16", "20 - 4 = 16", 1),
        ("35", "35 = 70 / 2", 1),
        ("36", "Costano 9 euro. Totale: 36 euro", 1),
    ],
)
def test_without_a_marker_the_last_number_is_the_asked_form(key, response, score):
    assert grade(response, key, BARE) == score


MARKS = {"it": (".", ","), "en": (",", ".")}
FRAMES = {
    "it": ["Risposta: {}", "**Risposta:** {} euro", "Risposta: € {}.", "Conto: 2 + 2.\nRisposta: sono {} mele"],
    "en": ["Answer: {}", "**Answer:** {} dollars", "Answer: ${}.", "Sum: 2 + 2.\nAnswer: it is {} apples"],
}


def written(value: Fraction, language: str, form: int) -> str:
    """Return a number with at most two decimals in one of the ways its language writes it."""
    group, point = MARKS[language]
    whole, cents = divmod(int(value * 100), 100)
    if form == 0 and not cents and whole <= 20:
        return WORDS[language].split()[whole]
    grouped = f"{whole:,}".replace(",", group if form % 2 else "\u202f" if form == 2 else "")
    if cents or form == 3:
        return f"{grouped}{point}{cents:02d}" if cents % 10 or form == 3 else f"{grouped}{point}{cents // 10}"
    return grouped


amounts = st.integers(0, 250_000_000).map(lambda cents: Fraction(cents, 100)) | st.integers(0, 30).map(Fraction)


@settings(max_examples=300, deadline=None)
@given(
    right=amounts,
    other=amounts,
    language=st.sampled_from(["it", "en"]),
    form=st.integers(0, 4),
    frame=st.integers(0, 3),
)
def test_a_right_number_in_any_form_is_right_and_any_other_is_wrong(right, other, language, form, frame):
    file = IT if language == "it" else EN
    key = written(right, language, 4)
    assert grade(FRAMES[language][frame].format(written(right, language, form)), key, file) == 1
    if other != right:
        assert grade(FRAMES[language][frame].format(written(other, language, form)), key, file) == 0


@settings(max_examples=300, deadline=None)
@given(response=st.text() | st.text("0123456789.,/-:%€ \n()=eE½non", max_size=60), key=amounts)
def test_whatever_a_response_says_it_gets_a_score(response, key):
    for file in (IT, EN, BARE, TEXT):
        assert grade(response, written(key, "it", 4), file) in (0, 0.5, 1)
        assert grade("Risposta: " + response, written(key, "it", 4), file) in (0, 0.5, 1)


@pytest.mark.parametrize("reference", ["12 e 15", "molti", "", " | ", "12 | ", "12 | molti", "15:30", "12.34.5"])
def test_a_key_that_is_no_number_is_refused(reference):
    with pytest.raises(InputError, match=r"reference: .* expected one"):
        keys(reference, IT)


@pytest.mark.parametrize("reference", ["", "Roma | ", "?!"])
def test_an_empty_text_is_no_key(reference):
    with pytest.raises(InputError, match="holds an empty answer"):
        keys(reference, TEXT)


def test_a_long_response_costs_no_time():
    hostile = [
        "non " * 20_000 + "5",
        "1 o " * 20_000,
        "(" * 50_000,
        "Risposta:" * 10_000,
        " " * 100_000 + "5",
        "1" * 100_000,
        "a" * 100_000,
    ]
    assert [grade(text, "5", IT) for text in hostile] == [0, 0, 0, 0, 0.5, 0, 0]


def test_plain_text_and_marked_parts():
    assert plain("L’Università  di «Bologna»!") == "universita di bologna"
    assert stated("Risposta: 1\nx\nrisposta :\n 2", "Risposta:") == ["1", "2"]
    assert stated("Risposta: 1", "") == []


def test_numbers_know_their_places():
    (first, second) = numbers("tra 1.000 e il 5 %", "it")
    assert (first.start, first.end, first.percent) == (4, 9, False)
    assert (second.value, second.percent, second.fraction()) == (5, True, Fraction(1, 20))


LONG = (
    '{"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"num_words": 3, "relation": "at least"}]}'
)


def judged(*rows, file=IT):
    return run(AnswerJudge("key", file), rows, None)


def test_each_response_of_a_row_is_held_against_its_key():
    (row,) = judged(scored(["Risposta: 12", "12", "Risposta: 13", "Risposta: 12 o 13"], reference="12"))
    assert row["scores"] == [[1.0, 0.5, 0.0, 0.0]]
    assert row["feedback"] == [["right", "right, not in the asked form", "wrong", "wrong"]]
    assert (row["judge"], row["replies"], row["verdict"]) == ("key", [], "")


def test_checks_and_answer_count_alike():
    (row,) = judged(
        scored(["Risposta: 12", "Ecco il totale. Risposta: 12", "Ecco il totale: 13"], reference="12", checks=LONG)
    )
    assert row["scores"] == [[0.5, 1.0, 0.5]]
    assert row["feedback"][0][0] == "right; failed: length_constraints:number_words"


@pytest.mark.parametrize(
    ("columns", "verdict"),
    [
        ({"reference": ""}, "filtered:no_reference"),
        ({"reference": "molti"}, "filtered:reference"),
        ({"reference": "12 e 15"}, "filtered:reference"),
        ({"reference": "12", "checks": "[]"}, "filtered:checks"),
        ({"reference": "12", "checks": LONG.replace("number_words", "number_apples")}, "filtered:checks"),
    ],
)
def test_a_row_without_a_usable_key_is_counted_under_its_reason(columns, verdict):
    good, bad = scored(["a", "b"], reference="12"), scored(["a", "b"], text="Quanto?", **columns)
    assert [row["verdict"] for row in judged(good, bad)] == ["", verdict]
    assert judged(good, bad)[1]["scores"] == []


def checks_of(name, **options):
    return json.dumps({"instruction_id_list": [name], "kwargs": [options]})


@pytest.mark.parametrize("kind", ["answer", "verifier"])
@pytest.mark.parametrize(
    ("checks", "response"),
    [
        (checks_of("keywords:existence", keywords=["(a|a|a)" * 24 + "b"]), "a" * 40 + " 12"),
        (checks_of("detectable_format:json_format"), "[" * 5000),
    ],
)
def test_a_rule_that_never_ends_or_falls_over_a_response_costs_its_row_and_no_other(kind, checks, response, tmp_path):
    judge = AnswerJudge("key", IT) if kind == "answer" else load("verifier", cache=tmp_path)
    fine = checks_of("detectable_format:json_format")
    rows = [
        scored(["Risposta: 12", "13"], reference="12", checks=fine),
        scored(["Risposta: 12", response], text="Quanto fa?", reference="12", checks=checks),
        scored(["Risposta: 13", "12"], text="How much is it?", reference="12", checks=fine),
    ]
    done = run(judge, rows, None)
    assert [row["verdict"] for row in done] == ["", "filtered:checks", ""]
    assert [len(row["scores"]) for row in done] == [1, 0, 1]


def test_a_set_without_keys_is_refused():
    rows = [scored(["a", "b"]), scored(["a", "b"], reference="molti")]
    with pytest.raises(InputError, match=r"judge key: none of 1 rows has a number as right answer .*is empty in all"):
        judged(rows[0])
    with pytest.raises(
        InputError, match=r"none of 2 rows .*the first says 'molti'.*name its column in reference_column"
    ):
        judged(*rows)


def test_keys_that_stand_in_their_prompt_are_counted(caplog):
    with caplog.at_level(logging.WARNING):
        judged(
            scored(["a", "b"], text="Ho 12 mele. Quante?", reference="12"),
            scored(["a", "b"], text="2 + 2?", reference="4"),
        )
        judged(scored(["a", "b"], text="Roma o Milano?", reference="Roma"), file=TEXT)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "1 of 2 right answers stand in their own prompt",
        "1 of 1 right answers stand in their own prompt",
    ]


def test_a_judge_by_key_is_a_file(tmp_path):
    path = tmp_path / "key.yaml"
    path.write_text("kind: answer\nlanguage: it\nmarker: 'Risposta:'\n")
    judge = load(str(path), cache=tmp_path)
    assert (judge.name, judge.model, judge.notes(), judge.tally().calls) == ("key", "", {}, 0)
    assert judge.explain(scored(["a", "b"], reference="12")) == "right: 12 (a number, after 'Risposta:')"
    path.write_text("kind: answer\nlanguage: de\n")
    with pytest.raises(InputError, match="language: Input should be 'it' or 'en'"):
        load(str(path), cache=tmp_path)
