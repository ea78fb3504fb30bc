"""A judge over the network under fire: nothing is paid for twice, and every request is accounted for."""

import random
import re
import threading
import time
from collections import Counter

import pytest
from builders import child, scored
from servers import Answer, ChatServer, echo, serving

from nbutils.core.pairs import rerank
from nbutils.engines.store import Store
from nbutils.judges import bias
from nbutils.judges.files import LlmFile
from nbutils.judges.judge import run
from nbutils.judges.llm import LlmJudge

IN_FLIGHT = 16


def judge_at(url, cache, **options):
    file = LlmFile(kind="llm", model="judge", template="rating_en", server=url, concurrency=IN_FLIGHT, **options)
    judge = LlmJudge("local", file, cache=cache)
    judge.engine._wait = 0.01
    return judge


def pair(i):
    """A row whose first response is worth 1 to 4, the second always 5."""
    return scored([f"A{i} is worth {1 + i % 4}", f"B{i} is worth 5"], text=f"Question {i}")


def grades(body):
    """Grade each answer as it says it is worth, in the order shown."""
    shown = re.findall(r"is worth (\d)", echo(body))
    scores = [f'"feedback_{k}": "so it says", "score_{k}": {grade}' for k, grade in enumerate(shown, 1)]
    return "{" + ", ".join(scores) + "}"


def graded(body):
    return Answer(grades(body), delay=0.01)


def verdicts(rows, **thresholds):
    return [rerank(row, **thresholds)["verdict"] for row in rows]


class Log:
    """What a server in another process was asked so far, read on as the file grows."""

    def __init__(self, path):
        path.touch()
        self._stream = path.open("rb")
        self.asked = []

    def __len__(self):
        for line in self._stream:
            if not line.endswith(b"\n"):
                self._stream.seek(-len(line), 1)
                break
            self.asked.append(line)
        return len(self.asked)


@pytest.mark.nightly
def test_after_ten_kills_every_row_is_judged_and_no_more_is_asked_twice_than_was_in_flight(tmp_path):
    rows, rng = [pair(i) for i in range(1000)], random.Random(4)
    path, log = tmp_path / "store.sqlite", Log(tmp_path / "calls.jsonl")
    lost = []
    with serving("test_judging:graded", log=tmp_path / "calls.jsonl") as url:

        def judge_all():
            return run(judge_at(url, tmp_path), rows, Store(path))

        for moment in sorted(rng.sample(range(20, 1800), 10)):
            process, until = child(judge_all), time.monotonic() + 60
            while len(log) < moment + len(lost) * IN_FLIGHT and time.monotonic() < until:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.02))
            assert process.is_alive()
            process.kill()
            process.join()
            time.sleep(0.2)  # for the requests the child has sent to arrive
            store, known = Store(path), len(log)
            lost.append(len(set(log.asked)) - len(store))
            assert known >= moment
            store.close()
        judged, asked = judge_all(), len(log)
        again = judge_all()
        assert len(log) == asked
    assert max(lost) <= IN_FLIGHT
    counts = Counter(log.asked)
    assert len(counts) == 2000
    assert 0 < asked - 2000 <= sum(lost)
    assert verdicts(judged) == ["swapped"] * 1000
    assert [row["scores"] for row in judged[:2]] == [[[0.0, 1.0]] * 2, [[0.25, 1.0]] * 2]
    assert again == judged


def test_another_threshold_asks_nothing_and_more_rows_ask_only_for_themselves(store, tmp_path):
    with ChatServer(grades) as server:
        few = run(judge_at(server.url, tmp_path), [pair(i) for i in range(10)], store)
        assert len(server.calls) == 20
        assert verdicts(few, min_margin=0.5) == (["swapped"] * 3 + ["tie"]) * 2 + ["swapped"] * 2
        more = judge_at(server.url, tmp_path)
        many = run(more, [pair(i) for i in range(14)], store)
        assert verdicts(many, min_margin=0.9) == (["swapped"] + ["tie"] * 3) * 3 + ["swapped", "tie"]
    assert len(server.calls) == 28
    assert more.tally().calls == 8
    assert all(re.search(r"Question 1[0-3]\n", text) for text in server.asked()[20:])


FAULTS = {
    "busy": Answer(status=429, headers={"Retry-After": "0.1"}),
    "500": Answer(status=500),
    "503": Answer(status=503),
    "dropped": Answer(drop=True),
    "hanging": Answer(hang=True),
    "half json": Answer(raw='{"id": "c", "choices": [{"mess'),
    "html": Answer(raw="<html>Welcome to the hotel wifi</html>"),
    "empty": Answer(""),
    "prose": Answer("Mi dispiace, non posso dare un voto: 4 o 5, direi."),
    "cut off": Answer('{"feedback_1": "Good", "score_1": 4, "feedback_2": "Al', finish_reason="length"),
}
UNREADABLE = ("empty", "prose", "cut off")


class Faulty:
    """Grades, but for 30% of the calls does something else; counts what it did."""

    def __init__(self, seed):
        self._rng, self._lock, self.did = random.Random(seed), threading.Lock(), Counter()

    def __call__(self, body):
        with self._lock:
            what = self._rng.choice(list(FAULTS)) if self._rng.random() < 0.3 else "graded"
            self.did[what] += 1
        return FAULTS.get(what) or grades(body)


def test_with_three_faults_in_ten_calls_every_row_is_judged_or_unparsed_and_every_call_accounted_for(store, tmp_path):
    faulty, rows = Faulty(seed=5), [pair(i) for i in range(300)]
    with ChatServer(faulty) as server:
        judge = judge_at(server.url, tmp_path, timeout=1.5)
        judged = run(judge, rows, store)
    report = bias.report(judge, judged, bias.figures(judged))
    did, replies, sent = faulty.did, report["replies"], report["sent"]
    assert min(did[name] for name in FAULTS) >= 10
    # every row
    assert all(
        verdict == ("swapped" if row["scores"] else "unparsed")
        for verdict, row in zip(verdicts(judged), judged, strict=True)
    )
    assert all(row["scores"] in ([], [[(i % 4) / 4, 1.0]] * 2) for i, row in enumerate(judged))
    assert report["figures"]["unparsed"]["share"] == pytest.approx(sum(not row["scores"] for row in judged) / 300)
    assert report["figures"]["unparsed"]["share"] < 0.05
    # every call
    assert sent == {
        "calls": len(server.calls),
        "retries": sum(did[n] for n in FAULTS if n not in UNREADABLE),
        "failures": 0,
    }
    assert sent["calls"] == did.total()
    assert replies == {"parsed": did["graded"], "unparsed": did["empty"] + did["prose"], "cut off": did["cut off"]}
    assert sum(replies.values()) == sent["calls"] - sent["retries"] == len(store)
    assert sum(replies.values()) == 600 + sum(reply["attempt"] > 1 for row in judged for reply in row["replies"])
    assert report["tokens"]["prompt"] == 7 * len(store)


def test_a_judge_is_asked_for_what_its_file_says_and_no_more(store, tmp_path):
    with ChatServer(["Hm.", "Boh.", "Mah."]) as server:
        run(judge_at(server.url, tmp_path, orders=1), [pair(0)], store)
    asked = {"model", "messages", "temperature", "max_tokens", "response_format"}
    assert [body.keys() - asked for body in server.calls] == [set(), {"top_p", "seed"}, {"top_p", "seed"}]


def test_a_row_the_server_refuses_is_dropped_under_its_reason_and_the_others_are_judged(store, tmp_path):
    def filters(body):
        bad = "Question 3\n" in echo(body)
        return Answer(grades(body), status=400 if bad else 200, error="contenuto non ammesso: content_filter")

    with ChatServer(filters) as server:
        for _ in range(2):
            judge = judge_at(server.url, tmp_path)
            trial = bias.gate(judge, [pair(i) for i in range(12)], store)
            table = bias.figures(trial)
            bias.insist(table)
            judged = run(judge, [pair(i) for i in range(12)], store)
        assert sum("Question 3\n" in text for text in server.asked()) == 3  # two orders, and the trial's repeat
    assert (table.share["refused"], table.share["unparsed"]) == (pytest.approx(1 / 12), 0)
    assert Counter(verdicts(judged)) == {"swapped": 11, "filtered:refused": 1}
    report = bias.report(judge, judged, bias.figures(judged))
    assert report["replies"] == {"parsed": 22, "refused": 2}
    assert "content_filter" in judged[3]["replies"][0]["text"]
    assert report["figures"]["refused"]["share"] == pytest.approx(1 / 12)


def test_what_a_server_never_answered_is_accounted_for_too(store, tmp_path):
    def down_for_question_3(body):
        return Answer(status=503) if "Question 3\n" in echo(body) else grades(body)

    with ChatServer(down_for_question_3) as server:
        judge = judge_at(server.url, tmp_path)
        judge.engine._wait = 0.001
        judged = run(judge, [pair(i) for i in range(6)], store)
    report = bias.report(judge, judged, bias.figures(judged))
    assert verdicts(judged) == ["swapped"] * 3 + ["unparsed"] + ["swapped"] * 2
    assert report["replies"] == {"parsed": 10, "unanswered": 2}
    assert report["sent"] == {"calls": len(server.calls), "retries": 14, "failures": 2}
    assert len(server.calls) == 10 + 2 * 8
    assert len(store) == 10
