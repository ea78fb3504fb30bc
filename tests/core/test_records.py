import math

import pytest
from builders import prompt_row, scored
from datasets import Dataset
from hypothesis import example, given
from hypothesis import strategies as st

from nbutils.core.errors import InputError
from nbutils.core.records import JUDGED, PAIRS, PROMPTS, check, dataset, pair_id, prompt_id
from nbutils.core.turns import messages

any_text = st.text(st.characters())  # lone surrogates included


def test_ids_do_not_change_between_versions():
    prompt = messages("Name three rivers of Italy.")
    assert prompt_id(prompt) == "49a272847b12c436"
    assert pair_id(prompt, "Po", "Rhine") == "7a3a17d37ecfeb23"


@given(any_text.filter(str.strip), any_text, any_text)
@example("a \ud83d b", "\udc00", "😀")
def test_a_pairs_id_is_stable_and_tells_the_sides_apart(text, chosen, rejected):
    prompt = messages(text)
    assert pair_id(prompt, chosen, rejected) == pair_id(messages(prompt), chosen, rejected)
    assert (pair_id(prompt, chosen, rejected) == pair_id(prompt, rejected, chosen)) == (chosen == rejected)


def test_an_empty_dataset_keeps_its_columns():
    assert dataset([], PAIRS).column_names == list(PAIRS)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"checks": None}, r"row abc: column 'checks' should be text, got NoneType None"),
        ({"checks": {"kwargs": []}}, r"row abc: column 'checks' should be text, got dict"),
        ({"prompt": "Ciao"}, r"row abc: column 'prompt' should be a list of \{role, content\}, got str 'Ciao'"),
        ({"prompt": [{"role": "user"}]}, r"row abc: column 'prompt'"),
        ({"surplus": 1}, r"row abc: column 'surplus' is not in the schema"),
    ],
)
def test_a_schema_fault_names_row_and_column(change, fault):
    with pytest.raises(InputError, match=fault):
        dataset([prompt_row(), prompt_row(prompt_id="abc") | change], PROMPTS)


def test_a_missing_column_is_named():
    row = prompt_row(prompt_id="abc")
    del row["category"]
    with pytest.raises(InputError, match="row abc: column 'category' is missing"):
        check(row, PROMPTS)


REPLY = {"order": 1, "attempt": 2, "text": "[[A>B]]", "outcome": "parsed", "shortened": 0} | {
    "prompt_tokens": 120,
    "completion_tokens": 9,
}


def test_every_reply_of_a_judge_and_a_persons_choice_reach_the_file(tmp_path):
    row = scored(["A", "B"], [[1.0, math.nan]], replies=[REPLY], feedback=[["good", ""]], label="first")
    dataset([row | {"chosen": 0, "rejected": 1}], JUDGED).to_parquet(tmp_path / "rows.parquet")
    (read,) = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path))
    assert (read["replies"], read["label"], read["feedback"]) == ([REPLY], "first", [["good", ""]])
    assert read["scores"][0][0] == 1
    assert math.isnan(read["scores"][0][1])


@pytest.mark.parametrize(
    "change",
    [
        {"replies": [REPLY | {"parsed": True}]},
        {"replies": [{k: v for k, v in REPLY.items() if k != "outcome"}]},
        {"replies": [REPLY | {"prompt_tokens": None}]},
        {"replies": [REPLY | {"prompt_tokens": 1.5}]},
        {"replies": ["[[A>B]]"]},
        {"label": 1},
        {"label": None},
    ],
)
def test_a_faulty_reply_or_choice_is_named(change):
    row = scored(["A", "B"], prompt_id="abc", label="first", chosen=-1, rejected=-1)
    check(row, JUDGED)
    with pytest.raises(InputError, match=f"row abc: column '{next(iter(change))}' should be "):
        check(row | change, JUDGED)


def test_a_pair_is_named_by_its_own_id():
    with pytest.raises(InputError, match="row p1: "):
        check({"id": "p1", "prompt_id": "x"}, PAIRS)


@given(any_text)
@example("perché 😀 \U0001f600")
@example("half an emoji \ud83d")
@example("two halves \ud83d\ude00")
def test_text_of_every_kind_reaches_the_file(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("text") / "rows.parquet"
    dataset([prompt_row(category=text)], PROMPTS).to_parquet(path)
    read = type(dataset([], PROMPTS)).from_parquet(str(path), cache_dir=str(path.parent))[0]["category"]
    # what UTF-8 cannot hold is replaced, all the rest is untouched
    assert read == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def test_a_file_from_before_a_column_was_there_is_read():
    old = {"prompt_id": "a", "prompt": [{"role": "user", "content": "Ciao"}], "checks": "", "category": ""}
    (row,) = dataset([old], PROMPTS)
    assert row["reference"] == ""
    with pytest.raises(InputError, match="column 'category' is missing"):
        dataset([{k: v for k, v in old.items() if k != "category"}], PROMPTS)
