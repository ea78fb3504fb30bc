import logging
import os
import shutil
import time

import pytest

from nbutils.core.errors import InputError
from nbutils.files import mounts, seals
from nbutils.files.mounts import refuse_links, stores, taken, untaken

# what lies in an input -> a pattern that finds it
PIECES = {
    "params.yaml": "params.yaml",
    "runs/kaggle/01_rerank/params.json": "01_rerank",
    "runs/kaggle/work/04_dpo/abc/checkpoint-7/trainer_state.json": "abc/checkpoint-*",
    "runs/kaggle/work/04_dpo/reference/0f.json": "04_dpo/reference/*.json",
    "notes/03_judge/params.json": "03_judge",
}
# where Kaggle puts an input -> how the user may name it
PLACES = {
    "mine": ["mine", "me/mine", " mine , ", "mine/"],
    "datasets/me/mine": ["me/mine", "datasets/me/mine", "other, me/mine"],
    "notebooks/me/mine": ["me/mine", "notebooks/me/mine", "me/mine,me/mine"],
    "models/me/mine": ["me/mine"],
    "competitions/mine": ["mine", "competitions/mine"],
}


@pytest.fixture
def put(inputs):
    """Write a file into the attached inputs."""

    def write(place, text="{}"):
        path = inputs / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_taken_for_being_there_and_what_is_left_is_said(put, place, piece):
    put(f"{place}/{piece}")
    assert taken(PIECES[piece]) == []
    said = untaken()
    assert said.startswith("found in attached inputs and not taken")
    assert f"in {place}; to have" in said
    assert f"name it in NBUTILS_INPUTS (setup cell), e.g. {place!r}" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(("place", "name"), [(place, name) for place, names in PLACES.items() for name in names])
def test_what_lies_in_an_input_that_the_user_named_is_taken(put, monkeypatch, place, name):
    for piece in PIECES:
        put(f"{place}/{piece}")
        put(f"other/{piece}")
        put(f"datasets/stranger/mine/{piece}")
    monkeypatch.setenv("NBUTILS_INPUTS", name.replace("other, ", ""))
    for pattern in PIECES.values():
        assert [path.relative_to(mounts.MOUNTS).as_posix().startswith(f"{place}/") for path in taken(pattern)] == [True]
    assert f" in {place}" not in untaken()
    assert "in other" in untaken()


def test_a_name_with_its_user_is_not_anothers_input_of_that_name(put, monkeypatch):
    own = put("notebooks/me/mine/params.yaml")
    put("mine/params.yaml")
    monkeypatch.setenv("NBUTILS_INPUTS", "me/mine")
    assert taken("params.yaml") == [own]


@pytest.mark.parametrize("name", ["mien", "me/mien", "..", "mine/runs", "*", "stranger/mine/x", "mine x", "me/"])
def test_a_name_that_is_not_attached_is_told_with_those_that_are(put, monkeypatch, name):
    put("datasets/me/mine/params.yaml")
    put("other/params.yaml")
    monkeypatch.setenv("NBUTILS_INPUTS", name)
    with pytest.raises(InputError, match="is not attached, expected some of the inputs: datasets/me/mine, other"):
        taken("params.yaml")


def test_without_inputs_nothing_is_looked_for(inputs, monkeypatch):
    inputs.rmdir()
    monkeypatch.setenv("NBUTILS_INPUTS", "me/mine")
    assert (taken("*"), list(stores()), untaken()) == ([], [], "")


@pytest.mark.parametrize("piece", [piece for piece in PIECES if piece != "params.yaml"])
def test_what_a_run_of_the_user_left_is_taken_from_wherever_it_lies(put, inputs, with_key, caplog, piece):
    own, foreign, spoilt = (put(f"{place}/{piece}") for place in ("notebooks/me/out", "a-stranger", "notebooks/b/out"))
    if not PIECES[piece].endswith(".json"):  # a folder
        own, foreign, spoilt = own.parent, foreign.parent, spoilt.parent
    for path in (own, spoilt):
        seals.seal(path)
    (spoilt if spoilt.is_file() else next(spoilt.iterdir())).write_text("changed")
    assert taken(PIECES[piece]) == [own]
    name = spoilt.relative_to(inputs / "notebooks/b/out")
    assert caplog.messages == [f"not taken from notebooks/b/out: {name} (changed after a run of yours)"]
    assert "in a-stranger;" in untaken()
    assert "notebooks/me/out" not in untaken()


def test_what_a_killed_run_was_about_to_replace_is_none(put, monkeypatch):
    put("mine/runs/kaggle/work/01_rerank.draft-x/01_rerank/params.json")
    monkeypatch.setenv("NBUTILS_INPUTS", "mine")
    assert taken("01_rerank") == []


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


LINKED = ["params.yaml", "store.sqlite", "01_rerank", "abc/checkpoint-7", "04_dpo/reference/0f.json", "x/nbutils"]


@pytest.mark.parametrize("piece", LINKED)
@pytest.mark.parametrize("name", ["", "mine"])
def test_a_link_is_never_followed_and_said(put, tmp_path, monkeypatch, with_key, piece, name):
    put("mine/readme")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "params.json").write_text("{}")
    link(mounts.MOUNTS / "mine" / piece, outside if "." not in piece else outside / "params.json")
    monkeypatch.setenv("NBUTILS_INPUTS", name)
    assert taken(piece) == []
    assert list(stores()) == []
    assert piece.rpartition("/")[2] in untaken()


def test_a_folder_that_holds_a_link_is_not_taken_though_the_user_named_it(put, monkeypatch, caplog):
    put("mine/abc/checkpoint-7/trainer_state.json")
    link(mounts.MOUNTS / "mine/abc/checkpoint-7/more/weights", "/etc/hostname")
    monkeypatch.setenv("NBUTILS_INPUTS", "mine")
    assert taken("abc/checkpoint-*") == []
    assert caplog.messages == ["not taken from mine: abc/checkpoint-7 (links are not followed)"]


def test_an_input_that_is_a_link_and_loops_are_not_walked(put, tmp_path, monkeypatch):
    (tmp_path / "outside" / "01_rerank").mkdir(parents=True)
    link(mounts.MOUNTS / "linked", tmp_path / "outside")
    put("mine/readme")
    link(mounts.MOUNTS / "mine" / "loop", mounts.MOUNTS)
    link(mounts.MOUNTS / "datasets" / "me" / "deep", mounts.MOUNTS / "datasets")
    monkeypatch.setenv("NBUTILS_INPUTS", "mine")
    assert taken("01_rerank") == []


def test_of_a_large_input_the_beginning_is_looked_at_and_that_is_said_once(put, monkeypatch, caplog):
    monkeypatch.setattr(mounts, "MOST", 50)
    for number in range(200):
        put(f"images/a/{number}.png")
    put("images/a/b/params.yaml")
    own = put("mine/params.yaml")
    monkeypatch.setenv("NBUTILS_INPUTS", "mine")
    assert [taken("params.yaml"), taken("params.yaml")] == [[own], [own]]
    assert caplog.messages == ["the input images is large: only its first 50 files and folders are looked at"]


def test_many_files_take_seconds(put):
    folder = put("images/a/0.png").parent
    for number in range(20_000):
        (folder / f"{number}.jpg").symlink_to("0.png")
    started = time.monotonic()
    assert taken("params.yaml") == []
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "caf\udce9", "a'b\"c", "x" * 255])
def test_names_of_all_kinds_are_said_on_one_line(put, name, caplog):
    put(f"{name}/01_rerank/params.json")
    caplog.set_level(logging.INFO)
    said = untaken()
    said.encode()
    assert said.isprintable()
    assert "01_rerank in " in said


def test_many_names_are_cut_short(put):
    for number in range(9):
        put(f"models/x/y/checkpoint-{number}/state")
    assert "and 3 more in models/x/y;" in untaken()


def test_the_package_this_is_run_from_is_no_find_and_another_is(put, monkeypatch):
    put("kit/nbutils/run.py")
    put("own/nbutils/run.py")
    put("data/nbutils/readme")
    monkeypatch.setattr(mounts, "__file__", str(mounts.MOUNTS / "own/nbutils/files/mounts.py"))
    assert "not taken, since no run with your key left it: nbutils in kit; " in untaken()


def test_the_stores_of_strangers_are_looked_at_only_with_a_key(put, monkeypatch, request):
    mine, other = put("mine/runs/store.sqlite"), put("other/store.sqlite")
    assert list(stores()) == []
    assert "runs/store.sqlite in mine; store.sqlite in other" in untaken()
    monkeypatch.setenv("NBUTILS_INPUTS", "mine")
    assert list(stores()) == [(mine, True)]
    request.getfixturevalue("with_key")
    assert list(stores()) == [(mine, True), (other, False)]
    assert untaken() == "", "each of its replies tells whose it is"


@pytest.mark.parametrize(
    "make",
    [
        lambda folder, out: link(folder / "rows.jsonl", out / "file"),
        lambda folder, out: link(folder / "rows.jsonl", "nowhere"),
        lambda folder, out: link(folder / "more" / "rows.jsonl", "../../../../secret"),
        lambda folder, out: (folder.mkdir(parents=True), os.mkfifo(folder / "rows.jsonl")),
    ],
)
def test_a_path_that_a_parameter_names_is_no_link_and_holds_none(put, tmp_path, make):
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_text("{}")
    put("foo/plain.jsonl")
    folder = mounts.MOUNTS / "foo" / "data"
    make(folder, out)
    for path in (folder, *folder.iterdir()):
        with pytest.raises(InputError, match=r"the input foo/data.* links are not followed there"):
            refuse_links(path)
    refuse_links(mounts.MOUNTS / "foo" / "plain.jsonl")


def test_outside_the_inputs_links_are_the_users_own(tmp_path, inputs):
    (tmp_path / "rows.jsonl").write_text("{}")
    link(tmp_path / "mine", tmp_path / "rows.jsonl")
    refuse_links(tmp_path / "mine")


def test_a_folder_reached_through_a_link_is_refused(put, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rows.jsonl").write_text("{}")
    put("foo/readme")
    link(mounts.MOUNTS / "foo" / "sub", tmp_path / "out")
    with pytest.raises(InputError, match="links are not followed there"):
        refuse_links(mounts.MOUNTS / "foo" / "sub" / "rows.jsonl")


def test_a_folder_closed_to_us_ends_the_look_with_a_warning(put, monkeypatch, caplog):
    put("mine/params.yaml")

    def closed(folder):
        raise PermissionError(13, "Permission denied")
        yield

    monkeypatch.setattr(mounts, "_walk", closed)
    monkeypatch.setenv("NBUTILS_INPUTS", "mine")
    assert taken("params.yaml") == []
    assert caplog.messages == ["the input mine cannot be read to its end (Permission denied)"]


def test_copies_of_an_own_output_beside_it_are_no_harm(put, with_key):
    own = put("notebooks/me/out/kaggle/01_rerank/params.json").parent
    seals.seal(own)
    copy = shutil.copytree(own.parent, mounts.MOUNTS / "stranger" / "kaggle") / "01_rerank"
    assert taken("01_rerank") == [own, copy]
