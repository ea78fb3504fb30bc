"""summary.py and answers.py on rows small enough to work out by hand."""

import json
import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
from builders import ScriptedEngine, prompt_row
from compared import ROWS, row

from nbutils import run
from nbutils.core.errors import InputError
from nbutils.core.prompts import select
from nbutils.core.records import EVALUATION, dataset
from nbutils.core.sampling import Sample, Sampling
from nbutils.engines.protocol import Tally
from nbutils.judges.files import VerifierFile
from nbutils.judges.judge import Judgement
from nbutils.judges.verifier import Verifier
from nbutils.params import validate
from nbutils.proof.answers import compare, examples, held_out, judge_report, load_judges, sample
from nbutils.proof.doubts import drift, same_judge_warnings, side_effects
from nbutils.proof.summary import findings, got_worse, in_words, summarise

RIVER = json.dumps({"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["river"]}]})

# the judge of every set, which judges anything and has no key
ANYONE = defaultdict(lambda: SimpleNamespace(file=SimpleNamespace(kind="llm")))


class ScriptedJudge:
    """Gives each row the scores it is told, and remembers what it was shown."""

    name = model = "scripted"
    file = None

    def __init__(self, *scores):
        self.scores, self.shown = scores, []

    def tally(self):
        return Tally(calls=2)

    def notes(self):
        return {}

    def score(self, rows, store, *, deadline):
        self.shown = rows
        return [Judgement(list(scores)) for scores in self.scores]


def test_the_summary_is_what_one_works_out_by_hand():
    summary = summarise(ROWS)
    assert [summary[name] for name in ("prompts", "answers", "topics", "unparsed")] == [3, 4, 2, 1]
    assert summary["verdicts"] == {"win": 2, "tie": 1, "unparsed": 1}
    # topics drawn with replacement give AA 0.5/2, AB 1.5/3 or BB 1/1
    assert summary["score"] == pytest.approx({"before": 0.5, "after": 1.0, "change": 0.5, "low": 0.25, "high": 1.0})
    # AA 1/2, AB 2/3, BB 1/1
    assert summary["passed_all"] == pytest.approx(
        {"before": 1 / 3, "after": 1.0, "change": 2 / 3, "low": 0.5, "high": 1.0}
    )
    assert summary["truncated"]["before"] == 0.25  # of all answers, scored or not
    assert summary["truncated"]["after"] == 0.0
    assert summary["tokens"] == {"before": 10.0, "after": 5.0}
    assert summary["tokens_ratio"] == 0.5
    assert summary["characters"] == {"before": (7 + 9 + 2 + 3) / 4, "after": (5 + 7 + 9 + 3) / 4}
    assert summary["characters_ratio"] == pytest.approx(24 / 21)
    assert summary["distinct_2"]["before"] == 3 / 4  # ab ba ab, the river
    assert summary["distinct_2"]["after"] == 1.0
    assert summary["checks"] == {}


def test_the_summary_can_be_saved_as_json_and_does_not_change_from_run_to_run():
    assert json.dumps(summarise(ROWS), allow_nan=False) == json.dumps(summarise(ROWS), allow_nan=False)


def test_each_kind_of_check_is_counted_for_itself():
    both = json.dumps(
        {
            "instruction_id_list": ["keywords:existence", "punctuation:no_comma"],
            "kwargs": [{"keywords": ["river"]}, {}],
        }
    )
    rows = [
        row(("a, b", 0.0), ("the river", 1.0), "A", checks=both),
        row(("the river, wide", 0.5), ("river, sea", 0.5), "B", checks=both),
        row(("x", 0.0), ("y", 0.0), "B", checks=RIVER),
    ]
    checks = summarise(rows)["checks"]
    assert set(checks) == {"keywords:existence", "punctuation:no_comma"}
    assert [checks["keywords:existence"][side] for side in ("before", "after")] == pytest.approx([1 / 3, 2 / 3])
    assert [checks["punctuation:no_comma"][side] for side in ("before", "after")] == [0.0, 0.5]


ALL = {"prompts": 72, "answers": 216, "topics": 12}


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.02, 0.3, "better: "),
        (-0.3, -0.02, "worse: "),
        (-0.1, 0.3, "not shown to differ: "),
        (0.0, 0.3, "not shown to differ: "),  # an interval that touches zero shows nothing
        (-0.3, 0.0, "not shown to differ: "),
    ],
)
def test_the_verdict_in_words_follows_the_interval(low, high, word):
    change = {"before": 0.326, "after": 0.4, "change": 0.074, "low": low, "high": high}
    summary = {"passed_all": change, "checks": {"no_comma": change}, "measured": ALL, "bounds": None}
    text = in_words(summary | {"prompts": 72, "answers": 216})
    assert text.startswith(f"{word}all passed 32.6% to 40.0%, +7.4 points [{100 * low:+.1f}, {100 * high:+.1f}]")
    assert text.endswith("on 72 prompts, 12 topics")


def test_without_checks_the_verdict_goes_by_the_mean_score_since_a_reward_model_never_gives_the_highest():
    rows = [row(("a", 0.5), ("b", 0.6), topic, prompt_id=topic) for topic in "ABC"]
    assert in_words(summarise(rows)).startswith("better: mean score 50.0% to 60.0%, +10.0 points")


def test_prompts_without_a_topic_are_topics_of_their_own():
    rows = [row(("a", 0.0), ("b", 1.0), "", prompt_id=str(i)) for i in range(20)]
    assert in_words(summarise(rows)).startswith("better: mean score 0.0% to 100.0%, +100.0 points [+100.0, +100.0]")
    assert summarise(rows)["topics"] == 20


def test_one_topic_alone_shows_nothing():
    rows = [row(("a", 0.0), ("b", 1.0), "A", prompt_id=str(i)) for i in range(20)]
    assert in_words(summarise(rows)).startswith("not shown to differ: mean score 0.0% to 100.0%")


def test_examples_are_the_first_answers_of_the_smallest_ids_whatever_the_order():
    rows = [row(("a", 0.0), (f"{i}{k}", 1.0), prompt_id=i) for i in "dbac" for k in range(2)]
    assert [r["after_text"] for r in examples(rows)] == ["a0", "b0", "c0"]
    assert [r["after_text"] for r in examples(rows, 2)] == ["a0", "b0"]
    assert len(examples(rows, 10)) == 4


def test_answers_are_compared_one_by_one_as_seen_from_the_tuned_model(store):
    rows = [prompt_row("P", category="A"), prompt_row("Q", category="B")]
    before = [(Sample("p0", 1), Sample("p1", 2)), (Sample("q0", 3, "length"), Sample("q1", 4))]
    after = [(Sample("P0", 5), Sample("P1", 6)), (Sample("Q0", 7), Sample("Q1", 8))]
    # per pair of answers: one list of (before, after) per order
    judge = ScriptedJudge([[0.0, 1.0], [0.5, 1.0]], [[1.0, 0.5]], [[1.0, 0.0], [0.0, 1.0]], [])
    sets = ({"held-out": side} for side in (rows, before, after))
    result = compare({"held-out": judge}, *sets, store=store)["held-out"]
    assert [[r["text"] for r in shown["responses"]] for shown in judge.shown] == [
        ["p0", "P0"], ["p1", "P1"], ["q0", "Q0"], ["q1", "Q1"],
    ]  # fmt: skip
    assert [r["verdict"] for r in result] == ["win", "loss", "flip", "unparsed"]
    assert [(r["before_score"], r["after_score"]) for r in result[:3]] == [(0.25, 1.0), (1.0, 0.5), (0.5, 0.5)]
    assert math.isnan(result[3]["before_score"])
    assert math.isnan(result[3]["after_score"])
    assert [(r["before_tokens"], r["after_tokens"]) for r in result] == [(1, 5), (2, 6), (3, 7), (4, 8)]
    assert (result[2]["before_finish_reason"], result[2]["after_finish_reason"]) == ("length", "stop")
    assert [r["category"] for r in result] == ["A", "A", "B", "B"]
    assert len(dataset(result, EVALUATION)) == 4
    figures = judge_report({"held-out": judge}, {"held-out": result})["held-out"]["figures"]
    assert {name: figures[name]["rows"] for name in ("flips", "ties")} == {"flips": 2, "ties": 3}
    assert figures["flips"]["share"] == 0.5


def test_the_verifier_judges_held_out_answers(store):
    judge = Verifier("verifier", VerifierFile(kind="verifier"))
    rows = [prompt_row(checks=RIVER, category="A")]
    sides = {"a": [(Sample("A sea.", 3),)]}, {"a": [(Sample("The river.", 3),)]}
    [result] = compare({"a": judge}, {"a": rows}, *sides, store=store)["a"]
    assert (result["verdict"], result["before_score"], result["after_score"]) == ("win", 0.0, 1.0)


def test_held_out_prompts_are_sampled_in_their_order_with_the_options_given(store):
    engine = ScriptedEngine(lambda asked, rng: asked.messages[0]["content"].upper())
    sampling = Sampling(temperature=0.7, max_tokens=9)
    rows = [prompt_row(text) for text in ("b", "a", "c")]
    sets = {"first": rows[:2], "second": rows[2:]}
    drawn = sample(engine, sets, sampling, n=2, seed=0, store=store, deadline=math.inf)
    texts = {name: [samples[0].text for samples in one] for name, one in drawn.items()}
    assert texts == {"first": ["B", "A"], "second": ["C"]}
    assert {(r.n, r.sampling) for r in engine.asked} == {(2, sampling)}


@pytest.mark.parametrize(("lost", "of"), [(1, 10), (2, 20), (3, 40)])
def test_a_held_out_prompt_without_an_answer_is_not_judged_and_counts_as_not_measured(lost, of, store):
    engine = ScriptedEngine(lambda asked, rng: None if asked.messages[0]["content"] in map(str, range(lost)) else "x")
    rows = {"held": [prompt_row(str(i)) for i in range(of)]}
    drawn = sample(engine, rows, Sampling(), n=1, seed=0, store=store, deadline=math.inf)
    assert [len(samples) for samples in drawn["held"]] == [0] * lost + [1] * (of - lost)
    judge = ScriptedJudge(*[[[0.0, 1.0]]] * (of - lost))
    full = {"held": [(Sample("y"),)] * of}
    for sides, empty in (((full, drawn), "after"), ((drawn, full), "before")):
        compared = compare({"held": judge}, rows, *sides, store=store)["held"]
        verdict = "win"
        assert [(row["prompt"][0]["content"], row["verdict"]) for row in compared] == (
            [(str(i), "unanswered") for i in range(lost)] + [(str(i), verdict) for i in range(lost, of)]
        )
        assert {(row[f"{empty}_text"], row[f"{empty}_finish_reason"]) for row in compared[:lost]} == {
            ("", "unanswered")
        }
        dataset(compared, EVALUATION)
        summary = summarise(compared)
        assert (summary["prompts"], summary["unanswered"], summary["unparsed"]) == (of, lost, 0)
        assert summary["measured"]["prompts"] == of - lost
        assert summary["tokens"]["before"] == summary["tokens"]["after"], "what there is not has no length"
        assert summary["bounds"]["losses"]["value"] == pytest.approx(1 - 2 * lost / of)
        assert f"on {of - lost} of {of} prompts that were measured" in in_words(summary)


def test_the_headline_of_a_key_is_the_share_of_right_answers():
    rows = [row(("a", 0.0), ("b", 1.0), f"topic {i}", "win", f"p{i}") for i in range(6)]
    assert in_words(summarise(rows, by_key=True)).startswith("better: right answers 0.0% to 100.0%")
    assert in_words(summarise(rows)).startswith("better: mean score 0.0% to 100.0%")
    older = {name: value for name, value in summarise(rows).items() if name != "scored"}
    assert in_words(older).startswith("better: mean score")


def test_prompts_that_get_no_answer_before_and_others_after_are_a_finding(store):
    rows = {"held": [prompt_row(str(i)) for i in range(100)]}
    before = {"held": [()] * 10 + [(Sample("x", 4),)] * 90}
    after = {"held": [(Sample("x", 4),)] * 90 + [()] * 10}
    compared = compare({"held": ScriptedJudge(*[[[0.0, 1.0]]] * 80)}, rows, before, after, store=store)
    summary = summarise(compared["held"])
    assert in_words(summary).startswith("better where measured: ")
    assert "80 of 100 prompts that were measured" in in_words(summary)
    assert [finding.name for finding in drift({"held": summary})] == ["unmeasured"]


@pytest.mark.parametrize(("lost", "of"), [(1, 2), (1, 9), (3, 20), (5, 5)])
def test_held_out_prompts_of_which_many_get_no_answer_stop_the_comparison(lost, of, store):
    engine = ScriptedEngine(lambda asked, rng: None if asked.messages[0]["content"] in map(str, range(lost)) else "x")
    rows = {"held": [prompt_row(str(i)) for i in range(of)]}
    with pytest.raises(InputError, match=f"held: {lost} of {of} prompts got no answer; run the same command again"):
        sample(engine, rows, Sampling(), n=1, seed=0, store=store, deadline=math.inf)


def write_prompts(path, *texts):
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return str(path)


RIVERS = "Write two sentences about the river that runs through your town, please."
BREAD = "Explain in simple words how bread is made in a small bakery."


def test_held_out_prompts_that_resemble_training_prompts_are_removed_and_counted(tmp_path):
    first = write_prompts(tmp_path / "first.jsonl", RIVERS, BREAD)
    second = write_prompts(tmp_path / "second.jsonl", BREAD)
    trained_on = [prompt_row(RIVERS.replace(", please", ""))]
    kept, overlapped, unfit = held_out(
        [first, second], "prompt", judges_of=ANYONE, trained_on=trained_on, run_dir=tmp_path
    )
    assert {name: [row["prompt"][-1]["content"] for row in rows] for name, rows in kept.items()} == {
        "first": [BREAD],
        "second": [BREAD],
    }
    assert (overlapped, unfit) == ({"first": 1, "second": 0}, {"first": 0, "second": 0})


PASSAGE = "the old mill by the bridge burned down in the winter of the great flood and nobody rebuilt it"
BRANO = "il vecchio mulino vicino al ponte bruciò nell'inverno della grande piena e nessuno lo ricostruì più"


@pytest.mark.parametrize(
    ("trained", "held", "overlaps"),
    [
        (
            f"Translate into French: {PASSAGE}.",
            f"Who owned what is told of here? {PASSAGE.upper()}! Give three names.",
            1,
        ),
        (f"Riassumi: {BRANO}.", f"Che cosa successe, e quando? Rispondi in due frasi brevi. «{BRANO}»", 1),
        (RIVERS, RIVERS.replace("please", "thanks"), 1),
        (
            f"Translate into French: {' '.join(PASSAGE.split()[:12])}.",
            f"{' '.join(PASSAGE.split()[:12])}: who did it?",
            0,
        ),
        (BREAD, RIVERS, 0),
    ],
)
@pytest.mark.parametrize("origin", ["on_policy", "off_policy"])
def test_04_keeps_away_from_training_prompts_by_the_rule_that_02_keeps_away_from_held_out_ones(
    trained, held, overlaps, origin, tmp_path
):
    other = "How many moons has Mars, and what are they called?"
    name = write_prompts(tmp_path / "held.jsonl", held, other)
    trained_on = [prompt_row(trained, origin=origin)]
    _, overlapped, _ = held_out([name], "prompt", judges_of=ANYONE, trained_on=trained_on, run_dir=tmp_path)
    assert overlapped == {"held": overlaps}
    kept, _ = select([*trained_on, prompt_row(other)], min_chars=1, max_chars=999, exclude=[prompt_row(held)])
    assert len(kept) == 2 - overlaps


def test_what_many_judged_prompts_share_is_no_overlap_though_few_of_them_became_pairs(tmp_path):
    stock = "Explain your answer step by step so that a reader can follow how you got there."
    judged = [prompt_row(f"Topic {i}, in {i % 7} words. {stock}") for i in range(120)]
    name = write_prompts(tmp_path / "held.jsonl", f"How many leaves has an oak? {stock}")
    with pytest.raises(InputError, match="overlap"):
        held_out([name], "prompt", judges_of=ANYONE, trained_on=judged[:1], run_dir=tmp_path)
    _, overlapped, _ = held_out(
        [name], "prompt", judges_of=ANYONE, trained_on=judged[:1], judged=judged, run_dir=tmp_path
    )
    assert overlapped == {"held": 0}


def test_a_held_out_set_without_a_prompt_left_is_left_out_and_said(tmp_path, caplog):
    names = [write_prompts(tmp_path / f"{name}.jsonl", text) for name, text in (("a", RIVERS), ("b", BREAD))]
    kept, overlapped, _ = held_out(names, "prompt", judges_of=ANYONE, trained_on=[prompt_row(RIVERS)], run_dir=tmp_path)
    assert (list(kept), overlapped) == (["b"], {"a": 1, "b": 0})
    assert "a.jsonl: none of 1 prompts is left, the set is left out" in caplog.text


def test_held_out_sets_without_any_prompt_left_are_refused_before_anything_is_sampled(tmp_path):
    names = [write_prompts(tmp_path / f"{name}.jsonl", text) for name, text in (("a", RIVERS), ("b", BREAD))]
    with pytest.raises(
        InputError, match=r"no prompt of .*a\.jsonl, .*b\.jsonl is left, 2 overlap with training prompts and"
    ):
        held_out(
            names, "prompt", judges_of=ANYONE, trained_on=[prompt_row(RIVERS), prompt_row(BREAD)], run_dir=tmp_path
        )


def test_a_prompt_that_the_model_cannot_be_asked_is_left_out_and_counted(tmp_path, caplog):
    def fits(row):
        if "bread" in row["prompt"][0]["content"]:
            raise ValueError("a template that takes no bread")
        return len(row["prompt"][0]["content"]) < 80

    name = write_prompts(tmp_path / "held.jsonl", RIVERS, BREAD, "Spiega in molte parole " * 9)
    kept, overlapped, unfit = held_out([name], "prompt", judges_of=ANYONE, trained_on=[], run_dir=tmp_path, fits=fits)
    assert [row["prompt"][0]["content"] for row in kept["held"]] == [RIVERS]
    assert (overlapped, unfit) == ({"held": 0}, {"held": 2})
    assert "2 of 3 prompts cannot be asked" in caplog.text
    with pytest.raises(InputError, match="1 are over context or refused by the chat template"):
        held_out(
            [write_prompts(tmp_path / "b.jsonl", BREAD)],
            "prompt",
            judges_of=ANYONE,
            trained_on=[],
            run_dir=tmp_path,
            fits=fits,
        )


def test_two_held_out_sets_of_one_name_are_refused_instead_of_one_being_lost(tmp_path):
    (tmp_path / "other").mkdir()
    names = [write_prompts(folder / "held.jsonl", RIVERS) for folder in (tmp_path, tmp_path / "other")]
    with pytest.raises(InputError, match="two sets would be called 'held'"):
        held_out(names, "prompt", judges_of=ANYONE, trained_on=[prompt_row(BREAD)], run_dir=tmp_path)


def test_answers_in_another_language_are_counted_and_those_too_short_to_tell_are_not():
    italian = "Il Po nasce dal Monviso e sfocia nel mare Adriatico dopo un lungo viaggio nella pianura."
    english = "The river rises in the mountains and runs through the plain down to the Adriatic sea."
    rows = [
        row((italian, 0.0), (english, 1.0), "A", prompt_id="p1"),
        row((italian, 0.0), (italian, 1.0), "B", prompt_id="p2"),
        row((english, 0.0), ("The sea.", 1.0), "C", prompt_id="p3"),
        row((italian, 0.0), (english, 1.0), "D", prompt_id="p4"),
    ]
    summary = summarise(rows, language="it")
    assert [summary["wrong_language"][side] for side in ("before", "after")] == [0.25, 0.5]
    shown = side_effects({"held": summary}).loc["held"]
    assert (shown["wrong language before"], shown["wrong language after"]) == (0.25, 0.5)
    anything = summarise(rows)
    assert anything["wrong_language"] is None
    assert "wrong language after" not in side_effects({"held": anything})


def test_the_brevity_collapse_is_told_although_every_check_is_passed():
    short = "Awesome, wasn't? But no, just one more time."
    rows = [
        row(
            (f"Answer {topic}{i} of {k} words", 0.0, 40, "stop"),
            (short, 1.0, 13, "stop"),
            topic,
            prompt_id=f"{topic}{i}",
        )
        for k, topic in enumerate("ABC")
        for i in range(4)
    ]
    proof = {"held-out": summarise(rows)}
    assert in_words(proof["held-out"]).startswith("better")
    length, variety = (finding.sentence for finding in drift(proof))
    assert "0.33 times as long as before (40 to 13 tokens)" in length
    shown = side_effects(proof).loc["held-out"]  # the same numbers
    assert f"from {shown['distinct-2 before']:.2f} to {shown['distinct-2 after']:.2f}" in variety


def test_the_judge_of_the_proof_that_made_the_training_pairs_is_told():
    assert same_judge_warnings(["verifier", "rating_it", "rating_it"], ["rating_it", "answer_it", "rating_it"]) == [
        "the judge rating_it also made 2 of the 3 training pairs: the policy was trained to please it, so its verdict "
        "may flatter; name another judge in eval_judge"
    ]
    assert same_judge_warnings(["verifier", ""], ["rating_it"]) == []
    assert same_judge_warnings([], ["rating_it"]) == []


# --- what was not measured

NAN, INF = math.nan, math.inf


def measured_in_part(measured, unmeasured, *, score=(0.0, 1.0), lost=(NAN, NAN), verdict="unparsed"):
    """Prompts of topics of their own, of which a judge could read some only."""
    won = [row(("a b", score[0]), ("b c", score[1]), f"t{i}", prompt_id=f"m{i}") for i in range(measured)]
    return won + [row(("a b", lost[0]), ("b c", lost[1]), f"u{i}", verdict, f"u{i}") for i in range(unmeasured)]


def test_the_headline_counts_what_was_measured_and_gives_the_bounds():
    summary = summarise(measured_in_part(20, 80))
    text = in_words(summary)
    assert text.startswith("better where measured: mean score 0.0% to 100.0%, +100.0 points [+100.0, +100.0] ")
    assert "on 20 of 100 prompts that were measured (20 of 100 answers), 20 topics; the others counted: -60.0" in text
    assert text.endswith("as losses, +100.0 points [+100.0, +100.0] as wins")
    assert summary["bounds"]["losses"]["value"] == pytest.approx((20 - 80) / 100)
    assert summary["bounds"]["wins"]["value"] == 1.0
    json.dumps(summary, allow_nan=False)
    [finding] = drift({"held": summary})
    assert finding.name == "unmeasured"
    assert "held: the judge measured 20 of 100 answers" in finding.sentence


@pytest.mark.parametrize(
    ("measured", "unmeasured", "found"),
    [(100, 0, False), (99, 1, False), (90, 10, False), (89, 11, True), (50, 50, True), (9, 1, False), (1, 9, True)],
)
def test_above_a_tenth_unmeasured_is_a_finding(measured, unmeasured, found):
    summary = summarise(measured_in_part(measured, unmeasured))
    assert [f.name for f in drift({"held": summary})] == ["unmeasured"] * found
    assert (" where measured: " in in_words(summary)) == found
    assert (f"on {measured} of {measured + unmeasured} prompts that were measured" in in_words(summary)) == (
        unmeasured > 0
    )
    assert (summary["bounds"] is None) == (unmeasured == 0)


@pytest.mark.parametrize("lost", [(NAN, 1.0), (0.0, NAN), (NAN, NAN), (INF, 1.0), (0.5, -INF), (None, None)])
def test_a_score_that_is_no_number_is_not_measured_on_either_side(lost):
    summary = summarise(measured_in_part(8, 2, score=(0.25, 0.5), lost=lost))
    assert summary["measured"] == {"prompts": 8, "answers": 8, "topics": 8}
    assert summary["score"] == pytest.approx({"before": 0.25, "after": 0.5, "change": 0.25, "low": 0.25, "high": 0.25})
    assert summary["bounds"]["losses"]["value"] == pytest.approx((8 * 0.25 - 2) / 10)
    assert summary["bounds"]["wins"]["value"] == pytest.approx((8 * 0.25 + 2) / 10)


def test_a_prompt_with_one_measured_answer_counts_as_measured_with_its_answers_beside():
    rows = [row(("a", 0.5), ("b", s), "A", prompt_id="p") for s in (1.0, NAN, NAN)]
    assert "on 1 of 1 prompts that were measured (1 of 3 answers), 1 topics" in in_words(summarise(rows))


def test_a_set_that_was_not_measured_at_all_raises_nothing_and_is_called_so():
    proof = {"good": summarise(measured_in_part(5, 0)), "lost": summarise(measured_in_part(0, 7))}
    good, lost = findings(proof)
    assert good.startswith("good: better: mean score")
    assert lost == "lost: not measured: the judge gave no readable score on any of 7 prompts"
    assert [f.sentence.partition(":")[0] for f in drift(proof)] == ["lost"]
    assert (proof["lost"]["score"], proof["lost"]["passed_all"], got_worse(proof["lost"])) == (None, None, [])
    json.dumps(proof, allow_nan=False)
    assert list(side_effects(proof).index) == ["good", "lost"]


class Gated(ScriptedJudge):
    """Understood on the rows it is told, and asked for a trial first."""

    def __init__(self, rows, outcome="unparsed", gate_rows=10):
        super().__init__()
        self.file, self.rows, self.outcome = VerifierFile(kind="verifier", gate_rows=gate_rows), rows, outcome
        self.asked = 0

    def score(self, rows, store, *, deadline):
        self.asked += len(rows)
        said = {"order": 0, "attempt": 1, "text": "", "prompt_tokens": 0, "completion_tokens": 0, "shortened": 0}
        return [
            Judgement([[0.0, 1.0]] if self.rows(row) else [], [], [said | {"outcome": self.outcome}]) for row in rows
        ]


def both(judge, other=None):
    return {"s0": judge, "s1": other or judge}


def sets_of(*sizes):
    rows = {f"s{k}": [prompt_row(f"{k} {i}") for i in range(size)] for k, size in enumerate(sizes)}
    sides = [
        {name: [(Sample(f"{side} {i}"),) for i in range(len(part))] for name, part in rows.items()} for side in "ba"
    ]
    return rows, *sides


@pytest.mark.parametrize("outcome", ["unparsed", "unanswered", "refused"])
def test_a_judge_that_fails_its_trial_is_not_paid_for_the_whole(outcome, store):
    judge = Gated(lambda row: False, outcome)
    with pytest.raises(
        InputError, match=rf"eval_judge scripted: the judge failed its trial: {outcome} 100\.0% of 10"
    ) as e:
        compare(both(judge), *sets_of(30, 40), store=store)
    assert "samples, training and adapter are kept" in str(e.value)
    assert judge.asked == 10


def test_each_set_has_its_judge_and_each_judge_its_trial(store):
    one, other = Gated(lambda row: True, gate_rows=5), Gated(lambda row: True, gate_rows=50)
    compared = compare(both(one, other), *sets_of(20, 10), store=store)
    assert (one.asked, other.asked) == (20 + 5, 10 + 10)
    assert {name: len(rows) for name, rows in compared.items()} == {"s0": 20, "s1": 10}
    failing = Gated(lambda row: False)
    one.asked = 0
    with pytest.raises(InputError, match="failed its trial"):
        compare(both(one, failing), *sets_of(20, 10), store=store)
    assert (one.asked, failing.asked) == (5, 10)  # nothing is judged in full before every trial is passed


def test_a_set_by_key_and_one_by_rules_are_read_side_by_side(tmp_path):
    (tmp_path / "key.yaml").write_text("kind: answer\nlanguage: it\n")
    sums = [{"prompt": f"Quanto fa {i} più {i} mele?", "key": str(2 * i)} for i in range(5)] + [{"prompt": BREAD}]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    rules = [{"prompt": RIVERS, "instruction_id_list": ["change_case:english_lowercase"], "kwargs": [{}]}]
    (tmp_path / "rules.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rules))
    names = [str(tmp_path / f"{name}.jsonl") for name in ("sums", "rules")]
    values = run.defaults("04_dpo") | {"eval_prompts": ",".join(names), "reference_column": "key"}
    given = validate("04_dpo", values | {"eval_judge": f"{tmp_path / 'key.yaml'}, verifier"})
    judges_of = load_judges(given, cache=tmp_path)
    assert [(label, judge.name) for label, judge in judges_of.items()] == [("sums", "key"), ("rules", "verifier")]
    kept, _, unfit = held_out(names, "prompt", trained_on=[], run_dir=tmp_path, reference="key", judges_of=judges_of)
    assert [row["reference"] for row in kept["sums"]] == ["0", "2", "4", "6", "8"]
    assert len(kept["rules"]) == 1
    assert unfit == {"sums": 1, "rules": 0}


def test_one_judge_is_loaded_once_for_all_sets(tmp_path):
    given = validate("04_dpo", run.defaults("04_dpo") | {"eval_prompts": "a, b", "judge": "verifier"})
    first, second = load_judges(given, cache=tmp_path).values()
    assert first is second


def test_a_judge_without_a_trial_or_that_passes_it_judges_all(store):
    for gate_rows, asked in ((0, 30), (10, 40), (100, 60)):
        judge = Gated(lambda row: True, gate_rows=gate_rows)
        compared = compare(both(judge), *sets_of(20, 10), store=store)
        assert ({name: len(rows) for name, rows in compared.items()}, judge.asked) == ({"s0": 20, "s1": 10}, asked)


def test_a_server_that_dies_after_the_trial_is_asked_again_and_one_that_is_not_understood_is_reported(store):
    def some(row):
        return row["prompt"][0]["content"].startswith("0")

    with pytest.raises(InputError, match=r"unanswered 50\.0% of 40 rows"):
        compare(both(Gated(some, "unanswered", 0)), *sets_of(20, 20), store=store)
    compared = compare(both(Gated(some, "unparsed", 0)), *sets_of(20, 20), store=store)
    assert [summarise(rows)["measured"]["answers"] for rows in compared.values()] == [20, 0]


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ([[0.0, 1.0], [NAN, NAN]], "win"),
        ([[1.0, 0.0], [0.0, NAN]], "loss"),
        ([[NAN, 1.0]], "unparsed"),
        ([[NAN, NAN], [NAN, NAN]], "unparsed"),
        ([[INF, 0.0]], "unparsed"),
        ([[0.5, -INF], [0.5, 0.5]], "tie"),
        ([], "unparsed"),
    ],
)
def test_an_order_that_is_no_number_decides_nothing(scores, verdict, store):
    [result] = compare(both(ScriptedJudge(scores)), *sets_of(1), store=store)["s0"]
    assert result["verdict"] == verdict
    assert math.isnan(result["after_score"]) == (verdict == "unparsed")


@pytest.mark.parametrize(
    "checks",
    [
        "{", "[]", "3", '{"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}',
        '{"instruction_id_list": ["no:such"], "kwargs": [{}]}', '{"kwargs": []}', "nessuna virgola",
        '{"instruction_id_list": ["keywords:existence"], "kwargs": [{}]}',
    ],
)  # fmt: skip
def test_a_row_with_garbled_checks_is_left_out_of_the_kinds_alone(checks):
    rows = [row(("a", 0.0), ("the river", 1.0), "A", checks=RIVER), row(("b", 0.0), ("c", 0.0), "B", checks=checks)]
    summary = summarise(rows)
    assert {name: change["after"] for name, change in summary["checks"].items()} == {"keywords:existence": 1.0}
    assert summary["measured"]["answers"] == 2
