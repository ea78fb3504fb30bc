"""judges/bias.py: judges with a known fault must be seen through, a good one must pass."""

import json
import math
import random

import pytest
from builders import ScriptedEngine, real, response, scored

from nbutils.core.columns import candidates
from nbutils.core.errors import InputError
from nbutils.core.pairs import build, rerank, select
from nbutils.engines.protocol import Tally
from nbutils.files.stage import _finite
from nbutils.judges import bias
from nbutils.judges.files import LlmFile
from nbutils.judges.judge import Judgement, run
from nbutils.judges.llm import LlmJudge

FILE = {"kind": "llm", "model": "m", "template": "rating_en"}


class Hand:
    """A judge made by hand: `opinion(row, texts)` scores the texts in the order shown, None is unreadable."""

    name = "by hand"

    def __init__(self, opinion, *, model="org/judge", sent=(0, 0, 0), odd=None, **file):
        self.opinion, self.model, self.sent, self.odd = opinion, model, sent, odd or {}
        self.file = LlmFile(**FILE | file)

    def score(self, rows, store, *, deadline=math.inf, repeat=False):
        return [self.judge(row, range(1 if repeat else self.file.orders)) for row in rows]

    def judge(self, row, orders):
        texts = [r["text"] for r in row["responses"]]
        said = [self.opinion(row, texts[:: -1 if order else 1]) for order in orders]
        replies = [reply(order, "parsed" if scores else "unparsed") for order, scores in enumerate(said)]
        if None in said:
            return Judgement(replies=replies)
        return Judgement([s[:: -1 if k else 1] for k, s in enumerate(said)], [[""] * len(texts)] * len(said), replies)

    def tally(self):
        return Tally(*self.sent)

    def notes(self):
        return self.odd

    def explain(self, row):
        return ""


def reply(order=0, outcome="parsed", tokens=(0, 0), shortened=0):
    prompt_tokens, completion_tokens = tokens
    return {"order": order, "attempt": 1, "text": "", "outcome": outcome, "shortened": shortened} | {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
    }


def first(row, texts):
    return [1.0, *[0.0] * (len(texts) - 1)]


def falling(row, texts):
    return [1 - place / 4 for place in range(len(texts))]


def longer(row, texts):
    return [float(len(text) == max(map(len, texts))) for text in texts]


def labelled(row, texts):
    better = row["responses"][["first", "second"].index(row["label"])]["text"]
    return [float(text == better) for text in texts]


def coin(seed):
    draw = random.Random(seed)
    return lambda row, texts: draw.choice([[1.0, 0.0], [0.0, 1.0]])


def questions(count, **columns):
    return [scored(["a longer one", "short"][:: 1 if i % 2 else -1], text=f"Q{i}", **columns) for i in range(count)]


def judged(gaps, **columns):
    """A row two texts of which differ by `gaps` (first minus second), one per order."""
    return scored(["one", "two"], [[0.5 + g / 2, 0.5 - g / 2] for g in gaps], replies=[reply()], **columns)


FLIP, WIN, LOSS, TIE = [1, -1], [1, 1], [-1, -1], [0, 0]
UNREAD = scored(["one", "two"], replies=[reply(outcome="unparsed")])


def measured(table):
    """The figures that were measured: share, rows."""
    return {name: (row.share, row.rows) for name, row in table.iterrows() if row.rows}


# judges with a fault


def test_a_judge_that_always_prefers_the_first_place_only_contradicts_itself(store):
    rows = run(Hand(first), questions(10), store)
    table = bias.figures(rows)
    assert measured(table) == {
        "unanswered": (0, 10),
        "unparsed": (0, 10),
        "flips": (1, 10),
        "first place gains": (1, 10),
        "ties": (0, 10),
    }
    assert table.opinion["flips"] == "stop"
    assert build(map(rerank, rows)) == []


def test_a_judge_that_always_prefers_the_longer_one_is_pointed_out(store):
    rows = run(Hand(longer), questions(10), store)
    table = bias.figures(rows, source_order=True)
    assert measured(table) == {
        "unanswered": (0, 10),
        "unparsed": (0, 10),
        "flips": (0, 10),
        "longer wins": (1, 10),
        "ties": (0, 10),
        "source order kept": (0.5, 10),
    }
    assert table.opinion["longer wins"] == "look closer"
    assert bias.warnings(Hand(longer), rows, table) == [
        "longer wins: 100% [72%, 100%]; a policy will learn this taste"  # 10 / (10 + 1.96^2) = 0.722
    ]
    bias.insist(table)


def test_of_a_judge_swayed_by_place_it_is_not_said_that_a_policy_will_learn_it(store):
    rows = run(Hand(lambda row, texts: [0.9, 0.0] if texts[0] == "short" else [0.5, 0.4]), questions(20), store)
    table = bias.figures(rows)
    assert table.opinion["first place gains"] == "look closer"
    sentences = bias.warnings(Hand(first), rows, table)
    assert [s for s in sentences if "policy" in s and s.startswith("first place")] == []
    assert [s for s in sentences if s.startswith("first place gains: 100% [84%, 100%]; ")]


def test_a_coin_contradicts_itself_on_half_of_the_rows_and_agrees_with_anyone_on_half(store):
    rows = questions(400, label="first")
    two = bias.qualify(Hand(coin(1)), rows, store)
    assert two.low["flips"] < 0.5 < two.high["flips"]
    assert two.low["first place gains"] < 0.5 < two.high["first place gains"]
    # a flip is no agreement: of the other half, half is right by chance
    assert two.low["agreement"] < 0.25 < two.high["agreement"]
    assert two.low["decided agreement"] < 0.5 < two.high["decided agreement"]
    one = bias.qualify(Hand(coin(1), orders=1), rows, store)
    assert one.low["agreement"] < 0.5 < one.high["agreement"]
    assert one.low["kappa"] <= 0 <= one.high["kappa"]


def test_one_order_cannot_tell_a_taste_for_a_place(store):
    table = bias.figures(run(Hand(first, orders=1), questions(10), store))
    assert {name for name, verdict in table.opinion.items() if verdict == "not measured"} == {
        "flips",
        "repeat flips",
        "first place gains",
    }


@pytest.mark.parametrize(("opinion", "flips"), [(falling, 1), (first, 0)])
def test_a_taste_for_a_place_shows_among_five_responses_as_well(opinion, flips, store):
    rows = run(Hand(opinion), [scored(list("abcde"), text=f"Q{i}") for i in range(10)], store)
    table = bias.figures(rows)
    # full marks for the first place alone: the best and the worst are equal in one order, so nothing is contradicted
    assert (table.share["flips"], table.share["first place gains"]) == (flips, 1)


def test_the_best_and_the_worst_of_many_are_compared_and_those_without_a_score_are_not():
    texts = ["", "much the longest", "bb", "c", response("cut", "length")]
    scores = [[math.nan, 0.9, 0.5, 0.1, math.nan], [math.nan, 0.7, 0.5, 0.3, math.nan]]
    row = scored(texts, scores)
    assert (select(row)["chosen"], select(row)["rejected"]) == (1, 3)
    assert measured(bias.figures([row], source_order=True)) == {
        "unanswered": (0, 1),
        "unparsed": (0, 1),
        "flips": (0, 1),
        "first place gains": (1, 1),  # 0.8 ahead when shown first, 0.4 when shown last
        "longer wins": (1, 1),
        "ties": (0, 1),
        "source order kept": (1, 1),
    }


def test_a_row_none_of_whose_responses_has_a_score_is_not_understood():
    table = bias.figures([scored(["a", "b"], [[math.nan, math.nan]], label="first"), judged(WIN, label="first")])
    assert (table.share["unparsed"], table.share["agreement"], table.rows["ties"]) == (0.5, 0.5, 1)


@pytest.mark.parametrize("orders", [1, 2])
def test_a_judge_that_wavers_shows_when_the_same_order_is_asked_again(orders, store):
    asked = []

    def wavers(row, texts):
        asked.append(row["prompt_id"])
        second_thought = asked.count(row["prompt_id"]) > orders and row["category"] == "hard"
        return longer(row, texts)[:: -1 if second_thought else 1]

    rows = [row | {"category": "hard" if i < 3 else ""} for i, row in enumerate(questions(10))]
    table = bias.figures(bias.gate(Hand(wavers, orders=orders), rows, store))
    assert measured(table)["repeat flips"] == (0.3, 10)
    assert measured(table).get("flips", (0, 10)) == (0, 10)
    # by hand: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), p = 0.3, n = 10, z = 1.96
    assert table.loc["repeat flips", ["low", "high"]].tolist() == pytest.approx([0.1078, 0.6032], abs=1e-4)


def test_a_taste_for_a_place_is_no_noise(store):
    table = bias.figures(bias.gate(Hand(first), questions(10), store))
    assert (table.share["flips"], table.share["repeat flips"]) == (1, 0)


@pytest.mark.parametrize(
    ("longer_won", "opinion"),
    # the whole interval has to lie outside 40% to 60%: by hand 30 of 40 is [0.598, 0.858], 31 of 40 [0.625, 0.877]
    [(30, "not shown"), (31, "look closer"), (20, "not shown"), (10, "not shown"), (9, "look closer")],
)
def test_a_taste_is_pointed_out_when_it_is_beyond_chance(longer_won, opinion):
    texts = {"responses": [response("aa"), response("b")]}
    rows = [judged(WIN) | texts] * longer_won + [judged(LOSS) | texts] * (40 - longer_won)
    assert bias.figures(rows).opinion["longer wins"] == opinion


# what is counted


def test_every_figure_is_a_share_of_the_rows_it_can_be_told_of():
    rows = [
        judged(FLIP),
        judged(WIN),
        judged(LOSS),
        judged([1, 0.5]),  # a win, larger when shown first
        judged([0.5, 0.54]),  # a win; a difference of the differences within 0.05 is none
        judged(TIE),
        UNREAD,
        UNREAD,
        scored(["one", ""], verdict="filtered:empty"),
    ]
    assert measured(bias.figures(rows, source_order=True)) == {
        "unanswered": (0, 8),
        "unparsed": (2 / 8, 8),
        "flips": (1 / 6, 6),
        "first place gains": (1, 2),
        "ties": (1 / 6, 6),
        "source order kept": (3 / 4, 4),
    }


def test_only_decided_pairs_of_different_lengths_tell_a_taste_for_length():
    def row(texts, gaps):
        return judged(gaps) | {"responses": [response(text) for text in texts]}

    rows = [row(["aa", "b"], WIN), row(["aa", "b"], LOSS), row(["b", "aa"], LOSS), row(["aa", "bb"], WIN)]
    rows += [row(["aa", "b"], TIE), row(["aa", "b"], FLIP)]
    assert measured(bias.figures(rows))["longer wins"] == (2 / 3, 3)


def test_a_flip_agrees_with_a_tie_and_an_unread_reply_with_nothing():
    said = [(WIN, "first"), (LOSS, "second"), (FLIP, "tie"), (TIE, "tie"), (FLIP, "first"), (WIN, "tie"), (WIN, "")]
    rows = [judged(gaps, label=label) for gaps, label in said] + [UNREAD | {"label": "first"}]
    table = bias.figures(rows)
    assert measured(table)["agreement"] == (4 / 7, 7)
    assert measured(table)["decided agreement"] == (1, 2)


def test_a_server_that_failed_is_not_the_judges_fault_and_stops_the_run_all_the_same():
    lost = scored(["one", "two"], replies=[reply(0, "parsed"), reply(1, "unanswered")], label="first")
    table = bias.figures([lost, lost, judged(WIN, label="first")])
    assert measured(table) == {
        "unanswered": (2 / 3, 3), "unparsed": (0, 1), "flips": (0, 1), "ties": (0, 1), "agreement": (1, 1),
        "decided agreement": (1, 1), "kappa": (pytest.approx(math.nan, nan_ok=True), 1),
    }  # fmt: skip
    with pytest.raises(
        InputError,
        match=r"unanswered 66\.7% of 3 rows .*; see to token, credit and limits in the judge file and run again$",
    ):
        bias.insist(table)


def test_nothing_judged_is_nothing_measured():
    table = bias.figures([], source_order=True)
    assert set(table.opinion) == {"not measured"}
    assert set(table.rows) == {0}
    bias.insist(table)
    assert bias.warnings(Hand(first), [], table) == []


# people's labels


def test_a_judge_that_says_what_people_say_is_perfect(store):
    rows = candidates(
        real("preferences/mtbench_human_200.json"),
        prompt="input",
        chosen="output_1",
        rejected="output_2",
        label="label",
    )
    table = bias.qualify(Hand(labelled), rows, store)
    assert measured(table) == {
        "unanswered": (0, 200),
        "unparsed": (0, 200),
        "flips": (0, 200),
        "longer wins": (pytest.approx(0.70, abs=0.005), 195),  # as the data's own description says
        "ties": (0, 200),
        "agreement": (1, 200),
        "decided agreement": (1, 200),
        "kappa": (1, 200),
    }
    bias.insist(table)


@pytest.mark.parametrize(("nothing", "right", "asked"), [("(nothing)", 628, 794), ("", 587, 744)])
def test_the_recorded_verdicts_of_gpt_35_agree_with_people_as_published(nothing, right, asked, store):
    people, recorded = (real(f"preferences/pandalm_999{name}.json") for name in ("", "_gpt35_verdicts"))
    unanimous = [
        {side: str(row[side]).strip() or nothing for side in ("response1", "response2")}
        | {"q": f"{row['instruction']}\n{row['input']}", "label": row["annotator1"], "said": said["gpt_result"]}
        for row, said in zip(people, recorded, strict=True)
        if row["annotator1"] == row["annotator2"] == row["annotator3"] != 0
    ]
    rows = candidates(unanimous, prompt="q", chosen="response1", rejected="response2", label="label")
    rows = [row | {"said": source["said"]} for row, source in zip(rows, unanimous, strict=True)]
    said = {"1": [1.0, 0.0], "2": [0.0, 1.0], "Tie": [0.5, 0.5]}
    table = bias.qualify(Hand(lambda row, texts: said.get(row["said"]), orders=1), rows, store)
    # answers of nothing are never shown to a judge of the kit
    assert measured(table)["agreement"] == (pytest.approx(right / asked), asked)
    assert table.share["agreement"] == pytest.approx(0.79, abs=0.002)
    if asked == 794:
        assert measured(table)["unparsed"] == (8 / 794, 794)
        assert measured(table)["ties"] == (28 / 786, 786)


# the gate


def scripted(**file):
    """A judge with a template, an engine that counts what it is asked, and the same score for everything."""

    def script(request, rng):
        return '{"feedback_1": "", "score_1": 3, "feedback_2": "", "score_2": 3}'

    return LlmJudge("scripted", LlmFile(**FILE | file), cache=None, engine=ScriptedEngine(script))


def prompts(rows):
    return [row["prompt_id"] for row in rows]


def test_the_gate_takes_the_same_rows_whatever_their_order(store):
    rows = questions(30)
    trial = bias.gate(scripted(gate_rows=8), rows, store)
    assert len(set(prompts(trial))) == 8
    assert prompts(bias.gate(scripted(gate_rows=8), rows[::-1], store)) == prompts(trial)
    assert prompts(bias.gate(scripted(gate_rows=8), rows, store, seed=1)) != prompts(trial)


def test_what_the_gate_asked_is_not_asked_again_by_the_run_but_for_the_repeats(store):
    judge, rows = scripted(gate_rows=4), questions(10)
    bias.gate(judge, rows, store)
    assert len(judge.engine.asked) == 4 * 2 + 4
    run(judge, rows, store)
    assert len(judge.engine.asked) == 10 * 2 + 4
    assert len(store) == 24


def test_with_more_rows_in_the_source_only_those_new_to_the_trial_are_asked(store):
    rows = questions(40)
    old = bias.gate(scripted(gate_rows=8), rows[:20], store)
    judge = scripted(gate_rows=8)
    new = bias.gate(judge, rows, store)
    stayed = set(prompts(new)) & set(prompts(rows[:20]))
    assert stayed < set(prompts(old))
    assert len(stayed) >= 2
    assert len(judge.engine.asked) == 3 * (8 - len(stayed))


@pytest.mark.parametrize(("gate_rows", "rows", "asked"), [(0, 5, 0), (3, 5, 3), (9, 5, 5)])
def test_the_gate_asks_as_many_rows_as_the_judge_file_says_and_there_are(gate_rows, rows, asked, store):
    judge = scripted(gate_rows=gate_rows)
    trial = bias.gate(judge, [*questions(rows), scored(["a", ""], verdict="filtered:empty")], store)
    assert (len(trial), len(judge.engine.asked)) == (asked, 3 * asked)
    bias.insist(bias.figures(trial))


def test_rules_are_not_asked_twice(store):
    class Rules(Hand):
        def score(self, rows, store, *, deadline=math.inf, repeat=False):
            return [Judgement() for _ in rows] if repeat else super().score(rows, store)

    table = bias.figures(bias.gate(Rules(longer, orders=1), questions(5), store))
    assert table.opinion["repeat flips"] == "not measured"
    assert table.rows["unparsed"] == 5


# what stops a run


@pytest.mark.parametrize(
    ("bad", "good", "wrong"),
    [
        ([UNREAD], [judged(WIN)] * 9, ""),
        ([UNREAD] * 2, [judged(WIN)] * 17, r"unparsed 10\.5% of 19 rows"),
        ([judged(FLIP)] * 4, [judged(WIN)] * 6, ""),
        ([judged(FLIP)] * 19, [judged(WIN)] * 28, r"flips 40\.4% of 47 rows"),
        ([judged(LOSS, label="first")] * 5, [judged(WIN, label="first")] * 6, ""),
        ([judged(LOSS, label="first")] * 5, [judged(WIN, label="first")] * 5, r"decided agreement 50\.0% of 10 rows"),
        ([judged(LOSS, label="first")] * 2, [judged(WIN, label="second")] * 2, r"decided agreement 0\.0% of 4 rows \("),
        ([UNREAD], [judged(FLIP)], r"unparsed 50\.0% of 2 rows, flips 100\.0% of 1 rows"),
        # flips cost agreement, not trust: three of the four decided rows are right
        ([judged(FLIP, label="first"), judged(LOSS, label="first")], [judged(WIN, label="first")] * 3, ""),
        ([judged(LOSS)] * 10, [], ""),  # a taste or doubtful labels are the user's to judge
    ],
)
def test_a_judge_stops_the_run_above_its_limits_and_not_at_them(bad, good, wrong):
    table = bias.figures([*bad, *good], source_order=True)
    if not wrong:
        return bias.insist(table)
    with pytest.raises(InputError, match=f"^the judge failed its trial: {wrong}") as error:
        bias.insist(table)
    assert "\n" not in str(error.value)
    assert "choose" in str(error.value).rpartition("; ")[2]


# the report


def test_the_report_adds_up_replies_tokens_and_what_they_cost():
    replies = [reply(0, "parsed", (1000, 200), 1), reply(1, "unparsed", (1000, 300), 1), reply(1, "parsed", (1000, 0))]
    rows = [
        judged(WIN, responses=[response("one", model="Org/Judge"), response("two", model="other")])
        | {"replies": replies},
        UNREAD | {"replies": [reply(0, "unanswered")]},
        scored(["a", ""], verdict="filtered:empty"),
    ]
    judge = Hand(first, price=(0.5, 2.0), sent=(7, 2, 1), odd={"without a JSON schema": 2})
    report = bias.report(judge, rows, bias.figures(rows, source_order=True))
    assert report | {"figures": 0} == {
        "judge": "by hand",
        "kind": "llm",
        "model": "org/judge",
        "figures": 0,
        "replies": {"parsed": 2, "unparsed": 1, "unanswered": 1},
        "shortened": 1,  # a response shown in two orders is one response
        "tokens": {"prompt": 3000, "completion": 500},
        "uncounted": 0,
        "notes": {"without a JSON schema": 2},
        "cost_usd": pytest.approx(3000 * 0.5e-6 + 500 * 2e-6),
        "sent": {"calls": 7, "retries": 2, "failures": 1},
        "own_answers": 1,
    }
    assert report["figures"]["unanswered"] == {
        "share": 0.5,
        "low": pytest.approx(0.0945, abs=1e-4),
        "high": pytest.approx(0.9055, abs=1e-4),
        "rows": 2,
    }
    assert report["figures"]["source order kept"]["rows"] == 1


def test_rows_that_are_refused_have_their_own_figure_and_cost_the_others_nothing():
    refused = scored(["one", "two"], replies=[reply(0, "refused"), reply(1, "refused")], verdict="filtered:refused")
    lost = scored(["one", "two"], replies=[reply(0, "unanswered")])
    table = bias.figures([refused] * 2 + [lost] + [judged(WIN)] * 7)
    assert {n: measured(table)[n] for n in ("unanswered", "refused", "unparsed")} == {
        "unanswered": (0.1, 10), "refused": (0.2, 10), "unparsed": (0, 7),
    }  # fmt: skip
    assert table.opinion["refused"] == "look closer"
    bias.insist(table)
    assert any(s.startswith("refused: 20% [") for s in bias.warnings(Hand(first), [refused], table))
    with pytest.raises(InputError, match=r"refused 60\.0% of 5 rows .*; read the reasons"):
        bias.insist(bias.figures([refused] * 3 + [judged(WIN)] * 2))


def test_tokens_a_server_does_not_count_make_the_cost_unknown_and_not_small():
    rows = [judged(WIN) | {"replies": [reply(tokens=(1000, 100)), reply(1, tokens=(-1, -1))]}]
    report = bias.report(Hand(first, price=(0.5, 2.0)), rows, bias.figures(rows))
    assert (report["cost_usd"], report["uncounted"], report["tokens"]) == (None, 1, {"prompt": 1000, "completion": 100})
    assert "cost unknown: the server does not count the tokens of 1 replies" in bias.in_words(report)
    assert "0.00" not in bias.in_words(report)


def test_what_is_odd_about_replies_stands_in_warnings_and_words():
    hand = Hand(first, odd={"at the server's own temperature": 2, "by a model that calls itself x": 1})
    rows = [judged(WIN)] * 2
    sentences = [
        "2 of 2 replies are at the server's own temperature",
        "1 of 2 replies are by a model that calls itself x",
    ]
    assert bias.warnings(hand, rows, bias.figures(rows))[:2] == sentences
    assert all(sentence in bias.in_words(bias.report(hand, rows, bias.figures(rows))) for sentence in sentences)


@pytest.mark.parametrize(
    ("tokens", "cut"),
    [([2048] * 3, True), ([4096] * 5 + [300, 77], True), ([2048] * 2, False), ([2048] * 9 + [2049], False),
     ([2000] * 9, False), ([128] * 9, False), ([-1] * 9, False), ([0] * 9, False), ([], False), ([8192] * 40, True)],
)  # fmt: skip
def test_prompts_that_all_end_at_a_power_of_two_are_a_hint_that_they_are_cut(tokens, cut):
    rows = [judged(WIN) | {"replies": [reply(tokens=(n, 9)), reply(1, tokens=(n, 9))]} for n in tokens]
    found = bias.warnings(Hand(first), rows, bias.figures(rows))
    assert any("may cut what is longer" in sentence for sentence in found) == cut


def test_without_a_price_no_cost_is_made_up():
    assert bias.report(Hand(first), [judged(WIN)], bias.figures([judged(WIN)]))["cost_usd"] is None


@pytest.mark.parametrize("rows", [[], [judged(WIN, label="first")], [judged(WIN, label="tie"), judged(FLIP)]])
def test_a_report_can_be_written_as_strict_json(rows):
    written = json.loads(json.dumps(_finite(bias.report(Hand(first), rows, bias.figures(rows))), allow_nan=False))
    assert written["figures"]["unanswered"]["rows"] == len(rows)
    assert written["figures"]["repeat flips"] == {"share": None, "low": 0, "high": 1, "rows": 0}


@pytest.mark.parametrize(
    ("judge", "writer", "own"),
    [
        ("openai/gpt-oss-120b", "openai/gpt-oss-120b", True),
        ("openai/gpt-oss-120b", "gpt-oss-120b", True),
        ("gpt-oss-120b", "OpenAI/GPT-OSS-120B", True),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B with me/my-adapter", True),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B with runs/first/04_dpo/adapter", True),
        ("me/my-adapter", "Qwen/Qwen3-4B with me/my-adapter", False),
        ("openai/gpt-oss-120b:cheapest", "openai/gpt-oss-120b", True),
        ("package:one", "package:two", False),
        ("models/qwen/", "models/qwen", True),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B-Instruct", False),
        ("openai/gpt-oss-120b", "chosen", False),
        ("", "", False),
    ],
)
def test_a_judge_of_its_own_answers_is_pointed_out(judge, writer, own):
    rows = [judged(WIN, responses=[response("one", model=writer), response("two", model="another")])]
    hand = Hand(first, model=judge)
    assert bias.own_answers(hand, rows) == own
    found = bias.warnings(hand, rows, bias.figures(rows))
    assert f"the judge {judge} wrote 1 of the responses itself, and judges prefer their own" in found or not own
    assert len(found) == (own or judge == "Qwen/Qwen3-4B"), "a relative is another warning"


# a second judge


def test_a_second_judge_is_held_against_the_first_on_the_same_rows(store):
    rows = questions(30)
    trial = bias.gate(Hand(longer), rows, store)
    second = bias.trial_of(Hand(coin(0), gate_rows=40), trial, store)
    assert [row["prompt_id"] for row in second] == [row["prompt_id"] for row in trial]
    # the longer one stands first in every second row, and the first judge chose it
    assert [row["label"] for row in second] == [
        "first" if len(row["responses"][0]["text"]) > len(row["responses"][1]["text"]) else "second" for row in trial
    ]
    assert not any(row["label"] for row in trial)  # what the first judge's own figures are counted over stays
    same = bias.figures(bias.trial_of(Hand(longer), trial, store))
    assert same.loc["agreement", ["share", "rows"]].tolist() == [1, 30]


def test_where_people_have_labelled_the_rows_their_word_is_the_truth_for_the_second_judge(store):
    trial = bias.gate(Hand(longer), questions(10, label="tie"), store)
    assert {row["label"] for row in bias.trial_of(Hand(longer), trial, store)} == {"tie"}


def test_a_row_the_first_judge_could_not_read_has_no_truth(store):
    trial = bias.gate(Hand(lambda row, texts: None), questions(3), store)
    table = bias.figures(bias.trial_of(Hand(longer), trial, store))
    assert "agreement" not in table.index


def test_whether_the_gate_would_let_a_second_judge_in_is_told_and_stops_nothing(store):
    trial = bias.gate(Hand(longer), questions(20), store)
    refused = bias.refusal(bias.figures(bias.trial_of(Hand(first), trial, store)))
    assert "flips 100.0% of 20 rows" in refused
    assert bias.refusal(bias.figures(bias.trial_of(Hand(longer), trial, store))) == ""
