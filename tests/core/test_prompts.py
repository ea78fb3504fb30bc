import itertools
import json
import logging
import math
from collections import Counter

import pytest
from builders import prompt_row, real
from hypothesis import given, settings
from hypothesis import strategies as st

from nbutils.core.errors import InputError
from nbutils.core.prompts import Near, Runs, from_rows, select
from nbutils.core.prompts import given as given_to_model
from nbutils.files.sources import CHECKOUT
from nbutils.judges.verifier import faults_of

LONG = "Write a short story about a lighthouse keeper who finds a letter in a bottle on the beach"
WIDE = {"min_chars": 1, "max_chars": 1000}
DIFFERENT = ("What is a fjord?", "Who wrote Emma?", "Where is Bari?", "Why do cats purr?", "Name a dwarf.", "Is 7 odd?")

# Read side by side: question i of vicuna_it_80 -> the same question in another translation, a row of
# vicuna_it_100_other. Rows 80 to 99 of the latter are other questions.
TRANSLATED = {i: i for i in range(60)} | {i: i + 10 for i in range(60, 70)} | {i: i - 10 for i in range(70, 80)}

PASSAGE = "the keeper of the lighthouse found a letter in a green bottle on monday"  # 14 words
FILES = {
    "vicuna_it_80": "text",
    "vicuna_it_100_other": "query",
    "multiq_it_200": "prompt",
    "ifeval_it_541": "prompt",
    "ifeval_en_541": "prompt",
}


def test_rows_become_prompts_with_an_id_of_the_source_messages():
    (row,) = from_rows([{"question": "Ciao?", "category": "chat", "other": 1}], "question")
    assert row == prompt_row("Ciao?", category="chat")


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"id": "q7", "text": " "}, "row q7, column 'text': the text is empty"),
        ({"text": None}, "row 0, column 'text': expected text or a list of messages"),
        ({"text": 7}, "row 0, column 'text': expected text or a list of messages, got int 7"),
        ({"text": float("nan")}, "row 0, column 'text': expected text or a list of messages, got float nan"),
        ({"id": "q7", "text": True}, "row q7, column 'text': expected text or a list of messages, got bool True"),
        ({"text": []}, "row 0, column 'text': expected text or a list of messages"),
        ({"text": ["Ciao?"]}, "row 0, column 'text': expected text or a list of messages"),
        ({"id": "q7", "query": "x"}, "row q7 has no column 'text'; it has 'id', 'query'"),
    ],
)
def test_a_faulty_prompt_is_named_by_row_and_column(row, fault):
    with pytest.raises(InputError, match=fault):
        from_rows([row], "text")


@pytest.mark.parametrize("value", [None, 7, 1.5, False, "", " ", [], {}, {"a": 1}, ["Ciao?"], math.nan, "absent", 3.0])
def test_a_row_without_a_prompt_is_left_out_and_counted_and_the_others_stay(value, caplog):
    odd = {} if value == "absent" else {"text": value}
    rows = from_rows([{"text": "Ciao?"}, {"text": "Chi sei?"}, odd, "no row"][: 3 + (value is None)], "text")
    assert [row["prompt"][0]["content"] for row in rows] == ["Ciao?", "Chi sei?"]
    assert " rows cannot be used and are left out; the first: row 2" in caplog.text


def test_most_rows_without_a_prompt_stop_the_run_and_the_first_is_named():
    rows = [{"text": "Ciao?"}, {"id": "q7", "text": None}, {"text": 7}]
    with pytest.raises(InputError, match=r"2 of 3 rows cannot be used; the first: row q7, column 'text': expected"):
        from_rows(rows, "text")


def test_a_column_of_texts_and_of_messages_is_read_and_said(caplog):
    rows = from_rows([{"text": "Ciao?"}, {"text": [{"role": "user", "content": "Ciao?"}]}], "text")
    assert rows == [prompt_row("Ciao?")] * 2
    assert "column 'text' holds 1 texts and 1 lists" in caplog.text


def test_every_dropped_prompt_is_counted_under_its_reason():
    texts = ("Hi", "x" * 50, LONG, LONG, LONG + "!", "y" * 101, "What is a fjord?", "Who wrote Emma?", "Why? " * 9)
    kept, dropped = select(
        [prompt_row(text) for text in texts],
        min_chars=3,
        max_chars=100,
        fits=lambda row: "Why?" not in row["prompt"][-1]["content"],
        exclude=[prompt_row("What is a fjord ?")],
    )
    assert [row["prompt"][0]["content"] for row in kept] == ["x" * 50, LONG, "Who wrote Emma?"]
    assert dropped == {
        "too short": 1, "duplicate": 1, "near-duplicate": 1, "too long": 1, "in exclude": 1, "over context": 1,
    }  # fmt: skip


def test_only_prompts_that_pass_everything_else_are_rendered():
    asked = []
    texts = ["Hi", "What is a fjord?", "Who wrote Emma?", "Who wrote Emma?", "Where is Bari?", "Why do cats purr?"]

    def fits(row):
        asked.append(row["prompt"][0]["content"])
        return row["prompt"][0]["content"] != "Where is Bari?"

    rows = [prompt_row(text) for text in texts]
    kept, dropped = select(rows, min_chars=3, max_chars=100, exclude=[prompt_row("What is a fjord?")], fits=fits)
    assert asked == ["Who wrote Emma?", "Where is Bari?", "Why do cats purr?"]
    assert [row["prompt"][0]["content"] for row in kept] == ["Who wrote Emma?", "Why do cats purr?"]
    assert dropped["over context"] == 1


def test_prompts_over_the_context_do_not_count_towards_max_prompts():
    rows = [prompt_row(text) for text in DIFFERENT]
    kept, dropped = select(rows, max_prompts=3, fits=lambda row: row not in rows[:3], **WIDE)
    assert len(kept) == 3
    assert not [row for row in kept if row in rows[:3]]
    assert dropped.get("over context", 0) + dropped.get("over max_prompts", 0) == 3


def test_what_resembles_a_prompt_over_the_context_is_still_sampled():
    rows = [prompt_row(LONG + "!"), prompt_row(LONG)]
    assert select(rows, fits=lambda row: row != rows[0], **WIDE) == ([rows[1]], {"over context": 1})


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


def in_categories(**sizes):
    """Prompts no two of which are alike, `sizes` of each category."""
    words = itertools.permutations(("river", "candle", "market", "guitar", "winter"))
    return [prompt_row(" ".join(next(words)), category=name) for name, size in sizes.items() for _ in range(size)]


def chosen_of(rows, max_prompts, seed=0):
    kept, _ = select(rows, max_prompts=max_prompts, seed=seed, **WIDE)
    return Counter(row["category"] for row in kept)


@pytest.fixture
def apart(monkeypatch):
    """The prompts of `in_categories` resemble each other; here that does not matter."""
    monkeypatch.setattr("nbutils.core.prompts.Near.holds", lambda self, row: row["prompt_id"] in self._ids)


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize(
    ("max_prompts", "chosen"),
    [
        (9, {"math": 3, "chess": 3, "food": 3}),
        (12, {"math": 4, "chess": 4, "food": 4}),
        (20, {"math": 8, "chess": 4, "food": 8}),
        (50, {"math": 20, "chess": 4, "food": 10}),
    ],
)
def test_every_category_gives_its_share_and_the_others_fill_up(max_prompts, chosen):
    assert chosen_of(in_categories(math=20, chess=4, food=10), max_prompts) == chosen


@pytest.mark.usefixtures("apart")
def test_a_prompt_that_is_dropped_costs_its_category_no_turn():
    rows = in_categories(math=6, chess=6)
    kept, _ = select(rows, max_prompts=6, fits=lambda row: row not in rows[:3], **WIDE)
    assert Counter(row["category"] for row in kept) == {"math": 3, "chess": 3}


@pytest.mark.usefixtures("apart")
def test_categories_under_their_share_are_named_in_one_warning(caplog):
    rows = in_categories(math=20, chess=1) + [prompt_row("Ciao?"), prompt_row("Chi?", category="food")] * 2
    select(rows, max_prompts=16, **WIDE)
    (said,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    end = "of 4 categories hold fewer prompts than an equal share of 4, and give all they have: "
    assert said.startswith(f"3 {end}")
    assert set(said.removeprefix(f"3 {end}").split(", ")) == {"chess (1)", "no category (1)", "food (1)"}


@pytest.mark.usefixtures("apart")
def test_many_small_categories_are_named_in_short(caplog):
    select(in_categories(math=60, **{f"c{i}": 1 for i in range(20)}), max_prompts=42, **WIDE)
    (said,) = caplog.messages
    assert "20 of 21 categories" in said
    assert said.endswith(" (1) and 12 more")
    assert said.count("(1)") == 8


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize(("sizes", "max_prompts"), [({"math": 3}, 9), ({"a": 5, "b": 4}, 8), ({"a": 5, "b": 1}, 0)])
def test_enough_prompts_or_one_category_give_no_warning(sizes, max_prompts, caplog):
    select(in_categories(**sizes), max_prompts=max_prompts, **WIDE)
    assert not caplog.records


def test_one_category_changes_nothing_about_the_choice():
    # the choice as it was before there were categories
    order = tuple(DIFFERENT[i] for i in (1, 4, 0, 5, 3, 2))
    for category in ("", "any"):
        rows = [prompt_row(text, category=category) for text in DIFFERENT]
        for n in range(1, 7):
            kept, _ = select(rows, max_prompts=n, seed=1, **WIDE)
            assert tuple(row["prompt"][0]["content"] for row in kept) == order[:n]


@pytest.mark.usefixtures("apart")
@settings(max_examples=40)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 12), min_size=1), st.integers(1, 30), st.integers(0, 9)
)
def test_categories_differ_by_one_at_most_unless_they_are_used_up(sizes, n, seed):
    rows = in_categories(**sizes)
    kept, dropped = select(rows, max_prompts=n, seed=seed, **WIDE)
    counts = Counter(row["category"] for row in kept)
    assert len(kept) == min(n, len(rows))
    assert len(kept) + sum(dropped.values()) == len(rows)
    assert all(counts[c] == sizes[c] or counts[c] >= max(counts.values()) - 1 for c in sizes)
    more, _ = select(rows, max_prompts=n + 1, seed=seed, **WIDE)
    assert more[: len(kept)] == kept


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


def filler(n):
    """Other prompts that make a set large enough to tell what is frequent in it."""
    return [prompt_row(f"Topic {i}") for i in range(n)]


def test_a_prompt_that_shares_thirteen_words_with_a_held_out_one_is_in_exclude():
    held_out = [prompt_row(f"Translate into French, please, and tell me why you did so: {PASSAGE.upper()}!")]
    words = PASSAGE.split()
    question = "How many birds of how many kinds would you count there if you looked out of a window today?"
    shared = [prompt_row(f"{' '.join(words[i : i + 13])} - {question}") for i in (0, 1)]
    apart = [prompt_row(f"{question} {' '.join(words[:12])}."), prompt_row(f"Once upon a time {' '.join(words[:12])}.")]
    assert not any(map(Near(held_out).holds, shared + apart))
    kept, dropped = select([shared[0], *apart], exclude=held_out, **WIDE)
    assert (kept, dropped) == (apart, {"in exclude": 1})
    # two prompts about one held-out passage are no stock phrase
    kept, dropped = select([*shared, *apart], exclude=held_out, **WIDE)
    assert (kept, dropped) == (apart, {"in exclude": 2})


def test_a_wording_that_many_tasks_share_is_no_overlap():
    stock = "Explain your answer step by step so that a reader can follow how you got there."
    rows = [prompt_row(f"{text} {stock}") for text in DIFFERENT]
    held_out = [prompt_row(f"How many leaves has an oak? {stock}")]
    assert not any(map(Runs(held_out, among=rows + filler(100)).holds, rows))
    # asked by two prompts alone it is not frequent, nor is anything in a set of a few
    assert Runs(held_out, among=[rows[0], *filler(100)]).holds(rows[0])
    assert all(map(Runs(held_out, among=rows).holds, rows))


def test_copies_of_a_prompt_make_nothing_frequent():
    row, held_out = prompt_row(f"Who, what and why? {PASSAGE}"), prompt_row(f"Sing it to me. {PASSAGE}")
    assert Runs([held_out], among=[row] * 200 + filler(100)).holds(row)


def test_a_stock_phrase_does_not_hide_a_passage():
    stock = "Explain your answer step by step so that a reader can follow how you got there."
    rows = [prompt_row(f"{text} {stock}") for text in DIFFERENT] + filler(100)
    row = prompt_row(f"Who wrote this? {PASSAGE} {stock}")
    assert Runs([prompt_row(f"{PASSAGE} {stock}")], among=[*rows, row]).holds(row)


@given(st.text(), st.text(), st.text(st.sampled_from("abcdefgh \n,"), max_size=300))
def test_sharing_thirteen_words_is_symmetric(before, after, text):
    rows = [prompt_row(f"x {text} y"), prompt_row(f"{before} {text} z {after}")]
    shares = [Runs([a], among=[b]).holds(b) for a, b in (rows, rows[::-1])]
    assert shares[0] == shares[1]
    assert shares[0] or len(text.replace(",", " ").split()) < 13


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


def found_by(held_out, rows):
    """Return the indices of the rows that a set of held-out prompts holds."""
    return [i for i, row in enumerate(rows) if held_out.holds(row)]


def test_two_translations_of_one_question_are_found_where_they_are_worded_alike():
    ours, others = (from_rows(real(f"prompts/{name}.jsonl"), FILES[name]) for name in list(FILES)[:2])
    true = set(TRANSLATED.items())
    near = {(i, j) for j, row in enumerate(others) for i in found_by(Near([row]), ours)}
    runs = {(i, j) for j, row in enumerate(others) for i in found_by(Runs([row], among=ours + others), ours)}
    # 80 pairs; most are worded so differently that nothing on the surface tells them (median Jaccard 0.48)
    assert near <= true
    assert runs <= true, "13 words of the frame of the estimates, 'Cerca di spiegare...', are no overlap"
    assert (len(near), len(runs), len(near | runs)) >= (12, 8, 18)
    kept, dropped = select(others, exclude=ours, **WIDE)
    assert dropped == {"in exclude": 18}
    assert kept[-20:] == others[80:], "questions that the first file does not hold"


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        # read: "the second planet from the sun" is dropped for "the fifth", and black paint for white
        ("multiq_it_200", [69, 185]),
        # read: other questions in a frame of the same words; at a Jaccard similarity of 0.53 to 0.60 a false alarm each
        ("vicuna_it_80", [49]),
        ("ifeval_it_541", [284]),
        ("ifeval_en_541", [330]),
        ("vicuna_it_100_other", []),
    ],
)
def test_few_real_prompts_are_taken_for_near_duplicates(name, dropped):
    rows = from_rows(real(f"prompts/{name}.jsonl"), FILES[name])
    kept, counts = select(rows, min_chars=1, max_chars=10_000)
    assert [i for i, row in enumerate(rows) if row not in kept] == dropped
    assert counts.get("near-duplicate", 0) == len(dropped)
    assert "duplicate" not in counts


@pytest.mark.parametrize("name", ["ifeval_it_541", "ifeval_en_541"])
def test_instructions_that_real_prompts_share_are_no_overlap(name):
    rows = from_rows(real(f"prompts/{name}.jsonl"), FILES[name])
    for one, other in ((rows[::2], rows[1::2]), (rows[1::2], rows[::2])):
        # of the 18 to 25 that share 13 words; "wrap the output in JSON, you can use markdown ticks such as ```"
        assert len(found_by(Runs(other, among=one), one)) <= 2


def test_the_demos_prompts_share_their_wordings_with_the_held_out_ones_but_none_is_dropped_for_it():
    rows, heldout, unseen = (
        from_rows(map(json.loads, (CHECKOUT / f"params/english/{name}.jsonl").read_text().splitlines()), "prompt")
        for name in ("prompts", "heldout", "unseen")
    )
    kept, dropped = select(rows, min_chars=20, max_chars=2000, exclude=heldout + unseen)
    assert dropped == {"near-duplicate": 1}
    assert kept == rows[:135] + rows[136:]


@pytest.mark.parametrize(
    "error", [ValueError("System role not supported"), KeyError("x"), TypeError(), ZeroDivisionError()]
)
def test_a_prompt_that_the_chat_template_refuses_is_dropped_and_counted_alone(error, caplog):
    def fits(row):
        if row is rows[1]:
            raise error
        return True

    texts = ("Which rivers cross the Po valley?", "Spiega come si fa il pane.", "Compare two kinds of engines.")
    rows = [prompt_row(text) for text in texts]
    assert select(rows, fits=fits, **WIDE) == ([rows[0], rows[2]], {"refused by the chat template": 1})
    assert "a prompt is refused by the chat template: " in caplog.text
    with pytest.raises(InputError, match="those refused by the chat template need another one, or no system_prompt"):
        select(rows[1:2], fits=fits, **WIDE)


TITLE = {"instruction_id_list": ["detectable_format:title"], "kwargs": [{}]}


@pytest.mark.parametrize(
    ("columns", "checks"),
    [
        (TITLE, TITLE),
        (TITLE | {"kwargs": [{"n": 3, "word": None}]}, TITLE | {"kwargs": [{"n": 3}]}),
        ({"instruction_id_list": ["a:b"], "kwargs": [None]}, {"instruction_id_list": ["a:b"], "kwargs": [{}]}),
        (TITLE | {"checks": '{"own": 1}'}, {"own": 1}),
        (TITLE | {"checks": None}, TITLE),
        (TITLE | {"checks": ""}, TITLE),
        ({"kwargs": [{}]}, None),
        ({"instruction_id_list": "a:b", "kwargs": [{}]}, None),
        ({"instruction_id_list": ["a:b"], "kwargs": ["x"]}, {"instruction_id_list": ["a:b"], "kwargs": ["x"]}),
    ],
)  # fmt: skip
def test_checks_are_read_as_the_ifeval_datasets_have_them(columns, checks):
    (row,) = from_rows([{"prompt": LONG} | columns], "prompt")
    assert (json.loads(row["checks"]) if row["checks"] else None) == checks


def test_the_italian_ifeval_prompts_can_be_judged_as_they_are():
    rows = from_rows(real("prompts/ifeval_it_541.jsonl"), "prompt")
    judged = [row for row in rows if not faults_of(row["checks"], "it")]
    assert (len(rows), len(judged)) == (541, 404)  # the others have a rule that is right for English only
