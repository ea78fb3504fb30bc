"""engines/api.py against a scripted server: nothing is lost, asked twice or told to the wrong ear."""

import asyncio
import email.utils
import itertools
import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from builders import children
from servers import Answer, ChatServer, echo, logged, serving, token

from nbutils.core.errors import InputError, Interrupted
from nbutils.core.sampling import Sample, Sampling
from nbutils.engines import retries
from nbutils.engines.api import GIVEN_UP, PROBES, TRIES, ApiEngine
from nbutils.engines.asking import answer
from nbutils.engines.protocol import Reply, Request, Tally
from nbutils.engines.store import Store

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
        Answer(raw='{"choices": [{"message": {"content": ["a", "list"]}}]}'),
        Answer(raw="null"),
        Answer(raw=b'{"id": "\xff"}'),
        Answer(hang=True),
        Answer(drip=True),
    ],
    ids=["429", "500", "503", "dropped", "html", "half-json", "no-choice", "list", "null", "no-text", "hang", "drip"],
)
def test_a_passing_fault_is_asked_again(fault):
    with ChatServer([fault, fault, "fine"]) as server:
        [(_, reply)] = engine(server, timeout=0.3 if fault.hang or fault.drip else 5).generate(ask("a"), seed=0)
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
    ("status", "advice", "calls"),
    [
        (400, "check the model name", 9),  # the three, five that are refused, and one of the three once more
        (401, "set MY_TOKEN", 4),
        (402, "the credit is used up", 4),
        (403, "accept its terms", 9),
        (404, "check `model` and `server`", 9),
        (407, "wants a password", 4),
        (410, "it refused 5 different requests in a row", 9),
        (422, "refuses the request", 9),
    ],
)
def test_an_error_no_retry_can_mend_stops_with_one_sentence_and_the_count_of_safe_answers(
    status, advice, calls, store, monkeypatch, caplog
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
        answer(store, engine(server, concurrency=1, key_variable="MY_TOKEN"), ask(*"abcdefghij"))
    message = str(caught.value)
    assert len(server.calls) == calls
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


def test_a_server_that_answers_nothing_stops_the_run_instead_of_being_asked_for_hours(store):
    with ChatServer(lambda body: Answer(status=503)) as server:
        with pytest.raises(Interrupted, match=r"does not answer .*; try again later \(0 answers"):
            answer(store, engine(server, wait=0.001, concurrency=2), ask(*map(str, range(200))))
        assert GIVEN_UP * TRIES <= len(server.calls) <= (GIVEN_UP + 2) * TRIES


ALWAYS = {
    "500": Answer(status=500, error="the request exceeds the available context size"),
    "503, Italian": Answer(status=503, error="la richiesta supera il contesto disponibile"),
    "dropped": Answer(drop=True),
    "garbage": Answer(raw='{"choices": {}}'),
}


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("fault", ALWAYS.values(), ids=ALWAYS)
def test_rows_that_always_fail_stop_no_run_of_a_server_that_answers_others(store, caplog, fault, concurrency):
    texts = [*map(str, range(60)), *(f"nuova {i}" for i in range(20))]
    bad = {str(i) for i in range(60) if i % 6 == 0}  # ten: more than are given up before the server is looked at
    with ChatServer(lambda body: fault if echo(body) in bad else echo(body)) as server:
        for count, asked in ((60, 60), (60, 10), (80, 30)):  # once more, and with new rows after those that fail
            caplog.clear()
            judge = engine(server, wait=0.001, concurrency=concurrency)
            before, replies = len(server.calls), answer(store, judge, ask(*texts[:count]))
            assert [r and r.samples[0].text for r in replies] == [t if t not in bad else None for t in texts[:count]]
            assert f"10 of {count} requests were not answered; the next run asks them again" in caplog.text
            assert judge.tally.failures == 10
            assert len(server.calls) - before <= asked - 10 + 10 * TRIES + 1
    assert 1 <= server.asked().count("Hello.") <= 2  # where nothing was answered before


@pytest.mark.parametrize("concurrency", [1, 4, 20])
@pytest.mark.parametrize("fault", [Answer(status=503), Answer(raw="<html>"), Answer(drop=True)])
def test_a_server_that_dies_on_the_way_stops_the_run_after_as_long_as_before(store, fault, concurrency):
    with ChatServer([*"abcde", fault]) as server:
        with pytest.raises(Interrupted, match="does not answer"):
            answer(store, engine(server, wait=0.001, concurrency=concurrency), ask(*map(str, range(200))))
        assert len(server.calls) <= 5 + (max(GIVEN_UP, concurrency) + concurrency) * TRIES + PROBES
    assert len(store) == 5


def test_a_server_that_fails_at_what_all_requests_hold_stops_the_run(store):
    script = lambda body: Answer(echo(body), status=500 if "response_format" in body else 200)  # noqa: E731
    with ChatServer(script) as server:
        with pytest.raises(Interrupted, match="does not answer"):
            answer(store, engine(server, wait=0.001, concurrency=1), ask_all(*map(str, range(100))))
        assert len(server.calls) == GIVEN_UP * TRIES + PROBES


def test_the_deadline_ends_the_look_at_a_server_and_says_nothing_of_it(store):
    late = time.monotonic() + 1.5
    script = lambda body: Answer(status=503, headers={"Retry-After": "30"} if echo(body) == "Hello." else {})  # noqa: E731
    with ChatServer(script) as server, pytest.raises(Interrupted, match="time budget used up"):
        answer(store, engine(server, wait=0.001, concurrency=8), ask(*map(str, range(8))), deadline=late)


def test_a_refused_request_is_told_in_the_servers_own_words_without_the_token(store, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    raw = json.dumps({"error": {"message": f"context of 4096 tokens exceeded by {TOKEN}"}})
    with (
        ChatServer([Answer(status=400, raw=raw)]) as server,
        pytest.raises(InputError, match=r"answered 400: .*it said: .*context of 4096 tokens exceeded by \*\*\*"),
    ):
        answer(store, engine(server, key_variable="MY_TOKEN"), ask("a"))


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
            answer(store, slow, ask(*map(str, range(50))), deadline=time.monotonic() + 0.2)
        asked = len(server.calls)
        assert 2 <= asked < 20
        assert len(store) == asked  # what was in flight at the deadline was waited for
        with pytest.raises(Interrupted):
            answer(store, slow, ask("new"), deadline=time.monotonic() - 1)
        assert len(server.calls) == asked


def test_a_caller_that_stops_early_does_not_wait_for_the_rest():
    with ChatServer(lambda body: Answer(hang=echo(body) != "0")) as server:
        replies = engine(server).generate(ask(*map(str, range(8))), seed=0)
        assert next(replies)[0] == 0
        started = time.time()
        replies.close()
        assert time.time() - started < 2


def gaps(times):
    return [after - before for before, after in itertools.pairwise(times)]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_an_address_that_sends_elsewhere_is_named_and_nothing_goes_there(monkeypatch, status):
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    with (
        ChatServer() as other,
        ChatServer([Answer(status=status, raw="", headers={"Location": f"{other.url}/chat/completions"})]) as server,
        pytest.raises(InputError, match=rf"answered {status}: it sends on to another address.*write its final one"),
    ):
        list(engine(server, key_variable="MY_TOKEN").generate(ask("a"), seed=0))
    assert server.tokens == [TOKEN]
    assert other.headers == []


# how fast, how often


@pytest.mark.parametrize("concurrency", [1, 8])
def test_calls_begin_no_closer_than_the_limit_per_minute_retries_and_later_requests_too(store, concurrency):
    with ChatServer([Answer(status=503), "ok", Answer(drop=True), "ok"]) as server:
        paced = engine(server, concurrency=concurrency, requests_per_minute=300, wait=0.001)
        answer(store, paced, ask("a", "b", "c"))
        answer(store, paced, ask("d", "e"))
    assert len(server.calls) == 7
    assert all(time >= server.times[0] + 0.2 * k - 0.1 for k, time in enumerate(server.times))
    assert server.times[-1] - server.times[0] < 3  # and not much slower


def test_waits_between_tries_double():
    with ChatServer([Answer(status=503)]) as server:
        assert list(engine(server, wait=0.02).generate(ask("a"), seed=0)) == []
    assert len(server.calls) == TRIES == 8
    waits = gaps(server.times)
    assert all(wait >= 0.02 * 2**k for k, wait in enumerate(waits))
    assert waits[-1] < 0.02 * 2**6 + 1


def test_requests_that_failed_together_are_not_tried_again_together():
    with ChatServer([Answer(status=503)] * 8 + ["ok"]) as server:
        list(engine(server, wait=0.3).generate(ask(*"abcdefgh"), seed=0))
    again = server.times[8:]
    assert len(again) == 8
    assert max(again) - min(again) > 0.05


def in_two_seconds():
    return email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("when", [lambda: "1", lambda: "0.9", in_two_seconds], ids=["seconds", "fraction", "date"])
def test_a_server_that_says_when_to_come_back_is_obeyed(when, status):
    with ChatServer([Answer(status=status, headers={"Retry-After": when()}), "fine"]) as server:
        list(engine(server).generate(ask("a"), seed=0))
    [wait] = gaps(server.times)
    assert 0.85 <= wait < 5


@pytest.mark.parametrize("asked", ["3600", "inf", "Fri, 31 Dec 2100 23:59:59 GMT"])
def test_no_wait_is_longer_than_the_longest_whatever_the_server_asks(monkeypatch, asked):
    monkeypatch.setattr(retries, "LONGEST_WAIT", 0.3)
    with ChatServer([Answer(status=429, headers={"Retry-After": asked}), "fine"]) as server:
        list(engine(server).generate(ask("a"), seed=0))
    [wait] = gaps(server.times)
    assert 0.3 <= wait < 3


@pytest.mark.parametrize("asked", ["soon", "nan", "-60", "", "Fri, 31 Dec 1999 23:59:59 GMT"])
def test_a_time_to_come_back_that_makes_no_sense_is_passed_over(asked):
    with ChatServer([Answer(status=429, headers={"Retry-After": asked}), "fine"]) as server:
        [(_, reply)] = engine(server).generate(ask("a"), seed=0)
    assert reply.samples[0].text == "fine"
    assert gaps(server.times)[0] < 3


# what ends a run


@pytest.mark.parametrize("status", [401, 402])
def test_what_is_in_flight_when_the_run_stops_is_waited_for_and_stored(store, status):
    def script(body):
        return Answer(status=status, delay=0.1) if echo(body) == "0" else Answer(echo(body), delay=0.6)

    with ChatServer(script) as server, pytest.raises(InputError, match="7 answers of this call are stored"):
        answer(store, engine(server, concurrency=8), ask(*map(str, range(30))))
    assert sorted(server.asked()) == [str(i) for i in range(8)]
    assert len(store) == 7


def test_the_same_command_goes_on_after_the_run_was_stopped(store):
    with ChatServer(["one", "two", Answer(status=402), "three"]) as server:
        judge = engine(server, concurrency=1)
        with pytest.raises(InputError, match=r"credit .* the same command goes on"):
            answer(store, judge, ask("a", "b", "c"))
        replies = answer(store, judge, ask("a", "b", "c"))
    assert [r.samples[0].text for r in replies] == ["one", "two", "three"]
    assert server.asked() == ["a", "b", "c", "c"]


def comes_back_later_then_is_out_of_credit(body):
    if echo(body) == "a":
        return Answer(status=429, headers={"Retry-After": "30"})
    return Answer(status=402, delay=0.2)


def test_a_request_that_waits_for_its_next_try_is_not_sent_once_the_run_has_stopped(store):
    started = time.monotonic()
    with ChatServer(comes_back_later_then_is_out_of_credit) as server, pytest.raises(InputError, match="credit"):
        answer(store, engine(server), ask("a", "b"))
    assert time.monotonic() - started < 10
    assert sorted(server.asked()) == ["a", "b"]  # both are in flight at once


def test_a_request_that_waits_for_its_turn_is_not_sent_once_the_run_has_stopped(store):
    started = time.monotonic()
    with ChatServer([Answer(status=401)]) as server, pytest.raises(InputError, match="401"):
        answer(store, engine(server, requests_per_minute=6), ask("a", "b", "c"))
    assert time.monotonic() - started < 5
    assert server.asked() == ["a"]


def test_the_deadline_is_not_slept_through(store):
    started = time.monotonic()
    with ChatServer([Answer(status=429, headers={"Retry-After": "30"})]) as server, pytest.raises(Interrupted):
        answer(store, engine(server), ask("a"), deadline=time.monotonic() + 0.5)
    assert time.monotonic() - started < 10
    assert server.asked() == ["a"]


def test_a_hard_limit_on_calls_counts_retries_and_keeps_what_was_answered(store):
    with ChatServer([Answer(status=503), "a", Answer(status=503), "b", Answer(status=503), "c"]) as server:
        judge = engine(server, concurrency=1, max_calls=5)
        with pytest.raises(Interrupted, match=r"all 5 calls .*\(2 answers of this call are stored"):
            answer(store, judge, ask("a", "b", "c"))
        with pytest.raises(Interrupted):  # a notebook's next cell has no calls left either
            answer(store, judge, ask("c"))
        assert len(server.calls) == 5
        assert (judge.tally.calls, judge.tally.retries) == (5, 2)
        assert len(store) == 2
        [reply] = answer(store, engine(server, max_calls=5), ask("c"))
    assert reply.samples[0].text == "c"


def test_a_hard_limit_on_calls_holds_with_many_in_flight_and_keeps_them_all(store):
    with ChatServer(lambda body: Answer(echo(body), delay=0.1)) as server, pytest.raises(Interrupted, match="12 ans"):
        answer(store, engine(server, concurrency=8, max_calls=12), ask(*map(str, range(40))))
    assert len(server.calls) == len(store) == 12


def test_no_more_is_asked_once_the_store_cannot_keep_it(store, monkeypatch):
    def full(batch):
        raise InputError("the disk is full")

    with ChatServer(lambda body: Answer(echo(body), delay=0.05)) as server:
        monkeypatch.setattr(store, "put", full)
        # the error is kept, as a notebook keeps its last one with all that hangs on it
        with pytest.raises(InputError, match="disk is full") as kept:
            answer(store, engine(server, concurrency=2), ask(*map(str, range(40))))
        asked = len(server.calls)
        time.sleep(0.5)
        assert len(server.calls) == asked < 10
    assert kept.value


def test_a_slow_disk_slows_the_asking_down_so_that_a_kill_loses_no_more_than_is_in_flight(store, monkeypatch):
    put, unsafe = store.put, []

    def slow_put(batch):
        time.sleep(0.02)
        unsafe.append(len(server.calls) - len(store))
        put(batch)

    monkeypatch.setattr(store, "put", slow_put)
    with ChatServer() as server:
        answer(store, engine(server, concurrency=4), ask(*map(str, range(40))))
    assert len(unsafe) == len(store) == 40
    assert max(unsafe) <= 4


# what servers refuse, and odd replies

SCHEMA = {"type": "json_schema", "json_schema": {"name": "grades", "schema": {"type": "object"}}}


def ask_all(*texts):
    return [replace(request, response_format=SCHEMA, logprobs=True) for request in ask(*texts)]


def refusing(*names, status=400, delay=0.0):
    return lambda body: Answer(echo(body), status=status if body.keys() & set(names) else 200, delay=delay)


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize(
    ("refused", "kept", "said"),
    [
        ({"response_format"}, {"logprobs", "top_logprobs"}, ["a JSON schema"]),
        ({"logprobs"}, {"response_format"}, ["log-probabilities"]),
        ({"top_logprobs"}, {"response_format"}, ["log-probabilities"]),
        ({"response_format", "logprobs"}, set(), ["a JSON schema", "log-probabilities"]),
    ],
)
def test_what_a_server_refuses_is_left_out_from_then_on_and_said_once(store, caplog, refused, kept, said, status):
    optional = {"response_format", "logprobs", "top_logprobs"}
    with ChatServer(refusing(*refused, status=status, delay=0.05)) as server:
        judge = engine(server, concurrency=8)
        replies = answer(store, judge, ask_all(*"abcdefgh"))
        assert sorted(r.samples[0].text for r in replies) == list("abcdefgh")
        told = [r.message for r in caplog.records if "refuses" in r.message]
        assert sorted(told) == [f"{server.url} refuses {name}; asking without from now on" for name in said]
        first = len(server.calls)
        answer(store, judge, ask_all(*"ijklmnop"))
    later = server.calls[first:]
    assert len(later) == 8
    assert all(body.keys() & optional == kept for body in later)
    assert len([r for r in caplog.records if "refuses" in r.message]) == len(said)
    assert judge.tally.calls == len(server.calls) == 16 + judge.tally.retries


@pytest.mark.parametrize("status", [400, 422])
def test_a_request_that_is_refused_for_itself_takes_no_part_of_the_next_one(store, caplog, status):
    script = lambda body: Answer(echo(body), status=status if echo(body) == "bad" else 200)  # noqa: E731
    with ChatServer(script) as server:
        judge = engine(server, concurrency=1)
        bad, a = answer(store, judge, ask_all("bad", "a"))
    assert (bad.samples, bad.refused, a.samples[0].text) == ((), f"{status}: scripted {status}", "a")
    assert server.asked()[-1] == "a"
    assert server.calls[-1].keys() >= {"response_format", "logprobs", "top_logprobs"}
    assert "refuses" not in caplog.text


# one row the server always refuses

WRONG = [
    (400, "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."),
    (400, "This model's maximum context length is 4096 tokens. However, you requested 9000 tokens."),
    (400, "Bad Request"),
    (403, "Forbidden"),
    (404, "Not Found"),
    (413, "Payload Too Large"),
    (414, "URI Too Long"),
    (418, "I am a teapot"),
    (422, "Input should be shorter"),
    (451, "Unavailable For Legal Reasons"),
    (400, "La richiesta viola le norme sui contenuti"),
    (431, "Request Header Fields Too Large"),
]


@pytest.mark.parametrize(("status", "said"), [(403, "insufficient quota"), (404, "model judge was unloaded")])
@pytest.mark.parametrize("last", [1, 3, 4])
def test_what_a_server_refuses_at_the_end_of_a_run_is_no_rows_fault_where_it_refuses_all(store, status, said, last):
    def script(body):
        return Answer(echo(body), status=status if len(server.calls) > 12 else 200, error=said)

    texts = [str(i) for i in range(12 + last)]
    with ChatServer(script) as server:
        with pytest.raises(InputError, match=str(status)):
            answer(store, engine(server, concurrency=1), ask(*texts))
        assert len(store) == 12
    with ChatServer() as server:
        replies = answer(store, engine(server, concurrency=1), ask(*texts))
    assert [bool(reply.refused) for reply in replies] == [False] * len(texts)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize(("status", "error"), WRONG)
def test_a_row_that_is_always_refused_is_that_rows_outcome_and_not_asked_again(store, caplog, status, error, place):
    def script(body):
        return Answer(echo(body), status=status if echo(body) == "cattivo" else 200, error=error)

    texts = {"first": ["cattivo", "a", "b"], "middle": ["a", "cattivo", "b"], "last": ["a", "b", "cattivo"]}[place]
    with ChatServer(script) as server:
        for _ in range(2):
            replies = answer(store, engine(server, concurrency=1), ask(*texts))
            assert [r.samples[0].text if r.samples else r.refused[:3] for r in replies] == [
                str(status) if text == "cattivo" else text for text in texts
            ]
        assert error[:40] in replies[texts.index("cattivo")].refused
    assert server.asked().count("cattivo") == 1
    assert f"1 of 3 requests were refused, and are not asked again: {status}: " in caplog.text


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ('{"error": {"message": "too\\nlong\\u2028by far"}}', "400: too long by far"),
        ('{"error": {"message": "\\ud800 no"}}', "400: \ufffd no"),
        ('{"error": "troppo lungo"}', '400: {"error": "troppo lungo"}'),
        (
            '{"detail": [{"loc": ["body"], "msg": "too long"}]}',
            '400: {"detail": [{"loc": ["body"], "msg": "too long"}]}',
        ),
        ('{"error": {"message": {"a": 1}}}', '400: {"error": {"message": {"a": 1}}}'),
        ("null", "400: null"),
        ("", "400: "),
        (b"\xff\xfe", "400: \ufffd\ufffd"),
        ("<html>\n<b>Errore</b>", "400: <html> <b>Errore</b>"),
        ("[" * 200_000, "400: " + "[" * 50),
    ],
)
def test_a_refusal_in_any_form_is_one_line_that_can_be_stored(store, raw, reason):
    script = lambda body: Answer(echo(body), status=400, raw=raw) if echo(body) == "bad" else echo(body)  # noqa: E731
    with ChatServer(script) as server:
        bad, _ = answer(store, engine(server), ask("bad", "a"))
        assert answer(store, engine(server), ask("bad", "a"))[0] == bad
    assert bad.refused.startswith(reason)
    assert len(bad.refused) < 200
    assert bad.refused.isprintable()


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_block_of_refused_rows_does_not_stop_a_server_that_answers_others(store, concurrency):
    bad = {str(i) for i in range(10, 45)}
    with ChatServer(lambda body: Answer(echo(body), status=403 if echo(body) in bad else 200)) as server:
        replies = answer(store, engine(server, concurrency=concurrency), ask(*map(str, range(60))))
    assert [r.samples[0].text for r in replies if r.samples] == [str(i) for i in range(60) if str(i) not in bad]
    assert len(store) == 60
    assert len(server.calls) <= 60 + 35 // 5 + concurrency  # now and then one that was answered is asked once more


def test_all_the_rows_there_are_may_be_refused_by_a_server_that_answers(store):
    with ChatServer(lambda body: Answer(echo(body), status=200 if echo(body) == "Hello." else 413)) as server:
        replies = answer(store, engine(server), ask("a", "b"))
    assert [r.refused[:3] for r in replies] == ["413", "413"]


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, "The model `juge` does not exist or you do not have access to it."),
        (404, "404 page not found"),
        (400, "The requested model 'x/y' is not supported by any provider you have enabled."),
        (400, "Invalid model name passed in model=juge"),
        (403, "You must accept the terms of this model"),
        (401, "Incorrect API key provided"),
        (400, "Il modello richiesto non esiste"),
        (422, "model: unknown"),
    ],
)
def test_a_wrong_model_stops_within_a_few_calls_in_one_sentence(store, status, error, concurrency):
    with ChatServer([Answer(status=status, error=error)]) as server:
        with pytest.raises(InputError, match=f"answered {status}: ") as caught:
            answer(store, engine(server, concurrency=concurrency), ask(*map(str, range(500))))
        assert len(server.calls) <= 2 * concurrency + 2
    assert "\n" not in str(caught.value)
    assert len(store) == 0


def test_a_server_that_stops_answering_any_request_marks_none_as_refused(store):
    with ChatServer([*"abcdefghij", Answer(status=404)]) as server, pytest.raises(InputError, match="10 answers"):
        answer(store, engine(server, concurrency=1), ask(*map(str, range(500))))
    assert len(store) == 10


# what is forgotten, and what is asked without this once


def test_an_intermittent_refusal_of_the_schema_drops_it_for_that_request_only(store):
    turns = itertools.count(1)

    def flaky(body):
        failed = "response_format" in body and next(turns) % 3 == 0
        return Answer(echo(body), status=400 if failed else 200, error="Failed to generate JSON. Adjust your prompt.")

    with ChatServer(flaky) as server:
        replies = answer(store, engine(server, concurrency=1), ask_all(*map(str, range(30))))
    assert [r.samples[0].text for r in replies] == [str(i) for i in range(30)]
    assert {r.notes for r in replies} == {(), ("without a JSON schema",)}
    without = [body for body in server.calls if "response_format" not in body]
    assert len(without) == sum(r.notes != () for r in replies) == 10
    assert "response_format" in server.calls[-2]  # to the end


def strict(refused, error):
    return lambda body: Answer(echo(body), status=400 if body.keys() & refused else 200, error=error)


DIALECTS = {
    "seed": ({"seed"}, "Unsupported parameter: 'seed'", "without a seed"),
    "seme": ({"seed"}, "Parametro non ammesso: seed", "without a seed"),
    "temperature 0.5": (
        {"temperature"},
        "Unsupported value: 'temperature' does not support 0.5 with this model. Only the default (1) is supported.",
        "at the server's own temperature",
    ),
    "top_p": ({"top_p"}, "`temperature` and `top_p` cannot both be specified.", "the server's own top_p"),
    "max_tokens": (
        {"max_tokens"},
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "",
    ),
    "unknown keys": (
        {"top_k", "min_p", "repetition_penalty"},
        "Unrecognized request arguments supplied: min_p, repetition_penalty, top_k",
        "the server's own top_k, min_p and repetition penalty",
    ),
    "unknown keys, one named": (
        {"min_p", "repetition_penalty"}, "property 'min_p' is unsupported", "own top_k, min_p and repetition penalty",
    ),
    "Gemini": ({"min_p"}, 'Invalid JSON payload received. Unknown name "min_p": Cannot find field.', "own top_k"),
    "pydantic": ({"min_p"}, "[{'type': 'extra_forbidden', 'loc': ('body', 'min_p')}]", "own top_k"),
    "keys without a name": ({"min_p"}, "Bad Request", "own top_k"),
    "schema": ({"response_format"}, "response_format is not supported", "without a JSON schema"),
    "grammar": ({"response_format"}, "structured output needs a grammar backend", "without a JSON schema"),
    "logprobs": ({"logprobs"}, "logprobs are not supported with reasoning models", "without log-probabilities"),
    "top_logprobs": ({"top_logprobs"}, "top_logprobs must be at most 5", "without log-probabilities"),
}  # fmt: skip


@pytest.mark.parametrize(("refused", "error", "note"), DIALECTS.values(), ids=DIALECTS)
def test_what_a_server_does_not_take_is_left_out_and_noted_in_every_reply(store, caplog, refused, error, note):
    requests = [replace(r, sampling=replace(r.sampling, temperature=0.5)) for r in ask_all(*"abcdefgh")]
    with ChatServer(strict(refused, error)) as server:
        replies = answer(store, engine(server, concurrency=1), requests)
    assert [r.samples[0].text for r in replies] == list("abcdefgh")
    assert all(note in "; ".join(r.notes) for r in replies)
    assert all(len(r.notes) == bool(note) for r in replies)
    if error != "Bad Request":  # named: known after three
        assert len(server.calls) == 8 + 3
        assert len([r for r in caplog.records if "refuses" in r.message]) == 1
    whole = {"model", "messages", "temperature", "top_p", "seed", "max_tokens", "top_k", "min_p", "repetition_penalty"}
    whole |= {"response_format", "logprobs", "top_logprobs"}
    left_out = whole - server.calls[-1].keys()
    assert refused <= left_out
    assert left_out <= refused | {"top_k", "min_p", "repetition_penalty", "logprobs", "top_logprobs"}
    assert ("max_completion_tokens" in server.calls[-1]) == (refused == {"max_tokens"})


def test_a_reasoning_model_that_takes_next_to_nothing_is_asked_all_the_same(store):
    def o_model(body):
        for name in ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed"):
            if name in body:
                return Answer(status=400, error=f"Unsupported parameter: '{name}' is not supported with this model.")
        return echo(body)

    with ChatServer(o_model) as server:
        replies = answer(store, engine(server, concurrency=1), ask(*"abcdef", temperature=0.5))
    assert [r.samples[0].text for r in replies] == list("abcdef")
    assert server.calls[-1].keys() == {"model", "messages", "max_completion_tokens"}
    assert len(replies[-1].notes) == 4


def test_a_policy_is_drawn_with_the_options_stated_and_not_with_those_of_its_generation_config():
    with ChatServer() as server:
        list(engine(server).generate(ask("a", temperature=0.8), seed=0))
        top = [replace(r, sampling=replace(r.sampling, top_k=20)) for r in ask("a", temperature=0.8)]
        list(engine(server).generate(top, seed=0))
    neutral = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert server.calls[0].items() >= neutral.items()
    assert server.calls[1].items() >= (neutral | {"top_k": 20}).items()


def test_a_top_k_that_was_asked_for_is_never_left_out(store):
    top = [replace(r, sampling=replace(r.sampling, top_k=20)) for r in ask("a", temperature=0.8)]
    with (
        ChatServer(strict({"top_k"}, "Unrecognized request argument supplied: top_k")) as server,
        pytest.raises(InputError, match=r"sampling options.*top_k"),
    ):
        answer(store, engine(server), top)


LOG2 = math.log(2)


# the text, its tokens as the server tells them, and what is kept of their log-probabilities
NUMBERS = {
    "digit": (
        '{"score_1": 4}',
        [token('{"score_'), token("1", {"1": 0.0}), token('": '), token("4", {"4": -0.1, "3": -2.5}), token("}")],
        {8: {"1": 0.0}, 12: {"4": -0.1, "3": -2.5}},
    ),
    "leading space": (
        "It is a 4",
        [token("It is a"), token(" 4", {" 4": -0.5, " 5": -1.0, " four": -3.0})],
        {8: {"4": -0.5, "5": -1.0}},
    ),
    "both spellings": (
        "[[4]]",
        [token("[["), token("4", {"4": -2 * LOG2, " 4": -2 * LOG2, "5": -1.0}), token("]]")],
        {2: {"4": -LOG2, "5": -1.0}},
    ),
    "characters of several tokens": (
        "Sì, è 📚: 4",
        [token(t) for t in (b"S\xc3", b"\xac, ", "è ", b"\xf0\x9f", b"\x93\x9a", ": ")] + [token("4", {"4": -0.1})],
        {9: {"4": -0.1}},
    ),
    "bytes not given": (
        "Sì: 4",
        [token("Sì", given=False), token(": ", given=False), token("4", {"4": -0.1}, given=False)],
        {4: {"4": -0.1}},
    ),
    "two digits": ("10", [token("10", {"10": -0.1, "1": -3.0})], {0: {"10": -0.1, "1": -3.0}}),
    "text stripped": ("4", [token(" 4", {" 4": -0.1})], {0: {"4": -0.1}}),
    "thought before": ("4!", [token("Is it a 4? "), token("4", {"4": -0.1}), token("!")], {0: {"4": -0.1}}),
    "of another text": ("a 4", [token("another "), token("text "), token("4", {"4": -0.1})], {}),
    "no alternatives": ("4", [token("4")], {0: {}}),
    "hopeless": ("4", [token("4", {"4": -9999.0, " 4": -9999.0})], {0: {"4": -9999 + LOG2}}),
    "no tokens": ("none", [], {}),
}


@pytest.mark.parametrize(("text", "tokens", "numbers"), NUMBERS.values(), ids=NUMBERS)
def test_what_each_number_could_have_been_is_kept_and_comes_back_from_the_store(store, text, tokens, numbers):
    [request] = [replace(request, logprobs=True) for request in ask("a")]
    with ChatServer([Answer(text, logprobs=tokens)]) as server:
        judge = engine(server)
        [reply] = answer(store, judge, [request])
        [again] = answer(store, judge, [request])
    assert server.calls[0]["logprobs"] is True
    assert len(server.calls) == 1
    assert again == reply
    assert reply.samples[0].text == text
    found = reply.samples[0].numbers
    assert found.keys() == numbers.keys()
    assert all(found[place] == pytest.approx(options) for place, options in numbers.items())


def completion(**choice):
    message = {"role": "assistant", "content": "4"}
    return {"choices": [{"index": 0, "finish_reason": "stop", "message": message} | choice]}


@pytest.mark.parametrize(
    "body",
    [
        completion(),
        completion() | {"usage": {}},
        completion() | {"usage": {"prompt_tokens": None, "completion_tokens": None}},
        completion() | {"usage": "3 tokens"},
        completion(finish_reason=None),
        completion(logprobs={"tokens": ["4"], "token_logprobs": [-0.1]}),
        completion(logprobs={"content": [{"token": "4", "logprob": -0.1, "bytes": [300], "top_logprobs": []}]}),
        completion(logprobs={"content": [{"token": "4", "top_logprobs": [{"token": "4", "logprob": None}]}]}),
        completion(logprobs={"content": [{"token": None}]}),
    ],
)
def test_a_reply_is_kept_where_what_belongs_to_it_is_missing_or_odd(body):
    with ChatServer([Answer(raw=json.dumps(body))]) as server:
        [(_, reply)] = engine(server).generate(ask("a"), seed=0)
    assert reply == Reply((Sample("4"),))
    assert len(server.calls) == 1


def test_the_tally_tells_calls_retries_and_what_was_given_up(store):
    with ChatServer(lambda body: Answer(echo(body), status=503 if echo(body) == "b" else 200)) as server:
        judge = engine(server, wait=0.001)
        answer(store, judge, ask("a", "b", "c"))
    assert judge.tally == Tally(calls=10, retries=7, failures=1)
    assert len(server.calls) == 10


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
        child = subprocess.Popen(command, env=children(__file__))
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
