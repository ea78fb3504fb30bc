import json
import os
import shutil

import pytest

from nbutils.core.errors import InputError
from nbutils.files import seals
from nbutils.files.seals import is_sealed, seal


@pytest.fixture
def work(tmp_path):
    """A folder and a file as a run leaves them, not yet sealed."""
    folder = tmp_path / "abc" / "checkpoint-2"
    (folder / "more").mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    (folder / "more" / "weights").write_bytes(bytes(99))
    (tmp_path / "abc" / "shard.json").write_text('{"k": [0.5, 1.5]}')
    return tmp_path / "abc"


@pytest.mark.parametrize("name", ["checkpoint-2", "shard.json"])
def test_what_was_sealed_is_known_wherever_its_folder_is_mounted(work, tmp_path, with_key, name):
    assert not is_sealed(work / name)
    seal(work / name)
    assert is_sealed(work / name)
    copy = shutil.copytree(work, tmp_path / "input" / "notebooks" / "me" / "dpo" / "abc")
    assert is_sealed(copy / name)
    assert with_key not in (copy / f"{name}.seal").read_bytes()


@pytest.mark.parametrize("content", ["", "no key", "0A" * 32, "0a" * 31, "0a" * 33, "0a" * 32 + "\n" + "0a" * 32, None])
def test_without_a_key_nothing_is_sealed_and_nothing_known(work, tmp_path, monkeypatch, with_key, content):
    seal(work / "shard.json")
    monkeypatch.setattr(seals, "KEY_FILE", tmp_path / "kaggle.key")
    if content is not None:
        (tmp_path / "kaggle.key").write_text(content)
    assert seals.key() == b""
    assert not is_sealed(work / "shard.json")
    seal(work / "checkpoint-2")
    assert not (work / "checkpoint-2.seal").exists()


def change(folder):
    (folder / "state.json").write_text("{ }")


def link(folder):
    shutil.move(folder / "state.json", folder.parent / "elsewhere")
    (folder / "state.json").symlink_to(folder.parent / "elsewhere")


def link_folder(folder):
    shutil.move(folder / "more", folder.parent / "elsewhere")
    (folder / "more").symlink_to(folder.parent / "elsewhere")


def rewrite(**changes):
    def harm(folder):
        mark = folder.with_name("checkpoint-2.seal")
        mark.write_text(json.dumps(json.loads(mark.read_text()) | changes))

    return harm


def in_place_of_the_seal(text):
    return lambda folder: folder.with_name("checkpoint-2.seal").write_text(text)


def link_the_seal(folder):
    mark = folder.with_name("checkpoint-2.seal")
    mark.symlink_to(mark.rename(folder.parent / "moved"))


HARMS = {
    "changed": change,
    "gone": lambda folder: (folder / "more" / "weights").unlink(),
    "added": lambda folder: (folder / "optimizer.pt").write_text("code"),
    "renamed": lambda folder: (folder / "state.json").rename(folder / "trainer_state.json"),
    "link": link,
    "linked folder": link_folder,
    "hanging link": lambda folder: (folder / "new").symlink_to("nowhere"),
    "link to itself": lambda folder: (folder / "loop").symlink_to(folder),
    "pipe": lambda folder: os.mkfifo(folder / "pipe"),
    "no seal": lambda folder: folder.with_name("checkpoint-2.seal").unlink(),
    "seal is a link": link_the_seal,
    "other files": rewrite(files={}),
    "other code": rewrite(mac="0" * 64),
    "no code": rewrite(mac=""),
    "code of another kind": rewrite(mac=True),
    "code not of this world": rewrite(mac="\ud800é"),
    "list": in_place_of_the_seal("[]"),
    "number": in_place_of_the_seal("5"),
    "nested": in_place_of_the_seal("[" * 100_000),
    "torn": in_place_of_the_seal('{"files": '),
    "large": in_place_of_the_seal(" " * 2**23),
    "empty": in_place_of_the_seal(""),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_what_is_not_as_it_was_sealed_is_not_taken_for_it(work, with_key, harm):
    seal(work / "checkpoint-2")
    harm(work / "checkpoint-2")
    assert not is_sealed(work / "checkpoint-2")


def test_a_pipe_as_a_seal_is_not_waited_for(work, with_key):
    os.mkfifo(work / "shard.json.seal")
    assert not is_sealed(work / "shard.json")


@pytest.mark.parametrize("place", ["abc/checkpoint-3", "other/checkpoint-2"])
def test_a_seal_holds_under_the_name_it_was_given_for(work, tmp_path, with_key, place):
    seal(work / "checkpoint-2")
    shutil.copytree(work / "checkpoint-2", tmp_path / place)
    shutil.copy(work / "checkpoint-2.seal", tmp_path / f"{place}.seal")
    assert not is_sealed(tmp_path / place)


def test_another_users_seal_is_none(work, tmp_path, with_key, monkeypatch):
    seal(work / "checkpoint-2")
    (tmp_path / "kaggle.key").write_text("0b" * 32)
    monkeypatch.setattr(seals, "KEY_FILE", tmp_path / "kaggle.key")
    assert not is_sealed(work / "checkpoint-2")
    seal(work / "checkpoint-2")
    assert is_sealed(work / "checkpoint-2")


def test_a_link_is_never_sealed_and_a_full_disk_is_one_sentence(work, with_key, monkeypatch):
    (work / "link").symlink_to(work / "shard.json")
    with pytest.raises(InputError, match="is a link"):
        seal(work / "link")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        seal(work / "shard.json")
