"""Judges that are shown a reference, and the judge that asks nobody."""

import json
import re

import pytest
from builders import ScriptedEngine, scored

from nbutils import judges
from nbutils.core.columns import candidates
from nbutils.core.errors import InputError
from nbutils.core.pairs import drop_report, rerank
from nbutils.judges import bias
from nbutils.judges.files import LlmFile
from nbutils.judges.judge import run, screen, sees_reference
from nbutils.judges.llm import LlmJudge
from nbutils.judges.template import read_template

ANSWERS = ("Rome is the capital.", "Milan is the capital.")
MATERIAL = re.compile(r"<<\w+>>\n(.*?)\n<</\w+>>", re.DOTALL)


def row(i, reference="It is Rome.", answers=ANSWERS):
    return scored([f"{text} ({i})" for text in answers], text=f"Capital of Italy, number {i}?", reference=reference)


def grades(*scores):
    return json.dumps({k: v for i, s in enumerate(scores, 1) for k, v in ((f"feedback_{i}", "x"), (f"score_{i}", s))})


def knows_by_reference(asked, rng):
    """Prefer what agrees with a reference; without one whatever stands first."""
    prompt = asked.messages[0]["content"]
    shown = MATERIAL.findall(prompt)
    if "The reference" not in prompt:
        return grades(5, *[1] * (len(shown) - 2))
    return grades(*(5 if "Rome" in text else 1 for text in shown[2:]))


def judge_of(script=knows_by_reference, *, template="reference_en", reference=None, **options):
    file = LlmFile(kind="llm", model="m", template=str(template), reference=reference, **options)
    return LlmJudge("scripted", file, cache=None, engine=ScriptedEngine(script))


def prompts(judge):
    return [asked.messages[0]["content"] for asked in judge.engine.asked]


def test_a_judge_that_is_right_by_the_reference_alone_passes_the_gate_with_it_and_fails_without(store):
    rows = [row(i, answers=ANSWERS[:: 1 if i % 3 else -1]) for i in range(12)]
    judge = judge_of()
    trial = bias.gate(judge, rows, store)
    table = bias.figures(trial)
    assert table.share["flips"] == 0
    assert bias.refusal(table) == ""
    (bare,) = judges.beside(judge, cache=None)
    without = bias.figures(bias.trial_of(bare, trial, store))
    assert without.share["flips"] == 1
    assert "flips 100.0% of 12 rows" in bias.refusal(without)
    decided = [rerank(judged) for judged in run(judge, rows, store)]
    assert [r["verdict"] for r in decided] == ["kept" if i % 3 else "swapped" for i in range(12)]


def test_among_several_samples_what_the_reference_buys_is_flips_and_ties_and_no_agreement(store):
    answers = ("Rome is it.", "Milan is it.", "Turin is it.", "Naples is it.")
    rows = [row(i, answers=answers) | {"verdict": ""} for i in range(10)]
    judge = judge_of()
    trial = bias.gate(judge, rows, store)
    (bare,) = judges.beside(judge, cache=None)
    without = bias.figures(bias.trial_of(bare, trial, store))
    assert "agreement" not in without.index, "each judge may part two other answers"
    assert {"flips", "ties", "first place gains"} <= set(without.index)


@pytest.mark.parametrize("name", ["reference_en", "reference_it"])
def test_the_reference_stands_between_markers_and_is_told_to_be_one_of_several(name):
    judge = judge_of(template=name)
    text = judge.explain(row(0))
    request, reference, *answers = MATERIAL.findall(text)[-4:]
    assert (request, reference) == ("Capital of Italy, number 0?", "It is Rome.")
    assert answers == ["Rome is the capital. (0)", "Milan is the capital. (0)"]
    assert re.search("not the only good answer|Non è l'unica risposta buona", text)
    assert sees_reference(judge)
    assert not sees_reference(judge_of(template="rating_en"))


def test_rows_without_a_reference_are_counted_where_it_is_required(store):
    rows = [row(0), row(1, ""), row(2), row(3, "  \n")]
    judge = judge_of()
    decided = [rerank(r) for r in run(judge, screen(judge, rows), store)]
    assert drop_report(decided) == {"kept": 2, "filtered:no_reference": 2}
    assert len(judge.engine.asked) == 4
    judged = run(judge_of(), rows, store)  # not screened: the same
    assert [r["verdict"] for r in judged] == ["", "filtered:no_reference", "", "filtered:no_reference"]


def test_rows_without_a_reference_are_judged_by_the_other_template_where_it_is_used_and_counted(store):
    rows = [row(0), row(1, ""), row(2, "")]
    judge = judge_of(reference="used")
    judged = run(judge, screen(judge, rows), store)
    bare = [p for p in prompts(judge) if len(MATERIAL.findall(p)) == 3]
    assert len(bare) == 4
    assert all("The reference" not in p for p in bare)
    plain = judge_of(template="rating_en")
    assert judge.request(rows[1], 0) == plain.request(rows[1], 0), "the very request of the other template"
    said = bias.warnings(judge, judged, bias.figures(judged))
    assert "2 of 3 rows have no reference and are judged without one" in said


def test_where_no_row_has_a_reference_the_judge_says_so(store):
    judge = judge_of()
    rows = [row(i, "") for i in range(3)]
    with pytest.raises(InputError, match="goes by a reference and none of 3 rows has one; name a column"):
        run(judge, screen(judge, rows), store)
    assert judge.engine.asked == []


@pytest.mark.parametrize("place", [0, 1])
def test_a_reference_that_is_one_of_the_answers_is_refused_by_its_place(store, place):
    rows = [row(i, f"{ANSWERS[place]} ({i})\n") for i in range(9)]
    with pytest.raises(InputError, match=f"the reference is response {place + 1} itself in nearly all of 9 rows"):
        run(judge_of(), rows, store)


def test_short_right_answers_that_some_samples_give_are_references_all_the_same(store):
    rows = [scored([*["12", "13", "12"][:: 1 if i % 2 else -1], str(i)], text=f"{i} and {12 - i}?", reference="12")
            for i in range(20, 40)]  # fmt: skip
    rows += [scored(["12", f"{i}"][:: 1 if i % 2 else -1], text=f"{i}?", reference="12") for i in range(20, 40)]
    judge = judge_of(lambda asked, rng: grades(*range(1, 1 + len(MATERIAL.findall(asked.messages[0]["content"])) - 2)))
    assert all(r["verdict"] == "" for r in run(judge, rows, store))


def test_the_column_of_an_answer_named_as_reference_is_refused(store):
    source = [{"q": f"{i}?", "a": f"yes {i}", "b": f"no {i}"} for i in range(10)]
    rows = candidates(source, prompt="q", chosen="a", rejected="b", reference="a")
    judge = judge_of()
    with pytest.raises(InputError, match="name in reference_column answers by somebody else"):
        bias.gate(judge, screen(judge, rows), store)
    assert judge.engine.asked == []


FAULTS = {
    ("rating_en", "used"): "reference is used and template rating_en shows none",
    ("verdict_it", "required"): "reference is required and template verdict_it shows none",
    ("reference_it", "never"): "reference is never and template reference_it shows it; choose .* like rating_it",
    ("mine", "used"): "reference is used and the head of template .* names no template `without` one",
    ("twice", None): "without names reference_en, expected one that shows no {reference}",
    ("other", None): "without names verdict_en, .* and has the same reply and scale",
    ("idle", None): "without 'rating_en' has no meaning where no {reference} is shown",
    ("gone", None): "template: 'nowhere' is neither a file nor a template of the kit",
}  # fmt: skip
BODY = "<<{nonce}>> {prompt} {responses} {format}"
OWN = {
    "mine": "", "twice": "without: reference_en\n", "other": "without: verdict_en\n", "idle": "without: rating_en\n",
    "gone": "without: nowhere\n",
}  # fmt: skip


@pytest.mark.parametrize(("template", "reference"), FAULTS)
def test_a_judge_file_and_a_template_that_contradict_each_other_are_refused(tmp_path, template, reference):
    if template in OWN:
        path = tmp_path / f"{template}.txt"
        slot = "" if template == "idle" else " {reference}"
        path.write_text(f"---\nreply: json\nscale: [1, 5]\n{OWN[template]}---\n{BODY}{slot}")
        template_name = str(path)
    else:
        template_name = template
    with pytest.raises(InputError, match=FAULTS[template, reference].replace("{", r"\{").replace("}", r"\}")):
        judge_of(template=template_name, reference=reference)


def test_a_judge_brings_the_template_for_rows_without_a_reference_along(tmp_path):
    (tmp_path / "bare.txt").write_text(f"---\nreply: json\nscale: [1, 5]\n---\n{BODY}")
    (tmp_path / "mine.txt").write_text(
        f"---\nreply: json\nscale: [1, 5]\nwithout: {tmp_path / 'bare.txt'}\n---\n{BODY} {{reference}}"
    )
    judge = tmp_path / "judge.yaml"
    judge.write_text(f"kind: llm\nmodel: m\nserver: http://127.0.0.1:1/v1\ntemplate: {tmp_path / 'mine.txt'}\n")
    assert judges.brings(str(judge)) == [("file", str(judge)), ("file", str(tmp_path / "mine.txt")),
                                         ("file", str(tmp_path / "bare.txt"))]  # fmt: skip
    assert read_template(str(tmp_path / "mine.txt")).without == str(tmp_path / "bare.txt")


# --- nobody


def test_whoever_assumes_keeps_the_order_asks_nothing_and_says_so(store, caplog):
    source = [{"q": f"{i}?", "a": f"yes {i}", "b": f"no {i}"} for i in range(3)]
    rows = candidates(source, prompt="q", chosen="a", rejected="b")
    judge = judges.load("assume", cache=None, ordered=True)
    assert "nobody is asked" in judge.explain(rows[0])
    trial = bias.gate(judge, rows, store)
    assert trial == []
    bias.insist(bias.figures(trial))
    judged = [rerank(r) for r in run(judge, rows, store)]
    assert [(r["verdict"], r["chosen"], r["judge"]) for r in judged] == [("kept", 0, "assume")] * 3
    report = bias.report(judge, judged, bias.figures(judged))
    assert bias.in_words(report) == "Judge assume: nobody judged, the source's order was kept."
    assert "nobody judges these 3 pairs: `kept` is the source's word and confirms nothing" in caplog.text
    assert len(store) == 0


def test_where_there_is_no_order_nobody_can_assume_one():
    with pytest.raises(InputError, match="judge assume keeps the order of a source, and here there is none; only 01"):
        judges.load("assume", cache=None)


# --- relatives


def samples_of(model):
    return [{"prompt_id": "p", "prompt": [], "responses": [], "verdict": "", "replies": []} | {
        "responses": [{"text": t, "model": model} for t in ("a", "b")]}]  # fmt: skip


@pytest.mark.parametrize(
    ("judge", "policy", "said"),
    [
        (
            "Qwen/Qwen3-4B-Instruct-2507",
            "Qwen/Qwen3-1.7B",
            "is of the family qwen, like the model of 2 of",
        ),
        ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-1.7B", "wrote 2 of the responses itself"),
        ("openai/gpt-oss-120b", "Qwen/Qwen3-1.7B", ""),
    ],
)
def test_a_judge_of_the_policys_family_is_warned_of(judge, policy, said):
    file = LlmFile(kind="llm", model=judge, template="rating_en")
    asked = LlmJudge("x", file, cache=None, engine=ScriptedEngine(None))
    found = bias.warnings(asked, samples_of(policy), bias.figures([]))
    assert [said in sentence for sentence in found] == [True] * bool(said)
