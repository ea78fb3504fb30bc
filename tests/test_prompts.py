import itertools

import pytest
from builders import prompt_row, real
from hypothesis import given, settings
from hypothesis import strategies as st

from nbutils.errors import InputError
from nbutils.prompts import Near, from_rows, select
from nbutils.prompts import given as given_to_model

LONG = "Write a short story about a lighthouse keeper who finds a letter in a bottle on the beach"
WIDE = {"min_chars": 1, "max_chars": 1000}


def test_rows_become_prompts_with_an_id_of_the_source_messages():
    (row,) = from_rows([{"question": "Ciao?", "category": "chat", "other": 1}], "question")
    assert row == prompt_row("Ciao?", category="chat")


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"id": "q7", "text": " "}, "row q7, column 'text': the text is empty"),
        ({"text": None}, "row 0, column 'text': expected text or a list of messages"),
        ({"id": "q7", "query": "x"}, "row q7 has no column 'text'; it has 'id', 'query'"),
    ],
)
def test_a_faulty_prompt_is_named_by_row_and_column(row, fault):
    with pytest.raises(InputError, match=fault):
        from_rows([row], "text")


def test_every_dropped_prompt_is_counted_under_its_reason():
    rows = [prompt_row(t) for t in ("Hi", "x" * 50, LONG, LONG + "!", "What is a fjord?", "Who wrote Emma?")]
    kept, dropped = select(rows, min_chars=3, max_chars=1000, exclude=[prompt_row("What is a fjord ?")])
    assert [row["prompt"][0]["content"] for row in kept] == ["x" * 50, LONG, "Who wrote Emma?"]
    assert dropped == {"too short": 1, "duplicate": 1, "in exclude": 1}


def test_a_larger_max_prompts_adds_prompts_to_the_same_ones():
    rows = [prompt_row(t) for t in ("What is a fjord?", "Who wrote Emma?", "Where is Bari?", "Why do cats purr?")]
    kept, dropped = zip(*(select(rows, max_prompts=n, seed=1, **WIDE) for n in (1, 2, 3, 4)), strict=True)
    assert [dropped_of.get("over max_prompts", 0) for dropped_of in dropped] == [3, 2, 1, 0]
    assert all(fewer == more[: len(fewer)] for fewer, more in itertools.pairwise(kept))
    assert kept != tuple(select(rows, max_prompts=n, seed=2, **WIDE)[0] for n in (1, 2, 3, 4))


def test_a_prompt_over_the_window_is_dropped():
    assert select([prompt_row("abc"), prompt_row("abcd")], min_chars=1, max_chars=3)[1] == {"too long": 1}


def test_nothing_left_says_why():
    with pytest.raises(InputError, match=r"no prompt is left of 1: \{'too short': 1\}"):
        select([prompt_row("Hi")], min_chars=3, max_chars=9)


@settings(max_examples=25)
@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=12))
def test_selected_and_dropped_add_up_and_order_is_kept(texts):
    rows = [prompt_row(text) for text in texts]
    kept, dropped = select(rows, **WIDE)
    assert len(kept) + sum(dropped.values()) == len(rows)
    first_of_each = {row["prompt_id"]: row for row in rows}.values()
    assert kept == [row for row in first_of_each if row in kept]
    assert len({row["prompt_id"] for row in kept}) == len(kept)


def test_a_system_prompt_does_not_hide_a_duplicate():
    row = prompt_row(LONG)
    assert Near([given_to_model(row, system_prompt="Be brief.", suffix="")]).holds(row | {"prompt_id": "other"})


def test_the_model_is_given_system_prompt_and_suffix_under_the_sources_id():
    row = prompt_row("Ciao?")
    result = given_to_model(row, system_prompt="Rispondi in italiano.", suffix="\nSii breve.")
    assert result["prompt"] == [
        {"role": "system", "content": "Rispondi in italiano."},
        {"role": "user", "content": "Ciao?\nSii breve."},
    ]
    assert result["prompt_id"] == row["prompt_id"]
    assert row == prompt_row("Ciao?"), "the source row stays what it was"
    assert given_to_model(row, system_prompt="", suffix="") == row


def test_real_italian_questions_are_kept_and_their_copies_found():
    rows = from_rows(real("prompts/multiq_it_200.jsonl"), "prompt")
    kept, _ = select(rows, **WIDE)
    assert len(kept) >= 195
    shouted = [prompt_row(row["prompt"][0]["content"].upper() + "  ") for row in kept]
    with pytest.raises(InputError, match=f"'in exclude': {len(kept)}"):
        select(shouted, exclude=kept, **WIDE)
