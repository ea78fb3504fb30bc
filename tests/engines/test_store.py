import errno
import json
import logging
import os
import resource
import signal
import sqlite3
import subprocess
import tempfile
import time

import pytest
from builders import ScriptedEngine, child, request
from hypothesis import example, given
from hypothesis import strategies as st

from nbutils.core.errors import InputError, Interrupted
from nbutils.core.records import digest
from nbutils.core.sampling import Sample, Sampling
from nbutils.engines.asking import answer, key_of
from nbutils.engines.protocol import Reply, Request
from nbutils.engines.store import Store

ECHO = ScriptedEngine(lambda r, rng: f"re {r.messages[0]['content']}")
HOT, COLD = Sampling(temperature=1.0), Sampling(temperature=0.0)
TWELVE = [request(text, sampling=HOT) for text in "abcdefghijkl"]


def hello(r, rng):
    return "hello"


def drawn(r, rng):
    return str(rng.random())


def put(store, *keys):
    store.put([(key, ECHO, request(key), Reply((Sample(f"re {key}" + "x" * 500),))) for key in keys])


def texts(replies):
    return [reply and reply.samples[0].text for reply in replies]


@given(st.text(st.characters()))
@example("😀 half \ud83d")
def test_a_reply_comes_back_as_it_was_stored(tmp_path_factory, text):
    store = Store(tmp_path_factory.mktemp("store") / "store.sqlite")
    reply = Reply((Sample(text, 3, "length"), Sample("", 0)), prompt_tokens=7, completion_tokens=3)
    store.put([("k", ECHO, request(text), reply)])
    assert store.get("k") == reply
    store.close()


def test_a_secret_in_a_prompt_is_not_stored_and_its_reply_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "hf_i0Qq4Zb7Xn2Lk9Vt5Rw8Ys1Du6Gf3Hc")
    store = Store(tmp_path / "store.sqlite")
    asked = request("Che cosa apre hf_i0Qq4Zb7Xn2Lk9Vt5Rw8Ys1Du6Gf3Hc?")
    once, again = (answer(store, ScriptedEngine(hello), [asked]) for _ in range(2))
    assert once == again
    assert len(store) == 1
    store.close()
    assert all(b"Zb7Xn2Lk9V" not in path.read_bytes() for path in tmp_path.glob("store.sqlite*"))


@given(st.dictionaries(st.integers(0, 99), st.dictionaries(st.sampled_from("0123456789"), st.floats(-99, 0))))
def test_log_probabilities_come_back_as_they_were_stored(tmp_path_factory, numbers):
    store = Store(tmp_path_factory.mktemp("store") / "store.sqlite")
    reply = Reply((Sample("a 4", numbers=numbers), Sample("a 5")))
    store.put([("k", ECHO, request(logprobs=True), reply)])
    assert store.get("k") == reply
    store.close()


def test_of_two_replies_to_one_request_the_first_stays(store):
    for text in ("first", "second"):
        store.put([("k", ECHO, request(), Reply((Sample(text),)))])
    assert store.get("k").samples[0].text == "first"


def test_an_answered_request_is_not_asked_again_in_a_later_run(store, tmp_path):
    engine = ScriptedEngine(hello)
    answer(store, engine, [request("a"), request("b")])
    later = Store(tmp_path / "store.sqlite")
    assert texts(answer(later, engine, [request("b"), request("c"), request("a")])) == ["hello"] * 3
    assert [r.messages[0]["content"] for r in engine.asked] == ["a", "b", "c"]


@pytest.mark.parametrize("chunk_size", [0, 4])
def test_a_request_that_occurs_twice_is_asked_once(store, chunk_size):
    engine = ScriptedEngine(drawn, chunk_size=chunk_size)
    requests = [request(text, sampling=HOT) for text in "aba"]
    first = texts(answer(store, engine, requests))
    assert first[0] == first[2] != first[1]
    assert len(engine.asked) == len(store) == 2
    assert texts(answer(store, engine, requests)) == first


@pytest.mark.parametrize(
    "other",
    [
        request("b"),
        request("a", n=2),
        request("a", attempt=2),
        request("a", sampling=Sampling(max_tokens=9)),
        request("a", response_format={"type": "json_object"}),
        request("a", logprobs=True),
    ],
)
def test_whatever_determines_the_reply_is_part_of_its_key(store, other):
    engine = ScriptedEngine(hello)
    answer(store, engine, [request("a")])
    answer(store, engine, [other])
    assert engine.asked == [request("a"), other]


def test_a_request_has_the_key_that_stores_older_than_log_probabilities_know():
    asked = Request(({"role": "user", "content": "Name a river."},), sampling=Sampling(0.0, 1.0, 800))
    fields = {
        "messages": [{"role": "user", "content": "Name a river."}],
        "n": 1,
        "sampling": {"temperature": 0.0, "top_p": 1.0, "max_tokens": 800, "top_k": 0},
        "response_format": None,
        "attempt": 1,
    }
    assert key_of(ECHO, asked, 7) == digest(
        {"engine": {"engine": "scripted", "model": "scripted"}, "request": fields}, 32
    )
    assert key_of(ECHO, asked, 7) == "13783e43ab27bdd51f54e88758915e83"


def test_another_model_is_asked_for_itself(store):
    answer(store, ScriptedEngine(lambda r, rng: "one", model="one"), [request()])
    assert texts(answer(store, ScriptedEngine(lambda r, rng: "two", model="two"), [request()])) == ["two"]


@pytest.mark.parametrize(("sampling", "asked"), [(HOT, 2), (COLD, 1)])
def test_a_seed_matters_only_where_something_is_drawn(store, sampling, asked):
    engine = ScriptedEngine(hello)
    for seed in (0, 1):
        answer(store, engine, [request(sampling=sampling)], seed=seed)
    assert len(engine.asked) == asked


def test_a_request_that_failed_is_not_stored_and_asked_again(store):
    down = ScriptedEngine(lambda r, rng: None if r.messages[0]["content"] == "b" else "ok")
    requests = [request(text) for text in "abc"]
    assert texts(answer(store, down, requests)) == ["ok", None, "ok"]
    up = ScriptedEngine(lambda r, rng: "ok")
    assert texts(answer(store, up, requests)) == ["ok"] * 3
    assert up.asked == [request("b")]


def test_no_chunk_is_started_after_the_deadline_and_the_next_run_goes_on(store):
    engine = ScriptedEngine(hello, chunk_size=2)
    with pytest.raises(Interrupted, match="3 of 3 requests to go"):
        answer(store, engine, [request(t) for t in "abc"], deadline=time.monotonic() - 1)
    assert engine.asked == []
    assert texts(answer(store, engine, [request(t) for t in "abc"])) == ["hello"] * 3


def test_whoever_runs_out_of_time_is_told_how_to_go_on(store):
    with pytest.raises(Interrupted) as caught:
        answer(store, ScriptedEngine(hello, chunk_size=2), [request()], deadline=time.monotonic() - 1)
    assert str(caught.value) == (
        "time budget used up with 1 of 1 requests to go (asking); everything done so far is stored: run the same "
        "command or cell again to go on"
    )


def test_what_is_stored_needs_no_time(store):
    answer(store, ECHO, [request()])
    assert texts(answer(store, ECHO, [request()], deadline=time.monotonic() - 1)) == ["re hi"]


@pytest.mark.parametrize("dies_at", [1, 4, 5, 9])
def test_chunked_samples_are_the_same_after_an_interruption(tmp_path, dies_at):
    requests = [request(text, sampling=HOT) for text in "abcdefghij"]
    whole = texts(answer(Store(tmp_path / "whole"), ScriptedEngine(drawn, chunk_size=4), requests))
    assert len(set(whole)) == len(whole)

    def dies(r, rng):
        if r == requests[dies_at]:
            raise KeyboardInterrupt
        return drawn(r, rng)

    with pytest.raises(KeyboardInterrupt):
        answer(Store(tmp_path / "torn"), ScriptedEngine(dies, chunk_size=4), requests)
    again = ScriptedEngine(drawn, chunk_size=4)
    assert texts(answer(Store(tmp_path / "torn"), again, requests)) == whole
    assert len(again.asked) == len(requests) - dies_at // 4 * 4, "whole chunks are not drawn again"


@pytest.mark.parametrize(("chunk_size", "safe"), [(0, 7), (3, 6)])
def test_after_kill_9_only_the_missing_part_is_asked_and_every_request_ends_once(tmp_path, chunk_size, safe):
    requests = [request(str(i)) for i in range(10)]

    def killed(r, rng):
        if r == requests[7]:
            os.kill(os.getpid(), signal.SIGKILL)
        return f"re {r.messages[0]['content']}"

    def run():
        answer(Store(tmp_path / "s.sqlite"), ScriptedEngine(killed, chunk_size=chunk_size), requests)

    process = child(run)
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    store, again = Store(tmp_path / "s.sqlite"), ScriptedEngine(ECHO.script, chunk_size=chunk_size)
    assert texts(answer(store, again, requests)) == [f"re {i}" for i in range(10)]
    assert again.asked == requests[safe:]
    assert len(store) == 10


def test_kill_9_while_writing_leaves_whole_batches(tmp_path):
    path = tmp_path / "s.sqlite"

    def write(pipe):
        store = Store(path)
        for batch in range(10_000):
            put(store, *(f"{batch}.{i}" for i in range(50)))
            os.write(pipe, b".")

    for rounds in (1, 2, 5):
        path.unlink(missing_ok=True)
        read_end, write_end = os.pipe()
        process = child(write, write_end)
        done = sum(len(os.read(read_end, 1)) for _ in range(rounds))
        process.kill()
        process.join(20)
        store = Store(path)
        assert len(store) % 50 == 0
        assert len(store) >= 50 * done
        put(store, "after")
        assert store.get("after") is not None
        store.close()


def test_two_processes_write_the_same_store_at_once(tmp_path):
    path = tmp_path / "s.sqlite"

    def write(first):
        store = Store(path)
        for i in range(first, first + 200):
            put(store, str(i))

    processes = [child(write, first) for first in (0, 100)]
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    store = Store(path)
    assert len(store) == 300
    assert all(store.get(str(i)).samples[0].text.startswith(f"re {i}x") for i in range(300))


def test_a_full_disk_is_one_sentence_and_loses_nothing_stored(tmp_path):
    path, report = tmp_path / "s.sqlite", tmp_path / "report.json"

    def write():
        store = Store(path)
        report.write_text("{}")
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        for batch in range(1000):
            try:
                put(store, *(f"{batch}.{i}" for i in range(20)))
            except InputError as error:
                report.write_text(json.dumps({"batches": batch, "error": str(error)}))
                return

    process = child(write)
    process.join(30)
    assert process.exitcode == 0
    seen = json.loads(report.read_text())
    assert f"cannot write to the store {path}" in seen["error"]
    assert f"the {20 * seen['batches']} replies already in it are safe" in seen["error"]
    store = Store(path)
    assert len(store) == 20 * seen["batches"] > 0
    put(store, "after")


def test_a_disk_full_from_the_start_is_one_sentence(tmp_path):
    def open_store():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with pytest.raises(InputError, match="cannot open the store"):
            Store(tmp_path / "s.sqlite")

    process = child(open_store)
    process.join(30)
    assert process.exitcode == 0


def restart(path, script=drawn):
    """Answer twelve requests in chunks of four and return the texts and what had to be asked for them."""
    store, engine = Store(path), ScriptedEngine(script, chunk_size=4)
    try:
        said = texts(answer(store, engine, TWELVE))
    finally:
        store.close()
    return said, engine.asked


def bulky(r, rng):
    return f"{rng.random()} {'x' * 30_000}"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 300 KB, which a chunk of four bulky replies does not fill and three do."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_on_a_full_disk_whole_chunks_stay_and_with_room_the_same_call_goes_on(small_disk, tmp_path):
    whole, _ = restart(tmp_path / "whole.sqlite", bulky)
    path = small_disk / "s.sqlite"
    with pytest.raises(InputError, match=r"cannot write to the store .*full.*; free space there and run the same"):
        restart(path, bulky)
    with sqlite3.connect(path) as seen:
        (kept,) = seen.execute("SELECT count(*) FROM replies").fetchone()
    seen.close()
    assert kept in (4, 8)
    subprocess.run(["mount", "-o", "remount,size=9m", small_disk], check=True)
    said, asked = restart(path, bulky)
    assert said == whole
    assert asked == TWELVE[kept:]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE replies SET reply = substr(reply, 1, 20)",  # half a JSON
        "UPDATE replies SET reply = CAST(X'FFFE00FF' AS TEXT)",  # not UTF-8
        "UPDATE replies SET reply = NULL",
        "UPDATE replies SET reply = '[]'",
        """UPDATE replies SET reply = '{"samples": [{"words": "hm"}]}'""",
    ],
)
def test_a_reply_that_cannot_be_read_is_asked_again_and_replaced(tmp_path, caplog, damage):
    path = tmp_path / "s.sqlite"
    whole, _ = restart(path)
    with sqlite3.connect(path) as other:
        other.execute(damage + " WHERE request LIKE '%\"f\"%'")
    other.close()
    said, asked = restart(path)
    assert said == whole
    assert asked == TWELVE[4:8], "its chunk"
    assert [r.message for r in caplog.records] == [f"1 replies in {path} cannot be read and are asked again"]
    assert restart(path) == (whole, [])
    assert len(caplog.records) == 1


def test_a_reply_that_cannot_be_read_stays_until_there_is_another(store):
    put(store, "k")
    store._db.execute("UPDATE replies SET reply = 'torn'")
    assert store.get("k") is None
    put(store, "other")
    assert len(store) == 2
    put(store, "k")
    assert (len(store), store.get("k").samples[0].text[:4]) == (2, "re k")


def damage_page(path, page):
    """Overwrite one page of the file, of 4,096 bytes, with rubbish."""
    with path.open("r+b") as file:
        file.seek(4096 * page)
        file.write(b"\x99" * 4096)


@pytest.mark.parametrize("use", [lambda s: [s.get(str(i)) for i in range(200)], len, lambda s: put(s, "new")])
def test_a_damaged_file_is_one_sentence_that_names_it(tmp_path, use):
    path = tmp_path / "s.sqlite"
    store = Store(path)
    put(store, *map(str, range(200)))
    (root,) = store._db.execute("SELECT rootpage FROM sqlite_master WHERE type = 'index'").fetchone()
    store.close()
    damage_page(path, root - 1)
    store = Store(path)
    with pytest.raises(InputError, match=r"malformed.*move it away, with its -wal, to start a new one") as caught:
        use(store)
    assert str(caught.value).startswith(f"cannot read the store {path}: ")


def write_diary(path):
    path.write_text("this is a diary, not a database" * 99)


def write_foreign(path):
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE replies (id INTEGER, note TEXT)")
    other.commit()
    other.close()


def write_newer(path):
    Store(path).close()
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 7")
    other.close()


def write_torn(path):
    store = Store(path)
    put(store, *map(str, range(200)))
    store.close()
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\x00" * 4096 + content[8192 : len(content) // 2])


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (write_diary, "file is not a database; move it away to start a new one"),
        (write_foreign, "is a database of another program"),
        (write_newer, "was written by version 7 of its format, expected 1"),
        (write_torn, "malformed"),
    ],
)
def test_a_file_that_is_no_sound_store_is_refused_and_left_as_it_is(tmp_path, make, fault):
    path = tmp_path / "s.sqlite"
    make(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=fault):
        len(Store(path))
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot open the store .*file/s\.sqlite"):
        Store(tmp_path / "file" / "s.sqlite")


def mounted(path):
    """Write a store as a run leaves it that is killed in its third chunk, then make its folder read-only."""
    path.parent.mkdir(parents=True)

    def killed(r, rng):
        if r == TWELVE[9]:
            os.kill(os.getpid(), signal.SIGKILL)
        return drawn(r, rng)

    def run():
        store = Store(path)
        put(store, "early")
        store._db.execute("PRAGMA wal_checkpoint")  # so that the file itself holds something, as that of a long run
        answer(store, ScriptedEngine(killed, chunk_size=4), TWELVE)

    process = child(run)
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    for part in path.parent.iterdir():
        part.chmod(0o444)
    path.parent.chmod(0o555)
    return path


def content(folder):
    return {part.name: part.read_bytes() for part in folder.iterdir()}


def test_a_store_on_a_read_only_input_goes_on_on_a_new_machine(tmp_path):
    whole, _ = restart(tmp_path / "whole.sqlite")
    path = mounted(tmp_path / "input" / "store.sqlite")
    before = content(path.parent)
    assert set(before) == {"store.sqlite", "store.sqlite-wal", "store.sqlite-shm"}
    store, engine = Store(tmp_path / "new.sqlite"), ScriptedEngine(drawn, chunk_size=4)
    assert store.take(path) == 9, "two chunks and the early one"
    assert texts(answer(store, engine, TWELVE)) == whole
    assert engine.asked == TWELVE[8:]
    assert store.take(path) == 0, "nothing is new any more"
    assert len(store) == 13
    assert content(path.parent) == before


def test_without_its_wal_a_store_lacks_what_a_killed_run_stored_last(tmp_path, store):
    path = mounted(tmp_path / "input" / "store.sqlite")
    path.parent.chmod(0o755)
    (path.parent / "store.sqlite-wal").unlink()
    assert store.take(path) == 1


def test_a_reply_that_is_already_here_stays(tmp_path, store):
    other = Store(tmp_path / "other.sqlite")
    for place, text in ((other, "there"), (store, "here")):
        place.put([("k", ECHO, request(), Reply((Sample(text),)))])
    put(other, "new")
    assert store.take(other.path) == 1
    assert store.get("k").samples[0].text == "here"
    assert store.get("new").samples[0].text.startswith("re new")


def write_torn_late(path):
    """A file that is found to be damaged only after some replies were read from it."""
    store = Store(path)
    put(store, *map(str, range(400)))
    store.close()
    damage_page(path, path.stat().st_size // 4096 - 20)


def write_namesake(path):
    write_foreign(path)
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 1")
    other.close()


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (write_diary, "file is not a database"),
        (write_foreign, "it has version 0 of the format, expected 1"),
        (write_namesake, "it does not hold the one table of a store"),
        (write_newer, "it has version 7 of the format, expected 1"),
        (write_torn, "malformed"),
        (write_torn_late, "malformed"),
        (lambda path: path.write_bytes(b""), "version 0"),
    ],
)
def test_a_mounted_file_that_is_no_sound_store_is_passed_over(tmp_path, store, caplog, make, fault):
    put(store, "here")
    path = tmp_path / "input.sqlite"
    make(path)
    before = path.read_bytes()
    assert store.take(path) == 0
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"the store {path} " in record.message
    assert fault in record.message
    assert path.read_bytes() == before
    assert len(store) == 1
    put(store, "after")
    assert len(store) == 2


def test_no_room_for_the_copy_of_a_mounted_store_is_one_sentence(small_disk, tmp_path, store, monkeypatch):
    other = Store(tmp_path / "other.sqlite")
    put(other, *map(str, range(900)))
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    with pytest.raises(InputError) as caught:
        store.take(other.path)
    assert str(caught.value) == (
        f"cannot copy the store {other.path} to {small_disk}: {os.strerror(errno.ENOSPC)}; free space there or detach "
        "that input, and run the same command again"
    )
    assert list(small_disk.iterdir()) == [], "the copy is gone"


def test_no_room_for_the_replies_of_a_mounted_store_takes_none(small_disk, tmp_path):
    store, other = Store(small_disk / "s.sqlite"), Store(tmp_path / "other.sqlite")
    put(store, "here")
    put(other, *map(str, range(900)))
    with pytest.raises(InputError, match=r"cannot write to the store .*the 1 replies already in it are safe"):
        store.take(other.path)
    assert len(store) == 1
    subprocess.run(["mount", "-o", "remount,size=9m", small_disk], check=True)
    assert store.take(other.path) == 900


def by(secret, path, *keys):
    """A store in which a run with this key has put replies."""
    other = Store(path, key=secret)
    put(other, *keys)
    other.close()
    return path


@pytest.mark.parametrize("own", [True, False])
def test_a_run_with_the_same_key_takes_over_what_it_signed(tmp_path, own):
    path = by(b"mine", tmp_path / "one.sqlite", "a", "b")
    second = Store(tmp_path / "two.sqlite", key=b"mine")
    assert second.take(path, own=own) == 2
    put(second, "c")
    second.close()
    third = Store(tmp_path / "three.sqlite", key=b"mine")
    assert third.take(second.path, own=False) == 3, "what was taken over is signed too"
    assert third.get("a").samples[0].text.startswith("re a")


@pytest.mark.parametrize(("signer", "reader"), [(b"", b"mine"), (b"theirs", b"mine"), (b"theirs", b""), (b"", b"")])
def test_replies_of_a_stranger_are_no_replies(tmp_path, caplog, signer, reader):
    path = by(signer, tmp_path / "theirs.sqlite", "a", "b")
    store = Store(tmp_path / "mine.sqlite", key=reader)
    assert store.take(path, own=False) == 0
    assert caplog.messages == [f"2 replies of the store {path} are not taken: no run with your key wrote them"]
    assert store.take(path, own=True) == 2, "named by the user"
    store.close()
    after = Store(tmp_path / "after.sqlite", key=reader)
    assert after.take(store.path, own=False) == (2 if reader else 0)


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE replies SET reply = replace(reply, 're a', 'no')",
        "UPDATE replies SET request = request || ' '",
        "UPDATE replies SET model = 'better'",
        "UPDATE replies SET key = 'a question not asked yet'",
        "UPDATE replies SET mac = NULL",
        "UPDATE replies SET mac = ''",
        "UPDATE replies SET mac = 5",
        "UPDATE replies SET mac = CAST(mac AS BLOB)",
        "UPDATE replies SET mac = mac || ' '",
        "UPDATE replies SET mac = 'é'",
        "UPDATE replies SET reply = CAST(reply AS BLOB)",
        "UPDATE replies SET reply = CAST(X'FFFE00FF' AS TEXT)",
        "UPDATE replies SET reply = NULL",
        "UPDATE replies SET model = 5.5",
        "UPDATE replies SET key = NULL",
        "UPDATE replies SET at = 'never'",
        "UPDATE replies SET at = X'00'",
    ],
)
def test_a_reply_that_was_changed_is_passed_over_and_the_others_are_taken(tmp_path, caplog, harm):
    path = by(b"mine", tmp_path / "one.sqlite", "a", "b", "c")
    with sqlite3.connect(path) as other:
        other.execute(f"{harm} WHERE key = 'a'")
    other.close()
    store = Store(tmp_path / "mine.sqlite", key=b"mine")
    assert store.take(path, own=False) == 2
    assert caplog.messages == [f"1 replies of the store {path} are not taken: no run with your key wrote them"]
    assert [store.get(key) is None for key in "abc"] == [True, False, False]


def test_poison_beside_signed_replies_is_not_searched_without_end(tmp_path, caplog):
    path = by(b"mine", tmp_path / "one.sqlite", "first")
    by(b"", path, *map(str, range(3000)))
    by(b"mine", path, "last")
    store = Store(tmp_path / "mine.sqlite", key=b"mine")
    assert store.take(path, own=False) == 1
    assert caplog.messages[0].startswith("at least 1000 replies of the store")


def test_a_store_of_an_earlier_version_is_opened_read_and_signed_from_now_on(tmp_path):
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE replies (key TEXT PRIMARY KEY, model TEXT, request TEXT, reply TEXT, at REAL)")
        old.execute("INSERT INTO replies VALUES ('k', 'm', '{}', '{\"samples\": [{\"text\": \"old\"}]}', 5)")
        old.execute("PRAGMA user_version = 1")
    old.close()
    new = Store(tmp_path / "new.sqlite", key=b"mine")
    assert (new.take(path, own=False), new.take(path)) == (0, 1)
    store = Store(path, key=b"mine")
    assert store.get("k").samples[0].text == "old"
    put(store, "l")
    store.close()
    assert Store(tmp_path / "next.sqlite", key=b"mine").take(path, own=False) == 1
    assert len(Store(path)) == 2


KIT = "CREATE TABLE replies (key TEXT PRIMARY KEY, model TEXT, request TEXT, reply TEXT, at REAL, mac TEXT)"
ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
SCHEMAS = {
    "endless view": [
        f"CREATE VIEW replies AS {ENDLESS} SELECT CAST(x AS TEXT) AS key, 'm' AS model, '' AS request, 'r' AS reply,"
        " 0.0 AS at, '' AS mac FROM n"
    ],
    "view beside": [KIT, f"CREATE VIEW more AS {ENDLESS} SELECT x FROM n"],
    "trigger": [
        KIT,
        f"CREATE TRIGGER t AFTER INSERT ON replies BEGIN INSERT INTO replies(key) {ENDLESS} SELECT x FROM n; END",
    ],
    "trigger that deletes": [KIT, "CREATE TRIGGER t BEFORE INSERT ON replies BEGIN DELETE FROM replies; END"],
    "trigger on a view": [
        KIT,
        "CREATE VIEW v AS SELECT 1",
        "CREATE TRIGGER t INSTEAD OF INSERT ON v BEGIN SELECT 1; END",
    ],
    "generated column": [KIT.replace("reply TEXT", "reply TEXT AS (hex(zeroblob(10000000)))")],
    "stored generated column": [KIT.replace("mac TEXT", "mac TEXT, more TEXT AS (hex(zeroblob(9))) STORED")],
    "check": [KIT.replace("at REAL", "at REAL CHECK (length(hex(zeroblob(10000000))))")],
    "default": [KIT.replace("mac TEXT", "mac TEXT DEFAULT (hex(zeroblob(10000000)))")],
    "collation": [KIT.replace("key TEXT", "key TEXT COLLATE nocase")],
    "without rowid": [f"{KIT} WITHOUT ROWID"],
    "rowid as a column": [KIT.replace("mac TEXT", "mac TEXT, rowid TEXT")],
    "integer keys": [KIT.replace("key TEXT", "key INTEGER")],
    "no primary key": [KIT.replace(" PRIMARY KEY", "")],
    "a column less": [KIT.replace("at REAL, ", "")],
    "a column more": [KIT.replace("mac TEXT", "mac TEXT, more TEXT")],
    "other names": ["CREATE TABLE replies (question TEXT, answer TEXT)"],
    "another table": ["CREATE TABLE answers (key TEXT)"],
    "index": [KIT, "CREATE INDEX slow ON replies (hex(zeroblob(10000000)))"],
    "full text": ["CREATE VIRTUAL TABLE replies USING fts5(key, model, request, reply, at, mac)"],
    "r-tree": [KIT, "CREATE VIRTUAL TABLE more USING rtree(a, b, c)"],
    "statistics": [KIT, "ANALYZE"],
    "ten thousand tables": [KIT, *(f"CREATE TABLE t{i} (a, b, c)" for i in range(10_000))],
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_file_that_holds_anything_but_the_kits_table_is_neither_taken_nor_opened(tmp_path, store, caplog, name):
    path = tmp_path / "theirs.sqlite"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN")
    for statement in SCHEMAS[name]:
        other.execute(statement)
    other.execute("COMMIT")
    other.execute("PRAGMA user_version = 1")
    other.close()
    put(store, "here")
    started = time.monotonic()
    for own in (True, False):
        assert store.take(path, own=own) == 0
    assert [f"the store {path} is damaged or not of this kit" in message for message in caplog.messages] == [True] * 2
    with pytest.raises(InputError, match=r"cannot open the store .*it (does not )?holds? .*; move it away"):
        Store(path)
    assert time.monotonic() - started < 5
    assert len(store) == 1


def linked(path, tmp_path, end):
    part = tmp_path / f"{path.name}{end}"
    target = tmp_path / "target"
    if part.exists():
        part.rename(target)
    else:
        target.write_bytes(b"precious")
    part.symlink_to(target)


ODD = {
    "link": lambda path, folder: linked(path, folder, ""),
    "linked -wal": lambda path, folder: linked(path, folder, "-wal"),
    "linked -shm": lambda path, folder: linked(path, folder, "-shm"),
    "linked -journal": lambda path, folder: linked(path, folder, "-journal"),
    "hanging link": lambda path, folder: (folder / f"{path.name}-wal").symlink_to("nowhere"),
    "link to a device": lambda path, folder: (folder / f"{path.name}-wal").symlink_to("/dev/zero"),
    "pipe as -wal": lambda path, folder: os.mkfifo(folder / f"{path.name}-wal"),
    "folder as -wal": lambda path, folder: (folder / f"{path.name}-wal").mkdir(),
    "pipe": lambda path, folder: (path.unlink(), os.mkfifo(path)),
    "folder": lambda path, folder: (path.unlink(), path.mkdir()),
    "device": lambda path, folder: (path.unlink(), path.symlink_to("/dev/zero")),
}


@pytest.mark.parametrize("name", ODD)
def test_no_link_pipe_or_device_is_opened_as_a_store(tmp_path, caplog, name):
    (tmp_path / "input").mkdir()
    path = by(b"mine", tmp_path / "input" / "store.sqlite", "a")
    ODD[name](path, path.parent)
    store = Store(tmp_path / "mine.sqlite", key=b"mine")
    assert [store.take(path, own=own) for own in (True, False)] == [0, 0]
    assert all("is a link or no regular file" in message for message in caplog.messages)
    if name != "link":  # a store that its user keeps on another disk
        with pytest.raises(InputError, match=r"cannot open the store .* is a link or no regular file; move it away"):
            Store(path)
    if (path.parent / "target").exists() and name != "link":
        assert (path.parent / "target").read_bytes() == b"precious"


def test_a_store_that_its_user_keeps_on_another_disk_is_opened(tmp_path):
    by(b"", tmp_path / "real.sqlite", "a")
    (tmp_path / "store.sqlite").symlink_to(tmp_path / "real.sqlite")
    assert len(Store(tmp_path / "store.sqlite")) == 1


def test_a_journal_that_lies_beside_a_strangers_store_is_left_where_it_is(tmp_path, store):
    """It would be played back, and could name files to delete."""
    path = by(b"", tmp_path / "theirs.sqlite", "a")
    (tmp_path / "theirs.sqlite-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(600))
    assert store.take(path) == 1


@pytest.mark.parametrize("column", ["key", "model", "request", "reply", "mac"])
def test_a_huge_row_is_passed_over_in_little_memory_and_the_others_are_taken(tmp_path, caplog, column):
    path = by(b"mine", tmp_path / "one.sqlite", "a", "b", "c")
    with sqlite3.connect(path) as other:
        other.execute(f"UPDATE replies SET {column} = CAST(zeroblob(60000000) AS TEXT) WHERE key = 'b'")
    other.close()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, own in enumerate((True, False)):
        store = Store(tmp_path / f"mine{number}.sqlite", key=b"mine")
        assert store.take(path, own=own) == 2
        store.close()
    assert "1 replies of the store" in caplog.messages[0]
    if column == "reply":  # in the run's own folder, too
        store = Store(path)
        assert (store.get("b"), store.get("a") is None, len(store)) == (None, False, 3)
        put(store, "b")
        assert store.get("b").samples[0].text.startswith("re b")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 2**15, "KiB"


@pytest.mark.parametrize(
    "reply",
    [
        "[" * 100_000,
        '{"samples": ' * 50_000,
        '{"samples": [{"text": 5}]}',
        '{"samples": [{"text": null}]}',
        '{"samples": [{"text": ["a"]}]}',
        '{"samples": [{"text": 1e400}]}',
        '{"samples": [{"text": {"a": "b"}, "n_tokens": 3}]}',
        '{"samples": [{"text": "a", "finish_reason": ["stop"]}]}',
        '{"samples": [{"text": "a", "finish_reason": null}]}',
        '{"samples": [{"text": "a", "numbers": {"x": {}}}]}',
        '{"samples": [{"text": "a", "numbers": 5}]}',
        '{"samples": [{"text": "a", "more": 1}]}',
        '{"samples": "a"}',
        '{"samples": 5}',
        '{"samples": [], "prompt_tokens": 3}',
        '{"reply": "a"}',
        '"a"',
        "5",
        "",
    ],
)
def test_a_stored_reply_of_another_shape_counts_as_missing(store, reply):
    put(store, "k")
    store._db.execute("UPDATE replies SET reply = ?", (reply,))
    assert store.get("k") is None
    assert store.unreadable == {"k"}


def test_a_reply_too_large_for_a_row_stops_nothing(store, caplog):
    replies = {"k": "x" * 2**24, "l": "short"}
    store.put([(key, ECHO, request(), Reply((Sample(text),))) for key, text in replies.items()])
    assert len(store) == 1
    assert caplog.messages == ["1 replies of more than 16 MiB are not stored"]


def test_pages_that_point_at_one_another_end(tmp_path, store, caplog):
    """A table whose inner page names one leaf a thousand times, as no writer leaves it."""
    path = tmp_path / "theirs.sqlite"
    other = Store(path)
    put(other, *map(str, range(3000)))
    (root,) = other._db.execute("SELECT rootpage FROM sqlite_master WHERE type = 'table'").fetchone()
    other._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    content = bytearray(path.read_bytes())
    page = memoryview(content)[4096 * (root - 1) : 4096 * root]
    assert page[0] == 5, "an inner page"
    cells = int.from_bytes(page[3:5], "big")
    starts = [int.from_bytes(page[12 + 2 * i : 14 + 2 * i], "big") for i in range(cells)]
    for start in starts:  # every child is the root: rows without end, or so deep that it is told as damage
        page[start : start + 4] = root.to_bytes(4, "big")
    page[8:12] = root.to_bytes(4, "big")
    path.write_bytes(content)
    assert store.take(path) == 0
    assert "malformed" in caplog.text


def test_a_strangers_store_of_gigabytes_is_not_even_copied(tmp_path, caplog):
    path = by(b"", tmp_path / "theirs.sqlite", "a")
    os.truncate(path, 3 * 2**30)
    store = Store(tmp_path / "mine.sqlite", key=b"mine")
    started = time.monotonic()
    assert store.take(path, own=False) == 0
    assert time.monotonic() - started < 1
    assert "it has 3.0 GiB and no run of yours is known to have written it" in caplog.messages[0]
