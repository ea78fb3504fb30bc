"""Small files that stand for much: each ends in one sentence, in seconds and within a bound of memory."""

import bz2
import csv
import gzip
import json
import lzma
import random
import resource
import time

import pyarrow
import pytest
from pyarrow import parquet

from nbutils.core.bounded import within
from nbutils.core.errors import InputError
from nbutils.files import columnar, tables, unpacked
from nbutils.files.sources import read
from nbutils.files.unpacked import weight

LINE = '{"prompt": "Nomina un fiume.", "n": 1}\n'
FIELDS = "a,b\n" + "x" * 70_000 + ",y\n"


def constant(value, count, kind=None):
    """An array that holds one value so many times and stores it once."""
    indices = pyarrow.nulls(count, pyarrow.int8()).fill_null(0)
    return pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array([value], kind))


def as_parquet(path, column, *, groups=1):
    whole = pyarrow.table({"a": column})
    with parquet.ParquetWriter(path, whole.schema, compression="zstd") as writer:
        for _ in range(groups):
            writer.write_table(whole, row_group_size=len(whole))


def as_arrow(path, column):
    whole = pyarrow.table({"a": column})
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, whole.schema, options=options) as stream:
        stream.write_table(whole)


def lists(count, inner):
    """One row with a list of so many values that take no room at all."""
    return pyarrow.ListArray.from_arrays(pyarrow.array([0, count], pyarrow.int32()), inner)


def packed(name, text):
    """Return what writes a text, packed in every way."""
    return {f"{name}{e}": lambda path, pack=pack: path.write_bytes(pack(text.encode())) for e, pack in PACKERS.items()}


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
           ".zst": lambda data: bytes(pyarrow.Codec("zstd").compress(data))}  # fmt: skip
BOMBS = {
    "a.parquet": lambda path: as_parquet(path, pyarrow.array(["x" * 900_000] * 50), groups=2),
    "rows.parquet": lambda path: as_parquet(path, constant("Name a river.", 400_000).cast(pyarrow.string()), groups=2),
    "dictionary.parquet": lambda path: as_parquet(path, constant("è" * 900_000, 100)),
    "emoji.parquet": lambda path: as_parquet(path, pyarrow.array(["x" * 250_000 + "😀"] * 100)),
    "nothing.parquet": lambda path: as_parquet(path, pyarrow.nulls(600_000)),
    "lists.parquet": lambda path: as_parquet(path, pyarrow.array([[["x"] * 500] * 100] * 50)),
    "a.arrow": lambda path: as_arrow(path, pyarrow.array(["x" * 900_000] * 100)),
    "rows.arrow": lambda path: as_arrow(path, pyarrow.nulls(600_000, pyarrow.binary(8)).fill_null(b"Un fiume")),
    "dictionary.arrow": lambda path: as_arrow(path, constant("x" * 900_000, 100)),
    "many.arrow": lambda path: as_arrow(path, constant("x" * 90_000, 1000)),
    "nothing.arrow": lambda path: as_arrow(path, pyarrow.nulls(600_000)),
    "runs.arrow": lambda path: as_arrow(path, pyarrow.RunEndEncodedArray.from_arrays([600_000], ["x" * 100])),
    "list.arrow": lambda path: as_arrow(path, lists(2**25, pyarrow.nulls(2**25))),
    "listed.arrow": lambda path: as_arrow(path, lists(2**23, constant("x" * 100, 2**23))),
    "a.csv": lambda path: path.write_text(",".join(f"c{i}" for i in range(9_000)) + "\n" + "1\n" * 1000),
    **packed("a.jsonl", LINE * 400_000),
    **packed("a.csv", FIELDS * 1_300),
    **packed("a.json", "[" + LINE.replace("\n", ",") * 400_000),
    **packed("blank.jsonl", " \n" * 2**22),
    "blank.csv.gz": lambda path: path.write_bytes(gzip.compress(b"a\n" + b"\r" * 2**22)),
    "blank.json.gz": lambda path: path.write_bytes(gzip.compress(b"[" + b" " * (2**28 + 2**20))),
    "twice.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINE.encode() * 5_000) * 90),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_stands_for_much_ends_in_a_sentence(tmp_path, monkeypatch, name):
    path = tmp_path / name
    BOMBS[name](path)
    assert path.stat().st_size < 2**18
    monkeypatch.setattr(unpacked, "HELD", 2**26)
    monkeypatch.setattr(unpacked, "ROOM", 2**28)
    monkeypatch.setattr(columnar, "VALUES", 2**26)

    def refused():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            return sum(1 for row in [*tables.rows(path)]), 0
        except InputError as error:
            return str(error), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    started = time.monotonic()
    said, more = within(refused, name, seconds=30, memory=2**31)
    assert f"{name} cannot be read as " in str(said)
    assert "unpack to more than 64 MiB" in said or "malloc" in said or "MemoryError" in said
    assert "\n" not in said
    assert more < 350
    assert time.monotonic() - started < 20


def test_the_first_rows_of_such_a_file_are_read(tmp_path):
    for name in ("a.parquet", "rows.parquet", "many.arrow", "a.jsonl.gz", "a.csv.xz", "nothing.arrow"):
        BOMBS[name](tmp_path / name)
        rows = tables.rows(tmp_path / name)
        assert len([next(rows) for _ in range(10)]) == 10
        rows.close()


def test_a_file_as_it_was_reported_ends_within_seconds_and_a_gibibyte(tmp_path):
    path = tmp_path / "big.parquet"
    as_parquet(path, pyarrow.array(["x" * 900_000] * 200), groups=25)
    assert path.stat().st_size < 10_000

    def refused():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(InputError, match=r"its 0.1 MiB unpack to more than 512 MiB of rows") as caught:
            read(str(path))
        return str(caught.value), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    said, more = within(refused, "it", seconds=20, memory=2**31)
    assert len(said) < 400
    assert more < 1024


def measured(work):
    """What the work gives, and by how many MiB it made the process grow."""

    def run():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = work()
        return result, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    return within(run, "it", seconds=60, memory=2**31)


SYSTEM = "Sei un assistente gentile. " * 150  # 4 kB
REPEATED = {
    "text.parquet": lambda rows: as_parquet("text.parquet", pyarrow.array([SYSTEM] * len(rows))),
    "turns.parquet": lambda rows: as_parquet("turns.parquet", pyarrow.array(
        [[{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"Che cosa fa {n}?"}] for n in rows])),
    "text.arrow": lambda rows: as_arrow("text.arrow", constant(SYSTEM, len(rows))),
    "text.jsonl.gz": lambda rows: pack_lines("text.jsonl.gz", (json.dumps({"system": SYSTEM, "n": n}) for n in rows)),
    "text.csv.zst": lambda rows: pack_lines("text.csv.zst", ["system,n", *(f"{SYSTEM},{n}" for n in rows)]),
}  # fmt: skip


def pack_lines(name, lines):
    ending = name[name.rindex(".") :]
    with (
        open(name, "wb") as file,
        pyarrow.CompressedOutputStream(file, {".gz": "gzip", ".zst": "zstd"}[ending]) as stream,
    ):
        for line in lines:
            stream.write(line.encode() + b"\n")


@pytest.mark.parametrize("name", REPEATED)
def test_one_system_prompt_in_all_of_many_rows_is_read_and_held_once(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(unpacked, "HELD", 2**26)  # as 150,000 rows and the usual bound
    REPEATED[name](range(18_000))
    count, more = measured(lambda: len(list(tables.rows(tmp_path / name))))
    assert count == 18_000
    assert more < 64


def test_a_text_that_repeats_is_one_object_and_stays_what_it_was(tmp_path):
    rows = [{"a": SYSTEM, "b": [{"c": SYSTEM + str(i % 2), "d": [SYSTEM]}], "e": str(i)} for i in range(6)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    found = list(tables.rows(tmp_path / "a.json"))
    assert found == rows
    assert len({id(text) for row in found for text in (row["a"], row["b"][0]["d"][0])}) == 1
    assert len({id(row["b"][0]["c"]) for row in found}) == 2


@pytest.mark.parametrize(("text", "count"), [("x" * 4000, 130_000), ("è " * 30_000, 1_500), ("😀" * 200, 400_000)])
def test_rows_that_are_all_alike_end_in_a_sentence_all_the_same(tmp_path, monkeypatch, text, count):
    monkeypatch.setattr(unpacked, "HELD", 2**26)
    as_parquet(tmp_path / "a.parquet", constant(text, count))

    def refused():
        with pytest.raises(InputError, match=r"its 0.[1-4] MiB unpack to more than 64 MiB of rows"):
            read(str(tmp_path / "a.parquet"))

    assert measured(refused)[1] < 128


@pytest.mark.parametrize("kind", ["parquet", "jsonl.gz"])
def test_what_the_files_of_a_folder_unpack_to_adds_up(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(unpacked, "HELD", 2**22)
    paths = [tmp_path / f"train-{i:05}.{kind}" for i in range(12)]
    for path in paths:
        if kind == "parquet":
            as_parquet(path, pyarrow.array(["x" * 90_000] * 10))
        else:
            pack_lines(str(path), ['{"a": 1}', *[" "] * 10_000])
    assert all(list(tables.rows(path)) for path in paths)
    with pytest.raises(InputError, match=rf"0000[4-9].{kind} cannot be read as .*: its and [4-9] other files' 0.1 MiB"):
        list(tables.all_rows(paths))
    assert len([row for row, _ in zip(tables.all_rows(paths), range(4), strict=False)]) == 4


def test_a_folder_of_honest_files_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacked, "HELD", 2**18)
    for i in range(10):
        part = pyarrow.Table.from_pylist(HONEST[i * 300 : (i + 1) * 300])
        parquet.write_table(part, tmp_path / f"train-{i:05}.parquet", compression="zstd")
    assert list(tables.all_rows(sorted(tmp_path.iterdir()))) == HONEST
    assert read(str(tmp_path)) == HONEST


SOME = random.Random(3)
HONEST = [{"id": str(i), "text": f"Perché {i}? 😀 " + "".join(SOME.choices("abcdefghij klmnoè\n,\"", k=900))}
          for i in range(3000)]  # fmt: skip


def written_csv(path):
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, ["id", "text"])
        table.writeheader()
        table.writerows(HONEST)


PLAIN = {
    "a.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, HONEST))),
    "a.json": lambda path: path.write_text(json.dumps(HONEST)),
    "a.csv": written_csv,
    "a.parquet": lambda path: parquet.write_table(pyarrow.Table.from_pylist(HONEST), path, compression="zstd"),
    "a.arrow": lambda path: as_arrow(path, pyarrow.array([row["text"] for row in HONEST])),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_large_file_of_different_texts_is_read_whole(tmp_path, monkeypatch, name):
    monkeypatch.setattr(unpacked, "HELD", 2**18)
    PLAIN[name](tmp_path / name)
    found = list(tables.rows(tmp_path / name))
    assert [row.get("text") or row["a"] for row in found] == [row["text"] for row in HONEST]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
@pytest.mark.parametrize("ending", PACKERS)
def test_a_packed_file_is_read_as_what_it_holds(tmp_path, monkeypatch, kind, ending):
    monkeypatch.setattr(unpacked, "HELD", 2**18)
    PLAIN[f"a.{kind}"](tmp_path / "a")
    path = tmp_path / f"train.{kind}{ending}"
    path.write_bytes(PACKERS[ending]((tmp_path / "a").read_bytes()))
    assert list(tables.rows(path)) == HONEST
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(InputError, match=rf"train.{kind}{ending} cannot be read as {kind}: "):
        list(tables.rows(path))
    path.write_bytes(b"no such thing")
    with pytest.raises(InputError, match=rf"train.{kind}{ending} cannot be read as {kind}: "):
        list(tables.rows(path))


@pytest.mark.parametrize(
    "name", ["a.parquet.gz", "a.gz", "a.zip", "a.jsonl.zip", "a.jsonl.lz4", "a.tar.gz", ".jsonl.gz"]
)
def test_what_is_packed_in_another_way_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b'{"a": 1}'))
    with pytest.raises(InputError, match=rf"{name} cannot be read as .*: expected one of jsonl, .*; unpack it first"):
        list(tables.rows(tmp_path / name))


@pytest.mark.parametrize(
    ("row", "least", "most"),
    [
        ({}, 56, 100),
        ({"a": ""}, 150, 300),
        ({"a": None, "b": "x" * 1000}, 1_150, 1_400),
        ({"a": "è" * 1000}, 1_150, 1_400),
        ({"a": "😀" * 1000}, 4_150, 4_400),
        ({"a": [{"role": "user", "content": "x" * 100}] * 10}, 2_500, 6_000),
        ({"a": [[]] * 1000}, 60_000, 70_000),
        ({"a": (("k", "v" * 1000),) * 10}, 10_000, 13_000),
    ],
)
def test_a_row_weighs_about_what_it_takes(row, least, most):
    assert least <= weight(row) <= most


def test_a_row_may_be_nested_as_deep_as_json_can_be(tmp_path):
    deep = "[" * 300 + "]" * 300
    (tmp_path / "a.jsonl").write_text(f'{{"a": {deep}}}\n')
    assert len(list(tables.rows(tmp_path / "a.jsonl"))) == 1
