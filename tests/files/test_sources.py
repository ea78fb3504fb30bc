import json
import os
import re
import resource
import shutil
import time
import tracemalloc
from contextlib import contextmanager

import pandas as pd
import pyarrow
import pyarrow as pa
import pytest
from builders import DATA, prompt_row, real
from datasets import DatasetDict
from pyarrow import parquet

from nbutils.core.errors import InputError
from nbutils.core.records import PAIRS, PROMPTS, dataset
from nbutils.files import columnar, sources, tables
from nbutils.files.sources import find, fingerprint, label, located, read, read_checked
from nbutils.files.stage import Stage

ROWS = [{"id": "1", "text": "perché 😀", "n": "01"}, {"id": "2", "text": "a,b\nc", "n": ""}]


def written(run_dir, rows, config="prompts", features=PROMPTS, stem="02_sample"):
    return Stage(stem, run_dir).write({config: dataset(rows, features)}, params={}, metrics={}, summary="")


WRITERS = {
    "jsonl": lambda path: path.write_text("\n".join(map(json.dumps, ROWS)) + "\n"),
    "json": lambda path: path.write_text(json.dumps(ROWS)),
    "csv": lambda path: pd.DataFrame(ROWS).to_csv(path, index=False),
    "parquet": lambda path: pd.DataFrame(ROWS).to_parquet(path),
}


@pytest.mark.parametrize("ending", WRITERS)
def test_a_file_of_every_kind_gives_its_rows(tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    WRITERS[ending](path)
    assert read(str(path)) == ROWS
    assert read(str(path), limit=1) == ROWS[:1]
    assert read(str(path), limit=9) == ROWS


def test_json_values_keep_their_types_and_absent_ones_stay_absent(tmp_path):
    rows = [
        {"a": True, "id": 1, "date": "2020-01-01"},
        {"a": "x", "m": [{"role": "user"}]},
        {"a": None, "s": "x\u2028y"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert read(str(tmp_path / "rows.jsonl")) == rows


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.jsonl", b"", "holds no rows"),
        ("a.jsonl", b"\n", "holds no rows"),
        ("a.json", b"[]", "holds no rows"),
        ("a.csv", b"", "holds no rows"),
        ("a.csv", b"id,text\n", "holds no rows"),
        ("a.jsonl", b'{"a": 1}\n{"a": ', "a.jsonl cannot be read as jsonl: "),
        ("a.jsonl", b'"text"', "a.jsonl cannot be read as jsonl: row 1: expected objects, one per row"),
        ("a.json", b'{"rows": [1]}', "a.json cannot be read as json: expected objects, one per row"),
        ("a.json", b"3", "a.json cannot be read as json"),
        ("a.csv", "perché".encode("latin-1"), "a.csv cannot be read as csv"),
        ("a.parquet", b"no parquet", "a.parquet cannot be read as parquet"),
        ("a.txt", b"text", "cannot read .txt, expected .jsonl, .json, .csv, .parquet"),
        ("a", b"text", "cannot read a file without ending"),
    ],
)
def test_a_file_that_gives_no_rows_is_refused_in_one_sentence(tmp_path, name, content, fault):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=fault):
        read(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("no/such/rows.jsonl", "there is no file or folder no/such/rows.jsonl"),
        ("/no/such", "there is no file or folder /no/such"),
        ("03_judge", "there is no stage, file or folder '03_judge'; run the stage before"),
        ("org/name:config@train", r"dataset 'org/name\S*' .*cannot be loaded: .*check name, split, network"),
    ],
)
def test_what_is_not_there_is_named_at_once_without_a_network(tmp_path, name, fault):
    with pytest.raises(InputError, match=fault):
        read(name, run_dir=tmp_path)


def test_a_stage_folder_is_read_by_its_card(tmp_path):
    rows = [prompt_row("Ciao?"), prompt_row("Chi?")]
    folder = written(tmp_path, rows)
    assert read(str(folder), "prompts") == rows
    assert read("02_sample", "prompts", run_dir=tmp_path) == rows
    assert read_checked("02_sample", "prompts", PROMPTS, run_dir=tmp_path) == rows


def test_a_stage_folder_that_lacks_the_dataset_says_what_it_has(tmp_path):
    written(tmp_path, [prompt_row()])
    with pytest.raises(InputError, match=r"no stage folder with a dataset 'pairs' \(it has: prompts\)"):
        read("02_sample", "pairs", run_dir=tmp_path)


def test_an_empty_stage_points_at_the_drop_report(tmp_path):
    written(tmp_path, [], "pairs", PAIRS)
    with pytest.raises(InputError, match="02_sample holds no rows in 'pairs'; see the drop report"):
        read("02_sample", "pairs", run_dir=tmp_path)


@pytest.mark.parametrize(
    "card",
    [
        None,
        "# a dataset",
        "---\nlicense: mit\n---\n# a dataset",
        "---\nconfigs: [\n---\n# broken",
        "---\nconfigs:\n- config_name: pairs\n  data_files: data/*.parquet\n---\n",
        "---\njust text\n---\n",
    ],
)
def test_a_folder_no_stage_wrote_is_refused(tmp_path, card):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    with pytest.raises(InputError, match="is no stage folder with a dataset 'pairs'"):
        read(str(tmp_path), "pairs")


@pytest.mark.parametrize("harm", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:200])])
def test_a_half_copied_stage_folder_is_refused(tmp_path, harm):
    harm(next(written(tmp_path, [prompt_row()]).glob("prompts/*.parquet")))
    with pytest.raises(InputError, match=r"prompts/train-\S+ cannot be read as parquet"):
        read("02_sample", "prompts", run_dir=tmp_path)


def test_a_schema_fault_names_dataset_column_and_row(tmp_path):
    written(tmp_path, [prompt_row(prompt_id="abc")])
    with pytest.raises(InputError, match="02_sample/prompts: row abc: column 'chat_template_kwargs' is missing"):
        read_checked("02_sample", "prompts", PAIRS, run_dir=tmp_path)


def test_two_runs_with_equal_stage_names_each_give_their_own_rows(tmp_path):
    for run in ("one", "two"):
        written(tmp_path / run, [prompt_row(run)])
    texts = [read("02_sample", "prompts", run_dir=tmp_path / run)[0]["prompt"][0]["content"] for run in ("one", "two")]
    assert texts == ["one", "two"]


def test_a_stage_is_looked_for_in_its_run_then_among_mounted_inputs(tmp_path, monkeypatch, inputs, with_key):
    monkeypatch.chdir(tmp_path)
    assert find("02_sample", run_dir=tmp_path / "run") is None
    mounted = written(tmp_path / "input" / "my-notebook" / "runs", [prompt_row()])
    assert find("02_sample", run_dir=tmp_path / "run") == mounted
    own = written(tmp_path / "run", [prompt_row()])
    assert find("02_sample", run_dir=tmp_path / "run") == own


@pytest.mark.parametrize("place", ["my-notebook", "notebooks/me/my-notebook", "datasets/me/my-data/version"])
def test_a_stage_is_found_in_every_layout_of_mounts(place, tmp_path, inputs, with_key, caplog):
    mounted = written(tmp_path / "input" / place / "runs" / "kaggle", [prompt_row()])
    # what a run that was killed while it replaced the stage left behind is none
    shutil.copytree(mounted, mounted.parent / "work" / "02_sample.draft-abc" / "02_sample")
    assert find("02_sample", run_dir=tmp_path / "run") == mounted
    assert caplog.text == ""


def test_of_two_mounted_stages_the_last_written_is_taken_and_that_is_said_once(
    tmp_path, monkeypatch, inputs, with_key, caplog
):
    monkeypatch.setattr(sources, "_told", set())
    old, new = (written(tmp_path / "input" / place, [prompt_row()]) for place in ("b", "notebooks/me/a"))
    for folder, at in ((old, 1000), (new, 2000)):
        os.utime(folder / "params.json", (at, at))
    assert find("02_sample") == find("02_sample") == new
    assert caplog.messages == [
        f"2 inputs hold 02_sample: taking {new}, which was written last, and not {old}; to choose yourself, detach the "
        "others or name the folder"
    ]
    os.utime(old / "params.json", (3000, 3000))
    assert find("02_sample") == old


@pytest.mark.parametrize("place", ["a-dataset", "notebooks/stranger/out", "datasets/stranger/data"])
def test_a_strangers_stage_is_not_read_though_it_is_newer_and_the_reader_is_told(
    tmp_path, monkeypatch, inputs, with_key, caplog, place
):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "theirs", [prompt_row("theirs")])
    theirs = shutil.copytree(tmp_path / "theirs" / "02_sample", inputs / place / "kaggle" / "02_sample")
    with pytest.raises(InputError, match=r"'02_sample'; run the stage before, .*not taken.*02_sample in \S*; to have"):
        read("02_sample", "prompts", run_dir=tmp_path / "run")
    own = written(inputs / "notebooks" / "me" / "out" / "kaggle", [prompt_row("own")])
    os.utime(own / "params.json", (1000, 1000))
    assert find("02_sample") == own
    monkeypatch.setattr(sources, "_told", set())
    monkeypatch.setenv("NBUTILS_INPUTS", place)
    assert find("02_sample") == theirs, "named, and written last"
    assert read(str(theirs), "prompts")[0]["prompt"][0]["content"] == "theirs", "a path is the user's choice"


@pytest.mark.parametrize(
    "name", ["mine", "qwen", "rating_xx", "*", "0?_*", "01_rerank/", "a\0b", "line\nbreak", "01_RERANK"]
)
def test_nothing_but_a_stage_is_looked_for_in_inputs(name, tmp_path, monkeypatch, inputs):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NBUTILS_INPUTS", "mine")
    for folder in ("mine", "qwen", "rating_xx", "line\nbreak", "01_RERANK"):
        (inputs / "mine" / folder).mkdir(parents=True)
        (inputs / "mine" / folder / "params.json").write_text("{}")
    assert find(name) is None


def test_a_linked_stage_is_not_found_and_a_linked_file_not_read(tmp_path, monkeypatch, inputs):
    monkeypatch.chdir(tmp_path)
    outside = written(tmp_path / "outside", [prompt_row()])
    (inputs / "mine").mkdir()
    (inputs / "mine" / "02_sample").symlink_to(outside)
    (inputs / "mine" / "rows.jsonl").symlink_to("/etc/passwd")
    monkeypatch.setenv("NBUTILS_INPUTS", "mine")
    assert find("02_sample") is None
    for path in ("mine/02_sample", "mine/rows.jsonl", "mine/02_sample/params.json"):
        with pytest.raises(InputError, match=f"the input {path} is a link"):
            find(str(inputs / path))
        with pytest.raises(InputError, match=f"the input {path} is a link"):
            located(str(inputs / path))
    monkeypatch.chdir(inputs / "mine")
    with pytest.raises(InputError, match=r"the input mine/rows\.jsonl is a link"):
        find("rows.jsonl")


def test_a_relative_path_is_found_from_any_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find("params") == sources.CHECKOUT / "params"


def test_a_fingerprint_changes_with_the_content(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}')
    before = fingerprint(str(path))
    assert fingerprint(str(path)) == before
    path.write_text('{"a": 2}')
    assert fingerprint(str(path)) != before
    stages = [
        fingerprint("02_sample", run_dir=written(tmp_path, [prompt_row(t)]).parent) for t in ("aaa", "bbb", "aaa")
    ]
    assert stages[0] == stages[2] != stages[1]
    assert fingerprint("org/name") == "org/name"


def test_real_rows_with_booleans_among_texts_are_read_as_they_are():
    rows = real("preferences/pandalm_999.json")
    assert read(str(DATA / "preferences/pandalm_999.json")) == rows


def test_two_splits_of_one_dataset_have_two_labels():
    assert label("org/x@train[:10]") != label("org/x@test")


@pytest.mark.parametrize(
    "name",
    [
        "日本語.jsonl",
        "проверка.csv",
        "../..",
        "...",
        "a/",
        "$(id)",
        "`x`",
        "x\n",
        "\0",
        "\ud800",
        "x" * 300,
        "é",
        "-rf",
        " .json",
        "|",
        "",
    ],
)
def test_every_name_has_a_label_that_a_file_can_have(name):
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}", label(name))
    assert label("日本語.jsonl") != label("中文.jsonl")


def test_two_adapters_of_one_size_have_different_fingerprints(tmp_path):
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(b"first")
    before = fingerprint(str(tmp_path))
    weights.write_bytes(b"other")
    assert fingerprint(str(tmp_path)) != before


def test_a_csv_row_with_a_value_too_many_is_refused_and_not_shifted(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer\nName a river.,Po,Rhine\n")
    with pytest.raises(InputError, match="cannot be read as csv: row 1: it has more values than the header has names"):
        read(str(tmp_path / "a.csv"))


def test_json_nested_without_end_and_a_name_without_end_are_told(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="cannot be read as json: "):
        read(str(tmp_path / "a.json"))
    assert find("x" * 5000) is None


def test_a_parquet_file_whose_text_is_not_utf_8_is_refused_in_a_sentence(tmp_path):
    ends, text = (pyarrow.py_buffer(b) for b in (b"\0\0\0\0\2\0\0\0", b"\xff\xfe"))
    column = pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, ends, text])
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"rows\.parquet cannot be read as parquet: a text in it is not UTF-8 \("):
        read(str(tmp_path / "rows.parquet"))


# Files and folders of strangers


def table(path, rows, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


@pytest.mark.parametrize("ending", WRITERS)
def test_a_file_that_another_took_the_place_of_with_time_and_size_is_read_anew(tmp_path, ending, monkeypatch):
    path, other = tmp_path / f"rows.{ending}", [{"id": "1", "text": "prima"}, {"id": "2", "text": "unità"}]
    monkeypatch.setitem(globals(), "ROWS", other)
    for text in ("prima", "dopo!"):
        other[0]["text"] = text
        WRITERS[ending](path)
        os.utime(path, (1000, 1000))
        assert read(str(path))[0]["text"] == text


@pytest.mark.parametrize("ending", ["jsonl", "csv", "json"])
def test_of_a_file_without_end_the_first_rows_are_read(tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    start, row = {"jsonl": ("", '{"a": "1"}\n'), "csv": ("a\n", "1\n"), "json": ("[", '{"a": "1"},')}[ending]
    path.write_text(start + row * 20)
    with path.open("r+b") as stream:
        stream.truncate(2**40)  # a hole; the disk holds some bytes of it
    with within(5, 64):
        assert read(str(path), limit=10) == [{"a": "1"}] * 10


@contextmanager
def within(seconds, mib):
    """Nothing in it takes longer, nor more of Python's memory than so many MiB."""
    tracemalloc.start()
    began = time.monotonic()
    try:
        yield
        assert time.monotonic() - began < seconds
        assert tracemalloc.get_traced_memory()[1] < mib * 2**20
    finally:
        tracemalloc.stop()


LONG = "a" * (2**24 + 2**20)


@pytest.mark.parametrize(
    ("name", "write", "fault"),
    [
        ("a.jsonl", lambda p: p.write_text(json.dumps({"a": LONG})), "row 1 is larger than 16 MiB"),
        ("a.jsonl", lambda p: p.write_text('{"a": 1}\n' + " " * len(LONG)), "row 2 is larger than 16 MiB"),
        ("a.json", lambda p: p.write_text(json.dumps([{"a": 1}, {"a": LONG}])), "row 2 is larger than 16 MiB"),
        ("a.json", lambda p: p.write_text('[{"a": "' + LONG), "row 1 is larger than 16 MiB"),
        ("a.csv", lambda p: p.write_text('a,b\n1,"' + "x\n" * 2**23), "row 1 is larger than 16 MiB"),
        ("a.csv", lambda p: p.write_text(LONG), "row 0 is larger than 16 MiB"),
        ("a.csv", lambda p: p.write_text("," * 20_000), "it has 20,001 columns, more than 10,000"),
        ("a.parquet", lambda p: table(p, [{"a": LONG}] * 20), "row 1 is larger than 16 MiB"),
        ("a.parquet", lambda p: table(p, [{"a": "b"}, {"a": LONG}], use_dictionary=False), "row 2 is larger than 16"),
        ("a.parquet", lambda p: table(p, [{"a": ["x"] * 300_000}]), "holds 300,000 values in few"),
        (
            "a.parquet",
            lambda p: table(p, [{"a": "b" * 2**20}] * 300, use_dictionary=False, compression="zstd"),
            "its column a unpacks from 0.[0-9] to 300 MiB",
        ),
        ("a.json", lambda p: p.write_text('[{"a": 1} {"a": 2}]'), "row 1 is not followed by a comma"),
        ("a.json", lambda p: p.write_text('[{"a": 1},]'), "expected objects"),
        ("a.json", lambda p: p.write_text('[{"a": 1}'), "row 1 is not followed by a comma"),
        ("a.json", lambda p: p.write_text('[{"a": 1}] 3'), "something stands behind the end of the list"),
        ("a.jsonl", lambda p: p.write_text('{"a": ' + "[" * 100_000), "nested too deep"),
        ("a.jsonl", lambda p: p.write_text('{"a": ' + "9" * 5000 + "}"), "Exceeds the limit"),
    ],
)  # fmt: skip
def test_a_row_too_large_or_of_no_sense_is_that_files_fault_in_a_sentence(tmp_path, name, write, fault):
    write(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} cannot be read as \w+: .*{fault}") as said:
        read(str(tmp_path / name))
    assert len(str(said.value)) < 500


GOOD = [{"a": str(i)} for i in range(30)]
TORN = {
    "jsonl": ("\n".join, lambda row: json.dumps(row).encode(), [
        (b'{"a": ', "row 11: Expecting value"), (b"17", "row 11: expected objects"), (b"null", "expected objects"),
        (b'["a", "b"]', "expected objects"), (b"<html>", "row 11: Expecting value"),
        (b'{"a": "perch\xe9"}', "not UTF-8"),
        (b'{"a": ' + b"[" * 100_000, "nested too deep"), (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'{"a": 1} {"a": 2}', "Extra data"),
    ]),
    "json": (lambda lines: "[" + ",".join(lines) + "]", lambda row: json.dumps(row).encode(), [
        (b"17", "row 11: expected objects"), (b'"testo"', "expected objects"), (b"null", "expected objects"),
        (b"[[], {}]", "expected objects"), (b" " * 65_000 + b"1" * 1000 + b".5", "expected objects"),
    ]),
    "csv": (lambda lines: "a\n" + "\n".join(lines), lambda row: row["a"].encode(), [
        (b"uno,due", "row 11: it has more values than the header"), (b'"a",,', "more values than the header"),
    ]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("ending", "odd", "fault"), [(ending, *case) for ending, (_, _, cases) in TORN.items() for case in cases]
)
def test_a_row_that_is_none_is_left_out_counted_and_stops_nothing(tmp_path, caplog, ending, odd, fault):
    join, write, _ = TORN[ending]
    lines = [write(row) for row in GOOD]
    path = tmp_path / f"rows.{ending}"
    for place in (10, 20):
        lines.insert(place, odd)
    path.write_bytes(join([line.decode("latin-1") for line in lines]).encode("latin-1"))
    assert read(str(path)) == GOOD
    assert f"2 of {path} are no rows and are left out; the first is" in caplog.text
    assert fault in caplog.text
    caplog.clear()
    assert read(str(path), limit=12) == GOOD[:12]
    assert f"1 of {path} are no rows" in caplog.text


@pytest.mark.parametrize(("good", "odd", "refused"), [(90, 10, False), (89, 10, True), (9, 1, False), (1, 1, True)])
def test_a_file_of_which_more_than_a_tenth_is_no_rows_is_refused(tmp_path, good, odd, refused):
    path = tmp_path / "rows.jsonl"
    path.write_text("3\n" * odd + '{"a": 1}\n' * good)
    if not refused:
        assert read(str(path)) == [{"a": 1}] * good
    else:
        with pytest.raises(InputError, match=r"row 1: expected objects, one per row( \(10 of 99 are so\))?$"):
            read(str(path))


def test_a_file_of_no_rows_is_told_before_all_of_it_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("3\n" * 200)
    with path.open("r+b") as stream:
        stream.truncate(2**40)
    with within(5, 64), pytest.raises(InputError, match="101 of 101 are so"):
        read(str(path))


def test_ten_rows_of_a_small_file_that_stands_for_much_are_read_in_little_memory(tmp_path):
    path = table(tmp_path / "a.parquet", [{"a": "b" * 2**20, "i": i} for i in range(1000)], compression="zstd")
    assert path.stat().st_size < 2**20
    before = pyarrow.default_memory_pool().max_memory()
    with within(10, 64):
        assert [row["i"] for row in read(str(path), limit=10)] == list(range(10))
    assert pyarrow.default_memory_pool().max_memory() - before < 200 * 2**20


def arrow(path, rows):
    with (
        pyarrow.OSFile(str(path), "wb") as sink,
        pyarrow.ipc.new_stream(
            sink, pyarrow.Table.from_pylist(rows).schema, options=pyarrow.ipc.IpcWriteOptions(compression="zstd")
        ) as stream,
    ):
        stream.write_table(pyarrow.Table.from_pylist(rows))
    return path


def lying(path, rows):
    """A parquet whose footer would say that little is in it: `_rows_at_once` sees what is true here."""
    return table(path, rows, use_dictionary=False, compression="zstd")


@pytest.fixture
def system_pool():
    """Nothing of what earlier tests took is kept to be used again, so that all memory is asked of the system."""
    before = pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    yield
    pyarrow.set_memory_pool(before)


@pytest.mark.parametrize("write", [arrow, lying])
@pytest.mark.usefixtures("system_pool")
def test_rows_that_unpack_to_more_than_their_file_says_find_no_room(tmp_path, monkeypatch, write):
    path = write(tmp_path / f"a.{'arrow' if write is arrow else 'parquet'}", [{"a": "b" * 2**24}] * 16)
    assert path.stat().st_size < 2**20
    monkeypatch.setattr(columnar, "_rows_at_once", lambda group: columnar.FEW)
    monkeypatch.setattr(columnar, "ROOM", 2**27)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    with within(10, 64), pytest.raises(InputError, match=r"a\.\w+ cannot be read as \w+: .*malloc"):
        list(tables.rows(path))
    assert resource.getrlimit(resource.RLIMIT_AS) == limit
    monkeypatch.setattr(columnar, "ROOM", 2**30)
    monkeypatch.setattr(columnar, "LARGEST", 2**25)
    assert len(list(tables.rows(path))) == 16


def test_batches_without_rows_end_nothing(tmp_path):
    rows = pyarrow.record_batch({"a": ["b"]})
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, rows.schema) as stream:
        for batch in (rows[:0], rows, rows[:0], rows):
            stream.write_batch(batch)
    assert list(tables.rows(tmp_path / "a.arrow")) == [{"a": "b"}] * 2


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda p: p.symlink_to("/dev/zero"), lambda p: p.symlink_to("/dev/tty")])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, ending, make):
    make(tmp_path / f"rows.{ending}")
    with within(2, 16), pytest.raises(InputError, match=r"is no regular file|cannot be read: "):
        read(str(tmp_path / f"rows.{ending}"))


def test_a_csv_is_read_as_people_write_them(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbf,text,text\r\n1,"a ""b""\nc",perch\xc3\xa9\r\n\r\n2,x\r\n')
    assert read(str(tmp_path / "a.csv")) == [
        {"Unnamed: 0": "1", "text": 'a "b"\nc', "text.1": "perché"},
        {"Unnamed: 0": "2", "text": "x", "text.1": ""},
    ]


def test_json_objects_one_after_another_are_rows_also_in_a_file_called_json(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}\n{"a": 2}\n\n{"a":\n3}\n')
    assert read(str(tmp_path / "a.json")) == [{"a": 1}, {"a": 2}, {"a": 3}]


HUB = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
HUB += "  - split: test\n    path: [data/test-*]\n---\n# A dataset\n"


@pytest.mark.parametrize(("card", "layout"), [
    (HUB, {"train": "data/train-00000-of-00001.parquet", "test": "data/test-00000-of-00001.parquet"}),
    ("", {"train": "data/train-00000-of-00001.parquet", "test": "data/test-00000-of-00001.parquet"}),
    ("---\nlicense: mit\n---\n", {"train": "train.jsonl", "test": "test.jsonl"}),
    ("", {"train": "my_training_rows.jsonl", "validation": "my-dev.jsonl", "test": "eval.jsonl"}),
    ("", {"train": "train/a.csv", "test": "test/a.csv"}),
    ("---\nconfigs:\n- config_name: it\n  data_dir: it\n---\n", {"": "it/rows.csv"}),
    ("---\nconfigs:\n- config_name: it\n  data_files: '**/*.jsonl'\n---\n", {"train": "it/deep/rows.jsonl"}),
    ("---\nconfigs:\n- config_name: it\n  data_files: {train: a.csv, test: b.csv}\n---\n",
     {"train": "a.csv", "test": "b.csv"}),
    ("", {"train": "rows.jsonl"}),
])  # fmt: skip
def test_a_folder_from_the_hub_is_read_by_its_card_or_its_names(tmp_path, card, layout):
    if card:
        (tmp_path / "README.md").write_text(card)
    for split, name in layout.items():
        frame = pd.DataFrame([{"text": f"{split}{i}"} for i in range(4)])
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        writers = {".csv": lambda p, f=frame: f.to_csv(p, index=False), ".parquet": frame.to_parquet}
        writers |= {".jsonl": lambda p, f=frame: f.to_json(p, orient="records", lines=True)}
        writers[(tmp_path / name).suffix](tmp_path / name)
    for split in filter(None, layout):
        rows = [{"text": f"{split}{i}"} for i in range(4)]
        assert read(str(tmp_path), split=split) == rows
        assert read(str(tmp_path), split=f"{split}[-2:]") == rows[2:]
        assert read(str(tmp_path), split=f"{split}[:50%]", limit=1) == rows[:1]
    with pytest.raises(InputError, match=r"has no split 'none' \(it has: "):
        read(str(tmp_path), split="none")


@pytest.mark.parametrize("name", ["saved", "saved [1]"])
def test_what_save_to_disk_wrote_is_read(tmp_path, name):
    rows = [prompt_row(f"Chi è {i}?") for i in range(5)]
    whole = dataset(rows, PROMPTS)
    DatasetDict({"train": whole, "test": whole.select(range(2))}).save_to_disk(tmp_path / "dict")
    whole.save_to_disk(tmp_path / "one")
    for folder in ("dict", "one"):
        (tmp_path / folder).rename(tmp_path / f"{name} {folder}")
    assert read(str(tmp_path / f"{name} one")) == rows
    assert read(str(tmp_path / f"{name} one"), "prompts", split="train[:2]") == rows[:2]
    assert read(str(tmp_path / f"{name} dict")) == rows
    assert read(str(tmp_path / f"{name} dict"), split="test") == rows[:2]
    with pytest.raises(InputError, match=r"has no split 'dev' \(it has: train, test\)"):
        read(str(tmp_path / f"{name} dict"), split="dev")


@pytest.mark.parametrize("path", [
    "/etc/passwd", "../secret.jsonl", "data/../../secret.jsonl", "link.jsonl", "linked/secret.jsonl", "*.jsonl",
    "file:///etc/passwd", "https://example.com/rows.jsonl", "hf://datasets/a/b/rows.jsonl", "zip://a.jsonl::b.zip",
    "~/rows.jsonl", "/**",
    "../*.jsonl", "linked/../secret.jsonl",
])  # fmt: skip
def test_a_card_does_not_lead_out_of_its_folder(tmp_path, path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret.jsonl").write_text('{"a": "secret"}')
    (folder / "link.jsonl").symlink_to("../secret.jsonl")
    (folder / "linked").symlink_to("..")
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: x\n  data_files: '{path}'\n---\n")
    with pytest.raises(InputError, match="leads out of itself: "):
        read(str(folder))


@pytest.mark.parametrize("spread", ["x.jsonl", "data/x.jsonl"])
def test_the_hubs_own_cache_is_read_and_a_link_to_elsewhere_in_it_is_not(tmp_path, spread):
    root = tmp_path / "datasets--a--b"
    (root / "blobs").mkdir(parents=True)
    (root / "blobs/abc").write_text('{"a": "1"}')
    path = root / "snapshots/commit" / spread
    path.parent.mkdir(parents=True)
    up = "../" * (len(path.relative_to(root).parts) - 1)
    path.symlink_to(f"{up}blobs/abc")
    assert read(str(root / "snapshots/commit")) == [{"a": "1"}]
    path.unlink()
    (tmp_path / "secret").write_text('{"a": "secret"}')
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="leads out of itself: "):
        read(str(root / "snapshots/commit"))
    (root / "blobs/evil").symlink_to(tmp_path / "secret")
    path.unlink()
    path.symlink_to(f"{up}blobs/evil")
    with pytest.raises(InputError, match="leads out of itself: "):
        read(str(root / "snapshots/commit"))


@pytest.mark.parametrize("ending", [".jsonl.gz", ".json.bz2", ".csv.xz", ".jsonl.zst"])
def test_a_packed_file_is_read_by_its_name(tmp_path, ending):
    frame = pd.DataFrame({"prompt": ["Che ore sono?", "Perché?"]})
    path = tmp_path / f"domande{ending}"
    if ".csv" in ending:
        frame.to_csv(path, index=False)
    elif ".zst" in ending:
        with pa.OSFile(str(path), "wb") as file, pa.CompressedOutputStream(file, "zstd") as stream:
            stream.write(frame.to_json(orient="records", lines=True).encode())
    else:
        frame.to_json(path, orient="records", lines=".jsonl" in ending)
    assert [row["prompt"] for row in read(str(path))] == ["Che ore sono?", "Perché?"]
    assert label(str(path)) == "domande"
    with pytest.raises(InputError, match=r"there is no file or folder gone\.jsonl\.gz"):
        read("gone.jsonl.gz")
