"""Which folders a run may write to."""

import os
from pathlib import Path

import pytest

from nbutils.core.errors import InputError
from nbutils.files import rundir
from nbutils.files.sources import CHECKOUT


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A home, a folder to work in, and links to both."""
    for name in ("home/me", "work/here/runs"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home/me"))
    monkeypatch.chdir(tmp_path / "work/here")
    (tmp_path / "work/here/to-home").symlink_to(tmp_path / "home/me")
    (tmp_path / "work/here/runs/up").symlink_to("..")
    (tmp_path / "work/here/loop").symlink_to("loop")
    (tmp_path / "work/here/file").write_text("x")
    os.mkfifo(tmp_path / "work/here/pipe")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "\t", "\0", "runs/\0x", "runs/a\nb", "run\x1b[31m", "runs/\u202ea", "run\x7f", "s3://bucket/run"),
        *("hf://a/b", "/", "//", "/.", "/run", "/tmp", "/x/..", ".", "./", "..", "../..", "runs/..", "runs/../.."),
        *("./runs/./..", "~", "~/", "~/run", "~/..", "~/x/..", "~nobody-of-this-name/run", "to-home", "to-home/run"),
        *("runs/up", "loop", "loop/run", "file", "pipe", "x" * 5000),
    ],
)  # fmt: skip
def test_a_run_that_would_write_where_it_must_not_is_refused_in_a_sentence_that_names_run_dir(places, name):
    with pytest.raises(InputError, match=r"^run_dir is .*; name a folder of its own inside another one") as said:
        rundir.resolved(name, Path.cwd())
    assert str(said.value).isprintable()
    assert len(str(said.value)) < 600


@pytest.mark.parametrize("part", ["notebooks", "nbutils", "nbutils/judges", "params/demo", "docs", ".git/x", ".", ".."])
def test_a_run_does_not_write_over_the_kit(part):
    with pytest.raises(InputError, match=r"^run_dir is "):
        rundir.resolved(part, CHECKOUT)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("runs/mine", "work/here/runs/mine"),
        ("mine", "work/here/mine"),
        ("runs/../runs/mine/", "work/here/runs/mine"),
        ("~/runs/mine", "home/me/runs/mine"),
        ("to-home/runs/mine", "work/here/to-home/runs/mine"),
        ("runs/run [1]", "work/here/runs/run [1]"),
        ("runs/run*", "work/here/runs/run*"),
        ("runs/{x}?", "work/here/runs/{x}?"),
        ("runs/più bello 😀", "work/here/runs/più bello 😀"),
        ("../other", "work/other"),
        ("runs/$HOME", "work/here/runs/$HOME"),
    ],
)
def test_any_other_name_is_taken_as_it_stands(places, name, path):
    assert rundir.resolved(name, Path.cwd()) == places / path
