"""identity.py: the same name with other content is another thing, whatever the clock says."""

import os
from pathlib import Path

import pytest
from huggingface_hub.constants import HF_HUB_CACHE

from nbutils.core.errors import InputError
from nbutils.files import identity
from nbutils.files.identity import hub_name


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/name", ("org/name", "", "", "")),
        ("gpt2", ("gpt2", "", "", "")),
        ("org/name#v1.2", ("org/name", "v1.2", "", "")),
        ("org/name#refs/pr/3", ("org/name", "refs/pr/3", "", "")),
        (f"org/name#{'a1' * 20}", ("org/name", "a1" * 20, "", "")),
        ("org/name:it@train", ("org/name", "", "it", "train")),
        ("org/name@train[-300:]", ("org/name", "", "", "train[-300:]")),
        ("org/name:it", ("org/name", "", "it", "")),
        ("org/name#main:it@train[:5%]", ("org/name", "main", "it", "train[:5%]")),
        ("org/dati-it#fix_2@test", ("org/dati-it", "fix_2", "", "test")),
    ],
)
def test_a_hub_name_has_a_place_for_each_of_its_parts(text, parts):
    assert tuple(hub_name(text)) == parts


@pytest.mark.parametrize(
    "text",
    [
        "org/name#", "org/name# v1", "org/name#v1 ", "org/name#../main", "org/name#a..b", "org/name#/etc",
        "org/name#a/",
        "org/name#a//b", "org/name#https://x.y/z", "org/name#v1#v2", "org/name#-x", "org/name#a\nb", "org/name#a\0b",
        "org/name#perché", "org/name#:it", "org/name#@train", f"org/name#{'a' * 300}", "org/name#a/.b", "org/name#x~1",
    ],
)  # fmt: skip
def test_what_is_no_revision_is_refused_in_one_sentence(text):
    with pytest.raises(InputError, match="is no revision; expected a branch, tag or commit after the #") as caught:
        hub_name(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def snapshot(repository, commit, *, kind="models", ref="main"):
    """Put a commit of a repository, without files, into the Hub's cache."""
    path = Path(HF_HUB_CACHE) / f"{kind}--{repository.replace('/', '--')}" / "refs" / ref
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(commit)


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_hub_id_is_known_by_its_commit_and_another_commit_is_another_thing(kind):
    first, second, name = "1" * 40, "2" * 40, f"me/known-{kind}"
    snapshot(name, first, kind=f"{kind}s")
    snapshot(name, second, kind=f"{kind}s", ref="v2")
    assert identity.of_hub(name, kind=kind) == f"{name} at {first}"
    assert identity.of_hub(f"{name}#v2", kind=kind) == f"{name}#v2 at {second}"
    assert identity.of_hub(f"{name}#{'3' * 40}:it@train", kind=kind).endswith(f"at {'3' * 40}")
    snapshot(name, second, kind=f"{kind}s")
    assert identity.of_hub(name, kind=kind) == f"{name} at {second}"


@pytest.mark.parametrize("content", ["", "main", "not a commit", "1" * 39, "../../etc"])
def test_a_hub_id_whose_commit_cannot_be_told_is_known_by_its_name_which_is_said_once(content, caplog):
    name = f"me/unknown-{len(content)}"
    if content:
        snapshot(name, content)
    assert [identity.of_hub(name, kind="model") for _ in range(2)] == [name] * 2
    [said] = caplog.messages
    assert said.startswith(f"model {name}: its commit cannot be told without the network")


def rewritten(path):
    path.write_bytes(path.read_bytes()[::-1])


def replaced_at_the_same_time(path):
    """Another file of the same size and with the same time of its content in its place."""
    seen = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[::-1])
    os.utime(other, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    os.replace(other, path)


def rewritten_at_the_same_time(path):
    seen = path.stat()
    rewritten(path)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


@pytest.mark.parametrize("change", [rewritten, replaced_at_the_same_time, rewritten_at_the_same_time])
@pytest.mark.parametrize("settled", [0.0, 1e9], ids=["after a while", "at once"])
def test_another_content_of_the_same_size_and_time_is_another_file(change, settled, tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "_SETTLED", settled)
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)))
    before = identity.of_file(path), identity.of_folder(tmp_path)
    assert (identity.of_file(path), identity.of_folder(tmp_path)) == before
    change(path)
    assert identity.of_file(path) != before[0]
    assert identity.of_folder(tmp_path) != before[1]


def test_a_settled_file_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "_SETTLED", -1.0)
    (tmp_path / "weights").write_bytes(b"x" * 1000)
    first = identity.of_file(tmp_path / "weights")
    monkeypatch.setattr(identity.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert identity.of_file(tmp_path / "weights") == first


def test_a_folder_is_known_by_the_names_and_contents_of_its_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one.json").write_text("1")
    (tmp_path / "two.bin").write_text("2")
    first = identity.of_folder(tmp_path)
    (tmp_path / "run.json").write_text("when it was made")
    assert identity.of_folder(tmp_path) == first
    os.rename(tmp_path / "two.bin", tmp_path / "three.bin")
    assert identity.of_folder(tmp_path) != first


def test_what_has_no_content_to_tell_it_by_is_an_error_and_never_an_empty_identity(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is no regular file"):
        identity.of_folder(tmp_path)
    (tmp_path / "pipe").unlink()
    with pytest.raises(InputError, match="holds no files to tell it by"):
        identity.of_folder(tmp_path)
    with pytest.raises(InputError, match="gone cannot be read: No such file"):
        identity.of_file(tmp_path / "gone")
    with pytest.raises(InputError, match="is no regular file"):
        identity.of_file("/dev/zero")


@pytest.mark.parametrize(
    "name", ["/no/such/file.jsonl", "data/prompts/it.csv", "../x", "a b", "org/name with spaces", ""]
)
def test_the_name_of_a_file_that_is_gone_stays_a_name_and_nothing_is_said(name, caplog):
    assert identity.of_hub(name, kind="dataset") == name
    assert not caplog.records
