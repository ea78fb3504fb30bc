# ruff: noqa: E501 - a row of a table stays on its line
import csv
import io
import json
import logging
import re

import numpy as np
import pytest
from builders import real
from hypothesis import given, settings
from hypothesis import strategies as st

from nbutils.core.columns import candidates
from nbutils.core.errors import InputError
from nbutils.core.prompts import from_rows
from nbutils.core.turns import LONGEST, MOST_TURNS, messages

COLUMNS = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def talk(*turns):
    """Messages of turns written like "u:Ciao?"."""
    return [{"role": ROLES[turn[0]], "content": turn[2:]} for turn in turns]


def short(turns):
    return [f"{turn['role'][0]}:{turn['content']}" for turn in turns]


def read_pair(**row):
    (found,) = candidates([row], **COLUMNS)
    return short(found["prompt"]), [r["text"] for r in found["responses"]], found["verdict"]


def verdict_of(**row):
    """The verdict of one row among good ones."""
    good = {"prompt": "Ciao?", "chosen": "A", "rejected": "B"}
    return candidates([good, row, good], **COLUMNS)[1]["verdict"]


def prompts_of(value, **columns):
    (row,) = from_rows([{"prompt": value} | columns], "prompt")
    return short(row["prompt"])


TWO = talk("u:Chi sei?", "a:Un fiume.", "u:Quale?")


# ---- messages


def test_a_text_becomes_one_user_message():
    assert messages("Ciao") == [{"role": "user", "content": "Ciao"}]


def test_messages_keep_only_role_and_content():
    assert messages([{"role": "user", "content": "Ciao", "id": 3}]) == [{"role": "user", "content": "Ciao"}]


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([], "expected text or a list of messages, got list"),
        (None, "expected text or a list of messages, got NoneType"),
        (False, "expected text or a list of messages, got bool False"),
        (["Ciao"], "expected text or a list of messages"),
        (["Ciao?", "Salve."], "expected text or a list of messages"),
        ([{"role": "user"}], "a message needs a text role and content"),
        ([{"content": "Ciao"}], "a message needs a text role and content"),
        ([{"role": 1, "content": "Ciao"}], "a message needs a text role and content"),
        ([{"role": "user", "content": False}], "a message needs a text role and content"),
        ([{"role": "user", "content": 7}], "a message needs a text role and content"),
        ([{"role": "narrator", "content": "Ciao"}], "the role 'narrator' is none of user, assistant, system, tool"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a part of a turn is no text but 'image'"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "no text but 'image_url'"),
        ([{"role": "user", "content": [{"type": "input_audio"}, {"type": "text", "text": "?"}]}], "'input_audio'"),
        ([{"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}], "holds tool_calls"),
        ([{"role": "assistant", "content": "", "function_call": {"name": "f"}}], "holds function_call"),
        ([{"role": "user", "content": "x"}] * (MOST_TURNS + 1), "a conversation of 1,001 turns"),
        ("x" * (LONGEST + 1), "a text of 1,000,001 characters"),
        ([{"role": "user", "content": "x" * (LONGEST + 1)}], "a text of 1,000,001 characters"),
    ],
)
def test_what_is_no_conversation_is_refused_in_one_sentence(value, fault):
    with pytest.raises(InputError, match=fault):
        messages(value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([{"from": "human", "value": "Ciao?"}, {"from": "gpt", "value": "Salve."}], ["u:Ciao?", "a:Salve."]),
        ([{"from": "system", "value": "Sii breve."}, {"from": "human", "value": "Ciao?"}], ["s:Sii breve.", "u:Ciao?"]),
        ([{"role": "Human", "content": "Hi"}, {"role": "BOT", "content": "Yes?"}], ["u:Hi", "a:Yes?"]),
        ([{"role": "user", "content": "Hi"}, {"role": "model", "content": "Yes?"}], ["u:Hi", "a:Yes?"]),
        ([{"role": "prompter", "text": "Hi"}, {"role": "assistant", "text": "Yes?"}], ["u:Hi", "a:Yes?"]),
        ([{"speaker": "utente", "text": "Ciao"}, {"speaker": "assistente", "text": "Sì?"}], ["u:Ciao", "a:Sì?"]),
        ([{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}], ["s:Be brief.", "u:Hi"]),
        ([{"role": "function", "content": "42"}], ["t:42"]),
        ([{"from": None, "role": "user", "value": None, "content": "Hi"}], ["u:Hi"]),
        (
            [{"role": "user", "content": [{"type": "text", "text": "Ciao"}, {"type": "text", "text": "tu"}]}],
            ["u:Ciao\ntu"],
        ),
        ([{"role": "user", "content": ["Ciao", "tu"]}], ["u:Ciao\ntu"]),
        ([{"role": "user", "content": {"type": "text", "text": "Ciao"}}], ["u:Ciao"]),
        ([{"role": "user", "content": [{"type": "text", "text": "Hi", "image_url": None}]}], ["u:Hi"]),
        ([{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}], ["u:Hi"]),
        ([{"role": "user", "content": "[{'type': 'text', 'text': 'Hi'}]"}], ["u:Hi"]),
        ([{"type": "text", "text": "Ciao"}], ["u:Ciao"]),
        ({"role": "user", "content": "Hi"}, ["u:Hi"]),
        (({"role": "user", "content": "Hi"},), ["u:Hi"]),
        (np.array([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]), ["u:Hi", "a:Yes?"]),
        ([{"role": "user", "content": "Hi"}, None, {"role": None, "content": None}], ["u:Hi"]),
        ([{"role": "user", "content": "a\ud83d\x00b"}], ["u:a\ufffd\x00b"]),
    ],
)
def test_turns_of_every_dialect_are_read(value, said):
    assert short(messages(value)) == said


# ---- prompts


@pytest.mark.parametrize(
    ("value", "columns", "prompt", "note"),
    [
        (talk("u:Ciao?", "a:Salve."), {}, ["u:Ciao?"], "left out of the prompt"),
        (talk("u:Chi sei?", "a:Un fiume.", "u:Quale?", "a:Il Po."), {}, short(TWO), "left out of the prompt"),
        (talk("u:Ciao?", "a:Salve.", "a:Dimmi."), {}, ["u:Ciao?"], "left out of the prompt"),
        (talk("s:Sii breve.", "u:Ciao?", "a:Salve."), {}, ["s:Sii breve.", "u:Ciao?"], "left out of the prompt"),
        (talk("u:Ciao?", "a:"), {}, ["u:Ciao?"], "left out of the prompt"),
        (talk("u:Ciao?"), {}, ["u:Ciao?"], ""),
        (talk("u:Quanto fa?", "t:42"), {}, ["u:Quanto fa?", "t:42"], ""),
        (talk("u:Ciao?", "s:Sii breve."), {}, ["s:Sii breve.", "u:Ciao?"], "a system turn is put first"),
        (talk("s:", "u:Ciao?"), {}, ["u:Ciao?"], ""),
        ([None, *talk("u:Ciao?"), None], {}, ["u:Ciao?"], "turns without anything in them"),
        ("Ciao?", {"system": "Sii breve."}, ["s:Sii breve.", "u:Ciao?"], "the text of the system column"),
        ("Ciao?", {"system_prompt": "Be brief."}, ["s:Be brief.", "u:Ciao?"], "the text of the system column"),
        (talk("u:Ciao?", "a:Sì?"), {"system": "Sii breve."}, ["s:Sii breve.", "u:Ciao?"], "the system column"),
        (talk("s:Sii breve. ", "u:Ciao?"), {"system": "Sii breve."}, ["s:Sii breve.", "u:Ciao?"], "system column"),
        ("Ciao?", {"system": None}, ["u:Ciao?"], ""),
        ("Ciao?", {"system": ""}, ["u:Ciao?"], ""),
        ("Ciao?", {"system": float("nan")}, ["u:Ciao?"], ""),
        ("Quale?", {"history": [["Chi sei?", "Un fiume."]]}, short(TWO), "the turns of the column 'history'"),
        ("Ciao?", {"history": []}, ["u:Ciao?"], ""),
        ("Ciao?", {"input": "not Alpaca"}, ["u:Ciao?"], ""),
    ],
)
def test_a_prompt_ends_in_a_user_or_a_tool_and_what_is_left_out_is_said(value, columns, prompt, note, caplog):
    assert prompts_of(value, **columns) == prompt
    assert (note or "rows") in (caplog.text or "rows")
    assert bool(note) == bool(caplog.text)


@pytest.mark.parametrize(
    ("value", "columns", "fault"),
    [
        ("", {}, "the text is empty"),
        (" \n", {}, "the text is empty"),
        (talk("u: "), {}, "the text is empty"),
        (talk("u:Ciao?", "a:Sì?", "u:"), {}, "the text is empty"),
        (talk("u:Ciao?", "a:", "u:Ancora?"), {}, "turn 2 of 3 is empty"),
        (talk("a:Salve."), {}, "no turn of a user"),
        (talk("s:Sii breve."), {}, "no turn of a user"),
        (talk("s:Sii breve.", "a:Sì."), {}, "no turn of a user"),
        ([None, None], {}, "no turn of a user"),
        (talk("s:Sii breve.", "s:Sii lungo.", "u:Ciao?"), {}, "two system turns"),
        (talk("s:Sii breve.", "u:Ciao?"), {"system": "Sii lungo."}, "two system turns"),
        ("Ciao?", {"system": 7}, "the column 'system' should be text"),
        ("Ciao?", {"history": ["Chi sei?"]}, "the column 'history'"),
        ("Che cos'è?", {"images": [{"bytes": b"x"}]}, "the row holds an image"),
        ("What is it?", {"image": {"path": "x"}}, "the row holds an image"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_named(value, columns, fault):
    with pytest.raises(InputError, match=f"row 0, column 'prompt': .*{fault}"):
        prompts_of(value, **columns)


@pytest.mark.parametrize("column", ["instruction", "instruction_it"])
def test_an_instruction_is_read_with_its_input(column, caplog):
    rows = [{column: "Traduci.", column.replace("instruction", "input"): i} for i in ("Good morning.", "", None, " ")]
    assert [row["prompt"][0]["content"] for row in from_rows(rows, column)] == [
        "Traduci.\n\nGood morning.", "Traduci.", "Traduci.", "Traduci.",
    ]  # fmt: skip
    assert "1 of 4 rows: the text of the input column is put after the instruction" in caplog.text


# ---- pairs


@pytest.mark.parametrize(
    ("row", "prompt", "answers"),
    [
        # text beside text, as ever
        ({"prompt": "Ciao?", "chosen": "A", "rejected": "B"}, ["u:Ciao?"], ["A", "B"]),
        # the prompt is the first question, the answers whole conversations
        ({"prompt": "Chi sei?", "chosen": [*TWO, *talk("a:A")], "rejected": [*TWO, *talk("a:B")]}, short(TWO), ["A", "B"]),
        # the prompt is the last question
        ({"prompt": "Quale?", "chosen": [*TWO, *talk("a:A")], "rejected": [*TWO, *talk("a:B")]}, short(TWO), ["A", "B"]),
        # the prompt is the whole context
        ({"prompt": TWO, "chosen": [*TWO, *talk("a:A")], "rejected": [*TWO, *talk("a:B")]}, short(TWO), ["A", "B"]),
        # the answers repeat the last question only
        ({"prompt": TWO, "chosen": talk("u:Quale?", "a:A"), "rejected": talk("u:Quale?", "a:B")}, short(TWO), ["A", "B"]),
        # the answers are turns of their own
        ({"prompt": TWO, "chosen": talk("a:A"), "rejected": talk("a:B")}, short(TWO), ["A", "B"]),
        ({"prompt": TWO, "chosen": talk("a:A")[0], "rejected": talk("a:B")[0]}, short(TWO), ["A", "B"]),
        # they go on for several turns, alike but for the last
        ({"prompt": "Chi sei?", "chosen": [*TWO[1:], *talk("a:A")], "rejected": [*TWO[1:], *talk("a:B")]},
         short(TWO), ["A", "B"]),
        # no prompt column, or nothing in it
        ({"chosen": talk("u:Ciao?", "a:A"), "rejected": talk("u:Ciao?", "a:B")}, ["u:Ciao?"], ["A", "B"]),
        ({"prompt": None, "chosen": talk("u:Ciao?", "a:A"), "rejected": talk("u:Ciao?", "a:B")}, ["u:Ciao?"], ["A", "B"]),
        ({"prompt": "", "chosen": [*TWO, *talk("a:A")], "rejected": [*TWO, *talk("a:B")]}, short(TWO), ["A", "B"]),
        ({"chosen": "\n\nHuman: Ciao?\n\nAssistant: A", "rejected": "\n\nHuman: Ciao?\n\nAssistant: B"},
         ["u:Ciao?"], ["A", "B"]),
        ({"chosen": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Who?\n\nAssistant: A",
          "rejected": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Who?\n\nAssistant: B"},
         ["u:Hi", "a:Yes?", "u:Who?"], ["A", "B"]),
        # the prompt is a set's own conversation, gold answer and all
        ({"prompt": talk("u:Ciao?", "a:Oro."), "chosen": "A", "rejected": "B"}, ["u:Ciao?"], ["A", "B"]),
        ({"prompt": talk("u:Ciao?", "a:Oro."), "chosen": talk("u:Ciao?", "a:A"), "rejected": "B"}, ["u:Ciao?"], ["A", "B"]),
        # system turns, wherever they stand
        ({"system": "Sii breve.", "prompt": "Ciao?", "chosen": "A", "rejected": "B"}, ["s:Sii breve.", "u:Ciao?"], ["A", "B"]),
        ({"prompt": talk("s:Sii breve.", "u:Ciao?"), "chosen": talk("u:Ciao?", "a:A"), "rejected": talk("u:Ciao?", "a:B")},
         ["s:Sii breve.", "u:Ciao?"], ["A", "B"]),
        # the user has the last word
        ({"prompt": "Ciao?", "chosen": talk("u:Ciao?", "a:A", "u:Grazie"), "rejected": talk("u:Ciao?", "a:B", "u:No")},
         ["u:Ciao?"], ["A", "B"]),
        # other words for the same
        ({"prompt": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "A"},
          "rejected": {"from": "gpt", "value": "B"}}, ["u:Hi"], ["A", "B"]),
        ({"prompt": "Ciao? ", "chosen": talk("u: Ciao?", "a:A"), "rejected": talk("u:Ciao?", "a:B")}, ["u: Ciao?"], ["A", "B"]),
        # an answer in parts, an ordinary answer that begins with a bracket
        ({"prompt": "Ciao?", "chosen": [{"type": "text", "text": "A"}], "rejected": "[B] no"}, ["u:Ciao?"], ["A", "[B] no"]),
    ],
)  # fmt: skip
def test_the_turns_before_the_answers_are_the_prompt_and_none_is_lost(row, prompt, answers):
    assert read_pair(**row) == (prompt, answers, "")


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        ({"prompt": "Ciao?", "chosen": talk("u:Ciao?", "a:X", "u:E?", "a:A"), "rejected": talk("u:Ciao?", "a:Y", "u:E?", "a:B")},
         "filtered:diverging"),
        ({"chosen": talk("u:Ciao?", "a:X", "u:E?", "a:A"), "rejected": talk("u:Ciao?", "a:B")}, "filtered:diverging"),
        ({"chosen": talk("u:Ciao?", "a:A"), "rejected": talk("u:Chi?", "a:B")}, "filtered:diverging"),
        ({"prompt": "Ciao?", "chosen": talk("s:Sii breve.", "u:Ciao?", "a:A"), "rejected": talk("u:Ciao?", "a:B")},
         "filtered:diverging"),
        ({"prompt": "Dove?", "chosen": talk("u:Ciao?", "a:A"), "rejected": talk("u:Ciao?", "a:B")}, "filtered:diverging"),
        ({"prompt": "Ciao?", "chosen": talk("u:Ciao?"), "rejected": "B"}, "filtered:shape"),
        ({"prompt": "Ciao?", "chosen": talk("u:Ciao?", "a:X", "a:A"), "rejected": talk("u:Ciao?", "a:X", "a:B")}, "filtered:shape"),
        ({"prompt": "Ciao?", "chosen": [], "rejected": "B"}, "filtered:shape"),
        ({"prompt": "Ciao?", "chosen": None, "rejected": "B"}, "filtered:shape"),
        ({"prompt": "Ciao?", "chosen": True, "rejected": "B"}, "filtered:shape"),
        ({"prompt": "Ciao?", "chosen": ["A"], "rejected": "B"}, "filtered:shape"),
        ({"prompt": "Ciao?", "rejected": "B"}, "filtered:shape"),
        ({"chosen": "A", "rejected": "B"}, "filtered:shape"),
        ({"prompt": None, "chosen": "A", "rejected": "B"}, "filtered:shape"),
        ({"prompt": "Ciao?", "chosen": [{"type": "image"}], "rejected": "B"}, "filtered:shape"),
        ({"prompt": "Ciao?", "chosen": talk("u:Ciao?", "a:"), "rejected": talk("u:Ciao?", "a:B")}, "filtered:empty"),
        ({"prompt": "Ciao?", "chosen": [*talk("u:Ciao?"), {"role": "assistant", "content": None}], "rejected": "B"},
         "filtered:empty"),
        ({"prompt": "x" * (LONGEST + 1), "chosen": "A", "rejected": "B"}, "filtered:size"),
        ({"prompt": "Ciao?", "chosen": "x" * (LONGEST + 1), "rejected": "B"}, "filtered:size"),
        ({"prompt": talk("u:x") * (MOST_TURNS + 1), "chosen": "A", "rejected": "B"}, "filtered:size"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_read_is_counted_under_its_reason(row, verdict):
    assert verdict_of(**row) == verdict


@pytest.mark.parametrize("row", [None, 7, "Ciao?", ["Ciao?", "A", "B"], True, [], float("nan")])
def test_a_row_that_is_no_object_is_counted(row):
    good = {"prompt": "Ciao?", "chosen": "A", "rejected": "B"}
    assert [found["verdict"] for found in candidates([good, row, good], **COLUMNS)] == ["", "filtered:shape", ""]


def test_what_is_left_out_is_said_once_with_a_count(caplog):
    rows = [{"prompt": talk("u:Ciao?", "a:Oro."), "chosen": "A", "rejected": "B"}] * 3
    candidates([*rows, {"prompt": "Chi?", "chosen": "A", "rejected": "B"}], **COLUMNS)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        "3 of 4 rows: what the assistant says last is left out of the prompt, which would hold its own answer"
    ]


# ---- lists that became text

MANY = talk(
    's:Sii "breve" e l\'altro.',
    "u:Chi sei?\nDimmi: [1] {2}",
    "a:It's a \\ river, d'accordo?",
    "u:Quale \u201c\u00e8\u201d?",
)


def numpy_text(turns):
    return str(np.array(turns, dtype=object))


def through_csv(turns):
    file = io.StringIO()
    csv.writer(file).writerow([turns])
    return next(csv.reader(io.StringIO(file.getvalue())))[0]


PRINTERS = {
    "python": repr,
    "csv": through_csv,
    "numpy": numpy_text,
    "numpy repr": lambda turns: repr(np.array(turns, dtype=object)),
    "json": json.dumps,
    "json, not ascii": lambda turns: json.dumps(turns, ensure_ascii=False, indent=1),
    "json in json": lambda turns: json.dumps(json.dumps(turns)),
    "json three times": lambda turns: json.dumps(json.dumps(json.dumps(turns))),
    "python of json": lambda turns: repr(json.dumps(turns)),
    "other dialect": lambda turns: json.dumps([{"from": t["role"], "value": t["content"]} for t in turns]),
    "padded": lambda turns: json.dumps([{"id": None, **t, "weight": 1.5, "tools": None} for t in turns]),
    "padded python": lambda turns: repr([{"content": t["content"], "role": t["role"], "n": None} for t in turns]),
    "in a list": lambda turns: repr([turns]),
    "tuple": lambda turns: repr(tuple(turns)),
    "with NaN": lambda turns: json.dumps([{**t, "weight": float("nan")} for t in turns]),
}


@pytest.mark.parametrize("printer", PRINTERS)
def test_a_list_that_became_text_is_read_back(printer, caplog):
    text = PRINTERS[printer](MANY)
    assert isinstance(text, str)
    assert messages(text) == MANY
    assert prompts_of(text) == short(MANY)
    assert "1 of 1 rows: a list of messages that had become text is read as messages" in caplog.text
    sides = {side: PRINTERS[printer]([*MANY, *talk(f"a:{side}")]) for side in ("chosen", "rejected")}
    assert read_pair(prompt="", **sides) == (short(MANY), ["chosen", "rejected"], "")


@pytest.mark.parametrize(
    "text",
    [
        "[{'role': 'user', 'content': 'Ciao, sono un tes",
        '[{"role": "user", "content": "Hello, I am cut o',
        "[{'role': 'user', 'content': 'Ciao'}, {'role': 'assistant', 'content': 'Sì'",
        '[{""role"": ""user"", ""content"": ""Ciao""}]',
        "[{'role': 'user', 'content': Message('Ciao')}]",
        "[{'role': 'user', 'content': 'it's broken'}]",
        '"[{\\"role\\": \\"user\\", \\"content\\": \\"Hi',
        "[{'role': 'user', 'content': 'Ciao'} ... {'role': 'user', 'content': 'Ciao'}]",
        "[" * 3 + "{'role': 'user', 'content': " + "[" * 100_000,
        '[{"role": "user", "content": ' + "[" * 100_000,
        "[{'from': 'human', 'value': datetime.now()}]",
        "[{'role': 'user', 'content': 'Ciao'}] ...",
        "{'role': 'user', 'content': 'Ciao'}\n{'role': 'assistant', 'content': 'Sal",
    ],
)
def test_a_list_that_was_cut_off_is_never_taken_for_text(text):
    with pytest.raises(InputError):
        prompts_of(text)
    assert verdict_of(prompt="Ciao?", chosen=text, rejected="B") == "filtered:shape"


@pytest.mark.parametrize(
    "text",
    [
        "[1] La risposta sta nella nota.",
        "[user] who are you?",
        "[]",
        "[{}]",
        "{ ... }",
        "[1, 2, 3]",
        '["Roma", "Milano"]',
        '{"name": "Po", "length": 652}',
        '[{"from": "Roma", "to": "Milano", "value": 480}]',
        '[{"role": "captain", "text": "Ahoy"}]',
        '{"role": "king", "content": "of Italy"}',
        "{% for message in messages %}",
        "[INST] Ciao [/INST]",
        '"Ciao," disse il gatto.',
        "'role': 'user' is a pair of a key and a value",
        'What does [{"role": "user", "content": "x"}] mean?',
        '[{"role": "user", "content": "Hi"}] is JSON. What does it mean?',
        "[{'a': 1}, {'b': 2}]",
        '[{"type": "text", "value": "a field"}]',
        "[" * 1000,
        "{" * 1000,
        "[ " * 100_000 + "{",
        " " * 500_000 + "x",
        "'\\" * 200_000,
        "[{'" * 100_000,
        "array([" * 50_000,
        '\\"' * 100_000,
    ],
)
def test_an_ordinary_text_is_a_text_whatever_it_begins_with(text, caplog):
    assert messages(text) == [{"role": "user", "content": text}]
    assert read_pair(prompt="Ciao?", chosen=text, rejected="B")[1:] == ([text, "B"], "")
    assert not caplog.text


# ---- what is printed in other ways, or wrapped: as its list is read, or refused

HH = "\n\nHuman: Chi sei?\n\nAssistant: Un fiume.\n\nHuman: Quale?\n\nAssistant:"
GOLD = talk("u:Chi sei?", "a:Oro.")


@pytest.mark.parametrize(
    ("text", "prompt", "note"),
    [
        ("\n".join(map(json.dumps, GOLD)), ["u:Chi sei?"], "had become text"),
        ("\n\n".join(map(json.dumps, [*TWO, *talk("a:Oro.")])) + "\n", short(TWO), "had become text"),
        (", ".join(map(json.dumps, GOLD)), ["u:Chi sei?"], "had become text"),
        ("\n".join(map(repr, GOLD)), ["u:Chi sei?"], "had become text"),
        ("\ufeff" + json.dumps(GOLD), ["u:Chi sei?"], "had become text"),
        (f"{HH} Il Po.", short(TWO), "a transcript"),
        (f"{HH} Il Po.\n\nE il Tevere.", short(TWO), "a transcript"),
        (HH, short(TWO), "a transcript"),
        (HH.removesuffix("\n\nAssistant:"), short(TWO), "a transcript"),
        (HH.strip(), short(TWO), "a transcript"),
        (HH.replace("\n", "\r\n") + " Il Po.", short(TWO), "a transcript"),
        ("\n\nHuman: Hi\n\nAssistant:", ["u:Hi"], "a transcript"),
    ],
)
def test_a_prompt_that_was_printed_in_another_way_is_read_without_its_answer(text, prompt, note, caplog):
    assert prompts_of(text) == prompt
    assert re.search(f"1 of 1 rows: .*{note}", caplog.text)
    assert read_pair(prompt=text, chosen="A", rejected="B") == (prompt, ["A", "B"], "")


ALPACA = "Below is an instruction that describes a task. Write a response that completes it.\n\n"
VICUNA = "A chat between a curious user and an artificial intelligence assistant. The assistant is polite. "


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("### User:\nChi sei?\n### Assistant:\nUn fiume.\n\nLungo.", ["u:Chi sei?"]),
        ("### Instruction:\nName a river.\n\n### Response:\nThe Po.\n\nIt is long.", ["u:Name a river."]),
        (f"{ALPACA}### Instruction:\nName a river.\n\n### Input:\nItaly\n\n### Response:\nThe Po.",
         ["u:Name a river.\n\n### Input:\nItaly"]),
        ("### Istruzione:\nNomina un fiume.\n\n### Risposta:\nIl Po.", ["u:Nomina un fiume."]),
        ("## System\nSii breve.\n## Utente\nChi sei?\n## Assistente\nUn fiume.", ["s:Sii breve.", "u:Chi sei?"]),
        ("### Human: Chi sei?### Assistant: Un fiume.### Human: Quale?### Assistant: Il Po.", short(TWO)),
        ("Human: Chi sei?\n\nAssistant: Un fiume.\n\nHuman: Quale?\n\nAssistant: Il Po.", short(TWO)),
        ("Utente: Chi sei?\nAssistente: Un fiume.", ["u:Chi sei?"]),
        ("Utente: Chi sei? Assistente: Un fiume. Utente: Quale? Assistente: Il Po.", short(TWO)),
        ("User: Chi sei?\n\nAI: Un fiume.\n\nUser: Quale?\n\nAI: Il Po.\n", short(TWO)),
        ("system: Be brief.\nuser: Who?\nassistant: A river.", ["s:Be brief.", "u:Who?"]),
        ("**User:** Who?\n**Assistant:** A river.", ["u:Who?"]),
        ("Utente:\nChi sei?\n\nAssistente:\nUn fiume.\n\nLungo.", ["u:Chi sei?"]),
        (f"{VICUNA}USER: Who? ASSISTANT: A river.</s>USER: Which?\nAnd why? ASSISTANT: The Po.\n\nIt is long.</s>",
         ["u:Who?", "a:A river.", "u:Which?\nAnd why?"]),
        ("<|im_start|>system\nSii breve.<|im_end|>\n<|im_start|>user\nCiao?<|im_end|>\n<|im_start|>assistant\nSalve.\n\nDimmi.<|im_end|>\n",
         ["s:Sii breve.", "u:Ciao?"]),
        ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi?<|eot_id|><|start_header_id|>assistant"
         "<|end_header_id|>\n\nYes.\n\nSure.<|eot_id|>", ["u:Hi?"]),
        ("<bos><start_of_turn>user\nHi?<end_of_turn>\n<start_of_turn>model\nYes.<end_of_turn>\n", ["u:Hi?"]),
        ("<|user|>\nHi?<|end|>\n<|assistant|>\nYes.<|end|>\n<|user|>\nWho?<|end|>\n<|assistant|>\nA river.<|end|>",
         ["u:Hi?", "a:Yes.", "u:Who?"]),
        ("<|system|>\nBe brief.</s>\n<|user|>\nHi?</s>\n<|assistant|>\nYes.</s>", ["s:Be brief.", "u:Hi?"]),
        ("<\uff5cUser\uff5c>Ciao?<\uff5cAssistant\uff5c>Salve.", ["u:Ciao?"]),
        ("[|user|]Ciao?\n[|assistant|]Salve.[|endofturn|]", ["u:Ciao?"]),
        ("<|start|>user<|message|>Hi?<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>", ["u:Hi?"]),
        ("<|start_of_role|>user<|end_of_role|>Hi<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>Yes<|end_of_text|>", ["u:Hi"]),
        ("<s>[INST] Ciao? [/INST] Salve.</s>", ["u:Ciao?"]),
        ("<s>[INST] <<SYS>>\nSii breve.\n<</SYS>>\n\nCiao? [/INST] Salve. </s><s>[INST] Chi? [/INST] Io.\n\nE tu? </s>",
         ["s:Sii breve.", "u:Ciao?", "a:Salve.", "u:Chi?"]),
    ],
)  # fmt: skip
def test_a_text_that_is_turns_alone_is_read_without_its_answer(text, prompt, caplog):
    assert prompts_of(text) == prompt
    assert "1 of 1 rows: a transcript" in caplog.text
    assert "1 of 1 rows: what the assistant says last is left out of the prompt" in caplog.text
    assert read_pair(prompt=text, chosen="A", rejected="B") == (prompt, ["A", "B"], "")


WRAPPED = [
    json.dumps([{"from": "human", "value": "Che tempo fa?"}, {"from": "function_call", "value": "{}"},
                {"from": "observation", "value": "7"}, {"from": "gpt", "value": "GOLD"}]),
    json.dumps([*talk("u:Q"), {"role": "moderator", "content": "x"}, *talk("u:Q2")]),
    repr([*talk("u:Q"), {"role": "narratore", "content": "x"}, *talk("a:GOLD")]),
    json.dumps({"messages": GOLD}),
    json.dumps({"id": 3, "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "GOLD"}]}),
    repr({"conversation": GOLD, "lang": "it"}),
    json.dumps([{"messages": GOLD}]),
    json.dumps({"chat": {"turns": GOLD}}),
    str({"role": ["user", "assistant"], "content": ["Q", "GOLD"]}),
    json.dumps({"from": ["human", "gpt"], "value": ["Q", "GOLD"]}),
    str({"role": np.array(["user", "assistant"], dtype=object), "content": np.array(["Q", "GOLD"], dtype=object)}),
    json.dumps([{"Role": "user", "Content": "Q"}, {"Role": "assistant", "Content": "GOLD"}]),
    json.dumps(talk("u:Q")[0]) + "\n" + json.dumps({"role": "judge", "content": "x"}),
    json.dumps(talk("u:Q")) + "\n" + json.dumps(talk("a:GOLD")),
    "[('user', 'Q'), ('assistant', 'GOLD')]",
    '[["user", "Q"], ["assistant", "GOLD"]]',
    "[Message(role='user', content='Q'), Message(role='assistant', content='GOLD')]",
    "[HumanMessage(content='Q'), AIMessage(content='GOLD')]",
    '[["user", "What is the capital of France"], ["assistant", "Paris"]]',
    json.dumps({"data": {"messages": GOLD}}),
    repr({"riga": {"conversazione": GOLD, "lingua": "it"}}),
    json.dumps({"rows": [{"id": 1, "conversations": GOLD}]}),
    json.dumps([{"row": {"data": {"turns": GOLD}}}]),
    "messages=[Message(role='user', content='Q'), Message(role='assistant', content='GOLD')]",
    "Conversation(messages=[Message(role=<Role.USER: 'user'>, content='Q'), Message(role=<Role.AI: 'ai'>, content='GOLD')])",
    "[ChatMessage(content='Q', role='user'), ChatMessage(content='GOLD', role='assistant')]",
    "[Turn(speaker='utente', text='Q'), Turn(speaker='assistente', text='GOLD')]",
    "turns=[Message('user', 'Q'), Message('assistant', 'GOLD')]",
    "[SystemMessage(content='Be brief.'), HumanMessage(content='Q'), AIMessage(content='GOLD', id='1')]",
]  # fmt: skip


@pytest.mark.parametrize("text", WRAPPED)
def test_turns_that_are_wrapped_or_of_an_unknown_role_are_refused_as_their_list_is(text):
    with pytest.raises(InputError, match="row 0, column 'prompt': ") as caught:
        prompts_of(text)
    assert "\n" not in str(caught.value)
    assert verdict_of(prompt=text, chosen="A", rejected="B") == "filtered:shape"
    assert verdict_of(prompt="Ciao?", chosen=text, rejected="B") == "filtered:shape"


@pytest.mark.parametrize(
    "text",
    [
        *(f"{text}\nChe cosa vuol dire?" for text in WRAPPED),
        *(f"What does this mean?\n{text}" for text in WRAPPED),
        "[{'role': 'user', 'content': 'Hi'}] is Python. What's that?",
        "\n".join(map(json.dumps, GOLD)) + "\nWhat is wrong with these lines?",
        f"Riassumi:{HH} Il Po.",
        "Write a dialogue.\n\nHuman: ...\n\nAssistant: ...",
        "Human: is this a transcript?",
        "\n\nHuman: what is a river?",
        "Human rights. Assistant: a job?",
        "### Human\nWhat is this?",
        '{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}',
        '{"events": [{"from": "system", "value": "5"}]}',
        '{"cast": [{"role": "king", "text": "Ahoy"}, {"role": "user", "text": "Hi"}]}',
        '[{"role": "system", "text": "CPU"}, {"role": "rack", "text": "2"}]',
        '{"a": 1}\n{"b": 2}',
        '{"role": "user", "content": "x"} 5',
        "[('a', 'b'), ('c', 'd')]",
        "[('user', 3)]",
        "[('user', 'x') is a tuple",
        "[Message] is what I read on the screen",
        '[["human", "umano"], ["model", "modello"]]',
        "[('user', 'utente'), ('assistant', 'aiutante di campo'), ('tool', 'arnese')]",
        '[["User", "Utente"], ["Assistant", "Assistente"], ["System", "Sistema"]]',
        "[Turn(90), Move(10)]",
        "[Turn(role='left', value='90')]",
        "[Message(text='Ciao'), Move(10)]",
        "turtle=[Turn(90), Move(10)]",
        "messages = [\n    HumanMessage(content='Hi'),\n    AIMessage(content='Yes'),\n]",
        "print(Message(role='user', content='Hi'))",
        '{"data": {"cast": [{"role": "user", "text": "Hi"}]}}',
        '{"role": "editor", "content": ["a", "b"]}',
        '{"a": 1}\n' * 50_000,
        "[('user'," * 50_000,
        "{'role': 'user', 'content': 'x'}" + "{}" * 100_000 + " Ciao",
        "###" * 100_000 + "### Human:",
        "\n" * 300_000 + "x",
    ],
)
def test_a_text_that_holds_such_things_among_others_is_a_text(text, caplog):
    assert messages(text) == [{"role": "user", "content": text}]
    assert read_pair(prompt="Ciao?", chosen=text, rejected="B")[1:] == ([text, "B"], "")
    assert not caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "Human: hi\n\nAssistant: hello\n\nTranslate this into Italian.",
        "Human: Vorrei un rimborso.\n\nAssistant: No.\nL'assistente è stato cortese?",
        "### Human: Hi\n### Assistant: Hello\n\nRate the answer above 1 to 5.",
        "Continua questo dialogo:\nUtente: Ciao.\nAssistente: Salve.",
        "Continue this dialogue: User: Hi. Assistant: Hello.",
        "Alla frase \u00abUtente: Ciao. Assistente: Salve.\u00bb che cosa manca?",
        "Utente: Ciao.\nAssistente: Salve.\nUtente: Chi sei?",
        "User: Hi.\nAssistant: Hello.\nWas that polite?",
        "User: how do I write 'Assistant: yes' in YAML?",
        "ANNA: Chi sei?\nMARCO: Un fiume.",
        "ROMEO: Who is there?\nJULIET: A river.",
        "Client: Rossi\nModel: Panda",
        "User: root\nHost: po",
        "Question: Is the Po a river?\nAnswer: Let's think step by step.",
        "Domanda: Il Po \u00e8 un fiume?\nRisposta: rispondi con una parola.",
        "User: Hi.\nAssistant:",
        "### Instruction:\nName a river.\n\n### Response:\n",
        "## Instruction: be brief\n## Notes: none",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\nRate this answer.",
        "Che cosa segue?\n<|im_start|>user\nCiao<|im_end|>\n<|im_start|>assistant\nSalve<|im_end|>",
        "<|im_start|>user\nHi<|im_end|>",
        "<b>User</b>: Hi. <b>Assistant</b>: Hello.",
        "What are [INST] and [/INST] for?",
        "User: " + " " * 200_000 + "x",
        "User:" * 100_000,
        "<|user|>" * 50_000,
        "<|im_start|>user" + "<|im_end|>" * 50_000,
    ],
)
def test_a_dialogue_that_a_person_quotes_stays_whole(text, caplog):
    assert prompts_of(text) == [f"u:{text}"]
    assert not caplog.text


def test_what_a_turn_itself_says_is_left_as_it_is():
    for text in (json.dumps({"messages": GOLD}), f"{HH} Il Po.", WRAPPED[0], WRAPPED[8], WRAPPED[14]):
        assert short(messages([{"role": "user", "content": text}])) == [f"u:{text}"]


# ---- transcripts as answers

LAST = "\n\nHuman: Chi sei?\n\nAssistant: "


@pytest.mark.parametrize(
    ("row", "prompt", "answers"),
    [
        # the first question, all of it, the last one, and as a transcript itself
        ({"prompt": "Chi sei?", "chosen": f"{HH} A", "rejected": f"{HH} B"}, short(TWO), ["A", "B"]),
        ({"prompt": TWO, "chosen": f"{HH} A", "rejected": f"{HH} B"}, short(TWO), ["A", "B"]),
        ({"prompt": "Quale?", "chosen": f"{HH} A", "rejected": f"{HH} B"}, short(TWO), ["A", "B"]),
        ({"prompt": HH, "chosen": f"{HH} A", "rejected": f"{HH} B"}, short(TWO), ["A", "B"]),
        ({"prompt": "\n\nHuman: Chi sei?\n\nAssistant:", "chosen": f"{LAST}A", "rejected": f"{LAST}B"}, ["u:Chi sei?"], ["A", "B"]),
        ({"prompt": HH, "chosen": "A", "rejected": " B"}, short(TWO), ["A", " B"]),
        ({"prompt": HH, "chosen": talk("a:A"), "rejected": "B"}, short(TWO), ["A", "B"]),
        # one side alone, or a list beside it
        ({"prompt": "Chi sei?", "chosen": f"{LAST}A", "rejected": "B"}, ["u:Chi sei?"], ["A", "B"]),
        ({"prompt": "Chi sei?", "chosen": f"{HH} A", "rejected": [*TWO, *talk("a:B")]}, short(TWO), ["A", "B"]),
        # the user has the last word; white space; other frames
        ({"prompt": "Chi sei?", "chosen": f"{LAST}A\n\nHuman: Grazie", "rejected": f"{LAST}B\n\nHuman: No"}, ["u:Chi sei?"], ["A", "B"]),
        ({"prompt": " Chi sei?\n", "chosen": f"{HH.strip()} A", "rejected": f"{HH} B\n"}, short(TWO), ["A", "B"]),
        ({"prompt": "Who?", "chosen": "### Human: Who?### Assistant: A", "rejected": "### Human: Who?### Assistant: B"},
         ["u:Who?"], ["A", "B"]),
        # they go on where the prompt ends
        ({"prompt": "Chi sei?", "chosen": "\n\nAssistant: Un fiume.\n\nHuman: Quale?\n\nAssistant: A",
          "rejected": "\n\nAssistant: Un fiume.\n\nHuman: Quale?\n\nAssistant: B"}, short(TWO), ["A", "B"]),
        ({"prompt": "Quale?", "history": [["Chi sei?", "Un fiume."]], "chosen": f"{HH} A", "rejected": f"{HH} B"},
         short(TWO), ["A", "B"]),
    ],
)  # fmt: skip
def test_a_transcript_as_an_answer_is_read_as_its_list_is_and_that_is_said(row, prompt, answers, caplog):
    assert read_pair(**row) == (prompt, answers, "")
    assert "1 of 1 rows: a transcript " in caplog.text


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        # dialogues that were asked for, and a model that goes on alone
        ("Scrivi un dialogo.", "Human: Ciao\n\nAssistant: Salve.", "Human: Ciao\n\nAssistant: Dimmi."),
        ("Write a dialogue that begins with 'Hi'.", f"{LAST}A", f"{LAST}B"),
        ("Chi sei?", "Assistant: Un fiume.\n\nHuman: Quale?\n\nAssistant: Il Po.", "Un lago."),
        ("Chi sei?", "Assistant: Io.\n\nHuman: E poi?\n\nAssistant: A", "Assistant: Tu.\n\nHuman: E?\n\nAssistant: B"),
        ("Chi sei?", "Un fiume.\n\nHuman: Chi sei?\n\nAssistant: Io.", "B"),
        ("Chi sei?", "Human: Chi sei?", "B"),
        # a speaker's name before what is said, in both
        ("Chi sei?", "Assistant: Un fiume.\n\nAssistant: Il Po.", "Assistant: Un fiume.\n\nAssistant: Il Reno."),
        ("Chi sei?", "### Assistant: Io.### Assistant: A", "### Assistant: Io.### Assistant: B"),
        (
            "Chi sei?",
            "Assistant: Io.\n\nHuman: E poi?\n\nAssistant: A",
            "Assistant: Io.\n\nHuman: E poi?\n\nAssistant: B",
        ),
        ("Who?", "Assistant: A river.", "Assistant: A lake."),
        ("Chi sei?", "Risposta: Un fiume.", "Risposta: Un lago."),
        (
            "Chi sei?",
            "Assistente: Io.\nUtente: E poi?\nAssistente: A",
            "Assistente: Io.\nUtente: E poi?\nAssistente: B",
        ),
        # as JSON, as Python, cut off
        ("Write a dialogue as JSON.", json.dumps(GOLD), json.dumps(talk("u:Hi", "a:Yes."))),
        ("Scrivi un dialogo fra un cliente e un assistente, in JSON.", json.dumps(GOLD, indent=1), "No."),
        ("Invent a conversation with keys role and content.", json.dumps({"messages": GOLD}), json.dumps(GOLD)[:-9]),
        (
            "Mostrami dei messaggi di LangChain in Python.",
            "[HumanMessage(content='Hi'), AIMessage(content='Yes')]",
            "No.",
        ),
        ("Show one chat message as JSON.", '{"role": "user", "content": "Hi"}', "No."),
    ],
)
def test_an_answer_that_only_looks_like_a_transcript_is_text(prompt, chosen, rejected, caplog):
    assert read_pair(prompt=prompt, chosen=chosen, rejected=rejected) == ([f"u:{prompt}"], [chosen, rejected], "")
    assert not caplog.text


@pytest.mark.parametrize("prompt", ["Write a dialogue as JSON.", 'Dimmi in JSON: "Chi \u00e8?"\nE poi?'])
@pytest.mark.parametrize("printer", [json.dumps, repr, lambda turns: json.dumps({"messages": turns})])
def test_an_answer_behind_its_own_prompt_was_not_asked_for(prompt, printer):
    sides = [printer([*talk(f"u:{prompt}"), *talk(f"a:{side}")]) for side in "AB"]
    found = read_pair(prompt=prompt, chosen=sides[0], rejected=sides[1]) if printer in (json.dumps, repr) else ()
    assert not found or found == ([f"u:{prompt}"], ["A", "B"], "")
    assert found or verdict_of(prompt=prompt, chosen=sides[0], rejected="B") == "filtered:shape"
    alone = [printer(talk(f"a:{side}")) for side in "AB"]
    assert not found or read_pair(prompt=prompt, chosen=alone[0], rejected=alone[1])[1] == ["A", "B"]


def test_transcripts_that_go_apart_after_the_question_are_counted_as_such():
    sides = {side: f"{LAST}{side}.\n\nHuman: E?\n\nAssistant: A" for side in ("chosen", "rejected")}
    assert verdict_of(prompt="Chi sei?", **sides) == "filtered:diverging"


# ---- columns beside the prompt that became text


@pytest.mark.parametrize(
    "history",
    ['[["Chi sei?", "Un fiume."]]', "[['Chi sei?', 'Un fiume.']]", "[('Chi sei?', 'Un fiume.')]",
     json.dumps(json.dumps([["Chi sei?", "Un fiume."]])), np.array([["Chi sei?", "Un fiume."]], dtype=object),
     "\n\nHuman: Chi sei?\n\nAssistant: Un fiume.", "Utente: Chi sei?\nAssistente: Un fiume.", "User: Chi sei? Bot: Un fiume."],
)  # fmt: skip
def test_a_history_that_became_text_is_read_as_its_list_is(history, caplog):
    assert prompts_of("Quale?", history=history) == short(TWO)
    assert "1 of 1 rows: the turns of the column 'history' are put before the prompt" in caplog.text
    assert read_pair(prompt="Quale?", history=history, chosen="A", rejected="B") == (short(TWO), ["A", "B"], "")


@pytest.mark.parametrize(
    "history",
    ['[["Chi sei?", "Un fium', "[['Chi sei?', None]]", json.dumps(GOLD), {"Chi sei?": "Un fiume."}, "[['Chi sei?', 'Un fiume.'] ...]", np.array(["a"]),
     str(np.array([["Chi sei?", "Un fiume."]], dtype=object)), "[['a' 'b']\n ['c' 'd']]",
     "\n\nHuman: Chi sei?\n\nAssistant: Un fiume.\n\nHuman: E?"],
)  # fmt: skip
def test_a_history_that_cannot_be_read_is_refused(history):
    with pytest.raises(InputError, match="row 0, column 'prompt': the column 'history' should hold pairs"):
        prompts_of("Quale?", history=history)


@pytest.mark.parametrize("history", ['["diabete", "asma"]', "[1, 2]", '{"age": 3}', '["Chi sei?"]'])
def test_a_history_of_something_else_is_left_out_and_counted(history, caplog):
    assert prompts_of("Quale?", history=history) == ["u:Quale?"]
    assert "1 of 1 rows: the text of the column 'history' is no list of turns and is left out" in caplog.text


@pytest.mark.parametrize("history", ["", "[]", " [] ", None, float("nan"), (), "null", "None"])
def test_an_empty_history_is_none(history, caplog):
    assert prompts_of("Quale?", history=history) == ["u:Quale?"]
    assert not caplog.text


@pytest.mark.parametrize("history", ["Storia antica", "Roman history", "Said by User: Hi Bot: Yes?"])
def test_a_history_in_words_is_left_out_and_that_is_said(history, caplog):
    assert prompts_of("Quale?", history=history) == ["u:Quale?"]
    assert "1 of 1 rows: the text of the column 'history' is no list of turns and is left out" in caplog.text


@pytest.mark.parametrize(
    "system", [json.dumps(talk("s:Sii breve.")), repr(talk("s:Be brief.")), json.dumps({"messages": GOLD})]
)
def test_a_system_column_that_holds_printed_messages_is_refused_as_their_list_is(system):
    with pytest.raises(InputError, match="the column 'system' should be text, got"):
        prompts_of("Ciao?", system=system)


# ---- every shape

said = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(lambda t: t.strip())
spellings = {
    "user": ("user", "human", "User"),
    "assistant": ("assistant", "gpt", "bot", "model"),
    "tool": ("tool", "function"),
    "system": ("system",),
}
keys = st.sampled_from([("role", "content"), ("from", "value"), ("role", "text")])


@st.composite
def conversations(draw):
    """Turns in order, a system turn or none, an answer or none, and the same in the words and the form of a dataset."""
    count = draw(st.integers(1, 7))
    turns = [{"role": "assistant" if i % 2 else draw(st.sampled_from(("user", "user", "tool")) if i else st.just("user")),
              "content": draw(said)} for i in range(count)]  # fmt: skip
    if draw(st.booleans()):
        turns.insert(0, {"role": "system", "content": draw(said)})
    return turns


@st.composite
def written(draw, turns):
    """The turns as some dataset would write them."""
    role, text = draw(keys)
    in_parts = draw(st.booleans())
    as_list = [
        {role: draw(st.sampled_from(spellings[t["role"]])),
         text: [{"type": "text", "text": t["content"]}] if in_parts and text == "content" else t["content"]}
        for t in turns
    ]  # fmt: skip
    form = draw(
        st.sampled_from((None, None, *(name for name in PRINTERS if name not in ("other dialect", "padded python"))))
    )
    return PRINTERS[form](as_list) if form else as_list


@settings(max_examples=150, deadline=None)
@given(st.data(), conversations(), st.sampled_from(("same", "first", "last", "none")), st.booleans())
def test_of_any_shape_every_earlier_turn_is_kept_and_no_prompt_ends_in_an_answer(data, turns, given_prompt, column):
    system = [t for t in turns if t["role"] == "system"]
    rest = [t for t in turns if t["role"] != "system"]
    prompt = rest[:-1] if rest[-1]["role"] == "assistant" else rest
    sides = [[*prompt, {"role": "assistant", "content": data.draw(said)}] for _ in range(2)]
    inside = [] if column else system
    row = {side: data.draw(written(inside + value)) for side, value in zip(("chosen", "rejected"), sides, strict=True)}
    row |= {"system": system[0]["content"]} if column and system else {}
    shapes = {"same": inside + prompt, "first": prompt[:1], "last": prompt[-1:]}
    if given_prompt != "none":
        row["prompt"] = data.draw(written(shapes[given_prompt]))
    (found,) = candidates([row], **COLUMNS)
    texts = [(t["role"], t["content"].strip()) for t in found["prompt"]]
    assert texts == [(t["role"], t["content"].strip()) for t in system + prompt]
    assert [r["text"] for r in found["responses"]] == [side[-1]["content"] for side in sides]
    (asked,) = from_rows([{"messages": data.draw(written(inside + sides[0]))} | row], "messages")
    assert [(t["role"], t["content"].strip()) for t in asked["prompt"]] == texts
    assert asked["prompt"][-1]["role"] in ("user", "tool")


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("role", "content", "type", "text")), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(anything, anything, anything)
def test_any_value_is_read_counted_or_refused_in_one_sentence(prompt, chosen, rejected):
    rows = [{"prompt": "Ciao?", "chosen": "A", "rejected": "B"}] * 2
    for found in candidates([{"prompt": prompt, "chosen": chosen, "rejected": rejected}, *rows], **COLUMNS):
        assert found["prompt"][-1]["role"] in ("user", "tool")
        assert not found["verdict"] or found["verdict"].startswith("filtered:")
    assert len(from_rows([{"prompt": prompt}, *rows], "prompt")) >= 2


# ---- real data


def test_questions_in_two_turns_say_not_who_speaks_and_are_refused_by_name():
    rows = real("prompts/mt_bench_it_80.jsonl")
    with pytest.raises(
        InputError, match="80 of 80 rows cannot be used; the first: row 0, column 'turns': expected text"
    ):
        from_rows(rows, "turns")


def test_real_questions_in_two_turns_keep_the_first_exchange():
    rows = real("prompts/mt_bench_it_80.jsonl")
    for row in rows:
        first, second = row["turns"]
        context = talk(f"u:{first}", "a:Una prima risposta.", f"u:{second}")
        sides = {side: through_csv([*context, *talk(f"a:{side}")]) for side in ("chosen", "rejected")}
        assert read_pair(prompt=first, **sides) == (short(context), ["chosen", "rejected"], "")
