import base64
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from builders import child, prompt_row, scored
from datasets import Dataset, load_dataset
from huggingface_hub import DatasetCard

from nbutils.core.errors import InputError
from nbutils.core.pairs import build, rerank
from nbutils.core.records import PAIRS, PROMPTS, dataset
from nbutils.files import owned, sources
from nbutils.files import stage as stages
from nbutils.files.card import caption
from nbutils.files.mounts import bring
from nbutils.files.seals import is_sealed
from nbutils.files.stage import Stage

PAIR = build([rerank(scored(["A", "B"], [[1.0, 0.5]], chat_template_kwargs={"enable_thinking": False}))])[0]
PRINT_PROMPTS = """
import sys
from datasets import Dataset, load_dataset
for folder in sys.argv[1:]:
    print(load_dataset(folder, "prompts", split="train")["prompt"][0][0]["content"])
"""


def write(stage, text="Ciao?", pairs=(PAIR,), **given):
    datasets = {"prompts": dataset([prompt_row(text)], PROMPTS), "pairs": dataset(pairs, PAIRS)}
    return stage.write(datasets, **{"params": {}, "metrics": {}, "summary": "A summary."} | given)


def leftovers(run_dir):
    return sorted(path.name for path in (run_dir / "work").iterdir() if path.suffix != ".lock")


def test_a_configuration_loads_with_plain_load_dataset_as_it_was_written(tmp_path):
    loaded = load_dataset(str(write(Stage("01_rerank", tmp_path))), "pairs", split="train")
    assert loaded.features == PAIRS
    assert loaded[0] == PAIR


def test_an_empty_configuration_keeps_its_columns_and_leaves_the_others_loadable(tmp_path):
    folder = str(write(Stage("01_rerank", tmp_path), pairs=[]))
    nothing = load_dataset(folder, "pairs", split="train", streaming=True)
    assert list(nothing) == []
    assert nothing.features == PAIRS
    assert len(load_dataset(folder, "prompts", split="train")) == 1


@pytest.mark.xfail(
    strict=True,
    raises=ValueError,
    reason="datasets 5.2 refuses a split without rows unless it is streamed",
)
def test_an_empty_configuration_loads_with_plain_load_dataset(tmp_path):
    assert load_dataset(str(write(Stage("01_rerank", tmp_path), pairs=[])), "pairs")["train"].num_rows == 0


def test_two_runs_with_equal_stage_names_give_their_own_rows_in_one_process_and_in_a_new_one(tmp_path):
    folders = [write(Stage("01_rerank", tmp_path / run), run) for run in ("one", "two")]
    here = [load_dataset(str(f), "prompts", split="train")["prompt"][0][0]["content"] for f in folders]
    assert here == ["one", "two"]
    # a later version of the same folder is not mistaken for the earlier one either
    write(Stage("01_rerank", tmp_path / "one"), "three")
    command = [sys.executable, "-c", PRINT_PROMPTS, *map(str, folders)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == ["three", "two"]


def test_the_card_parses_and_every_path_in_it_exists(tmp_path):
    stage = Stage("01_rerank", tmp_path)
    stage.figure("score_histogram", plt.subplots()[1])
    params = {"judge": "verifier", "prompt_suffix": "\n\nBe | brief.", "run_dir": "/home/me"}
    folder = write(stage, params=params, metrics={"share": float("nan"), "kept": [1, float("inf")]})
    card = DatasetCard.load(folder / "README.md")
    paths = {c["config_name"]: c["data_files"][0]["path"] for c in card.data.to_dict()["configs"]}
    assert set(paths) == {"prompts", "pairs"}
    assert all((folder / path).is_file() for path in paths.values())
    assert "![score histogram](figures/score_histogram.png)" in card.text
    assert (folder / "figures" / "score_histogram.png").read_bytes().startswith(b"\x89PNG")
    for line in ("A summary.", "| `pairs` | 1 |", "| `judge` | `verifier` |"):
        assert line in card.text
    (suffix,) = [line for line in card.text.splitlines() if "prompt_suffix" in line]
    assert suffix.endswith(r"Be \| brief.` |"), "a value stays in its cell of the table"
    assert "/home/me" not in card.text
    assert json.loads((folder / "metrics.json").read_text()) == {"share": None, "kept": [1, None]}
    assert json.loads((folder / "params.json").read_text()) == params


def test_a_figures_caption_stands_beside_the_output_in_the_image_and_on_the_card(tmp_path, monkeypatch):
    outputs = []
    monkeypatch.setattr(stages, "display", lambda image: outputs.append(image._repr_mimebundle_()))
    stage, others = Stage("01_rerank", tmp_path), plt.get_fignums()
    axes = plt.subplots()[1]
    axes.figure.set_label("Scores from 0 to 1 – “fair”.")
    stage.figure("scores", axes)
    stage.figure("no_label", plt.subplots()[1])
    assert plt.get_fignums() == others, "Jupyter would show an open figure a second time"
    folder = write(stage)
    assert [metadata["image/png"]["alt"] for _, metadata in outputs] == ["Scores from 0 to 1 – “fair”.", "no label"]
    shown = [base64.b64decode(data["image/png"]) for data, _ in outputs]
    assert shown == [(folder / "figures" / name).read_bytes() for name in ("scores.png", "no_label.png")]
    assert caption(folder / "figures" / "scores.png") == "Scores from 0 to 1 – “fair”."
    card = (folder / "README.md").read_text()
    assert "![Scores from 0 to 1 – “fair”.](figures/scores.png)" in card
    assert "![no label](figures/no_label.png)" in card


def test_files_and_folders_are_copied_in(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").write_text("w")
    (tmp_path / "log.csv").write_text("step")
    extra = {"adapter": tmp_path / "adapter", "training.csv": tmp_path / "log.csv"}
    folder = write(Stage("04_dpo", tmp_path / "run"), extra=extra)
    assert (folder / "adapter" / "weights").read_text() == "w"
    assert (folder / "training.csv").read_text() == "step"


def test_a_second_writer_of_the_same_stage_is_refused_until_the_first_is_done(tmp_path):
    first = Stage("01_rerank", tmp_path)
    with pytest.raises(InputError, match=r"another process is writing .*01_rerank"):
        Stage("01_rerank", tmp_path)
    Stage("02_sample", tmp_path).close()
    Stage("01_rerank", tmp_path / "other").close()
    write(first)
    Stage("01_rerank", tmp_path).close()


def test_another_process_is_refused_as_well_and_a_killed_one_holds_no_lock(tmp_path):
    stage = Stage("01_rerank", tmp_path)

    def open_it():
        with pytest.raises(InputError, match="another process"):
            Stage("01_rerank", tmp_path)

    process = child(open_it)
    process.join(20)
    assert process.exitcode == 0
    stage.close()
    process = child(lambda: Stage("01_rerank", tmp_path) and os.kill(os.getpid(), 9))
    process.join(20)
    assert process.exitcode == -9
    Stage("01_rerank", tmp_path).close()


def test_a_stage_can_be_written_twice_and_the_later_rows_stay(tmp_path):
    stage = Stage("01_rerank", tmp_path)
    write(stage, "one")
    folder = write(stage, "two")
    assert len(list(folder.glob("prompts/*.parquet"))) == 1
    assert load_dataset(str(folder), "prompts", split="train")["prompt"][0][0]["content"] == "two"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("where", "what"), [(Dataset, "to_parquet"), (Path, "write_text"), (DatasetCard, "save")])
def test_a_full_disk_leaves_the_old_folder_whole_and_no_draft(tmp_path, monkeypatch, where, what):
    folder = write(Stage("01_rerank", tmp_path), "old")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def refuse(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    stage = Stage("01_rerank", tmp_path)
    with monkeypatch.context() as full:
        full.setattr(where, what, refuse)
        with pytest.raises(InputError, match=r"cannot write .*01_rerank.*No space left on device"):
            write(stage, "new")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert leftovers(tmp_path) == []
    write(stage, "new")  # the same cell again, once there is space


def test_what_a_killed_run_left_is_removed_and_its_checkpoints_stay(tmp_path):
    stage = Stage("04_dpo", tmp_path)
    (stage.scratch("checkpoints") / "step").write_text("1")
    (tmp_path / "work" / "04_dpo.draft-abc").mkdir()
    (tmp_path / "work" / "02_sample.draft-abc").mkdir()
    stage.close()
    again = Stage("04_dpo", tmp_path)
    assert leftovers(tmp_path) == ["02_sample.draft-abc", "checkpoints"]
    assert (again.scratch("checkpoints") / "step").read_text() == "1"


def test_a_run_dir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"run_dir: cannot write to .*file/run \(Not a directory\)"):
        Stage("01_rerank", tmp_path / "file" / "run")


def test_the_store_and_the_models_are_shared_by_runs_side_by_side(tmp_path):
    one, two = (Stage("01_rerank", tmp_path / run) for run in ("one", "two"))
    assert one.store_path == two.store_path == tmp_path / "store.sqlite"
    assert one.model_cache == two.model_cache == tmp_path / "models"


def test_a_folder_can_be_moved_and_still_loads(tmp_path):
    moved = Path(shutil.move(write(Stage("01_rerank", tmp_path / "run"), "moved"), tmp_path / "elsewhere"))
    assert load_dataset(str(moved), "prompts", split="train")["prompt"][0][0]["content"] == "moved"


def listed(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def found(tmp_path):
    """A folder and a file on a read-only input."""
    place = tmp_path / "input"
    (place / "checkpoint-2" / "more").mkdir(parents=True)
    for name in ("checkpoint-2/state", "checkpoint-2/more/weights", "shard.json"):
        (place / name).write_text(name)
        (place / name).chmod(0o444)
    for folder in (place / "checkpoint-2" / "more", place / "checkpoint-2"):
        folder.chmod(0o555)
    return [place / "checkpoint-2", place / "shard.json"]


WHOLE = {f"checkpoint-2/{name}": f"checkpoint-2/{name}" for name in ("state", "more/weights")} | {
    "shard.json": "shard.json"
}


def test_unfinished_work_is_copied_once_and_can_be_deleted(found, tmp_path, caplog):
    caplog.set_level("INFO", logger="nbutils")
    work = tmp_path / "work"
    bring(found, work)
    bring(found, work)
    assert listed(work) == WHOLE
    assert caplog.messages == [f"taking over 2 unfinished pieces of work (0.0 MiB) from {tmp_path}/input"]
    assert all(path.stat().st_mode & 0o200 for path in work.rglob("*"))


def test_what_is_here_stays_and_of_one_name_the_first_is_taken(found, tmp_path):
    for folder in ("work", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "work" / "shard.json").write_text("mine")
    (tmp_path / "other" / "checkpoint-2").write_text("another")
    bring([*found, tmp_path / "other" / "checkpoint-2"], tmp_path / "work")
    assert listed(tmp_path / "work") == WHOLE | {"shard.json": "mine"}


def test_a_copy_that_was_killed_is_begun_anew(found, tmp_path, monkeypatch):
    def killed(path, to):
        if path.name == "weights":
            Path(to).write_text("check")
            raise KeyboardInterrupt
        return copyfile(path, to)

    copyfile = shutil.copyfile
    monkeypatch.setattr(shutil, "copyfile", killed)
    with pytest.raises(KeyboardInterrupt):
        bring(found, tmp_path / "work")
    monkeypatch.undo()
    assert not (tmp_path / "work" / "checkpoint-2").exists()
    bring(found, tmp_path / "work")
    assert listed(tmp_path / "work") == WHOLE


def test_a_disk_too_small_for_the_copies_is_told_before_and_a_full_one_when_it_is(found, tmp_path, monkeypatch):
    work = tmp_path / "work"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=3))
    with pytest.raises(InputError, match=r"cannot copy the unfinished work in .*/input to .*/work: it takes 0 MiB and"):
        bring(found, work)
    assert listed(work) == {}
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match=r"checkpoint-2 to .*/work \(No space left on device\); free space there, or"):
        bring(found, work)
    monkeypatch.undo()
    assert listed(work) == {}
    bring(found, work)
    assert listed(work) == WHOLE


# Files that the kit did not write


def no_manifest(folder):
    (folder / "manifest.json").unlink()


THESIS = {
    "a thesis": {"thesis.tex": "years of work"},
    "with folders": {"chapter/one/text.md": "uno", "chapter/two.md": "due"},
    "with names of ours": {"README.md": "# my thesis", "params.json": "{}", "metrics.json": "{}"},
    "with a table": {"pairs/train-0123456789ab.parquet": "rows"},
    "with another program's manifest": {"manifest.json": '{"name": "app", "files": {"thesis.tex": "x"}}'},
    "with a manifest of no sense": {"manifest.json": '{"written_by": "nbutils", "files": 3}', "a": "b"},
    "with a torn manifest": {"manifest.json": '{"written_by": "nbutils", "fi', "a": "b"},
    "hidden files": {".git/HEAD": "ref: refs/heads/main"},
    "a name with a line end": {"tesi\nfinale.txt": "anni"},
    "the mark of a draft": {".unfinished": "", "tesi.txt": "anni di lavoro"},
}


@pytest.mark.parametrize("content", THESIS.values(), ids=THESIS)
@pytest.mark.parametrize("stem", ["01_rerank", "03_judge"])
def test_a_folder_that_no_stage_wrote_is_refused_by_name_at_the_opening_and_left_as_it_is(tmp_path, stem, content):
    put(tmp_path / stem, content)
    with pytest.raises(InputError, match=rf"run_dir: .*{stem} holds files that no stage wrote \(") as said:
        Stage(stem, tmp_path)
    assert "\n" not in str(said.value)
    assert listed(tmp_path / stem) == content
    Stage("02_sample", tmp_path).close()
    shutil.move(tmp_path / stem, tmp_path / "elsewhere")
    Stage(stem, tmp_path).close()


def put(folder, content):
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_a_folder_filled_while_the_stage_worked_is_not_replaced_either(tmp_path):
    stage = Stage("01_rerank", tmp_path)
    put(tmp_path / "01_rerank", {"thesis.tex": "years"})
    with pytest.raises(InputError, match="holds files that no stage wrote"):
        write(stage)
    assert listed(tmp_path / "01_rerank") == {"thesis.tex": "years"}
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("make", "kind"), [
    (lambda p, other: p.symlink_to(other), "a link"),
    (lambda p, other: p.symlink_to("nowhere"), "a link"),
    (lambda p, other: p.write_text("x"), "a file"),
    (lambda p, other: os.mkfifo(p), "a file"),
])  # fmt: skip
def test_what_is_no_folder_in_a_stages_place_is_refused(tmp_path, make, kind):
    put(tmp_path / "other", {"a": "b"})
    make(tmp_path / "01_rerank", tmp_path / "other")
    with pytest.raises(InputError, match=rf"run_dir: .*01_rerank is {kind}, expected a folder"):
        Stage("01_rerank", tmp_path)
    assert listed(tmp_path / "other") == {"a": "b"}


OWN = {
    "notes.md": "mine",
    ".env": "TOKEN=1",
    "figures/mine.svg": "<svg/>",
    "pairs/notes.txt": "mine too",
    "pairs/train-0123456789ab.parquet": "rows of mine",
    "my/folder/file": "deep",
    "prompts/più/note.txt": "perché",
}


@pytest.mark.parametrize("how", ["exchange", "two renamings"])
def test_files_of_the_users_own_stay_when_a_stage_is_written_anew(tmp_path, monkeypatch, caplog, how):
    if how == "two renamings":
        monkeypatch.setattr(owned.ctypes, "CDLL", lambda _: object())
    folder = write(Stage("01_rerank", tmp_path), "one")
    put(folder, OWN)
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "folder-link").symlink_to("/etc")
    stage = Stage("01_rerank", tmp_path)
    for text in ("two", "three"):
        write(stage, text)
        there = {path: (folder / path).read_text() for path in OWN}
        assert there == OWN
        assert (folder / "link").readlink() == Path("/etc/passwd")
        assert (folder / "folder-link").readlink() == Path("/etc")
        assert not list(folder.glob("kept-*"))
        assert len(list(folder.glob("prompts/*.parquet"))) == 1
        assert load_dataset(str(folder), "prompts", split="train")["prompt"][0][0]["content"] == text
    assert leftovers(tmp_path) == []
    assert caplog.messages[0] == f"{folder}: 9 files that no stage wrote, or that were changed since, are kept"


@pytest.mark.parametrize("name", ["README.md", "params.json", "metrics.json", "figures/a.png", "pairs"])
def test_a_file_of_ours_that_was_changed_is_kept_beside_the_new_one(tmp_path, caplog, name):
    def once(run_dir):
        stage = Stage("01_rerank", run_dir)
        stage.figure("a", plt.subplots()[1])
        return write(stage)

    folder = once(tmp_path)
    path = next((folder / name).glob("*")) if name == "pairs" else folder / name
    name = path.relative_to(folder)
    for n, text in ((1, b"changed by hand"), (2, b"changed again")):
        path.write_bytes(text)
        once(tmp_path)
        assert (folder / f"kept-{n}" / name).read_bytes() == text
        assert path.read_bytes() != text
        assert "those that were changed or whose name was taken are in kept-" in caplog.text
    assert (folder / "kept-1" / name).read_bytes() == b"changed by hand"
    assert len([p for p in folder.rglob(path.name) if p.is_file()]) == 3


def test_a_file_of_the_users_whose_name_the_new_folder_needs_is_kept(tmp_path):
    folder = write(Stage("01_rerank", tmp_path))
    put(folder, {"figures/late.png": "mine", "training.csv/deep": "a folder where a file will be", "adapter": "mine"})
    put(tmp_path, {"log.csv": "step", "made/weights": "w"})
    stage = Stage("01_rerank", tmp_path)
    stage.figure("late", plt.subplots()[1])
    write(stage, extra={"training.csv": tmp_path / "log.csv", "adapter": tmp_path / "made"})
    kept = {"figures/late.png": "mine", "training.csv/deep": "a folder where a file will be", "adapter": "mine"}
    assert listed(folder / "kept-1") == kept
    assert (folder / "training.csv").read_text() == "step"
    assert (folder / "adapter/weights").read_text() == "w"


def test_a_folder_of_a_version_without_manifests_is_replaced_and_only_its_rows_are_removed(tmp_path):
    stage = Stage("01_rerank", tmp_path)
    stage.figure("a", plt.subplots()[1])
    folder = write(stage, "one")
    no_manifest(folder)
    put(folder, {"run.json": "{}", "thesis.tex": "years"})
    old = {path: (folder / path).read_bytes() for path in ("README.md", "params.json", "metrics.json")}
    write(Stage("01_rerank", tmp_path), "two")
    assert {path: (folder / "kept-1" / path).read_bytes() for path in old} == old
    assert (folder / "thesis.tex").read_text() == "years"
    assert len(list(folder.rglob("*.parquet"))) == 2
    write(Stage("01_rerank", tmp_path), "three")
    assert not (folder / "kept-2").exists()


@pytest.mark.parametrize("at", ["_swap", "carry"])
def test_a_stage_killed_while_it_replaces_its_folder_loses_nothing_of_the_users(tmp_path, monkeypatch, at):
    folder = write(Stage("01_rerank", tmp_path), "one")
    put(folder, OWN | {"README.md": "my own card", ".unfinished": "mine"})
    with monkeypatch.context() as killed:
        killed.setattr(owned, at, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write(Stage("01_rerank", tmp_path), "two")
    for text in ("after", "and again"):
        write(Stage("01_rerank", tmp_path), text)
        assert {path: (folder / path).read_text() for path in OWN} == OWN
        assert (folder / "kept-1/README.md").read_text() == "my own card"
        assert (folder / ".unfinished").read_text() == "mine"
        assert load_dataset(str(folder), "prompts", split="train")["prompt"][0][0]["content"] == text
    assert leftovers(tmp_path) == []


A_STAGE = {"written_by": "nbutils", "files": {"a": hashlib.sha256(b"b").hexdigest()}}


@pytest.mark.parametrize("content", [
    {"01_rerank/thesis.tex": "years"}, {"thesis.tex": "years"}, {"a/b": "c"},
    {".unfinished": "", "01_rerank/tesi.tex": "anni"}, {".unfinished": "da finire: capitolo 3", "tesi.tex": "anni"},
    {".unfinished": '{"written_by": "nbutils"}', "01_rerank/a": "b"}, {".draft": "", ".whole": "", "a": "b"},
    {".draft": '{"written_by": "nbutils"}', "a": "b"}, {".draft": "[1]", "01_rerank/a": "b"},
    {".draft": '{"written_by": "nbutils", "draft": "01_rerank.draft-x1y2z3"}', "01_rerank/a": "b"},  # a copy of one
    {".draft": '{"written_by": "someone", "draft": "01_rerank.draft-thesis"}', "01_rerank/a": "b"},
    {"01_rerank/manifest.json": json.dumps(A_STAGE), "01_rerank/a": "b"},  # a copy of a stage, kept by hand
])  # fmt: skip
def test_a_folder_that_is_named_like_a_draft_stays_unless_it_is_one(tmp_path, caplog, content):
    put(tmp_path / "work/01_rerank.draft-thesis", content)
    put(tmp_path / "other/01_rerank", {".unfinished": "", "thesis.tex": "years"})
    (tmp_path / "work/01_rerank.draft-link").symlink_to(tmp_path / "other")
    write(Stage("01_rerank", tmp_path))
    assert listed(tmp_path / "work/01_rerank.draft-thesis") == content
    assert listed(tmp_path / "other/01_rerank") == {".unfinished": "", "thesis.tex": "years"}
    assert "work/01_rerank.draft-thesis is not known as a draft of the kit and stays" in caplog.text


def test_a_draft_stays_while_its_process_lives_and_no_longer(tmp_path):
    def work(end):
        (owned.draft(tmp_path / "models/a", tmp_path) / "weights").write_text("w")
        os.kill(os.getpid(), 9) if end else time.sleep(60)

    live, dead = child(lambda: work(False)), child(lambda: work(True))
    dead.join(20)
    ends = time.monotonic() + 20
    while len(list(tmp_path.glob("a.draft-*/a/weights"))) < 2 and time.monotonic() < ends:
        time.sleep(0.05)
    mine = owned.draft(tmp_path / "a", tmp_path)
    owned.clear(tmp_path / "a", tmp_path)
    there = set(tmp_path.glob("a.draft-*"))
    assert len(there) == 2
    assert mine.parent in there
    owned.abandon(mine)
    live.kill()
    live.join(20)
    (tmp_path / "a").symlink_to(tmp_path)  # nothing of this is looked at: the draft was not whole
    owned.clear(tmp_path / "a", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_process_that_puts_its_draft_in_place_is_not_helped(tmp_path, monkeypatch):
    folder = tmp_path / "01_rerank"
    put(folder, {"tesi.txt": "anni"})
    made = owned.draft(folder, tmp_path)
    (made / "new").write_text("n")

    def meanwhile(*_):
        owned.clear(folder, tmp_path)
        assert (made / "new").exists()
        swap(*_)
        owned.clear(folder, tmp_path)
        assert (made / "tesi.txt").exists()

    swap = owned._swap
    monkeypatch.setattr(owned, "_swap", meanwhile)
    owned.finish(made, folder)
    assert listed(folder).keys() == {"tesi.txt", "new", "manifest.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["01_rerank"]


@pytest.mark.parametrize("manifest", [None, '{"name": "app"}'], ids=["ours", "another program's"])
def test_what_one_replacement_keeps_lies_in_one_place(tmp_path, manifest):
    folder, texts = tmp_path / "report", {"it/uno.md": "primo", "due.csv": "1,2", "tre.png": "p"}

    def renew(n):
        put(tmp_path / f"new{n}", {name: f"{text} {n}" for name, text in texts.items()})
        owned.place_all({name: tmp_path / f"new{n}" / name for name in texts}, folder)

    put(folder, {"it/uno.md": "mio"} | ({"manifest.json": manifest} if manifest else {}))
    renew(1)
    assert listed(folder / "kept-1") == {"it/uno.md": "mio"} | ({"manifest.json": manifest} if manifest else {})
    put(folder, {"it/uno.md": "note", "tre.png": "mio"})
    renew(2)
    assert listed(folder / "kept-2") == {"it/uno.md": "note", "tre.png": "mio"}
    renew(3)
    assert {p.name for p in folder.iterdir()} == {"it", "due.csv", "tre.png", "manifest.json", "kept-1", "kept-2"}


@pytest.mark.parametrize("make", [Path.write_text, Path.symlink_to])
def test_a_lock_empties_no_file_and_follows_no_link(tmp_path, make):
    put(tmp_path, {"thesis.tex": "years"})
    (tmp_path / "work").mkdir()
    make(tmp_path / "work/01_rerank.lock", str(tmp_path / "thesis.tex"))
    if make is Path.symlink_to:
        with pytest.raises(InputError, match="run_dir: cannot write to"):
            Stage("01_rerank", tmp_path)
    else:
        Stage("01_rerank", tmp_path).close()
    assert (tmp_path / "thesis.tex").read_text() == "years"
    assert (tmp_path / "work/01_rerank.lock").read_text() in ("years", str(tmp_path / "thesis.tex"))


def test_the_manifest_lists_every_file_with_its_hash(tmp_path):
    folder = write(Stage("01_rerank", tmp_path))
    content = json.loads((folder / "manifest.json").read_text())
    assert content["written_by"] == "nbutils"
    there = {path for path in listed_names(folder) if path != "manifest.json"}
    assert set(content["files"]) == there
    card = hashlib.sha256((folder / "README.md").read_bytes()).hexdigest()
    assert content["files"]["README.md"] == card


def listed_names(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_of_a_folder_that_is_copied_in_links_and_what_its_manifest_does_not_list_stay_out(tmp_path, caplog):
    put(tmp_path / "adapter", {"adapter_config.json": "{}", "sub/weights": "w"})
    put(tmp_path / "merged", {"config.json": "{}"})
    owned.record(tmp_path / "merged")
    put(tmp_path / "merged", {".env": "TOKEN=1", "README.md": "the card, written later"})
    for name in ("passwd", "sub/passwd"):
        (tmp_path / "adapter" / name).symlink_to("/etc/passwd")
    (tmp_path / "adapter/etc").symlink_to("/etc")
    os.mkfifo(tmp_path / "adapter/pipe")
    extra = {name: tmp_path / name for name in ("adapter", "merged")}
    folder = write(Stage("04_dpo", tmp_path / "run"), extra=extra)
    assert listed_names(folder / "adapter") == {"adapter_config.json", "sub/weights"}
    assert listed_names(folder / "merged") == {"config.json", "README.md"}
    assert "not taken into 04_dpo, since no stage wrote it: etc, passwd, pipe and 1 more" in caplog.text


@pytest.mark.parametrize("name", ["run [1]", "run*", "run?x", "run{1}", "run[a-z]*", "a::b", "100%", "più è", "run#1"])
def test_a_run_whose_name_looks_like_a_pattern_is_that_folder(tmp_path, name):
    (tmp_path / "run 1").mkdir()
    folder = write(Stage("01_rerank", tmp_path / name), "one")
    write(Stage("01_rerank", tmp_path / name), "two")
    assert [p.name for p in tmp_path.iterdir() if p.name != "run 1"] == [name]
    (row,) = sources.read(str(folder), "prompts")
    assert row["prompt"][0]["content"] == "two"


def test_what_a_session_writes_or_takes_over_is_known_to_the_next_one(found, tmp_path, with_key):
    folder = write(Stage("01_rerank", tmp_path / "kaggle"))
    write(Stage("01_rerank", tmp_path / "kaggle"), text="Chi?")
    assert is_sealed(folder)
    assert {path.name for path in folder.parent.iterdir()} == {"01_rerank", "01_rerank.seal", "work"}
    bring(found, tmp_path / "next" / "abc")
    assert all(is_sealed(tmp_path / "next" / "abc" / path.name) for path in found)


def test_without_a_key_nothing_lies_beside_a_stage(tmp_path):
    write(Stage("01_rerank", tmp_path / "kaggle"))
    assert {path.name for path in (tmp_path / "kaggle").iterdir()} == {"01_rerank", "work"}
