"""files: what strangers put into small files ends in values or in one sentence, at once and in little memory."""

import json
import os
import resource
import time
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbutils.core.errors import InputError
from nbutils.files.documents import DEPTH, LIMIT, VALUES, parse_json, parse_yaml, read_json, read_text, read_yaml


@contextmanager
def quickly():
    """Two seconds and 200 MiB at most."""
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.process_time() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1\nb: [x, 2.5, true, null]\nc: {d: e}", {"a": 1, "b": ["x", 2.5, True, None], "c": {"d": "e"}}),
        ("# una nota\nlingua: perché\n", {"lingua": "perché"}),
        ("", None),
        ("when: 2024-01-01\nsince: 2001-12-14t21:59:43.10-05:00", {"when": "2024-01-01",
                                                                     "since": "2001-12-14t21:59:43.10-05:00"}),
        ("when: 2001-99-99", {"when": "2001-99-99"}),
        ("1: a\ntrue: b\nnull: c", {"1": "a", "true": "b", "null": "c"}),  # a name is what stands there
        ("rate: 5e-7", {"rate": "5e-7"}),  # text to YAML: `params` has a hint for it
        ("a: '&x *y !z'\nb: x & y\nc: 2 * 3", {"a": "&x *y !z", "b": "x & y", "c": "2 * 3"}),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
        ("a: =", {"a": "="}),
        ("hash: 00112233445566778899001122334455667788990a", {"hash": "00112233445566778899001122334455667788990a"}),
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
    ],
)  # fmt: skip
def test_yaml_is_read(text, value):
    assert parse_yaml(text, "it") == value


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (LAUGHS, r"it: an anchor \(&\) or alias \(\*\) is not taken, write the value out or quote the text \(line 1\)"),
        ("a: &own [*own]", "an anchor"),
        ("a: 1\nb: *gone", r"alias .*\(line 2\)"),
        ("&name a: 1", "an anchor"),
        ("base: &base {a: 1}\nb: {<<: *base}", "an anchor"),
        ("a: !!python/object/apply:os.system [true]", r"a tag \('tag:yaml.org,2002:python/object/apply:os.system'\)"),
        ("a: !!binary aGFsbG8=", "a tag"),
        ("a: !mio 1", "a tag"),
        ("--- !!set {a, b}", "a tag"),
        ("a: 1\nb: 2\na: 3", r"it: 'a' stands there twice \(line 3\)"),
        ("a: {b: 1, 'b': 2}", "'b' stands there twice"),
        ("? [a, b]\n: 1", "a name has to be text"),
        ("? {a: b}\n: 1", "a name has to be text"),
        ("[" * 100_000, f"nested more than {DEPTH} deep"),
        ("- " * 100_000, "nested more than"),
        ("{a: " * 100_000, "nested more than"),
        ("? " * 100_000, "nested more than"),
        ("".join(f"{' ' * i}a:\n" for i in range(DEPTH + 2)), "nested more than"),
        ("[" + "1," * 500_000 + "]", f"more than {VALUES:,} values"),
        ("- x\n" * 300_000, "more than"),
        ("\n".join(f"k{i}: {i}" for i in range(VALUES)), "more than"),
        ("a: " + "1" * 5000, "a number of 5000 characters"),
        ("a: 0x" + "f" * 500_000, "a number of 500002 characters"),
        ("a: " + ":".join(["59"] * 100_000), "a number of 299999 characters"),  # to the base of 60
        ("a: " + ":".join(["59"] * 100_000) + ".5", "a number of"),
        ("a: .inf", "it: .inf is no finite number"),
        ("a: -.INF", "-.INF is no finite number"),
        ("a: .NaN", ".NaN is no finite number"),
        ("a: 1.0e+999", r"1.0e\+999 is no finite number"),
        ("a: 0x_", "invalid literal"),
        ("a: [", "it is no YAML: "),
        ("a: 'b", "it is no YAML: "),
        ("a: b: c", "it is no YAML: "),
        ("a: 1\n---\nb: 2", "it is no YAML: "),
        ("a: \x07", "it is no YAML: "),
        ("a: \ud800", "it is no YAML: "),
        ("\t- a", "it is no YAML: "),
    ],
)  # fmt: skip
def test_yaml_that_would_cost_or_mislead_is_refused_at_once(text, fault):
    with quickly(), pytest.raises(InputError, match=fault) as caught:
        parse_yaml(text, "it")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[" * 100_000, "nested more than"),
        ("[" * (DEPTH + 2) + "]" * (DEPTH + 2), "nested more than"),
        ('{"a":' * 200_000, "nested more than"),
        ('{"a": 1, "a": 2}', "it is no JSON: 'a' stands there twice"),
        ('[{"b": {"c": 1, "c": 1}}]', "'c' stands there twice"),
        ("1" * 5000, "a number of 5000 characters"),
        ("[0." + "1" * 5000 + "]", "a number of 5002 characters"),
        ("1e999", "1e999 is no finite number"),
        ('{"loss": NaN}', "NaN is no finite number"),
        ("-Infinity", "-Infinity is no finite number"),
        ("[" + "1," * 60_000 + "1]", "more than"),
        ("", "it is no JSON: "),
        ("{'a': 1}", "it is no JSON: "),
        ("[1,]", "it is no JSON: "),
        ("<html>", "it is no JSON: "),
    ],
)
def test_json_that_would_cost_or_mislead_is_refused_at_once(text, fault):
    with quickly(), pytest.raises(InputError, match=fault) as caught:
        parse_json(text, "it")
    assert len(str(caught.value)) < 300


def test_json_is_read():
    assert parse_json('{"a": [1, 2.5, "è", null, true]}', "it") == {"a": [1, 2.5, "è", None, True]}


@given(st.recursive(st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(), st.lists, max_leaves=20))
def test_json_comes_back(value):
    assert parse_json(json.dumps(value), "it") == value


@given(st.text())
def test_any_text_is_values_or_one_sentence(text):
    for parse in (parse_yaml, parse_json):
        try:
            parse(text, "it")
        except InputError as error:
            assert str(error).startswith("it")  # noqa: PT017 - no error is as good


def fifo(path):
    os.mkfifo(path)


def endless(path):
    path.symlink_to("/dev/zero")


def gone(path):
    path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda p: p.mkdir(), "is no regular file, it is a folder"),
        (lambda p: None, "cannot be read: No such file or directory"),
        (gone, "cannot be read: No such file or directory"),
        (fifo, "is no regular file"),
        (endless, "is no regular file"),
        (lambda p: p.symlink_to("/dev/urandom"), "is no regular file"),
        (lambda p: p.write_bytes(b"a" * (LIMIT + 1)), "is larger than 1,048,576 bytes"),
        (lambda p: p.write_bytes(b"perch\xe9"), "is not UTF-8 text"),
        (lambda p: p.write_bytes("a: 1".encode("utf-16")), "is not UTF-8 text"),
        (lambda p: p.write_bytes(b"a: \x00"), "is not text: it holds NUL characters"),
    ],
)
@pytest.mark.parametrize("read", [read_text, read_yaml, read_json])
def test_what_is_no_file_of_text_is_named(tmp_path, make, fault, read):
    make(tmp_path / "it")
    with quickly(), pytest.raises(InputError, match=rf"/it {fault}"):
        read(tmp_path / "it")


def test_a_file_that_is_huge_but_empty_costs_nothing(tmp_path):
    with (tmp_path / "it").open("wb") as stream:
        stream.truncate(2**40)
    with quickly(), pytest.raises(InputError, match="is larger than"):
        read_yaml(tmp_path / "it")


def test_a_name_with_nul_is_no_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read: embedded null byte"):
        read_text(tmp_path / "a\0b")


def test_the_mark_that_editors_put_before_text_is_left_out(tmp_path):
    (tmp_path / "it").write_text("a: è", encoding="utf-8-sig")
    assert read_yaml(tmp_path / "it") == {"a": "è"}
    assert read_text(tmp_path / "it", limit=8) == "a: è"
