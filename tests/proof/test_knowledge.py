"""knowledge.py: log-probabilities against forward passes by hand, and XCOPA in Italian."""

import json
import math

import pytest
import torch
from builders import real
from dpo import CPU, small_trainer, some_pairs

from nbutils import models
from nbutils.core.errors import InputError
from nbutils.files.sources import CHECKOUT
from nbutils.proof import knowledge
from nbutils.proof.knowledge import Choice, choose, compare, log_probabilities


def copa(premise, first, second, question="effect", label=0):
    return {"premise": premise, "choice1": first, "choice2": second, "question": question, "label": label}


ROWS = [
    copa("Il fiume scende.", "La sabbia resta.", "Porta foglie e piccole pietre verso il mare e la sabbia."),
    copa("The oven does the rest. ", "Bread needs time.", "The sea.", "cause", label=1),
    copa("Una buona risposta finisce.", "Ha detto tutto.", "Nomina il giardino, il treno e l'inverno.", "cause"),
]
TEXTS = [
    ("Il fiume scende quindi", (" la sabbia resta.", " porta foglie e piccole pietre verso il mare e la sabbia.")),
    ("The oven does the rest perché", (" bread needs time.", " the sea.")),
    ("Una buona risposta finisce perché", (" ha detto tutto.", " nomina il giardino, il treno e l'inverno.")),
]


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_qwen"])
def loaded(request):
    folder = str(request.getfixturevalue(request.param))
    return models.load_model(folder, CPU), models.load_tokenizer(folder)


@torch.no_grad()
def by_hand(model, tokenizer, context, continuation):
    """Token after token, each from a forward pass of its own."""
    ids, start = tokenizer(context + continuation)["input_ids"], len(tokenizer(context)["input_ids"])
    passes = [model(torch.tensor([ids[:i]])).logits[0, -1].log_softmax(-1)[ids[i]] for i in range(start, len(ids))]
    return float(sum(passes))


def test_the_log_probability_is_the_sum_over_the_continuations_tokens(loaded):
    asked = [(context, text) for context, texts in TEXTS for text in texts]
    expected = [by_hand(*loaded, *couple) for couple in asked]
    assert log_probabilities(*loaded, asked) == pytest.approx(expected, abs=1e-3)  # padded together


def test_premise_connector_and_choices_become_one_sentence(monkeypatch):
    asked = []
    monkeypatch.setattr(knowledge, "log_probabilities", lambda m, t, texts: asked.extend(texts) or [0.0] * len(texts))
    choose(torch.nn.Module(), None, ROWS[:2])
    choose(torch.nn.Module(), None, [copa("It rained.", "The ground got wet.", "We ran.")], language="en")
    wanted = [*TEXTS[:2], ("It rained therefore", (" the ground got wet.", " we ran."))]
    assert asked == [(context, text) for context, texts in wanted for text in texts]


def test_a_choice_is_the_likelier_one_by_the_sum_over_its_tokens_and_by_that_per_character(loaded):
    expected = []
    for (context, texts), row in zip(TEXTS, ROWS, strict=True):
        sums = [by_hand(*loaded, context, text) for text in texts]
        per_character = [s / (len(text) - 1) for s, text in zip(sums, texts, strict=True)]  # without the space
        expected.append(Choice(*((b > a) == row["label"] for a, b in (sums, per_character))))
    assert choose(*loaded, ROWS) == expected
    assert any(c.acc != c.acc_norm for c in expected)  # the two are told apart here


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_padding_and_batches_change_nothing(size, loaded):
    rows = [
        copa(*(f"{'mare ' * (7 * i % 5)}{text} {i}." for text in ("Il fiume", "Sale", "Il treno"))) for i in range(12)
    ]
    assert choose(*loaded, rows, batch_size=size) == choose(*loaded, rows)


def test_of_two_equal_choices_the_first_is_taken_and_the_mode_of_the_model_is_kept(loaded):
    model, tokenizer = loaded
    model.train()
    assert choose(model, tokenizer, [copa("Il mare.", "Sale.", "Sale.")]) == [Choice(True, True)]
    assert model.training
    model.eval()


def test_an_untrained_adapter_chooses_as_its_base(tiny_llama, tmp_path):
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(4))
    base = models.load_model(str(tiny_llama), CPU), models.load_tokenizer(str(tiny_llama))
    assert choose(trainer.model, base[1], ROWS) == choose(*base, ROWS)


def test_a_change_is_paired_by_row():
    right, wrong = Choice(True, True), Choice(False, False)
    change = compare([right] * 30 + [wrong] * 70, [right] * 50 + [wrong] * 50)["acc"]
    assert [change[k] for k in ("before", "after", "change")] == pytest.approx([0.3, 0.5, 0.2])
    # 20 of 100 rows changed: the mean's standard error is sqrt(0.2 * 0.8 / 100) = 0.04; unpaired it were 0.068
    assert (change["low"], change["high"]) == pytest.approx((0.2 - 1.96 * 0.04, 0.2 + 1.96 * 0.04), abs=0.011)
    assert compare([Choice(False, True)], [Choice(False, False)])["acc_norm"]["change"] == -1


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [({"question": "why"}, "question 'why'"), ({"label": 2}, "label 2"), ({"label": "1"}, "label '1'")],
)
def test_rows_of_another_kind_are_refused(changed, sentence, loaded):
    with pytest.raises(InputError, match=f"cause or effect and 0 or 1; one has .*{sentence}"):
        choose(*loaded, [ROWS[0] | changed])
    with pytest.raises(InputError, match="one has no premise"):
        choose(*loaded, [{"text": "a"}])
    with pytest.raises(InputError, match="one has no choice2"):
        choose(*loaded, [ROWS[0] | {"choice2": ""}])


def test_a_set_is_checked_when_it_is_read_and_an_empty_name_asks_nothing(tmp_path):
    path = tmp_path / "set.csv"
    path.write_text("premise,question,choice1,choice2,label\nIt rained.,effect,It got wet.,It got dry.,0\n")
    [row] = knowledge.read(str(path), "en", run_dir=tmp_path)
    assert row["label"] == 0  # a CSV knows only text
    with pytest.raises(InputError, match=r"in language 'xx' \(known: de, en, "):
        knowledge.read(str(path), "xx", run_dir=tmp_path)
    path.write_text("premise,question\nIt rained.,effect\n")
    with pytest.raises(InputError, match=r"1 of 1 rows cannot be asked; the first: .* one has no choice1"):
        knowledge.read(str(path), "en", run_dir=tmp_path)
    assert knowledge.read("", "xx", run_dir=tmp_path) == []
    assert knowledge.compare([], []) == {}
    assert knowledge.table({}).empty


def test_the_table_is_in_percent_and_points():
    shown = knowledge.table(compare([Choice(False, True)] * 4, [Choice(True, True)] * 4))
    assert shown.loc["acc"].tolist() == [0, 100, 100, 100, 100]


def test_the_demos_own_questions_are_balanced_and_can_be_read():
    rows = knowledge.read("params/english/choices.jsonl", "en", run_dir=CHECKOUT)
    assert len(rows) == len({row["premise"] for row in rows}) == 100
    counts = {(row["question"], row["label"]) for row in rows}
    assert {kind: sum((r["question"], r["label"]) == kind for r in rows) for kind in counts} == dict.fromkeys(
        [("cause", 0), ("cause", 1), ("effect", 0), ("effect", 1)], 25
    )


def test_real_xcopa_can_be_read(loaded):
    rows = real("preferences/xcopa_it_val_100.jsonl")
    chosen = choose(*loaded, rows)
    assert len(chosen) == 100
    swapped = [row | {"label": 1 - row["label"]} for row in rows]
    assert [c.acc for c in choose(*loaded, swapped)] == [not c.acc for c in chosen]


@pytest.mark.parametrize(
    "changed",
    [
        {"label": 2}, {"label": None}, {"label": "a"}, {"question": "why"}, {"question": None}, {"question": 3},
        {"premise": ""}, {"premise": None}, {"premise": 7}, {"choice1": "  "}, {"choice2": ["x"]}, {"choice1": None},
    ],
)  # fmt: skip
def test_a_malformed_question_is_left_out_and_said_and_most_are_an_error(changed, tmp_path, caplog):
    path = tmp_path / "set.jsonl"
    good = {"premise": "Ha piovuto.", "question": "effect", "choice1": "È bagnato.", "choice2": "È secco.", "label": 1}
    rows = [good, good | changed, good | {"label": "0"}, good | {"label": 1.0}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["label"] for row in knowledge.read(str(path), "it", run_dir=tmp_path)] == [1, 0, 1]
    assert "1 of 4 rows are left out" in caplog.text
    path.write_text("".join(json.dumps(row) + "\n" for row in [good, good | changed, good | changed]))
    with pytest.raises(InputError, match="2 of 3 rows cannot be asked"):
        knowledge.read(str(path), "it", run_dir=tmp_path)


def test_a_model_that_overflows_knows_nothing(loaded, monkeypatch):
    monkeypatch.setattr(knowledge, "log_probabilities", lambda model, tokenizer, texts: [math.nan] * len(texts))
    assert choose(*loaded, [ROWS[0] | {"label": label} for label in (0, 1)]) == [Choice(False, False)] * 2
