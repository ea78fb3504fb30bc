"""The Italian word problems: made anew they are the same, their keys are right, and no split leaks into another."""

import importlib.util
import json
import random
import sys
from fractions import Fraction

import pytest

from nbutils.core.prompts import from_rows, select
from nbutils.files.sources import CHECKOUT, read
from nbutils.judges.answer import grade
from nbutils.judges.files import AnswerFile, read_file
from nbutils.judges.verifier import check, faults_of, parse_checks

FOLDER = CHECKOUT / "params/italian"
SPLITS = ("train", "off_policy", "dev", "test")


def rows(split):
    return read(str(FOLDER / f"{split}.jsonl"))


@pytest.fixture(scope="module")
def program():
    """Return the programs of the folder, which import one another by their bare names."""
    sys.path.insert(0, str(FOLDER))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    sys.path.remove(str(FOLDER))
    sys.modules.pop("families", None)


def test_the_files_are_what_the_program_makes(program, tmp_path, monkeypatch, capsys):
    make = program("make")
    monkeypatch.setattr(make, "HERE", tmp_path)
    make.main()
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (FOLDER / f"{split}.jsonl").read_bytes()
    assert "test 252 problems" in capsys.readouterr().out


def test_the_instructions_are_what_their_program_makes_and_can_be_judged(program, tmp_path, monkeypatch):
    made = program("instructions")
    monkeypatch.setattr(made, "HERE", tmp_path)
    made.main()
    topics = {}
    for split in ("dev", "test"):
        name = f"instructions_{split}.jsonl"
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
        kept = from_rows(read(str(FOLDER / name)), "prompt")
        assert [faults_of(row["checks"], "it") for row in kept] == [()] * 100
        topics[split] = {row["category"] for row in kept}
    assert [len(names) for names in topics.values()] == [25, 25]
    assert not topics["dev"] & topics["test"]


GOOD = "Il {word} di ogni giorno è un dono e il {word} resta sempre con noi lungo la strada di casa"


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        ("punctuation:no_comma", GOOD, GOOD + ", forse"),
        ("detectable_format:number_bullet_lists", f"* {GOOD}\n* altro", f"* {GOOD}"),
        ("detectable_format:title", f"<<Titolo>>\n{GOOD}", GOOD),
        ("detectable_format:number_highlighted_sections", f"*Ecco* {GOOD}", GOOD),
        ("detectable_content:postscript", f"{GOOD}\nP.S. a domani", GOOD),
        ("detectable_content:number_placeholders", f"{GOOD} [nome]", GOOD),
        ("keywords:existence", f"{GOOD} mattina amico piccolo sempre mano", "parola " * 20),
        ("keywords:forbidden_words", GOOD, GOOD + " molto"),
        ("keywords:frequency", GOOD, GOOD.replace("{word}", "cosa", 1)),
        ("startend:quotation", f'"{GOOD}"', GOOD),
    ],
)
def test_a_good_answer_passes_its_checks_and_one_that_misses_the_form_does_not(rule, right, wrong):
    asked = [row for split in ("dev", "test") for row in from_rows(rows(f"instructions_{split}"), "prompt")]
    asked = [row for row in asked if parse_checks(row["checks"])[0][0] == rule]
    assert len(asked) == 20
    for row in asked:
        for text, passed in ((right, [True, True]), (wrong, [False, True])):
            assert [
                ok for _, ok in check(row["checks"], text.replace("{word}", row["category"].partition(":")[0]))
            ] == passed
        assert not check(row["checks"], "No.")[1][1]


def test_a_program_of_its_own_finds_every_key(program, capsys):
    assert program("solve").main() == 0
    assert capsys.readouterr().out.count("keys confirmed") == 4


def test_a_wrong_key_is_found(program, tmp_path, monkeypatch, capsys):
    solve = program("solve")
    for split in SPLITS:
        wrong = [row | {"reference": row["reference"] + "1"} for row in rows(split)[:3]]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wrong))
    monkeypatch.setattr(solve, "__file__", str(tmp_path / "solve.py"))
    assert solve.main() == 1
    assert "test: 0 of 3 keys confirmed" in capsys.readouterr().out


def test_splits_have_the_promised_sizes_and_families_of_their_own():
    families = {split: {row["category"] for row in rows(split)} for split in SPLITS}
    assert {split: len(rows(split)) for split in SPLITS} == {"train": 720, "off_policy": 792, "dev": 126, "test": 252}
    assert {split: len(names) for split, names in families.items()} == {
        "train": 36,
        "off_policy": 36,
        "dev": 9,
        "test": 18,
    }
    assert not families["test"] & (families["train"] | families["dev"])
    assert not families["dev"] & families["train"]


def test_the_kits_own_rules_leave_all_problems_standing():
    prompts = {split: from_rows(rows(split), "prompt", "reference") for split in SPLITS}
    held_out = prompts["dev"] + prompts["test"]
    for split in ("train", "off_policy"):
        kept, dropped = select(prompts[split], min_chars=20, max_chars=4000, exclude=held_out)
        assert (len(kept), dropped) == (len(prompts[split]), {})


@pytest.mark.parametrize("split", SPLITS)
def test_every_key_is_read_and_only_it_is_right(split):
    _, file = read_file(str(FOLDER / "judge.yaml"))
    assert isinstance(file, AnswerFile)
    keys = [row["reference"] for row in rows(split)]
    for key, other in zip(keys, random.Random(0).sample(keys, len(keys)), strict=True):
        assert grade(f"2 + 2 = {key} euro.", key, file) == 1
        assert (grade(f"{key} + 0 = {other}", key, file) == 1) == (other == key)


def test_a_second_reader_agrees_with_the_judge_on_every_answer_of_two_models(program):
    _, file = read_file(str(FOLDER / "judge.yaml"))
    result = program("reread").result
    answers = [(row["reference"], row[side]) for row in rows("pairs") for side in ("chosen", "rejected")]
    assert len(answers) == 1584
    right = [grade(text, key, file) == 1 for key, text in answers]
    assert [result(text) == Fraction(key.replace(",", ".")) for key, text in answers] == right
    assert 0.2 < sum(right) / len(right) < 0.8


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12 + 4 = 16 mele", 16),
        ("1.250,5 euro", Fraction("1250.5")),
        ("Sono 2.5", Fraction(5, 2)),
        ("non 12 ma 15", 15),
        ("15, non 12", 15),
        ("Ne ha quindici.", 15),
        ("12 o 15", None),
        ("3 x 5", None),
        ("35 = 70 / 2", 35),
        ("1 + 40 / 5", None),
        ("Fa 7.\n2. Fine.", 7),
        ("5 - 7 = -2", -2),
        ("una mela e 3 pere", 3),
        ("CO2", None),
        ("nessun numero", None),
    ],
)
def test_the_second_reader_by_hand(program, text, number):
    assert program("reread").result(text) == number


@pytest.mark.parametrize(
    ("text", "key", "right", "cause"),
    [
        ("8 coni × 4 palline = 32 palline", "32", True, 0),
        ("10 euro - 5,50 euro = 4,50 euro", "4,5", True, 0),
        ("40/8 = 5", "5", True, 0),
        ("3 + 4 * 5 = 23", "23", True, 0),
        ("9 + 4 = 36", "36", True, 1),
        ("Sono 36.", "36", True, 2),
        ("114 euro / 6 amici = 21 euro", "19", False, 3),
        ("46 - 7 + 16 = 53", "55", False, 3),
        ("5 * 75 = 375 euro", "15", False, 4),
        ("7 / 0 = 0", "15", False, 5),
        ("Non lo so.", "15", False, 5),
    ],
)
def test_why_an_answer_is_right_or_wrong_is_told_by_its_sum(program, text, key, right, cause):
    causes = program("causes")
    assert causes.cause(text, key, right, cut=False) == causes.CAUSES[cause]


def test_an_answer_without_a_sum_may_have_been_cut_off(program):
    causes = program("causes")
    assert causes.cause("Allora dobbiamo", "3", right=False, cut=True) == "wrong, cut off"


def test_the_answers_of_the_two_models_are_to_the_off_policy_problems():
    asked = [row["prompt"] for row in rows("off_policy")]
    assert [row["prompt"] for row in rows("pairs")] == asked
    assert {row["chosen_model"] for row in rows("pairs")} == {"Qwen2.5-Coder-1.5B-Instruct"}
    assert {row["rejected_model"] for row in rows("pairs")} == {"Qwen2.5-Coder-0.5B-Instruct"}
