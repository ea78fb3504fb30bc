"""people.py and form.py: pairs that people choose from, and what becomes of the table whatever program saved it."""

import csv
import io

import pytest
from builders import scored

from nbutils.core import columns
from nbutils.core.errors import InputError
from nbutils.judges import bias, people
from nbutils.judges.form import form, show
from nbutils.judges.people import COLUMNS, Sheet, best_and_worst, path_of


def rows_of(count, **changes):
    """Rows of which the judge prefers the answer called `good`, with prompts of their own."""
    return [
        scored([f"good {i}", f"poor {i}"], [[1, 0], [1, 0]], text=f"Nomina il fiume numero {i}.") | changes
        for i in range(count)
    ]


def lines_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))


def fill(path, label):
    """Write a label into every line of a sheet: a text, or what a function of the line says."""
    lines = lines_of(path)
    for line in lines:
        line["label"] = label(line) if callable(label) else label
    write(path, lines)


def write(path, lines, delimiter=",", names=COLUMNS, encoding="utf-8-sig"):
    text = io.StringIO()
    table = csv.DictWriter(text, names, delimiter=delimiter, lineterminator="\r\n")
    table.writeheader()
    table.writerows(lines)
    path.write_text(text.getvalue(), encoding=encoding)


def better(line):
    """What somebody says who knows which answer is good."""
    return "1" if line["answer_1"].startswith("good") else "2"


def test_a_sheet_waits_and_tells_neither_model_nor_score_nor_always_the_same_side(tmp_path):
    rows = [row | {"prompt_id": str(i)} for i, row in enumerate(rows_of(40))]
    for row in rows:
        row["responses"][0]["model"] = "the tuned one"
    sheet = Sheet(tmp_path / "labels/03_judge.csv", rows)
    assert len(sheet.waiting) == 40
    assert sheet.labelled == []
    text = sheet.path.read_text(encoding="utf-8-sig")
    assert "tuned" not in text
    assert text.splitlines()[0] == "id,prompt,answer_1,answer_2,label"
    firsts = [line["answer_1"][:4] for line in lines_of(sheet.path)]
    assert 8 < firsts.count("good") < 32


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_what_people_chose_is_read_whatever_program_saved_it(tmp_path, delimiter, encoding):
    rows = rows_of(12)
    path = Sheet(tmp_path / "s.csv", rows).path
    write(path, [line | {"label": better(line)} for line in lines_of(path)][::-1], delimiter, encoding=encoding)
    labelled = Sheet(path, rows).labelled
    assert [row["label"] for row in labelled] == ["first"] * 12
    table = bias.figures(labelled)
    assert table.loc["agreement", "share"] == 1.0
    assert table.loc["agreement", "rows"] == 12


@pytest.mark.parametrize(
    ("label", "kept"),
    [
        ("1", True), ("2", True), ("0", True), ("1.0", True), (" 1 ", True), ("TIE", True), ("chosen", True),
        ("skip", False), ("Skip", False), ("", False),
    ],
)  # fmt: skip
def test_every_form_of_a_choice(tmp_path, label, kept):
    rows = rows_of(4)
    path = Sheet(tmp_path / "s.csv", rows).path
    fill(path, label)
    sheet = Sheet(path, rows)
    assert bool(sheet.labelled) == kept
    assert (sheet.waiting == []) == (label != "")


def test_one_bad_choice_is_said_and_waits_and_decides_nothing_else(tmp_path, caplog):
    rows = rows_of(10)
    path = Sheet(tmp_path / "s.csv", rows).path
    lines = lines_of(path)
    for line, label in zip(lines, ["3", *"111", *"222", *"000"], strict=True):
        line["label"] = label
    write(path, lines)
    sheet = Sheet(path, rows)
    assert len(sheet.labelled) == 9
    assert sheet.waiting == [lines[0]["id"]]
    assert "1 choices are none and wait for one; the first: '3'" in caplog.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name,age\nAda,36\n", "is no sheet of this kit: its first line is 'name,age'"),
        ("", "is no sheet of this kit"),
        ("id,prompt,answer_1,answer_2,label\np1,a,b,c,left\n", "'left' for pair 'p1'; expected 1, 2, 0 (tie) or skip"),
        ("id,prompt,answer_1,answer_2,label\np1,a,b,c,1\np1,a,b,c,2\n", "pair 'p1' has two choices, 1 and 2; keep one"),
        (b"\xff\xfei\x00d\x00", "is not UTF-8 text"),
    ],
)
def test_another_file_in_its_place_is_refused_and_kept(tmp_path, content, said):
    path = tmp_path / "labels/03_judge.csv"
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"labels/03_judge\.csv") as refused:
        Sheet(path, rows_of(3))
    assert said in str(refused.value)
    assert path.read_bytes() == before


def test_choices_in_pairs_that_are_gone_are_said_and_kept(tmp_path, caplog):
    path = Sheet(tmp_path / "s.csv", rows_of(5)).path
    fill(path, better)
    other = [scored([f"new {i}", f"old {i}"], [[1, 0]], text=f"Altro {i}") for i in range(3)]
    sheet = Sheet(path, other)
    assert "5 choices are of pairs that this run does not hold; they are kept" in caplog.text
    assert sheet.labelled == []
    assert len(sheet.waiting) == 3
    assert len(Sheet(path, rows_of(5)).labelled) == 5  # and are there when their pairs are


def test_the_same_choice_twice_is_one_and_lines_that_were_deleted_wait_again(tmp_path):
    rows = rows_of(6)
    path = Sheet(tmp_path / "s.csv", rows).path
    lines = [line | {"label": better(line)} for line in lines_of(path)]
    write(path, [*lines[:3], lines[0]])
    sheet = Sheet(path, rows)
    assert [row["label"] for row in sheet.labelled] == ["first"] * 3
    assert sheet.waiting == [line["id"] for line in lines[3:]]


def test_pairs_of_one_text_are_nobodys_work_and_count_as_ties_only_up_to_where_people_came(tmp_path):
    rows = rows_of(30)
    for row in rows[::2]:
        row["responses"][1] = row["responses"][0]
    sheet = Sheet(tmp_path / "s.csv", rows)
    assert len(lines_of(sheet.path)) == len(sheet.asked) == 15
    assert sheet.labelled == []
    for name in sheet.asked[:4]:
        sheet.choose(name, "skip")
    assert sheet.labelled == []  # whoever skipped has not chosen
    sheet.choose(sheet.asked[4], "1")
    upto = list(sheet.rows).index(sheet.asked[4]) + 1
    ties = upto - 5  # of the pairs before it that are not asked
    assert len(sheet.labelled) == 1 + ties
    assert [row["label"] for row in sheet.labelled[:-1]] == ["tie"] * ties


def test_of_a_prompt_with_several_answers_one_pair_is_asked_and_a_sheet_is_no_longer_than_a_hundred(tmp_path):
    rows = [scored([f"a {i} {n}", f"b {i} {n}"], [[1, 0]], text=f"p {i}") for i in range(150) for n in range(3)]
    sheet = Sheet(tmp_path / "s.csv", rows)
    assert len(sheet.asked) == 100
    assert len({row["prompt_id"] for row in sheet.rows.values()}) == 100
    assert {row["responses"][0]["text"][-1] for row in sheet.rows.values()} == {"0", "1", "2"}
    assert list(Sheet(tmp_path / "t.csv", rows[::-1]).rows) == list(sheet.rows)
    assert list(Sheet(tmp_path / "u.csv", rows, seed=1).rows) != list(sheet.rows)


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+39", "-5 gradi", "@somebody", "\t=1"])
def test_no_answer_is_a_formula_in_the_table(tmp_path, text):
    row = scored([text, "due"], [[1, 0]])
    (line,) = lines_of(Sheet(tmp_path / "s.csv", [row]).path)
    assert f" {text}" in (line["answer_1"], line["answer_2"])


def test_texts_with_lines_quotes_and_marks_come_back_whole(tmp_path):
    texts = ['riga uno\nriga "due"; tre, quattro', "\n\n  def f():\n\treturn 1 è"]
    sheet = Sheet(tmp_path / "s.csv", [scored(texts, [[1, 0]])])
    (line,) = lines_of(sheet.path)
    assert sorted([line["answer_1"], line["answer_2"]]) == sorted(texts)
    fill(sheet.path, "0")
    assert [row["label"] for row in Sheet(sheet.path, sheet.rows.values()).labelled] == ["tie"]


@pytest.mark.parametrize("text", ["a\0b", "\ud83d alone", "\x1b[31mred", "è " * 200_000, "\r", 'a,b;c\td"e'])
def test_whatever_a_model_wrote_the_table_can_be_read_again(tmp_path, text):
    rows = [scored([text, "due"], [[1, 0]]), scored(["uno", "due"], [[1, 0]], text=text)]
    path = Sheet(tmp_path / "s.csv", rows).path
    fill(path, "1")
    sheet = Sheet(path, rows)
    assert len(sheet.labelled) == 2
    assert {row["responses"][0]["text"] for row in sheet.labelled} == {text, "uno"}
    widget(sheet)


def test_no_id_is_a_number_to_a_program_for_tables(tmp_path):
    assert all(name.startswith("p") for name in Sheet(tmp_path / "s.csv", rows_of(30)).rows)


def test_a_filled_in_sheet_puts_another_judge_on_trial_in_01(tmp_path):
    path = Sheet(tmp_path / "s.csv", rows_of(8)).path
    fill(path, lambda line: "skip" if line["prompt"].endswith("3.") else better(line))
    found = columns.candidates(lines_of(path), prompt="prompt", chosen="answer_1", rejected="answer_2", label="label")
    assert sorted(row["label"] for row in found).count("") == 1
    for row in found:
        good = [r["text"] for r in row["responses"]].index(
            next(r["text"] for r in row["responses"] if "good" in r["text"])
        )
        assert row["label"] in ("", ("first", "second")[good])


def test_the_best_and_the_worst_answer_are_asked_about_and_rows_without_two_scores_are_not():
    nan = float("nan")
    four = scored(["a", "b", "c", "d"], [[0.5, 1.0, nan, 0.0], [0.5, 0.5, nan, 0.25]])
    lost = scored(["a", "b"], [])
    one = scored(["a", "b"], [[1.0, nan]])
    (row,) = best_and_worst([four, lost, one])
    assert [r["text"] for r in row["responses"]] == ["b", "d"]
    assert row["scores"] == [[1.0, 0.0], [0.5, 0.25]]


def test_a_link_in_the_place_of_the_sheet_leads_nowhere_that_is_written(tmp_path):
    other = tmp_path / "thesis.csv"
    other.write_text("id,prompt,answer_1,answer_2,label\n")
    path = tmp_path / "labels/03_judge.csv"
    path.parent.mkdir()
    path.symlink_to(other)
    Sheet(path, rows_of(2))
    assert other.read_text() == "id,prompt,answer_1,answer_2,label\n"
    assert len(lines_of(path)) == 2


def widget(sheet):
    box = form(sheet)
    view, controls = box.children
    *buttons, field = controls.children
    return view, {button.description: button for button in buttons}, field


def test_the_form_keeps_every_click_and_goes_on_where_it_stopped(tmp_path):
    rows = rows_of(5)
    sheet = Sheet(tmp_path / "s.csv", rows)
    view, buttons, field = widget(sheet)
    names = sheet.asked
    assert "pair 1 of 5" in view.value
    buttons["1 is better"].click()
    assert lines_of(sheet.path)[0]["label"] == "1"
    assert "pair 2 of 5" in view.value
    for key in ("2", "S", "x", ""):
        field.value = key
    assert field.value == ""
    assert [sheet.choices.get(name) for name in names] == ["1", "2", "skip", None, None]
    buttons["back"].click()
    assert "pair 3 of 5" in view.value
    again = Sheet(sheet.path, rows)
    view, buttons, field = widget(again)
    assert "pair 3 of 5" in view.value
    assert buttons["back"].disabled
    for key in "012":
        field.value = key
    assert view.value.startswith("Every pair has a choice")
    assert all(button.disabled for name, button in buttons.items() if name != "back")
    field.value = "b"
    assert "pair 5 of 5" in view.value


def test_what_a_stranger_wrote_is_text_in_the_form(tmp_path):
    sheet = Sheet(tmp_path / "s.csv", [scored(["<img src=x onerror=alert(1)>", "b & c"], [[1, 0]], text="<b>hi</b>")])
    view, _, _ = widget(sheet)
    assert "<img" not in view.value
    assert "<b>" not in view.value
    assert "&lt;img src=x onerror=alert(1)&gt;" in view.value


@pytest.mark.parametrize(
    ("environment", "there"),
    [({}, False), ({"JPY_SESSION_NAME": "03_judge.ipynb"}, True), ({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, True),
     ({"KAGGLE_KERNEL_RUN_TYPE": "Batch"}, False)],
)  # fmt: skip
def test_a_form_is_shown_where_somebody_sits_before_it(environment, there, tmp_path, monkeypatch, capsys):
    for name in ("JPY_SESSION_NAME", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    shown = []
    monkeypatch.setattr("nbutils.judges.form.display", shown.append)
    show(Sheet(tmp_path / "s.csv", rows_of(2)))
    assert bool(shown) == there
    assert capsys.readouterr().out.startswith("0 of 2 pairs have a choice.")


def test_choices_are_an_input_of_the_stage_and_an_empty_sheet_is_none(tmp_path):
    path = path_of("03_judge", tmp_path)
    assert people.chosen(path) == {}
    sheet = Sheet(path, rows_of(3))
    assert people.chosen(path) == {}
    sheet.choose(sheet.asked[1], "2")
    assert people.chosen(path) == {sheet.asked[1]: "2"}
