"""gguf.py: what is kept of a folder that a converted model is written to. The conversion itself is in test_models."""

import json
import os
import time
from pathlib import Path

import pytest
from builders import child

from nbutils.core.errors import InputError
from nbutils.files import identity
from nbutils.models import gguf

FOREIGN = {
    "nothing of ours": {"thesis.txt": "mine"}, "another program's": {"origin.json": '{"made_by": "another program"}'},
    "another model's": {"origin.json": '{"package": "other", "file": "a", "sha256": "b"}'},
    "no JSON": {"origin.json": "{"}, "a list": {"origin.json": "[1]"}, "deep": {"origin.json": "[" * 100_000},
}  # fmt: skip


@pytest.fixture
def unpacked(monkeypatch):
    """A package whose weights are quickly converted."""
    whole = identity.Packaged([Path("weights.gguf")], "", "carrier")
    monkeypatch.setattr(identity, "packaged", lambda name: whole)
    monkeypatch.setattr(gguf, "_joined", lambda packaged, folder: folder)
    monkeypatch.setattr(gguf, "_unpack", lambda file, folder: (folder / "model.safetensors").write_text("new"))

    def version(sha256):
        monkeypatch.setattr(identity, "of_package", lambda name: sha256)

    return version


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_what_lies_where_a_converted_model_is_to_be_kept_is_refused_and_left(tmp_path, unpacked, content):
    unpacked("1" * 64)
    for name, text in content.items():
        (tmp_path / "carrier").mkdir(exist_ok=True)
        (tmp_path / "carrier" / name).write_text(text)
    with pytest.raises(InputError, match=r"carrier was not made by the kit.*move it away"):
        gguf.convert("package:carrier", tmp_path)
    assert {p.name: p.read_text() for p in (tmp_path / "carrier").iterdir()} == content


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "of a kit that kept no list"])
def test_a_new_version_of_a_package_keeps_what_a_user_put_beside_the_old_weights(tmp_path, unpacked, listed):
    unpacked("1" * 64)
    folder = gguf.convert("package:carrier", tmp_path)
    (folder / "model.safetensors").write_text("new" if listed else "old")
    if not listed:
        (folder / "manifest.json").unlink()
    (folder / "my_adapter").mkdir()
    (folder / "my_adapter/notes.md").write_text("mine")
    (folder / "thesis.txt").write_text("years")
    unpacked("2" * 64)
    assert gguf.convert("package:carrier", tmp_path) == folder
    assert json.loads((folder / "origin.json").read_text())["sha256"] == "2" * 64
    assert (folder / "my_adapter/notes.md").read_text() == "mine"
    assert (folder / "thesis.txt").read_text() == "years"
    assert (folder / "model.safetensors").read_text() == "new"
    assert (folder / "kept-1").exists() != listed, "without a list nobody knows whose the rest was"
    assert listed or (folder / "kept-1/model.safetensors").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["carrier"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"])
def test_what_a_user_changed_in_a_folder_of_a_kit_that_kept_no_list_is_kept(tmp_path, unpacked, monkeypatch, name):
    monkeypatch.setattr(gguf, "_unpack", lambda file, folder: (folder / name).write_text("new"))
    unpacked("1" * 64)
    folder = gguf.convert("package:carrier", tmp_path)
    (folder / "manifest.json").unlink()
    (folder / name).write_text("cambiato a mano")
    unpacked("2" * 64)
    gguf.convert("package:carrier", tmp_path)
    assert (folder / name).read_text() == "new"
    assert (folder / "kept-1" / name).read_text() == "cambiato a mano"


def test_what_a_killed_conversion_left_goes_with_the_next_one_of_any_model_and_a_live_one_stays(
    tmp_path, unpacked, monkeypatch
):
    def convert(label, end):
        def unpack(file, folder):
            (folder / "weights").write_text("gigabytes")
            (file / "joined.gguf").write_text("more")
            os.kill(os.getpid(), 9) if end else time.sleep(60)

        monkeypatch.setattr(identity, "packaged", lambda name: identity.Packaged([Path("w.gguf")], "", label))
        monkeypatch.setattr(gguf, "_unpack", unpack)
        gguf.convert(f"package:{label}", tmp_path)

    unpacked("1" * 64)
    dead = [child(lambda label=label: convert(label, True)) for label in ("carrier", "another")]
    live = child(lambda: convert("carrier", False))
    for process in dead:
        process.join(20)
    (tmp_path / "carrier.draft-tesi/carrier").mkdir(parents=True)
    (tmp_path / "carrier.draft-tesi/carrier/tesi.txt").write_text("anni")
    ends = time.monotonic() + 20
    while len(list(tmp_path.glob("carrier.draft-*/*/joined.gguf"))) < 2 and time.monotonic() < ends:  # dead and live
        time.sleep(0.05)
    gguf.convert("package:carrier", tmp_path)
    assert {p.name for p in tmp_path.iterdir()} > {"carrier", "carrier.draft-tesi"}
    assert len(list(tmp_path.iterdir())) == 3
    assert len(list(tmp_path.glob("carrier.draft-*/carrier/weights"))) == 1
    live.kill()
    live.join(20)
    unpacked("2" * 64)
    gguf.convert("package:carrier", tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"carrier", "carrier.draft-tesi"}
    assert (tmp_path / "carrier.draft-tesi/carrier/tesi.txt").read_text() == "anni"


def test_a_conversion_that_fails_leaves_the_old_folder_and_nothing_else(tmp_path, unpacked, monkeypatch):
    unpacked("1" * 64)
    folder = gguf.convert("package:carrier", tmp_path)
    unpacked("2" * 64)
    monkeypatch.setattr(gguf, "_unpack", lambda file, folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gguf.convert("package:carrier", tmp_path)
    assert (folder / "model.safetensors").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["carrier"]
