"""engines/api.py against a scripted server: nothing is lost, asked twice or told to the wrong ear."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers import Answer, ChatServer, echo, logged, serving

from nbutils.engines import Request, Sampling
from nbutils.engines.api import TRIES, ApiEngine
from nbutils.errors import InputError, Interrupted
from nbutils.store import Store, answer

TOKEN = "hf_secret123"


def ask(*texts: str, n: int = 1, temperature: float = 0.0) -> list[Request]:
    return [Request(({"role": "user", "content": t},), n, Sampling(temperature, max_tokens=50)) for t in texts]


def engine(server: ChatServer, **options) -> ApiEngine:
    return ApiEngine(server.url, "judge", **({"wait": 0.01} | options))


def test_every_request_gets_its_own_reply_whatever_order_they_arrive_in(store):
    slow_first = {"0": 0.15, "1": 0.1, "2": 0.05}
    texts = [str(i) for i in range(12)]
    with ChatServer(lambda body: Answer(f"re {echo(body)}", delay=slow_first.get(echo(body), 0))) as server:
        arrived = [i for i, _ in engine(server).generate(ask(*texts), seed=0)]
        replies = answer(store, engine(server), ask(*texts))
    assert sorted(arrived) == list(range(12))
    assert arrived.index(0) > arrived.index(3)  # the slow ones hold nobody up
    assert [r.samples[0].text for r in replies] == [f"re {t}" for t in texts]


def test_no_more_requests_are_in_flight_than_allowed():
    with ChatServer(lambda _: Answer(delay=0.02)) as server:
        replies = list(engine(server, concurrency=5).generate(ask(*map(str, range(40))), seed=0))
    assert len(replies) == 40
    assert server.max_in_flight == 5


def test_a_reply_tells_text_tokens_and_whether_it_was_cut_off():
    with ChatServer([Answer("three short words"), Answer("cut", finish_reason="length")]) as server:
        replies = [reply for _, reply in engine(server, concurrency=1).generate(ask("a", "b"), seed=0)]
    assert [r.samples[0].finish_reason for r in replies] == ["stop", "length"]
    assert (replies[0].samples[0].text, replies[0].samples[0].n_tokens) == ("three short words", 3)
    assert (replies[0].prompt_tokens, replies[0].completion_tokens) == (7, 3)


def test_the_request_says_what_was_asked_for_and_no_more():
    schema = {"type": "json_schema", "json_schema": {"name": "grades", "schema": {"type": "object"}}}
    request = Request(({"role": "user", "content": "hi"},), 1, Sampling(0.0, max_tokens=50), schema)
    with ChatServer() as server:
        list(engine(server, chat_template_kwargs={"enable_thinking": False}).generate([request], seed=3))
    assert server.calls == [
        {
            "model": "judge",
            "messages": [{"role": "user", "content": "hi"}],
            "temperature": 0.0,
            "max_tokens": 50,
            "response_format": schema,
            "chat_template_kwargs": {"enable_thinking": False},
        }
    ]


def test_several_samples_are_several_calls_with_a_seed_each():
    with ChatServer(lambda body: f"seed {body['seed']}") as server:
        [(_, reply)] = engine(server).generate(ask("a", n=3, temperature=0.8), seed=10)
    assert [s.text for s in reply.samples] == ["seed 10", "seed 11", "seed 12"]
    assert reply.completion_tokens == 6


@pytest.mark.parametrize(
    "fault",
    [
        Answer(status=429),
        Answer(status=500),
        Answer(status=503),
        Answer(drop=True),
        Answer(raw="<html>Welcome to the hotel wifi</html>"),
        Answer(raw='{"id": "c", "choices": [{"mess'),
        Answer(raw='{"choices": []}'),
        Answer(hang=True),
    ],
    ids=["429", "500", "503", "dropped", "html", "half-json", "no-choice", "hanging"],
)
def test_a_passing_fault_is_asked_again(fault):
    with ChatServer([fault, fault, "fine"]) as server:
        [(_, reply)] = engine(server, timeout=0.2 if fault.hang else 5).generate(ask("a"), seed=0)
    assert reply.samples[0].text == "fine"
    assert len(server.calls) == 3


def test_a_request_that_keeps_failing_is_left_out_and_asked_again_next_time(store, caplog):
    def script(body):
        return Answer(status=503) if echo(body) == "b" else echo(body)

    with ChatServer(script) as server:
        first = answer(store, engine(server, wait=0.001), ask("a", "b", "c"))
        assert server.asked().count("b") == TRIES
    assert [r and r.samples[0].text for r in first] == ["a", None, "c"]
    assert "1 of 3 requests were not answered" in caplog.text
    with ChatServer() as healthy:
        again = engine(healthy)
        again.identity["server"] = server.url  # the same server, back again at another port
        second = answer(store, again, ask("a", "b", "c"))
    assert healthy.asked() == ["b"]
    assert [r.samples[0].text for r in second] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (400, "check the model name"),
        (401, "set MY_TOKEN"),
        (402, "the credit is used up"),
        (403, "accept its terms"),
        (404, "check `model` and `server`"),
        (422, "refuses the request"),
    ],
)
def test_an_error_no_retry_can_mend_stops_with_one_sentence_and_the_count_of_safe_answers(
    status, advice, store, monkeypatch, caplog
):
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    caplog.set_level("DEBUG", logger="nbutils")
    script = [
        "one",
        "two",
        "three",
        Answer(status=status, raw=json.dumps({"error": {"message": f"bad token {TOKEN}"}})),
    ]
    with ChatServer(script) as server, pytest.raises(InputError) as caught:
        answer(store, engine(server, concurrency=1, key_variable="MY_TOKEN"), ask(*"abcdefgh"))
    message = str(caught.value)
    assert len(server.calls) == 4
    assert len(store) == 3
    assert "3 answers of this call are stored" in message
    assert str(status) in message
    assert advice in message
    assert "\n" not in message
    assert TOKEN not in message + caplog.text


def test_the_token_goes_to_the_server_and_into_no_message(store, monkeypatch, caplog):
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    caplog.set_level("DEBUG", logger="nbutils")
    script = [Answer(status=500, raw=json.dumps({"error": {"message": f"bad token {TOKEN}"}}))]
    with ChatServer(script) as server:
        judge = engine(server, key_variable="MY_TOKEN", wait=0.001)
        assert answer(store, judge, ask("a")) == [None]
    assert set(server.tokens) == {TOKEN}
    assert "failed 8 times" in caplog.text
    assert TOKEN not in caplog.text + json.dumps(judge.identity)


def test_a_missing_token_is_named_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("MY_TOKEN", raising=False)
    with ChatServer() as server, pytest.raises(InputError, match="MY_TOKEN is not set"):
        engine(server, key_variable="MY_TOKEN")
    assert not server.calls


def test_a_server_that_is_not_there_leaves_every_request_out(store):
    with ChatServer() as server:
        pass
    assert answer(store, engine(server, wait=0.001), ask("a", "b")) == [None, None]


def test_it_works_inside_a_running_event_loop_as_in_jupyter():
    async def cell(server):
        return list(engine(server).generate(ask("a"), seed=0))

    with ChatServer() as server:
        [(_, reply)] = asyncio.run(cell(server))
    assert reply.samples[0].text == "a"


def test_the_deadline_stops_asking_and_keeps_what_was_answered(store):
    with ChatServer(lambda body: Answer(echo(body), delay=0.05)) as server:
        slow = engine(server, concurrency=2)
        with pytest.raises(Interrupted, match="of 50 requests to go"):
            answer(store, slow, ask(*map(str, range(50))), deadline=time.time() + 0.2)
        asked = len(server.calls)
        assert 2 <= asked < 20
        assert len(store) == asked  # what was in flight at the deadline was waited for
        with pytest.raises(Interrupted):
            answer(store, slow, ask("new"), deadline=time.time() - 1)
        assert len(server.calls) == asked


def test_a_caller_that_stops_early_does_not_wait_for_the_rest():
    with ChatServer(lambda body: Answer(hang=echo(body) != "0")) as server:
        replies = engine(server).generate(ask(*map(str, range(8))), seed=0)
        assert next(replies)[0] == 0
        started = time.time()
        replies.close()
        assert time.time() - started < 2


CHILD = """
import sys
from test_api import Request, Store, answer, ask
from nbutils.engines.api import ApiEngine
answer(Store(sys.argv[1]), ApiEngine(sys.argv[2], "judge", concurrency=4), ask(*map(str, range(80))))
"""


def slow_echo(body):
    return Answer(echo(body), delay=0.03)


def test_after_kill_9_only_what_is_missing_is_asked_and_every_request_ends_once(tmp_path):
    texts, log = [str(i) for i in range(80)], tmp_path / "calls.jsonl"
    with serving("test_api:slow_echo", log=log) as url:
        command = [sys.executable, "-c", CHILD, tmp_path / "store.sqlite", url]
        child = subprocess.Popen(command, cwd=Path(__file__).parent)
        until = time.time() + 60
        while len(logged(log)) < 25 and time.time() < until:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        time.sleep(0.1)  # for the requests the child has sent to arrive
        asked_before = [echo(body) for body in logged(log)]
        store = Store(tmp_path / "store.sqlite")
        safe = len(store)
        replies = answer(store, ApiEngine(url, "judge", concurrency=4), ask(*texts))
        asked_after = [echo(body) for body in logged(log)][len(asked_before) :]
    assert 25 <= len(asked_before) < 60
    assert len(asked_before) - 8 <= safe  # at most what was in flight or just arrived is lost
    assert len(asked_after) == len(set(asked_after)) == 80 - safe
    assert set(asked_before) | set(asked_after) == set(texts)
    assert [r.samples[0].text for r in replies] == texts
    assert len(store) == 80
    store.close()
