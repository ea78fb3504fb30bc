"""gguf.py: what is kept of a folder that a converted model is written to. The conversion itself is in test_models."""

import json
from pathlib import Path

import pytest

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
    assert not (folder / "kept-1").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["carrier"]


def test_a_conversion_that_fails_leaves_the_old_folder_and_nothing_else(tmp_path, unpacked, monkeypatch):
    unpacked("1" * 64)
    folder = gguf.convert("package:carrier", tmp_path)
    unpacked("2" * 64)
    monkeypatch.setattr(gguf, "_unpack", lambda file, folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gguf.convert("package:carrier", tmp_path)
    assert (folder / "model.safetensors").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["carrier"]
