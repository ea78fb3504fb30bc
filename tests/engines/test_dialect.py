"""engines/dialect.py and refusals: what a server refuses now and then, in other words, or under another status."""

import itertools
import random
from dataclasses import replace

import pytest
from servers import Answer, ChatServer, echo

from nbutils.core.errors import InputError
from nbutils.core.sampling import Sampling
from nbutils.engines.api import ApiEngine
from nbutils.engines.asking import answer
from nbutils.engines.dialect import AGAIN, MANY, Dialect, named
from nbutils.engines.protocol import Request

SCHEMA = {"type": "json_schema", "json_schema": {"name": "grades", "schema": {"type": "object"}}}
EXTRA = "Extra inputs are not permitted"


def ask(*texts, temperature=0.8):
    return [Request(({"role": "user", "content": t},), 1, Sampling(temperature, max_tokens=50)) for t in texts]


def ask_all(*texts, temperature=0.0):
    return [replace(r, response_format=SCHEMA, logprobs=True) for r in ask(*texts, temperature=temperature)]


def engine(server, **options):
    return ApiEngine(server.url, "judge", **({"wait": 0.001, "concurrency": 1} | options))


def numbers(count):
    return list(map(str, range(count)))


def without(replies, note="without a JSON schema"):
    return sum(note in reply.notes for reply in replies)


# a part that the server takes, but not always


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize(
    ("share", "error", "at_most"),
    [
        (0.2, "response_format could not be compiled", 0.3),
        (0.3, "Il parametro response_format non è disponibile", 0.4),
        (0.5, "Bad request", 0.6),
    ],
)
def test_a_schema_that_is_refused_at_random_is_left_out_of_those_requests_only(
    store, caplog, share, error, at_most, concurrency
):
    drawn = random.Random(1)

    def flaky(body):
        refused = "response_format" in body and echo(body) != "0" and drawn.random() < share
        return Answer(echo(body), status=400 if refused else 200, error=error)

    with ChatServer(flaky) as server:
        judge = engine(server, concurrency=concurrency)
        answer(store, judge, ask_all("0"))
        replies = answer(store, judge, ask_all(*numbers(300)))
    assert [r.samples[0].text for r in replies] == numbers(300)
    assert without(replies) < 300 * at_most
    assert "from now on" not in caplog.text


@pytest.mark.parametrize("burst", [3, MANY - 1])
def test_a_burst_of_refusals_costs_no_more_than_the_burst(store, caplog, burst):
    refused = itertools.count()

    def script(body):
        failed = "response_format" in body and int(echo(body)) >= 20 and next(refused) < burst
        return Answer(echo(body), status=400 if failed else 200, error="json_schema: motore occupato")

    with ChatServer(script) as server:
        replies = answer(store, engine(server), ask_all(*numbers(200)))
    assert (without(replies), caplog.text) == (burst, "")


def test_a_part_that_was_dropped_is_asked_for_at_every_fiftieth_request_until_it_is_taken(store, caplog):
    def script(body):
        down = "response_format" in body and 20 <= int(echo(body)) < 100
        return Answer(echo(body), status=400 if down else 200, error="response_format: overloaded")

    with ChatServer(script) as server:
        replies = answer(store, engine(server), ask_all(*numbers(200)))
    # dropped after 39, asked for again at 89 in vain and at 139
    assert [i for i, r in enumerate(replies) if r.notes] == list(range(20, 139))
    assert len(server.calls) == 200 + MANY + 1
    told = [r.message.partition(" ")[2] for r in caplog.records]
    assert told == ["refuses a JSON schema; asking without from now on", "takes a JSON schema again; asking for it"]


def test_what_is_tried_again_and_refused_without_a_name_costs_no_row(store):
    def script(body):
        refused = "seed" in body and int(echo(body)) >= 5
        error = "seed: overloaded" if int(echo(body)) < 60 else "Richiesta non valida"
        return Answer(echo(body), status=400 if refused else 200, error=error)

    with ChatServer(script) as server:
        replies = answer(store, engine(server), ask(*numbers(150)))
    assert [r.samples[0].text for r in replies] == numbers(150)


def test_a_server_that_never_took_a_part_is_asked_without_it_after_three_refusals(store):
    script = lambda body: Answer(echo(body), status=400 if "response_format" in body else 200, error="no json_schema")  # noqa: E731
    with ChatServer(script) as server:
        replies = answer(store, engine(server), ask_all(*numbers(120)))
    assert (without(replies), len(server.calls)) == (120, 123)


def test_votes_for_a_part_that_was_taken_are_those_that_name_it_in_a_row():
    dialect = Dialect()
    assert dialect.learn({"logprobs"}, set(), set()) == ([], [])
    for _ in range(10 * MANY):
        assert dialect.learn({"logprobs"}, {"logprobs"}, set()) == ([], [])
    for _ in range(MANY - 1):
        dialect.learn({"logprobs"}, {"logprobs"}, {"logprobs"})
    dialect.learn({"logprobs"}, set(), set())  # taken in between
    for _ in range(MANY - 1):
        assert dialect.learn({"logprobs"}, {"logprobs"}, {"logprobs"}) == ([], [])
    assert dialect.learn({"logprobs"}, {"logprobs"}, {"logprobs"}) == (["logprobs"], [])
    wanted = [dialect.begin({"logprobs"}).parts for _ in range(2 * AGAIN)]
    assert [i for i, parts in enumerate(wanted, 1) if parts] == [AGAIN, 2 * AGAIN]
    assert dialect.learn({"logprobs"}, set(), set()) == ([], ["logprobs"])
    assert dialect.begin({"logprobs"}).parts == {"logprobs"}


# refusals of a part that look like refusals of the row


def refusing(*names, status, error):
    return lambda body: Answer(echo(body), status=status if body.keys() & set(names) else 200, error=error)


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize(
    ("refused", "status", "error", "note"),
    [
        ({"seed"}, 422, EXTRA, "without a seed"),
        ({"seed"}, 400, "Richiesta non valida", "without a seed"),
        ({"seed"}, 400, "unknown field random_seed", "without a seed"),
        ({"seed"}, 403, "seed is not available to you", "without a seed"),
        ({"seed", "min_p"}, 422, EXTRA, "without a seed"),
        ({"logprobs"}, 403, "You are not allowed to request logprobs from this model", "without log-probabilities"),
        ({"logprobs"}, 403, "Non consentito: logprobs", "without log-probabilities"),
        ({"logprobs"}, 404, "No endpoints found that can handle the requested parameters.", "log-probabilities"),
        ({"response_format"}, 404, "No endpoints found that can handle the requested parameters.", "a JSON schema"),
        ({"response_format"}, 405, "structured outputs: method not allowed", "without a JSON schema"),
        ({"response_format"}, 403, "Forbidden", "without a JSON schema"),
        ({"response_format"}, 418, "", "without a JSON schema"),
        ({"top_k"}, 404, "No provider supports topK", "own top_k"),
    ],
)
def test_a_refusal_of_a_part_marks_no_row_as_refused_whatever_its_status_and_words(
    store, refused, status, error, note, concurrency
):
    with ChatServer(refusing(*refused, status=status, error=error)) as server:
        replies = answer(store, engine(server, concurrency=concurrency), ask_all(*numbers(20), temperature=0.8))
    assert [r.samples[0].text for r in replies if r.samples] == numbers(20)
    assert all(note in "; ".join(r.notes) for r in replies)
    if refused == {"seed", "min_p"}:  # not more than need be
        assert not without(replies)


@pytest.mark.parametrize("good", [0, 3])
def test_a_server_that_refuses_what_all_requests_hold_ends_the_run_and_marks_no_row(store, good):
    # at temperature 0 it answers anything: a part without a name and out of reach
    script = lambda body: Answer(echo(body), status=400 if body.get("temperature") else 200, error="Bad request")  # noqa: E731
    with ChatServer(script) as server:
        judge = engine(server)
        answer(store, judge, ask(*"abc"[:good], temperature=0.0))
        with pytest.raises(InputError, match="answered 400"):
            answer(store, judge, ask(*numbers(30)))
    assert len(store) == good


@pytest.mark.parametrize("concurrency", [1, 4, 8])
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, "The model `juge` does not exist"),
        (404, "Not Found"),
        (404, "Modello inesistente"),
        (403, "You must accept the terms of this model"),
        (400, "unknown engine"),
        (400, "The deployment does not exist"),
        (422, "Il modello non esiste"),
        (400, '{"detail": {"error": {"code": "model_not_found"}}}'),
        (400, "nessun endpoint con questo nome"),
        (400, "no schema registry entry for this deployment"),  # it seems to name a part
    ],
)
def test_a_wrong_model_ends_the_run_within_a_few_calls_of_what_all_requests_hold(store, status, error, concurrency):
    with ChatServer([Answer(status=status, error=error)]) as server:
        with pytest.raises(InputError, match=f"answered {status}: "):
            answer(store, engine(server, concurrency=concurrency), ask_all(*numbers(300), temperature=0.8))
        # those that were sent at once, one of next to nothing, and a part that was seemingly named
        assert len(server.calls) <= concurrency * (2 if "schema" in error else 1) + 1
    assert len(store) == 0


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_first_row_that_is_refused_for_itself_ends_no_run(store, concurrency):
    script = lambda body: Answer(echo(body), status=400 if echo(body) == "0" else 200, error="Richiesta non valida")  # noqa: E731
    with ChatServer(script) as server:
        replies = answer(store, engine(server, concurrency=concurrency), ask_all(*numbers(20), temperature=0.8))
    assert [i for i, r in enumerate(replies) if r.refused] == [0]
    assert not any(r.notes for r in replies)


# several parts that are refused, together or by turns


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize(
    ("refused", "error"),
    [
        ({"seed", "response_format"}, "Richiesta non valida"),
        ({"seed", "logprobs"}, "Bad request"),
        ({"response_format", "logprobs"}, ""),
        ({"top_k", "logprobs"}, "Parametro sconosciuto"),
        ({"seed", "response_format", "logprobs"}, "Invalid request"),
        ({"seed", "temperature"}, "Unsupported: {}. Supported are response_format, logprobs and top_p."),
        ({"seed", "temperature", "response_format"}, "Non ammesso: {}"),
        ({"logprobs", "top_p"}, "{} and the like are not supported, unlike temperature and seed"),
        ({"seed", "response_format"}, "{?}"),  # one is named and the other is not
        ({"temperature", "logprobs", "seed"}, "{?}"),
    ],
)
def test_of_several_parts_that_are_refused_no_other_is_left_out(store, caplog, refused, error, concurrency):
    def script(body):
        wrong = sorted(refused & body.keys())
        said = error.format(*wrong) if wrong and error != "{?}" else ""
        if wrong and error == "{?}":
            said = "Bad request" if wrong[-1] == max(refused - {"temperature"}) else f"no {wrong[0]}"
        return Answer(echo(body), status=400 if wrong else 200, error=said)

    with ChatServer(script) as server:
        judge = engine(server, concurrency=concurrency)
        replies = answer(store, judge, ask_all(*numbers(40), temperature=0.8))
        calls = len(server.calls)
        answer(store, judge, ask_all("ultima", temperature=0.8))
        assert len(server.calls) - calls == 1  # all is learnt
    assert [r.samples[0].text for r in replies] == numbers(40)
    assert calls <= 40 + 16 * (1 + concurrency)
    whole = {"temperature", "top_p", "seed", "max_tokens", "top_k", "response_format", "logprobs"}
    assert whole - server.calls[-1].keys() == refused
    assert len([r for r in caplog.records if "from now on" in r.message]) == len(refused)


def test_parts_that_are_refused_by_turns_are_left_out_of_those_requests_only(store, caplog):
    turns = itertools.cycle(["seed", "", "temperature", "", "response_format", ""])

    def script(body):
        wrong = next(turns)
        return Answer(echo(body), status=400 if wrong in body else 200, error=f"{wrong}: non disponibile")

    with ChatServer(script) as server:
        replies = answer(store, engine(server), ask_all(*numbers(90), temperature=0.8))
    assert all(len(r.notes) <= 1 for r in replies)
    assert "from now on" not in caplog.text


def test_a_part_that_was_guessed_at_before_another_was_named_stays(store):
    def script(body):
        if "response_format" in body:
            return Answer(status=400, error="seed not allowed" if "top_k" not in body and "seed" in body else "Boh")
        return Answer(echo(body), status=400 if "seed" in body else 200, error="seed not allowed")

    with ChatServer(script) as server:
        replies = answer(store, engine(server, concurrency=8), ask_all(*numbers(60), temperature=0.8))
    assert not without(replies[-20:], "own top_k")
    assert server.calls[-1].keys() >= {"top_k", "logprobs", "temperature"}


@pytest.mark.parametrize(("status", "error"), [(403, "Forbidden"), (404, "Non trovato"), (422, EXTRA), (413, "Big")])
def test_a_row_that_is_refused_for_itself_is_that_rows_outcome_and_drops_nothing(store, status, error):
    script = lambda body: Answer(echo(body), status=status if echo(body) == "1" else 200, error=error)  # noqa: E731
    with ChatServer(script) as server:
        replies = answer(store, engine(server), ask_all(*numbers(10), temperature=0.8))
    assert [i for i, r in enumerate(replies) if r.refused] == [1]
    assert replies[1].refused.startswith(f"{status}: {error}")
    assert not any(r.notes for r in replies)
    assert len(server.calls) <= 10 + 3  # without a schema, without log-probabilities, without both


@pytest.mark.parametrize(
    ("said", "parts"),
    [
        ("random_seed is not supported", {"seed"}),
        ("randomSeed: campo sconosciuto", {"seed"}),
        ("body.seed: Extra inputs", {"seed"}),
        ("a poem on seedlings and linseed", set()),
        ("unknown name topP", {"top_p"}),
        ("Unknown name 'topK'", {"neutral"}),
        ("repetition-penalty unknown", {"neutral"}),
        ("maxOutputTokens: out of range", {"max_tokens"}),
        ("Richiesta non valida", set()),
        ("seed e top_p non sono ammessi", {"seed"}),  # the next refusal names the next
        ("`temperature` and `top_p` cannot both be specified", {"top_p"}),
    ],
)
def test_how_a_part_is_named(said, parts):
    assert named(said, {"seed", "top_p", "neutral", "max_tokens"}) == parts
