"""A server that means harm: whatever it sends is that request's failure, within seconds and bounded memory."""

import gzip
import json
import math
import subprocess
import sys
import time
import tracemalloc
import zlib

import pytest
from builders import children
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import Answer, ChatServer, echo

from nbutils.core.errors import InputError, Interrupted
from nbutils.core.records import finish_reason
from nbutils.core.sampling import Sample, Sampling
from nbutils.engines import completions, wire
from nbutils.engines.api import ApiEngine
from nbutils.engines.asking import answer, key_of
from nbutils.engines.protocol import Reply, Request
from nbutils.engines.store import Store


def ask(*texts, max_tokens=50):
    return [Request(({"role": "user", "content": t},), 1, Sampling(0.0, max_tokens=max_tokens)) for t in texts]


def engine(server, **options):
    return ApiEngine(server.url, "judge", **({"wait": 0.001, "timeout": 5} | options))


def completion(content="4", *, usage=None, message=None, **choice):
    message = {"role": "assistant", "content": content} if message is None else message
    return {"choices": [{"index": 0, "finish_reason": "stop", "message": message} | choice], "usage": usage}


def read(body, model="judge", max_tokens=50):
    return completions.read(json.dumps(body), model, max_tokens)


DEEP = "[" * 100_000
GARBLED = {
    "choices an object": '{"choices": {"0": {"message": {"content": "4"}}}}',
    "choices a text": '{"choices": "4"}',
    "choices null": '{"choices": null}',
    "no choices": '{"id": "c"}',
    "choice a number": '{"choices": [4]}',
    "choice null": '{"choices": [null]}',
    "message a list": '{"choices": [{"message": ["4"]}]}',
    "message empty": '{"choices": [{"message": {}}]}',
    "content a number": '{"choices": [{"message": {"content": 4}}]}',
    "content an object": '{"choices": [{"message": {"content": {"text": "4"}}}]}',
    "content true": '{"choices": [{"message": {"content": true}}]}',
    "parts without a text": '{"choices": [{"message": {"content": [{"type": "text"}]}}]}',
    "parts of numbers": '{"choices": [{"message": {"content": [{"type": "text", "text": 4}]}}]}',
    "an integer of 5,000 digits": '{"choices": ' + "9" * 5_000 + "}",
    "digits in the usage": json.dumps(completion())[:-5] + "9" * 5_000 + "}",
    "nested lists": DEEP,
    "nested lists, closed": DEEP + "]" * 100_000,
    "nested objects": '{"choices":' * 100_000,
    "nested in the content": '{"choices": [{"message": {"content": ' + DEEP + "]" * 100_000 + "}}]}",
    "a list": "[1, 2]",
    "a text": '"4"',
    "a number": "4",
    "nothing": "",
    "spaces": " " * 1000,
    "half": '{"choices": [{"message": {"content": "4',
    "two documents": json.dumps(completion()) * 2,
    "html": "<!doctype html><h1>Welcome</h1>",
    "html, Italian": "<html><body>Accesso alla rete dell'albergo</body></html>",
    "NUL": "\x00" * 100,
    "a stream of events": f"data: {json.dumps(completion())}\n\ndata: [DONE]\n\n",
    "far more text than was asked for": json.dumps(completion("parola " * 20_000)),
}


@pytest.mark.parametrize("body", GARBLED.values(), ids=GARBLED)
def test_a_garbled_answer_is_that_requests_failure_and_asked_again(store, body):
    bad = iter([Answer(raw=body)] * 2)
    script = lambda said: next(bad, "fine") if echo(said) == "bad" else echo(said)  # noqa: E731
    with ChatServer(script) as server:
        judge = engine(server)
        replies = answer(store, judge, ask("a", "bad", "b"))
    assert [r.samples[0].text for r in replies] == ["a", "fine", "b"]
    assert (len(server.calls), judge.tally.calls, judge.tally.retries) == (5, 5, 2)


def packed(body, how):
    return {"gzip": gzip.compress, "deflate": zlib.compress, "br": lambda b: b, "zstd": lambda b: b}[how](body)


MEBI = 1024**2
WIRE = {
    "200 MB": Answer(raw=b" " * MEBI, chunks=200),
    "endless": Answer(raw=b"[" * MEBI, chunks=-1),
    "endless drops": Answer(raw=b" ", chunks=-1),
    "a gzip bomb": Answer(raw=packed(b" " * 200 * MEBI, "gzip"), headers={"Content-Encoding": "gzip"}),
    "a deflate bomb": Answer(raw=packed(b" " * 200 * MEBI, "deflate"), headers={"Content-Encoding": "deflate"}),
    "a bomb with an error": Answer(
        status=500, raw=packed(b" " * 200 * MEBI, "gzip"), headers={"Content-Encoding": "gzip"}
    ),
    "no gzip": Answer(raw=b"{}", headers={"Content-Encoding": "gzip"}),
    "half a gzip": Answer(raw=packed(b"{}" * 100, "gzip")[:20], headers={"Content-Encoding": "gzip"}),
    "an unknown packing": Answer(raw=b"{}", headers={"Content-Encoding": "br"}),
    "packed twice": Answer(raw=packed(packed(b"{}", "gzip"), "gzip"), headers={"Content-Encoding": "gzip, gzip"}),
    "latin-1": Answer(raw=json.dumps(completion("perché"), ensure_ascii=False).encode("latin-1")),
    "utf-16": Answer(raw=json.dumps(completion("perché")).encode("utf-16")),
    "half a character": Answer(raw=b'{"choices": [{"message": {"content": "perch\xc3"}}]}'),
    "a header bomb": Answer(headers={f"X-{i}": "x" * 1000 for i in range(500)}),
    "a long header": Answer(headers={"X-Long": "x" * 300_000}),
    "200 MB of an error": Answer(status=503, raw=b"x" * MEBI, chunks=200),
    "closed in the middle": Answer(raw=b'{"choices": [', headers={"Content-Length": "9999"}),
    "a wrong charset": Answer(raw=b"\xff\xfe\x00", headers={"Content-Type": "application/json; charset=rot13"}),
    "a status from nowhere": Answer(status=999, raw="?"),
    "nothing with 204": Answer(status=204, raw=""),
}


@pytest.mark.parametrize("bad", WIRE.values(), ids=WIRE)
def test_an_answer_that_would_fill_the_memory_or_is_no_text_is_given_up_within_seconds(store, bad):
    faults = iter([bad])
    script = lambda said: next(faults, "fine") if echo(said) == "bad" else echo(said)  # noqa: E731
    with ChatServer(script) as server:
        judge = engine(server, timeout=3)
        tracemalloc.start()
        started = time.monotonic()
        replies = answer(store, judge, ask("a", "bad", "b"))
        took, (_, peak) = time.monotonic() - started, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert [r.samples[0].text for r in replies] == ["a", "fine", "b"]
    assert took < 20
    assert peak < 40 * MEBI
    assert judge.tally.retries == 1


MUCH = """
import resource, sys
from test_hostile import *
store = Store(sys.argv[1])
with ChatServer([Answer(raw=b'{"choices": [' + b"{}," * 1_000_000)]) as server:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        answer(store, engine(server, timeout=60), ask(*map(str, range(8)), max_tokens=9))
    except Interrupted as error:
        print(error)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_server_that_sends_nothing_else_costs_bounded_memory(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MUCH, tmp_path / "store.sqlite"],
        env=children(__file__), capture_output=True, text=True, check=True,
    )  # fmt: skip
    said, mebi = done.stdout.splitlines()
    assert "does not answer" in said
    assert int(mebi) < 500


@pytest.mark.parametrize("value", ["9" * 400, "1e400", "-inf", "soon", "Fri, 31 Dec 99999 23:59:59 GMT", "\xff", "0x9",
                                   "Mon, 01 Jan 0001 00:00:00 GMT", "1, 2", "tra poco"])  # fmt: skip
def test_an_absurd_time_to_come_back_is_no_more_than_a_wait(monkeypatch, value):
    monkeypatch.setattr("nbutils.engines.retries.LONGEST_WAIT", 0.05)
    with ChatServer([Answer(status=429, headers={"Retry-After": value}), "fine"]) as server:
        [(_, reply)] = engine(server).generate(ask("a"), seed=0)
    assert reply.samples[0].text == "fine"


# dialects


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        *((said, "stop") for said in (
            "stop", "STOP", "eos", "eos_token", "end_turn", "stop_sequence", "COMPLETE", "FINISH_REASON_STOP",
            "FinishReason.STOP", "stop_reason: end_turn", "normal", "<|im_end|>", "done", "REASON_STOP", "<|eot_id|>",
            "word", "endoftext", "EndTurn", "eosFound", "stopStringFound", "stop_sequence_reached", "END_ID",
            "STOP_WORDS", "end of text", "completed", "message-end", "response.completed", "natural_stop",
        )),
        *((said, "length") for said in (
            "length", "MAX_TOKENS", "max_tokens", "model_length", "FinishReason.MAX_TOKENS", "max_output_tokens",
            "token_limit", "model_context_window_exceeded", "context_window_exceeded", "REASON_MAX_LEN",
            "context_overflow", "time_limit", "out_of_tokens", "ERROR_LIMIT", "FINISH_REASON_MAX_TOKENS",
            "maxPredictedTokensReached", "budget_exhausted",
        )),
        *((said, "other") for said in (
            "content_filter", "SAFETY", "safety", "ContentFilter", "RECITATION", "PROHIBITED_CONTENT", "blocklist",
            "refusal", "sensitive", "guardrail_intervened", "unsafe", "moderation", "flagged", "content_filtered",
            "ERROR_TOXIC", "OTHER", "IMAGE_SAFETY", "MODEL_ARMOR", "LANGUAGE", "SPII", "FINISH_REASON_OTHER",
            "data_inspection_failed", "censored", "incomplete", "error", "not_finished", "pause_turn", "network_error",
            "insufficient_system_resource", "MALFORMED_FUNCTION_CALL", "malformed_model_output", "repetition",
            "USER_CANCEL", "ERROR", "REASON_INVALID", "abandoned", "compaction",
            "blacklist", "user_stop", "pending", "userStopped", "stopped_by_user", "early_stop", "force_end",
            "unfinished", "tool_calls", "function_call", "boh", "interrotto dall'utente", "lista nera", "in attesa",
            "load", "filter",
        )),
        *((said, "unknown") for said in (
            None, "", 7, ["stop"], "FINISH_REASON_UNSPECIFIED", "null", "None", "unknown", "\x00", "--", "1",
        )),
    ],
)  # fmt: skip
def test_why_an_answer_ended_is_understood_in_the_words_of_any_server(said, reason):
    assert finish_reason(said) == reason


@pytest.mark.parametrize(
    ("finish", "tokens", "expected"),
    [(None, 50, "length"), (None, 49, "stop"), (None, None, "stop"), ("", 60, "length"), ("MAX_TOKENS", 3, "length"),
     ("stop", 50, "stop"), ("content_filter", 3, "other"), ("tool_calls", 3, "other"), (17, 50, "length")],
)  # fmt: skip
def test_without_a_reason_an_answer_at_the_limit_was_cut_off(finish, tokens, expected):
    reply = read(completion(finish_reason=finish, usage={"prompt_tokens": 7, "completion_tokens": tokens}))
    assert reply.samples[0].finish_reason == expected


@pytest.mark.parametrize(
    ("said", "noted"),
    [("boh", True), ("tool_calls", True), ("user_stop", True), ("in attesa", True),
     (None, False), ("", False), ("null", False), (7, False), ("stop", False),
     ("FINISH_REASON_UNSPECIFIED", False), ("banana" * 10, True),
     ("banana" * 1000, False), ("['stop']", False), ("length", False), ("\ud800", False)],
)  # fmt: skip
def test_an_end_that_is_no_whole_answers_and_no_limit_is_noted(said, noted):
    reply = read(completion(finish_reason=said))
    assert [note.startswith("not whole (ended by '") for note in reply.notes] == [True] * noted
    assert all(len(note) < 200 and note.isprintable() for note in reply.notes)
    assert reply.samples[0].finish_reason == ("other" if noted else "length" if said == "length" else "stop")


def test_what_else_ended_answers_is_said_once(store, caplog):
    with ChatServer([Answer(finish_reason="user_stop")]) as server:
        replies = answer(store, engine(server), ask(*"abcdef"))
    assert {r.samples[0].finish_reason for r in replies} == {"other"}
    assert [len(r.notes) for r in replies] == [1] * 6
    assert caplog.text.count("user_stop") == 1


@pytest.mark.parametrize(
    ("content", "message", "usage", "counted"),
    [
        ("x y z", {}, (0, 0), (-1, -1)),
        ("Sì.", {}, (7, 0), (7, -1)),
        ("Yes.", {}, (0, 3), (-1, 3)),
        ("Yes.", {}, (0.0, False), (-1, -1)),
        ("Yes.", {}, (None, None), (-1, -1)),
        ("", {"reasoning_content": "Vediamo."}, (0, 0), (-1, -1)),
        ("", {}, (7, 0), (7, 0)),
        ("", {}, (0, 0), (0, 0)),
    ],
)
def test_no_tokens_beside_a_text_is_no_count(content, message, usage, counted):
    usage = dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))
    reply = read(completion(message={"role": "assistant", "content": content} | message, usage=usage))
    assert (reply.prompt_tokens, reply.completion_tokens) == counted
    assert reply.samples[0].n_tokens == counted[1]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": [{"type": "text", "text": "4"}]}, "4"),
        ({"content": [{"type": "text", "text": "Sì"}, {"type": "text", "text": ", 4"}]}, "Sì, 4"),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "5?"}]}, {"text": "4"}]}, "4"),
        ({"content": [{"type": "output_text", "text": "4"}]}, "4"),
        ({"content": [{"text": "4"}]}, "4"),
        ({"content": []}, ""),
        ({"content": None, "reasoning_content": "Hm, 5."}, ""),
        ({"content": "", "reasoning": "Vediamo: 5."}, ""),
        ({"role": "assistant", "reasoning": "Vediamo: 5."}, ""),
        ({"content": "4", "reasoning_content": "Hm, 5."}, "4"),
        ({"content": None, "tool_calls": [{"id": "x"}]}, ""),
    ],
)  # fmt: skip
def test_the_text_is_the_answer_and_never_the_thoughts(message, text):
    reply = read(completion(message=message))
    assert reply.samples[0].text == text
    assert (completions.THOUGHTS_ONLY in reply.notes) == (text == "" and any("reason" in key for key in message))


@pytest.mark.parametrize("value", [True, False, "7", 7.0, -1, -7, 3_000_000_000, 10**30, None, [7], {"n": 7}, 2**31])
def test_a_number_of_tokens_that_can_be_none_is_unknown(store, value):
    usage = {"prompt_tokens": value, "completion_tokens": value}
    with ChatServer([Answer(raw=json.dumps(completion(usage=usage)))]) as server:
        [reply] = answer(store, engine(server), ask("a"))
        [again] = answer(store, engine(server), ask("a"))
    assert (reply.prompt_tokens, reply.completion_tokens, reply.samples[0].n_tokens) == (-1, -1, -1)
    assert again == reply


def test_numbers_of_tokens_in_an_older_store_are_no_worse(store):
    old = Reply((Sample("4", 3_000_000_000),), 10**30, True)
    with ChatServer() as server:
        judge = engine(server)
        [(key, request)] = [(k, r) for r in ask("a") for k in [key_of(judge, r, 0)]]
        store.put([(key, judge, request, old)])
        assert answer(store, judge, [request]) == [Reply((Sample("4"),))]


def token(logprob, alternative="5"):
    top = [{"token": "4", "logprob": -0.1}, {"token": alternative, "logprob": logprob}]
    return {"content": [{"token": "4", "logprob": -0.1, "bytes": [52], "top_logprobs": top}]}


@pytest.mark.parametrize("logprob", [5, 0.5, 1e308, 10**400, "-1", True, None, [-1], math.nan, math.inf, -math.inf])
def test_log_probabilities_that_are_none_are_not_kept_and_the_text_is(logprob):
    reply = read(completion(logprobs=token(logprob)))
    assert (reply.samples[0].text, dict(reply.samples[0].numbers)) == ("4", {})


@pytest.mark.parametrize(
    "logprobs",
    [
        token(-1.0, alternative=7), token(-1.0) | {"content": [token(-1.0)["content"][0] | {"bytes": 3_000_000_000}]},
        token(-1.0) | {"content": [token(-1.0)["content"][0] | {"bytes": "52"}]}, {"content": {"0": "4"}}, [], "4", 7,
        {"content": [None]}, {"content": [{"token": 4}]}, {"content": [{"token": "4", "top_logprobs": {"4": -0.1}}]},
    ],
)  # fmt: skip
def test_log_probabilities_in_another_form_cost_nothing_but_themselves(logprobs):
    reply = read(completion(logprobs=logprobs))
    assert (reply.samples[0].text, dict(reply.samples[0].numbers)) == ("4", {})


def test_of_thousands_of_alternatives_a_few_are_kept():
    top = [{"token": str(i), "logprob": -1.0 - i} for i in range(5_000)]
    content = [{"token": "4", "logprob": -0.1, "bytes": None, "top_logprobs": top}]
    [options] = read(completion(logprobs={"content": content})).samples[0].numbers.values()
    assert len(options) == completions.ALTERNATIVES


@pytest.mark.parametrize(
    ("asked", "said", "same"),
    [
        ("judge", "judge", True), ("openai/gpt-oss-120b", "gpt-oss-120b", True), ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("openai/gpt-oss-120b:cheapest", "openai/gpt-oss-120b", True), ("gpt-4", "gpt-4-0613", True),
        ("Qwen/Qwen3-4B", "qwen3-4b-q4_k_m.gguf", True), ("claude-x-latest", "claude-x-20250929", True),
        ("meta/Llama-3.3-70B", "accounts/f/models/llama-3.3-70b", True), ("m/x", "/models/x", True),
        ("gpt-4", "gpt-4o-mini", False), ("gpt-4o", "gpt-4o-mini", False), ("judge", "policy", False),
        ("llama3:70b", "llama3:8b", False), ("qwen2.5:7b", "qwen2.5:0.5b", False), ("llama3:70b", "llama3:70b", True),
        ("mixtral:8x7b", "mixtral:8x22b", False), ("gemma3n:e4b", "gemma3n:e2b", False), ("x:7b-q4_0", "x:7b", True),
        ("phi3:mini", "phi3:medium", False), ("llama4:scout", "llama4:maverick", False), ("llama3:8b", "llama3", True),
        ("gpt-oss:120b", "openai/gpt-oss-120b", True), ("gpt-oss:120b", "openai/gpt-oss-20b", False),
        ("qwen2.5:7b", "qwen2.5:latest", True), ("openai/gpt-oss-120b:cerebras", "openai/gpt-oss-120b", True),
        ("openai/gpt-oss-120b:cheapest", "openai/gpt-oss-120b:groq", True), ("x/y:free", "x/y", True),
        ("model-1024", "model-2048", False), ("gpt-4-0613", "gpt-4-1106", False), ("model-1024", "model", True),
        ("gpt-4o-2024-08-06", "gpt-4o-2024-05-13", False), ("m@20240806", "m-2024-08-06", True),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-0.6B", False), ("giudice", "un-altro", False), ("Qwen3-32B", "Qwen3-3B", False),
        # packaging, wherever it stands
        *(("Qwen/Qwen3-8B", f"x/Qwen3-8B-{packed}", True) for packed in (
            "bnb-4bit",
            "unsloth-bnb-4bit", "FP8-dynamic", "quantized.w8a8", "AWQ", "GGUF", "GPTQ-Int4", "UD-Q4_K_XL", "8bit",
            "f16.gguf", "W4A16-G128", "NVFP4", "exl2-4.0bpw", "i1-IQ4_XS.gguf", "INT8-2507", "2507-FP8", "bf16",
        )),
        ("hf.co/unsloth/Qwen3-8B-GGUF:Q4_K_M", "Qwen3-8B", True), ("Qwen3-4B-FP8-Instruct", "Qwen3-4B-Instruct", True),
        ("gpt-oss-20b", "gpt-oss-20b-MXFP4.gguf", True), ("nesso-4b-istruito", "nesso-4b-istruito-AWQ-4bit", True),
        ("kimi-k2-0905-preview", "kimi-k2-preview", True), ("command-r-08-2024", "command-r", True),
        ("gemini-2.5-pro-preview-05-06", "gemini-2.5-pro-preview", True),
        ("claude-3.5-sonnet", "claude-3-5-sonnet", True),
        # variants
        ("Qwen3-4B-Instruct-2507", "Qwen3-4B-Thinking-2507", False), ("Qwen3-8B", "Qwen3-8B-Base", False),
        ("qwen3:8b-thinking", "qwen3:8b-instruct", False), ("a:8b-thinking", "a-8b-instruct", False),
        ("qwen2.5:7b-coder", "qwen2.5:7b-math", False), ("llama3:8b-text", "llama3:8b", False),
        ("llama3.2:11b", "llama3.2:11b-vision", False), ("Qwen2.5-Coder-7B", "Qwen2.5-7B-AWQ", False),
        ("nesso-4b-istruito", "nesso-4b-base-AWQ", False), ("Qwen2.5-VL-7B", "Qwen2.5-7B", False),
        ("qwen3:8b-thinking-q4_K_M", "qwen3:8b-thinking", True), ("qwen3:8b", "qwen3:8b-instruct-q4_0", True),
        ("anthropic/claude-3.7-sonnet:thinking", "claude-3.7-sonnet", True), ("gemma3:4b-it", "gemma-3-4b-it", True),
    ],
)  # fmt: skip
def test_a_model_that_answers_under_another_name_is_told_from_another_spelling(asked, said, same):
    assert completions.same_model(asked, said) == same
    notes = read(completion() | {"model": said}, model=asked).notes
    assert len(notes) == (not same)


def test_another_models_name_is_noticed_once_and_stands_in_every_reply(store, caplog):
    with ChatServer([Answer(raw=json.dumps(completion() | {"model": "something-else"}))]) as server:
        replies = answer(store, engine(server), ask(*"abcdef"))
    assert {r.notes for r in replies} == {("by a model that calls itself something-else",)}
    assert caplog.text.count("something-else") == 1


# anything at all

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["4", "stop", "text", 10**30, 2**31, -1]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["choices", "message", "content", "usage", "prompt_tokens", "completion_tokens", "logprobs",
                         "token", "bytes", "top_logprobs", "logprob", "finish_reason", "type", "text", "model"]),
        inner, max_size=6,
    ),
    max_leaves=25,
)  # fmt: skip


def shaped(**parts):
    return st.fixed_dictionaries({}, optional=parts)


TOKENS = shaped(token=JUNK, bytes=JUNK, logprob=JUNK, top_logprobs=st.lists(shaped(token=JUNK, logprob=JUNK)) | JUNK)
CHOICE = shaped(
    message=shaped(content=st.text() | JUNK, reasoning_content=JUNK) | JUNK,
    finish_reason=JUNK,
    logprobs=shaped(content=st.lists(TOKENS, max_size=3) | JUNK) | JUNK,
)
BODIES = JUNK | shaped(
    choices=st.lists(CHOICE, max_size=2) | JUNK,
    usage=shaped(prompt_tokens=JUNK, completion_tokens=JUNK) | JUNK,
    model=JUNK,
)


@settings(max_examples=300)
@given(BODIES.map(json.dumps) | st.text())
def test_whatever_a_server_says_is_a_reply_that_can_be_kept_or_garbled(tmp_path_factory, body):
    try:
        reply = completions.read(body, "judge", 50)
    except wire.GarbledReplyError:
        return
    [sample] = reply.samples
    assert isinstance(sample.text, str)
    assert sample.finish_reason in ("stop", "length", "other")
    assert all(type(n) is int and -1 <= n < 2**31 for n in (reply.prompt_tokens, reply.completion_tokens))
    assert all(math.isfinite(p) for options in sample.numbers.values() for p in options.values())
    sample.text.encode()


ANSWERS = st.builds(
    Answer,
    raw=BODIES.map(lambda body: json.dumps(body).encode()) | st.binary(max_size=200),
    status=st.sampled_from([200, 200, 200, 400, 403, 404, 413, 422, 429, 451, 500, 503, 302, 204]),
    headers=st.dictionaries(
        st.sampled_from(["Retry-After", "Content-Encoding", "Content-Type", "Location", "X-Odd"]),
        st.sampled_from(["0", "nan", "gzip", "br", "text/html", "application/json; charset=x", "/v1", "1e9", ""]),
        max_size=3,
    ),
    drop=st.sampled_from([False, False, False, True]),
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ANSWERS, min_size=1, max_size=4))
def test_no_server_raises_anything_but_our_errors_and_every_request_is_accounted_for(tmp_path_factory, answers):
    store = Store(tmp_path_factory.mktemp("hostile") / "store.sqlite")
    hostile = iter(answers * 8)
    script = lambda body: next(hostile, "fine") if echo(body).startswith("bad") else echo(body)  # noqa: E731
    texts = ["a", "bad 1", "b", "bad 2", "c"]
    with ChatServer(script) as server:
        judge = engine(server, concurrency=2, timeout=3)
        try:
            replies = answer(store, judge, ask(*texts))
        except (InputError, Interrupted):
            replies = []
        assert judge.tally.calls == len(server.calls)
    for text, reply in zip(texts, replies, strict=False):
        if not text.startswith("bad"):
            assert reply.samples[0].text == text
    unanswered = sum(reply is None for reply in replies)
    if replies:
        assert judge.tally.failures == unanswered
        assert len(store) == len(texts) - unanswered
    store.close()
