"""engines/batch.py: what a judge would ask, written down; and results of any kind, brought into the store."""

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from builders import children, prompt_row, scored
from servers import ChatServer

from nbutils import batch as program
from nbutils import judges
from nbutils.core.errors import InputError, Interrupted
from nbutils.core.sampling import Sampling
from nbutils.engines import batch
from nbutils.engines.asking import answer
from nbutils.engines.protocol import Request
from nbutils.engines.store import Store
from nbutils.judges import bias
from nbutils.judges.judge import run

MODEL = "org/judge"


def rows(n=6):
    return [scored([f"worth {1 + i % 5}", f"worth {1 + (i + 2) % 5}"], text=f"Question {i}?") for i in range(n)]


def graded(body):
    """Grade each answer by the number it holds."""
    text = body["messages"][0]["content"]
    found = [int(part[0]) for part in text.split("worth ")[1:]]
    return json.dumps({k: v for i, g in enumerate(found, 1) for k, v in ((f"feedback_{i}", "ok"), (f"score_{i}", g))})


def judge_file(path, **more):
    values = {"kind": "llm", "server": "http://127.0.0.1:9/v1", "model": MODEL, "template": "rating_en"} | more
    path.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items()))
    return str(path)


@pytest.fixture
def judge(tmp_path):
    """A judge by batch files; its store is the test's."""
    name = judge_file(tmp_path / "mine.yaml", batch=True, gate_rows=2, price=[0.5, 2.0])
    return judges.load(name, cache=tmp_path / "models")


def files(tmp_path):
    """The files of the last writing."""
    folders = sorted((tmp_path / "batches").glob("*-????????"), key=lambda p: p.stat().st_mtime_ns)
    return sorted(folders[-1].glob("*.jsonl"))


def written(tmp_path):
    paths = files(tmp_path)
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def completion(text, model=MODEL, **more):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 11, "completion_tokens": 7}
    return {"object": "chat.completion", "model": model, "choices": [choice], "usage": usage} | more


def result(request, text=None, status=200, **body):
    """A line as OpenAI's batches have it."""
    said = completion(graded(request["body"]) if text is None else text, **body)
    response = {"status_code": status, "request_id": "r", "body": said}
    return {"id": "b", "custom_id": request["custom_id"], "response": response, "error": None}


def save(path, lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_requests_stand_in_the_form_of_a_batch_with_the_stores_keys_and_the_run_stops(judge, store, tmp_path):
    with pytest.raises(
        Interrupted,
        match=r"are written and not sent: 12 stand in .*batches/mine-\w+ \(1 files, .* MB, some .* million tokens "
        r"to read and at most 0.01 to write, .* US dollars at the judge file's price and half of that by "
        r"batch\); have them answered, bring the results with `python -m nbutils.batch .* RESULTS",
    ):
        run(judge, rows(), store)  # fmt: skip
    lines = written(tmp_path)
    assert len({line["custom_id"] for line in lines}) == 12
    assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
    body = lines[0]["body"]
    assert (body["model"], body["temperature"], body["max_tokens"]) == (MODEL, 0.0, 800)
    assert body["response_format"]["type"] == "json_schema"
    assert "seed" not in body, "at temperature 0 nothing is drawn"
    assert len(store) == 0


def test_what_was_answered_by_batch_is_the_same_run_as_one_over_the_network(tmp_path):
    online_store, batch_store = Store(tmp_path / "online" / "store.sqlite"), Store(tmp_path / "store.sqlite")
    with ChatServer(graded) as server:

        def judge(**more):
            return judges.load(judge_file(tmp_path / "mine.yaml", server=server.url, **more), cache=tmp_path / "models")

        online = run(judge(), rows(), online_store)
        with pytest.raises(Interrupted):
            run(judge(batch=True), rows(), batch_store)
        lines = []
        for line in written(tmp_path):
            said = httpx.post(f"{server.url}/chat/completions", json=line["body"]).json()
            lines.append(result(line) | {"response": {"status_code": 200, "body": said}})
        asked_before = len(server.calls)
        random.Random(0).shuffle(lines)
        assert batch.take(batch_store, save(tmp_path / "r.jsonl", lines)) == {"stored": 12}
        by_batch = run(judge(batch=True), rows(), batch_store)
        assert len(server.calls) == asked_before
    assert by_batch == online
    read = "SELECT key, model, request, reply FROM replies ORDER BY key"
    stores = [sqlite3.connect(one.path).execute(read).fetchall() for one in (online_store, batch_store)]
    assert stores[0] == stores[1], "to the last byte"
    online_store.close()
    batch_store.close()


def test_a_notebooks_road_first_row_trial_run_and_second_attempts(judge, store, tmp_path):
    candidates = rows()
    (one,) = run(judge, candidates[:1], store, more=True)  # the example goes along with the trial
    assert [reply["outcome"] for reply in one["replies"]] == ["unanswered"] * 2
    rounds = []

    def bring(text=None):
        lines = written(tmp_path)
        rounds.append(len(lines))
        save(tmp_path / "r.jsonl", [result(line, text) for line in lines])
        batch.take(store, tmp_path / "r.jsonl")

    def road():
        trial = bias.gate(judge, candidates, store)
        return trial, run(judge, candidates, store)

    with pytest.raises(Interrupted):
        road()
    bring("unreadable")
    with pytest.raises(Interrupted):  # second attempts
        road()
    bring()
    with pytest.raises(Interrupted):  # the rest
        road()
    bring()
    trial, judged = road()
    in_trial = candidates[0]["prompt"] in [row["prompt"] for row in trial]
    first = 2 * 3 + (0 if in_trial else 2)  # two rows in two orders and once more, and the example
    assert rounds == [first, first, 8 if in_trial else 6]
    assert len(trial) == 2
    assert all(len(row["scores"]) == 2 for row in judged)
    assert {reply["attempt"] for row in judged for reply in row["replies"]} == {1, 2}


def test_the_trial_of_all_judges_is_written_before_the_run_stops(judge, store, tmp_path):
    name = judge_file(tmp_path / "other.yaml", batch=True, gate_rows=2, model="org/b")
    other = judges.load(name, cache=tmp_path / "models")
    trial = bias.gate(judge, rows(), store, more=True)
    bias.trial_of(other, trial, store, more=True)
    for one in (judge, other):
        with pytest.raises(Interrupted, match="6 stand in"):
            judges.finish(one)
    paths = list((tmp_path / "batches").rglob("*.jsonl"))
    assert len({json.loads(line)["custom_id"] for path in paths for line in path.read_text().splitlines()}) == 12


def test_a_request_that_is_written_twice_stands_there_once(store, tmp_path):
    writer = engine(tmp_path)
    for n in (3, 5, 4):
        answer(store, writer, asked(n))
    with pytest.raises(Interrupted, match="5 stand in"):
        writer.finish()
    lines = written(tmp_path)
    assert len({line["custom_id"] for line in lines}) == len(lines) == 5


def asked(n):
    return [Request(({"role": "user", "content": f"hi {i}"},), sampling=Sampling(0.0, 1.0, 20)) for i in range(n)]


def engine(tmp_path, **more):
    return batch.BatchEngine("http://127.0.0.1:9/v1", MODEL, folder=tmp_path / "batches/mine", **more)


def export(store, tmp_path, n=10):
    writer = engine(tmp_path)
    answer(store, writer, asked(n))
    with pytest.raises(Interrupted):
        writer.finish()
    return written(tmp_path)


LINES = {
    "failed": lambda line: result(line, "x", status=500),
    "without credit": lambda line: result(line, "x", status=402),
    "too many": lambda line: result(line, "x", status=429),
    "expired": lambda line: {"custom_id": line["custom_id"], "response": None, "error": {"code": "batch_expired"}},
    "no body": lambda line: result(line, "x") | {"response": {}},
    "of another model": lambda line: result(line, "x", model="other/model-70b"),
    "no choices": lambda line: result(line, "x", choices=[]),
    "half a line": lambda line: json.dumps(result(line))[:80] + "\n",
    "no JSON": lambda line: "so it goes\n",
    "a list": lambda line: [1],
    "deep": lambda line: "[" * 100_000 + "\n",
    "unknown": lambda line: result(line | {"custom_id": "0" * 32}, "x"),
    "a number": lambda line: result(line | {"custom_id": 3}, "x"),
    "SQL": lambda line: result(line | {"custom_id": "' OR 1=1 --"}, "x"),
    "an endless number": lambda line: '{"custom_id": ' + "9" * 5000 + "}\n",
}
COUNTED = {
    "failed": "failed", "without credit": "failed", "too many": "failed",
    "expired": "failed", "no body": "garbled", "of another model": "by another model",
    "no choices": "garbled", "unknown": "unknown", "a number": "unknown", "SQL": "unknown",
}  # fmt: skip


@pytest.mark.parametrize("kind", LINES)
def test_a_line_that_is_no_reply_is_counted_and_asked_again_and_the_others_are_stored(store, tmp_path, kind):
    lines = export(store, tmp_path)
    results = [LINES[kind](line) if i % 3 == 0 else result(line, f"said {i}") for i, line in enumerate(lines)]
    found = batch.take(store, save(tmp_path / "r.jsonl", results))
    assert found == {"stored": 6, COUNTED.get(kind, "garbled"): 4}
    again = export(store, tmp_path)
    assert {line["custom_id"] for line in again} == {line["custom_id"] for line in lines[::3]}
    assert [r and r.samples[0].text for r in answer(store, engine(tmp_path), asked(10))] == [
        None if i % 3 == 0 else f"said {i}" for i in range(10)
    ]


@pytest.mark.parametrize("status", [400, 404, 413, 422, 451])
def test_what_the_provider_refuses_of_a_request_is_that_rows_outcome(store, tmp_path, status, caplog):
    lines = export(store, tmp_path)
    results = [result(line, "x", status=status if i == 4 else 200) for i, line in enumerate(lines)]
    assert batch.take(store, save(tmp_path / "r.jsonl", results)) == {"stored": 9, "refused": 1}
    replies = answer(store, engine(tmp_path), asked(10))
    assert [bool(reply.refused) for reply in replies] == [i == 4 for i in range(10)]
    assert replies[4].refused.startswith(f"{status}: ")
    assert "1 lines: " in caplog.text


def test_a_batch_that_is_refused_as_a_whole_leaves_all_unasked_and_tells_why(store, tmp_path, caplog):
    lines = export(store, tmp_path)
    body = {"error": {"message": "max_tokens is not supported with this model"}}
    results = [result(line, "x") | {"response": {"status_code": 400, "body": body}} for line in lines]
    assert batch.take(store, save(tmp_path / "r.jsonl", results)) == {"failed": 10}
    assert len(store) == 0
    assert "10 lines: " in caplog.text
    assert "max_tokens is not supported" in caplog.text


def test_the_same_line_twice_is_one_reply(store, tmp_path):
    line = result(export(store, tmp_path, 1)[0], "x")
    assert batch.take(store, save(tmp_path / "r.jsonl", [line] * 3)) == {"stored": 1, "known": 2}


def test_another_models_name_is_told(store, tmp_path, caplog):
    lines = export(store, tmp_path, 2)
    results = [result(line, "x", model="my-deployment") for line in lines]
    assert batch.take(store, save(tmp_path / "r.jsonl", results)) == {"by another model": 2}
    assert "by a model that calls itself my-deployment, and org/judge was asked" in caplog.text


def test_a_link_in_the_place_of_the_files_is_not_followed(store, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    (tmp_path / "batches").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="is a link or behind one"):
        export(store, tmp_path)
    assert (tmp_path / "mine/thesis.txt").read_text() == "years"


def test_what_was_asked_is_named_where_it_cannot_be_used(store, tmp_path):
    (tmp_path / "batches").mkdir()
    with closing(sqlite3.connect(tmp_path / "batches" / batch.ASKED)) as db:
        db.execute("CREATE TABLE asked (other TEXT)")
    with pytest.raises(InputError, match=r"cannot use .*asked\.sqlite: table asked has 1 columns"):
        answer(store, engine(tmp_path), asked(1))
    assert not list((tmp_path / "batches").glob("*.draft-*"))


def test_results_come_twice_in_parts_and_in_any_order(store, tmp_path, caplog):
    lines = export(store, tmp_path, 40)
    results = [result(line, f"said {line['body']['messages'][0]['content']}") for line in lines]
    random.Random(1).shuffle(results)
    first = save(tmp_path / "a.jsonl", results[:25])
    second = save(tmp_path / "b.jsonl", [*results[15:], "\n", json.dumps(results[0])[:50]])
    assert batch.take(store, first) == {"stored": 25}
    assert "lines: " not in caplog.text
    assert batch.take(store, second) == {"stored": 15, "known": 10, "garbled": 1}
    assert batch.take(store, second) == {"known": 25, "garbled": 1}
    assert [reply.samples[0].text for reply in answer(store, engine(tmp_path), asked(40))] == [
        f"said hi {i}" for i in range(40)
    ]
    assert not store.get("0" * 32)


def test_a_request_file_is_no_result_file(store, tmp_path):
    export(store, tmp_path)
    with pytest.raises(InputError, match="line 1 is a request; expected the file with the results"):
        batch.take(store, files(tmp_path)[0])


def test_an_empty_file_a_folder_and_a_pipe(store, tmp_path):
    export(store, tmp_path)
    assert batch.take(store, save(tmp_path / "r.jsonl", [])) == {}
    with pytest.raises(InputError, match="is no regular file"):
        batch.take(store, tmp_path)


def test_files_are_cut_where_a_provider_takes_no_more(store, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "MOST_REQUESTS", 4)
    lines = export(store, tmp_path)
    paths = files(tmp_path)
    assert [len(path.read_text().splitlines()) for path in paths] == [4, 4, 2]
    monkeypatch.setattr(batch, "MOST_BYTES", 3 * len(json.dumps(lines[0])))
    export(store, tmp_path)
    paths = files(tmp_path)
    assert max(path.stat().st_size for path in paths) <= batch.MOST_BYTES
    assert len(paths) == 5


def test_the_same_requests_stand_in_the_same_place_with_what_a_user_put_there_and_others_beside_them(store, tmp_path):
    export(store, tmp_path, 3)
    folder = files(tmp_path)[0].parent
    (folder / "notes.txt").write_text("sent on Monday")
    export(store, tmp_path, 3)
    assert files(tmp_path)[0].parent == folder
    assert len(export(store, tmp_path, 2)) == 2
    assert (folder / "notes.txt").read_text() == "sent on Monday"
    assert len((folder / "requests-001.jsonl").read_text().splitlines()) == 3
    assert not list((tmp_path / "batches").glob("*.draft-*"))


def test_results_of_an_earlier_writing_are_still_known(store, tmp_path):
    early = export(store, tmp_path, 3)
    export(store, tmp_path, 1)
    assert batch.take(store, save(tmp_path / "r.jsonl", [result(line, "x") for line in early])) == {"stored": 3}


def test_where_all_is_answered_nothing_is_written_and_the_run_goes_on(store, tmp_path):
    lines = export(store, tmp_path, 3)
    batch.take(store, save(tmp_path / "r.jsonl", [result(line, "x") for line in lines]))
    writer = engine(tmp_path)
    answer(store, writer, asked(3))
    writer.finish()


@pytest.mark.nightly
def test_20000_requests_are_written_in_flat_memory_and_ten_seconds(store, tmp_path):
    requests = asked(20_000)
    writer = engine(tmp_path)
    tracemalloc.start()
    started = time.process_time()
    for _ in writer.generate(requests, seed=0):
        pass
    took, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    with pytest.raises(Interrupted, match="20,000 stand in"):
        writer.finish()
    assert peak < 20 * 2**20
    assert took < 30, "ten without the tracing"


CHILD = """
import sys
from pathlib import Path
from nbutils.engines import batch
from nbutils.engines.store import Store
batch.AT_ONCE = 5
batch.take(Store(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("part", range(10))
def test_killed_while_it_brings_results_nothing_is_lost_or_doubled(tmp_path, part):
    store = Store(tmp_path / "store.sqlite")
    lines = export(store, tmp_path, 60)
    results = save(tmp_path / "r.jsonl", [result(line, "x" * 3000) for line in lines])
    child = subprocess.Popen([sys.executable, "-c", CHILD, store.path, results], env=children(__file__))
    until = time.monotonic() + 60
    while len(store) < 6 * part and child.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait()
    there = len(store)
    assert batch.take(store, results) == {k: n for k, n in (("known", there), ("stored", 60 - there)) if n}
    assert len(store) == 60
    store.close()


def test_the_program_says_what_came_of_each_file(store, tmp_path, capsys):
    assert program.main([str(tmp_path / "elsewhere"), "r.jsonl"]) == 1
    assert "no batch files were written in" in capsys.readouterr().err
    lines = export(store, tmp_path, 4)
    first = save(tmp_path / "a.jsonl", [result(line, "x") for line in lines[:3]])
    second = save(tmp_path / "b.jsonl", [])
    assert program.main([str(tmp_path), str(first), str(second)]) == 0
    said = capsys.readouterr().out
    assert f"{first}: 3 stored" in said
    assert f"{second}: no results" in said
    assert "3 replies are new, the store has 3; run the same command or cell again" in said
    assert program.main([str(tmp_path), str(tmp_path / "gone.jsonl")]) == 1


def test_only_a_servers_judge_can_be_asked_by_batch(tmp_path):
    with pytest.raises(InputError, match="batch is for a server's model, and engine transformers runs here"):
        judges.load(judge_file(tmp_path / "j.yaml", engine="transformers", batch=True), cache=tmp_path)


def test_the_key_of_a_server_is_not_needed_for_writing(tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    name = judge_file(tmp_path / "j.yaml", batch=True, key_variable="JUDGE_API_KEY")
    assert judges.load(name, cache=tmp_path / "models").engine.identity["model"] == MODEL


def test_what_was_asked_is_no_link(store, tmp_path):
    (tmp_path / "batches").mkdir()
    (tmp_path / "batches" / batch.ASKED).symlink_to(tmp_path / "elsewhere.sqlite")
    with pytest.raises(InputError, match=r"cannot open .*asked\.sqlite: it is a link"):
        answer(store, engine(tmp_path), asked(1))
    assert not Path(tmp_path / "elsewhere.sqlite").exists()


def test_a_prompt_of_several_turns_is_written_as_it_is_asked(store, tmp_path):
    row = prompt_row("Ciao 🙂 è")
    writer = engine(tmp_path, chat_template_kwargs={"enable_thinking": False})
    answer(store, writer, [Request(tuple(row["prompt"]), sampling=Sampling(0.0, 1.0, 5))])
    with pytest.raises(Interrupted):
        writer.finish()
    [line] = written(tmp_path)
    assert line["body"]["messages"] == row["prompt"]
    assert line["body"]["chat_template_kwargs"] == {"enable_thinking": False}
