import math
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from builders import prompt_row, real, response, scored
from hypothesis import given
from hypothesis import strategies as st

from nbutils.core.columns import candidates
from nbutils.core.errors import InputError
from nbutils.core.pairs import build, drop_report, insist_on_answers, length_effect, mix, rerank, select
from nbutils.core.prompts import from_rows
from nbutils.core.records import JUDGED, PAIRS, check, dataset
from nbutils.core.screen import MARKS, from_samples, marked, marks, screen, usable

COLUMNS = {"prompt": "q", "chosen": "good", "rejected": "bad"}
grade = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
unit = st.floats(0, 1)
cut = response("cut off here", "length")
loop = "La città è bella. " * 20
english = "The river rises in the Alps and reaches the sea near Venice."
italian = "Il fiume nasce nelle Alpi e raggiunge il mare vicino a Venezia."


def decided(row, decide=rerank, **options):
    row = decide(row, **options)
    return row["verdict"], row["chosen"], row["rejected"]


def test_the_module_does_not_load_torch():
    code = "import nbutils.core.pairs, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_source_row_becomes_a_row_to_judge_in_the_sources_order():
    (row,) = candidates([{"q": "Ciao?", "good": "A", "bad": "B", "chosen_model": "big"}], **COLUMNS)
    assert row["prompt_id"] == prompt_row("Ciao?")["prompt_id"]
    assert [(r["text"], r["model"]) for r in row["responses"]] == [("A", "big"), ("B", "rejected")]
    assert row["verdict"] == ""


def test_of_a_response_that_is_a_conversation_the_last_turn_counts():
    turns = [{"role": "user", "content": "Ciao?"}, {"role": "assistant", "content": "A"}]
    (row,) = candidates([{"q": "Ciao?", "good": turns, "bad": "B"}], **COLUMNS)
    assert row["responses"][0]["text"] == "A"


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"good": ""}, "filtered:empty"),
        ({"bad": " \n"}, "filtered:empty"),
        ({"bad": "A"}, "filtered:identical"),
        ({"bad": " A\n"}, "filtered:identical"),
        ({"rejected_finish_reason": "length"}, "filtered:truncated"),
    ],
)
def test_a_row_that_can_give_no_pair_stays_and_says_why(change, verdict):
    (row,) = candidates([{"q": "Ciao?", "good": "A", "bad": "B"} | change], **COLUMNS)
    assert row["verdict"] == verdict
    assert decided(row) == (verdict, -1, -1)


def test_a_given_answer_that_loops_is_for_the_judge_to_see():
    (row,) = candidates([{"q": "Ciao?", "good": "A", "bad": loop}], **COLUMNS)
    assert (row["verdict"], [r["mark"] for r in row["responses"]]) == ("", ["", ""])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"good": True}, "row r1, column 'good': a response must be text, got bool True"),
        ({"bad": None}, "row r1, column 'bad': a response must be text, got NoneType"),
        ({"bad": float("nan")}, "row r1, column 'bad': a response must be text, got float"),
        ({"bad": []}, "row r1, column 'bad': a response must be text, got list"),
        ({"q": ""}, "row r1, column 'q': the text is empty"),
    ],
)
def test_a_faulty_value_is_named_by_row_and_column(change, fault):
    with pytest.raises(InputError, match=fault):
        candidates([{"id": "r1", "q": "Ciao?", "good": "A", "bad": "B"} | change], **COLUMNS)


@pytest.mark.parametrize("column", ["q", "good", "bad"])
def test_a_missing_column_is_named_with_those_there_are(column):
    row = {"q": "Ciao?", "good": "A", "bad": "B"}
    del row[column]
    with pytest.raises(InputError, match=f"row 0 has no column '{column}'; it has "):
        candidates([row], **COLUMNS)


def test_the_booleans_among_real_responses_are_counted_and_the_other_rows_stay(caplog):
    rows = real("preferences/pandalm_999.json")
    found = candidates(rows, prompt="instruction", chosen="response1", rejected="response2")
    assert drop_report(row for row in found if row["verdict"])["filtered:shape"] == 6
    assert "6 of 999 rows cannot be used and are left out; the first: row 157, column 'response1'" in caplog.text
    assert "826 of 999 rows: the text of the input column is put after the instruction" in caplog.text
    assert found[1]["prompt"][0]["content"] == f"{rows[1]['instruction']}\n\n{rows[1]['input']}".strip()
    check(found[157] | {"scores": [], "replies": [], "feedback": [], "judge": "", "chosen": -1, "rejected": -1}, JUDGED)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *[(value, "first") for value in (1, "1", "chosen", "Chosen", "first", 1.0, "1.0", " 1 ", np.int64(1))],
        *[(value, "second") for value in (2, "2", "rejected", "second", 2.0, np.float64(2))],
        *[(value, "tie") for value in (0, "0", "tie", "Tie", 0.0)],
        *[(value, "") for value in (None, "", " ", math.nan, "NaN", pd.NA, np.float32("nan"))],
    ],
)
def test_a_persons_choice_is_understood_however_it_is_written(written, meant):
    (row,) = candidates([{"q": "Ciao?", "good": "A", "bad": "B", "human": written}], **COLUMNS, label="human")
    assert row["label"] == meant


def test_a_column_of_choices_with_a_gap_is_read_from_a_file_as_it_was_written(tmp_path):
    (tmp_path / "rows.csv").write_text("q,good,bad,human\nQ,A,B,1\nQ,A,B,\nQ,A,B,2\nQ,A,B,0\n")
    rows = pd.read_csv(tmp_path / "rows.csv").to_dict("records")
    assert [row["label"] for row in candidates(rows, **COLUMNS, label="human")] == ["first", "", "second", "tie"]


def test_without_a_column_of_choices_nobody_said_anything():
    (row,) = candidates([{"q": "Ciao?", "good": "A", "bad": "B", "label": 1}], **COLUMNS)
    assert row["label"] == ""
    assert from_samples(row | {"model": "m", "adapter": ""})["label"] == ""


@pytest.mark.parametrize("value", [3, -1, 1.5, True, "A", "1 or 2", [1], "10"])
def test_an_unknown_choice_is_named_by_row_and_column(value):
    rows = [{"id": i, "q": "Ciao?", "good": "A", "bad": "B", "human": v} for i, v in (("r1", 1), ("r2", value))]
    with pytest.raises(InputError, match=re.escape("row r2, column 'human': expected 1 (chosen), 2 (rejected), ")):
        candidates(rows, **COLUMNS, label="human")


def test_a_column_of_choices_that_is_not_there_is_named():
    with pytest.raises(InputError, match="row 0 has no column 'human'; it has 'q', 'good', 'bad'"):
        candidates([{"q": "Ciao?", "good": "A", "bad": "B"}], **COLUMNS, label="human")


def test_real_italian_pairs_are_read_without_loss():
    rows = real("preferences/shroom_it_pairs_267.jsonl.gz")
    result = candidates(rows, prompt="question", chosen="chosen", rejected="rejected")
    assert [[r["text"] for r in row["responses"]] for row in result] == [[r["chosen"], r["rejected"]] for r in rows]


def test_every_response_gets_the_first_mark_that_fits_and_the_rest_are_usable():
    texts = ["a", " ", cut, "a ", loop, response(loop, "length"), italian, english, response(english, "length")]
    responses = [response(t) if isinstance(t, str) else t for t in texts]
    expected = ["", "empty", "truncated", "identical", "looping", "looping", "", "language", "truncated"]
    result = marked(responses, language="it")
    assert [r["mark"] for r in result] == expected
    assert [r | {"mark": ""} for r in result] == responses, "nothing else is touched"
    assert usable(result) == [0, 6]
    assert usable(marked(responses)) == [0, 6, 7], "any language will do"


def test_a_response_whose_language_cannot_be_told_is_kept():
    told_nothing = [response("Yes."), response("Emma, Liam, Olivia, Noah, Ava, Mia, Zoe, Max")]
    assert usable(marked(told_nothing, language="it")) == [0, 1]


def test_marks_are_counted_over_all_rows_and_add_up():
    rows = [{"responses": [response(t) for t in texts]} for texts in (["a", "a", ""], ["a", english, loop])]
    assert marks(rows, language="it") == {
        "usable": 2,
        "empty": 1,
        "control": 0,
        "looping": 1,
        "truncated": 0,
        "language": 1,
        "identical": 1,
    }
    assert marks([]) == dict.fromkeys(("usable", *MARKS), 0)


def test_the_mark_from_the_screening_stays_for_whoever_asks_later():
    row = from_samples(scored([english, italian, "Sì."]) | {"model": "m", "adapter": ""}, language="it")
    assert [r["mark"] for r in row["responses"]] == ["language", "", ""]
    judged = select(row | {"scores": [[1.0, 0.5, 0.0]], "replies": [], "feedback": []})
    assert (judged["verdict"], judged["chosen"], judged["rejected"]) == ("on_policy", 1, 2)
    alone = from_samples(
        scored([english, english + " So it is.", "Sì."]) | {"model": "m", "adapter": ""}, language="it"
    )
    assert alone["verdict"] == "filtered:language"


@pytest.mark.parametrize(
    ("responses", "verdict"),
    [
        (["a", "b"], ""),
        (["a", "a", "a"], "filtered:identical"),
        (["", "a"], "filtered:empty"),
        ([loop, loop, "", "a"], "filtered:looping"),
        ([cut, cut, "", "a"], "filtered:truncated"),
    ],
)
def test_samples_of_which_fewer_than_two_are_usable_are_screened_out(responses, verdict):
    assert screen(scored(responses))["verdict"] == verdict


@pytest.mark.parametrize(
    ("scores", "options", "expected"),
    [
        ([[1.0, 0.5], [1.0, 0.5]], {}, ("kept", 0, 1)),
        ([[0.5, 1.0], [0.5, 1.0]], {}, ("swapped", 1, 0)),
        ([[1.0, 0.5], [0.5, 1.0]], {}, ("flip", -1, -1)),
        ([[0.5, 0.5], [0.5, 0.5]], {}, ("tie", -1, -1)),
        ([], {}, ("unparsed", -1, -1)),
        ([[0.75, 0.5], [0.5, 0.5]], {"min_margin": 0.2}, ("tie", -1, -1)),
        ([[0.5, 0.5], [0.5, 0.5]], {"ties": "keep"}, ("tie", 0, 1)),
        ([[0.5, 0.5], [0.5, 0.5]], {"ties": "shorter"}, ("tie", 1, 0)),
        ([[1.0, 0.5], [0.5, 1.0]], {"ties": "shorter"}, ("flip", -1, -1)),
        ([[0.5, 0.0], [0.5, 0.0]], {"min_chosen": 0.6}, ("filtered:min_chosen", -1, -1)),
        ([[0.6, 0.0], [0.6, 0.0]], {"min_chosen": 0.6}, ("kept", 0, 1)),
        ([[0.5, 0.5], [0.5, 0.5]], {"ties": "keep", "min_chosen": 0.6}, ("filtered:min_chosen", -1, -1)),
    ],
)
def test_an_assumed_pair_is_kept_swapped_or_dropped(scores, options, expected):
    assert decided(scored(["long text", "short"], scores), **options) == expected


@given(unit, unit, unit, unit, st.sampled_from([0.0, 0.25]), st.sampled_from(["drop", "shorter"]))
def test_swapping_the_two_responses_mirrors_the_verdict(a, b, c, d, min_margin, ties):
    options = {"min_margin": min_margin, "ties": ties}
    verdict, chosen, rejected = decided(scored(["one", "three"], [[a, b], [c, d]]), **options)
    mirrored = decided(scored(["three", "one"], [[b, a], [d, c]]), **options)
    names = {"kept": "swapped", "swapped": "kept"}
    places = {0: 1, 1: 0, -1: -1}
    assert mirrored == (names.get(verdict, verdict), places[chosen], places[rejected])


@pytest.mark.parametrize(
    ("texts", "scores", "options", "expected"),
    [
        (["a", "b", "c"], [0.5, 1.0, 0.0], {}, ("on_policy", 1, 2)),
        # equal scores: the pair closest in length, "cccc" against "dddd"
        (["a", "bbbbbbb", "cccc", "dddd"], [0.0, 1.0, 1.0, 0.0], {}, ("on_policy", 2, 3)),
        (["a", "b", "c"], [0.5, 0.5, 0.5], {}, ("tie", -1, -1)),
        (["a", "b"], [0.6, 0.5], {"min_margin": 0.2}, ("tie", -1, -1)),
        (["a", "b"], [0.5, 0.0], {"min_chosen": 0.6}, ("filtered:min_chosen", -1, -1)),
        (["aaaa", "b"], [1.0, 0.0], {"max_length_gap": 2}, ("filtered:max_length_gap", -1, -1)),
        (["aaa", "b"], [1.0, 0.0], {"max_length_gap": 2}, ("on_policy", 0, 1)),
        # the best is cut off, the worst empty: neither can be in a pair
        ([cut, "a", "b", ""], [float("nan"), 0.75, 0.5, float("nan")], {}, ("on_policy", 1, 2)),
    ],
)
def test_of_k_samples_the_best_and_the_worst_make_the_pair(texts, scores, options, expected):
    assert decided(scored(texts, [scores, scores]), select, **options) == expected


def test_only_the_selected_pair_has_to_agree_in_both_orders():
    row = scored(["a", "b", "c"], [[1.0, 0.5, 0.0], [0.75, 1.0, 0.0]])
    assert decided(row, select) == ("on_policy", 0, 2)
    assert decided(scored(["a", "b"], [[1.0, 0.0], [0.0, 0.75]]), select) == ("flip", -1, -1)


def test_a_row_without_scores_is_unparsed():
    assert decided(scored(["a", "b"]), select) == ("unparsed", -1, -1)


@given(st.lists(grade, min_size=2, max_size=6), st.integers(0, 9))
def test_best_random_draws_a_worse_one_and_draws_it_again(scores, seed):
    row = scored([str(i) for i in range(len(scores))], [scores, scores])
    options = {"strategy": "best_random", "seed": seed}
    verdict, chosen, rejected = decided(row, select, **options)
    assert (verdict, chosen, rejected) == decided(row, select, **options)
    if len(set(scores)) == 1:
        assert verdict == "tie"
    else:
        assert scores[rejected] < scores[chosen] == max(scores)


@given(st.lists(st.lists(grade, min_size=3, max_size=3), min_size=1, max_size=2))
def test_the_chosen_side_never_scores_below_the_rejected_one(scores):
    (*pairs,) = build([select(scored(["a", "bb", "ccc"], scores))])
    assert all(pair["margin"] > 0 for pair in pairs)


def test_pairs_are_what_the_trainer_takes_each_once():
    judged = rerank(scored(["A", "B"], [[0.5, 1.0], [0.25, 1.0]], checks="{}", category="chat"))
    (pair,) = build([judged, judged, rerank(scored(["A", "B"]))])
    assert pair["chosen"] == [{"role": "assistant", "content": "B"}]
    assert pair["rejected"] == [{"role": "assistant", "content": "A"}]
    assert pair["prompt"] == [{"role": "user", "content": "Name a river."}]
    assert (pair["chosen_score"], pair["rejected_score"], pair["margin"]) == (1.0, 0.375, 0.625)
    assert (pair["verdict"], pair["origin"], pair["category"]) == ("swapped", "off_policy", "chat")
    assert len(dataset([pair], PAIRS)) == 1


def test_the_drop_report_counts_pairs_first_then_losses_by_size():
    verdicts = ["tie", "swapped", "flip", "flip", "kept", "kept", "filtered:empty"]
    assert list(drop_report({"verdict": v} for v in verdicts).items()) == [
        ("kept", 2),
        ("swapped", 1),
        ("flip", 2),
        ("filtered:empty", 1),
        ("tie", 1),
    ]


def test_the_length_effect_tells_which_side_is_longer():
    pairs = [
        {"chosen": [{"content": a}], "rejected": [{"content": b}]} for a, b in [("aaa", "b"), ("a", "bb"), ("a", "b")]
    ]
    frame = length_effect(pairs)
    assert list(frame.gap) == [2, -1, 0]
    assert frame.longer_chosen.mean() == 0.5
    assert len(length_effect([])) == 0


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.1, 0.25, 0.5, 0.8, 1.0]), st.sampled_from([0, 3, 20]))
def test_mixing_keeps_the_share_and_takes_all_it_can(n_off, n_on, share, max_pairs):
    off, on = [("off", i) for i in range(n_off)], [("on", i) for i in range(n_on)]
    bounds = [n_on / share, n_off / (1 - share) if share < 1 else n_on, max_pairs or 1000]
    total = int(min(bounds) + 1e-9)
    if share < 1 and round(share * total) in (0, total):  # so few that one kind would be missing
        with pytest.raises(InputError, match=f"on_policy_share: {share} of {total} pairs would be"):
            mix(off, on, on_policy_share=share, max_pairs=max_pairs, seed=1)
        return
    mixed = mix(off, on, on_policy_share=share, max_pairs=max_pairs, seed=1)
    assert mixed == mix(off, on, on_policy_share=share, max_pairs=max_pairs, seed=1)
    assert len(set(mixed)) == len(mixed)
    assert set(mixed) <= {*off, *on}
    assert abs(sum(side == "on" for side, _ in mixed) - share * len(mixed)) <= 0.5
    assert len(mixed) == total


@pytest.mark.parametrize(
    ("off", "on", "share", "missing"),
    [
        ([], [], 0.0, "off-policy"),
        ([1], [], 0.5, "on-policy"),
        ([1], [], 1.0, "on-policy"),
        ([], [1], 0.5, "off-policy"),
    ],
)
def test_a_side_of_which_a_share_is_wanted_must_have_pairs(off, on, share, missing):
    with pytest.raises(InputError, match=f"no {missing} pairs to mix; see the drop reports"):
        mix(off, on, on_policy_share=share, max_pairs=0, seed=0)


def test_one_side_alone_may_be_all_there_is():
    assert mix([], [1], on_policy_share=1.0, max_pairs=0, seed=0) == [1]
    assert mix([2], [], on_policy_share=0.0, max_pairs=0, seed=0) == [2]


def test_without_a_wanted_share_every_pair_is_taken():
    mixed = mix([1, 2], [3], on_policy_share=0.0, max_pairs=0, seed=0)
    assert sorted(mixed) == [1, 2, 3]
    assert len(mix([1, 2], [3], on_policy_share=0.0, max_pairs=2, seed=0)) == 2


def test_answers_that_a_file_cannot_tell_apart_are_no_pair():
    row = {"q": "Name a river.", "good": "Po \ud83d", "bad": "Po \ud83e"}
    (found,) = candidates([row], prompt="q", chosen="good", rejected="bad")
    assert [r["text"] for r in found["responses"]] == ["Po \ufffd", "Po \ufffd"]
    assert found["verdict"] == "filtered:identical"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"kwargs": []}, '{"kwargs": []}'),
        (None, ""),
        (math.nan, ""),
        ("", ""),
        ({}, ""),
        ("{}", "{}"),
        ([1, "due"], '[1, "due"]'),
        (7, "7"),
        (True, "true"),
        ({"perché": "sì"}, '{"perché": "sì"}'),
    ],
)
def test_checks_that_are_no_text_become_json(value, text):
    (found,) = candidates([{"q": "Ciao?", "good": "A", "bad": "B", "checks": value}], **COLUMNS)
    assert found["checks"] == text


def nested(depth):
    value = "deep"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("column", ["id", "checks", "category", "chosen_model", "rejected_finish_reason", "extra"])
@pytest.mark.parametrize(
    "value", [nested(100_000), ["a", "b"], {"a": {"b": 1}}, "\x00", "\ud83d", "x" * 10**6, 10**30, b"x"]
)
def test_an_odd_value_in_another_column_costs_no_row(column, value):
    (found,) = candidates([{"q": "Ciao?", "good": "A", "bad": "B", column: value}], **COLUMNS)
    assert found["verdict"] == ""
    dataset([rerank(found | {"scores": [], "replies": [], "feedback": [], "judge": ""})], JUDGED)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("12,5", "12,5"),
        (" Roma | Urbe \n", "Roma | Urbe"),
        (7, "7"),
        (7.0, "7"),
        (12.5, "12.50"),
        (1.234, "1.2340"),  # never a thousand
        (None, ""),
        (float("nan"), ""),
        (float("inf"), ""),
        (True, ""),
        (["7"], ""),
        ("", ""),
    ],
)
def test_a_key_is_carried_as_text(value, key):
    row = {"q": "Quanto fa?", "good": "a", "bad": "b", "right": value}
    (candidate,) = candidates([row], prompt="q", chosen="good", rejected="bad", reference="right")
    assert candidate["reference"] == key
    assert from_rows([row], "q", "right")[0]["reference"] == key


def test_single_rows_may_lack_the_key_but_not_all():
    rows = [{"q": "Uno?", "good": "a", "bad": "b"}, {"q": "Due?", "good": "a", "bad": "b", "right": "2"}]
    found = candidates(rows, prompt="q", chosen="good", rejected="bad", reference="right")
    assert [row["reference"] for row in found] == ["", "2"]
    with pytest.raises(InputError, match="reference_column: no row has the column 'key'; they have 'q', 'good'"):
        from_rows(rows, "q", "key")


def couples(row):
    return [(c["chosen"], c["rejected"]) for c in (row, *row.get("further", ()))]


@pytest.mark.parametrize(
    ("scores", "count", "expected"),
    [
        ([1.0, 0.0, 0.75, 0.25], 1, [(0, 1)]),
        ([1.0, 0.0, 0.75, 0.25], 2, [(0, 1), (2, 3)]),
        ([1.0, 0.0, 0.75, 0.25], 9, [(0, 1), (2, 3)]),  # no answer twice
        ([1.0, 1.0, 0.0, 0.0], 2, [(0, 2), (1, 3)]),
        ([1.0, 0.0, 0.5, 0.5], 2, [(0, 1)]),  # the two left are equal
        ([1.0, 0.9, 0.1, 0.0, 0.5], 2, [(0, 3), (1, 2)]),
    ],
)
def test_the_second_best_stands_against_the_second_worst(scores, count, expected):
    row = scored([f"answer {i}" for i in range(len(scores))], [scores])
    chosen = select(row, pairs_per_prompt=count)
    assert couples(chosen) == expected
    assert [(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in build([chosen])] == [
        (f"answer {c}", f"answer {r}") for c, r in expected
    ]


def test_every_pair_of_a_prompt_passes_the_same_thresholds():
    row = scored(["best, and much longer than any other", "worst", "good", "bad"], [[1.0, 0.0, 0.8, 0.2]])
    assert couples(select(row, pairs_per_prompt=2, max_length_gap=10)) == [(2, 3)]
    assert couples(select(row, pairs_per_prompt=2, min_margin=0.7)) == [(0, 1)]
    assert couples(select(row, pairs_per_prompt=2, min_chosen=0.9)) == [(0, 1)]
    dropped = select(row, pairs_per_prompt=2, min_margin=0.7, max_length_gap=10)
    assert (dropped["verdict"], dropped["chosen"]) == ("filtered:max_length_gap", -1)


@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=9),
    st.integers(1, 5),
    st.sampled_from(["best_worst", "best_random"]),
)
def test_no_answer_is_in_two_pairs_and_chosen_is_better(levels, count, strategy):
    row = scored([f"answer {i}" for i in range(len(levels))], [[level / 4 for level in levels]])
    chosen = select(row, pairs_per_prompt=count, strategy=strategy)
    pairs = couples(chosen) if chosen["chosen"] >= 0 else []
    assert len({i for pair in pairs for i in pair}) == 2 * len(pairs) <= 2 * count
    assert all(levels[c] > levels[r] for c, r in pairs)
    assert bool(pairs) == (len(set(levels)) > 1)


@pytest.mark.parametrize(("count", "answers", "most"), [(2, 3, 1), (3, 4, 2), (1, 1, 1), (5, 0, 1)])
def test_more_pairs_than_answers_are_refused_before_a_judge_is_asked(count, answers, most):
    rows = [{"responses": [response("a")] * answers}, {"responses": []}]
    with pytest.raises(InputError, match=rf"pairs_per_prompt: {count} .* there are {answers}; set it to {most}"):
        insist_on_answers(rows, count)
    insist_on_answers([{"responses": [response("a")] * 2 * count}], count)


def test_a_pair_keeps_the_key():
    row = {"q": "Due?", "good": "2", "bad": "3", "right": "2"}
    (judged,) = candidates([row], prompt="q", chosen="good", rejected="bad", reference="right")
    judged |= {"scores": [[1.0, 0.0]], "feedback": [], "replies": [], "judge": "j"}
    (pair,) = build([rerank(judged)])
    assert pair["reference"] == "2"


def test_a_sample_that_02_found_to_spell_a_control_token_enters_no_pair():
    row = scored([response("Po.", "control"), response("Il Reno."), response("Il Tevere.")])
    assert [r["mark"] for r in row["responses"]] == ["control", "", ""]
    assert marks([row])["control"] == 1


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_costs_its_answer_and_no_more(odd):
    assert decided(scored(["A", "B", "C"], [[odd, 1.0, 0.0]] * 2), select) == ("on_policy", 1, 2)
    assert decided(scored(["A", "B"], [[odd, 1.0]] * 2), select) == ("unparsed", -1, -1)
    assert decided(scored(["A", "B"], [[odd, 1.0], [0.0, 1.0]])) == ("unparsed", -1, -1)
