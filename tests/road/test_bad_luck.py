"""What can go wrong on the road: full disks, torn writes, other versions, jumping clocks, and text of every kind.

Every case ends in one clear sentence and a run that can go on. What a module's own tests show is not shown again here:
full disks, kills and read-only inputs of the store in test_store, torn checkpoints in test_training, adapters of
another base in test_models, Hub ids that cannot be reached in test_sources and test_models.
"""

import json
import os
import subprocess
import sys
import time
import types
from contextlib import suppress
from pathlib import Path

import pytest
import servers
import tiny
from builders import ScriptedEngine, notebook_shell, prompt_row, request
from dpo import pair, small_trainer, some_pairs
from road import grades, judge_file, metrics, run_profile, shown, stored, write_profile

from nbutils import models, notebook, params, run
from nbutils.core import records
from nbutils.core.errors import InputError, Interrupted
from nbutils.core.markup import printable
from nbutils.core.records import PAIRS, PROMPTS, dataset, encodable
from nbutils.engines.asking import answer
from nbutils.engines.store import Store
from nbutils.files import folders, owned, sources
from nbutils.files.stage import Stage
from nbutils.models import gguf
from nbutils.training import loop
from tools import outcomes

# name -> text; each is a prompt of 01, 02 and 04, and an answer
KINDS = {
    "surrogate": "Mezza emoji \ud83d da sola, e due metà che si trovano: \ud83d\ude00.",
    "emoji": "La famiglia 👩‍👩‍👧‍👦, la bandiera 🏴󠁧󠁢󠁳󠁣󠁴󠁿 e il pollice 👍🏽 stanno insieme.",
    "right to left": "Parole arabe مرحبا بالعالم ed ebraiche שלום עולם nella frase.",
    "bidi controls": "Testo \u202egirato\u202c e \u2066isolato\u2069 fra segni \u200finvisibili\u200e del verso.",
    "zero width": "Uno\u200bspazio\u200cche\u200dnon\ufeffsi\u2060vede fra le parole.",
    "combining": "Perche\u0301 e perché non sono gli stessi punti di codice: a\u0300e\u0300i\u0300.",
    "control": "Prima \x00 dopo \x07 il \x1b[31mrosso\x1b[0m \x7f e \x85 la fine.",
    "separators": "Una riga\u2028un'altra\u2029un capoverso\x0bverticale\x0cpagina.",
    "grapheme": "Una sola lettera " + "z" + "\u0336\u0489" * 400 + " molto alta.",
    "markup": "Il prezzo è $5 | \\alpha_{x} `codice` <b>grassetto</b> --- e {chiavi} %s.",
}
LONG = " ".join(f"parola{i}" for i in range(10_000))[:100_000]
WIDE = "".join(chr(0x4E00 + i) for i in range(900))  # within the window of 02 and over the context in tokens
SYSTEM = "Rispondi bene 😀 \u202eאב\u202c."


def ascii_jsonl(path: Path, rows: list[dict]) -> str:
    """Write rows as JSON that spells lone surrogates out, as real exports do."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def policy_or_judge(body):
    """As the policy answer with text of every kind, as the judge prefer the longer answer."""
    texts = shown(body)
    if texts:
        return grades(*(4 if len(text) == max(map(len, texts)) else 2 for text in texts))
    kinds, asked = list(KINDS.values()), body["messages"][-1]["content"]
    own = next(i for i, text in enumerate(kinds) if encodable(text) in asked)
    return f"{kinds[(own + body['seed']) % len(kinds)]} {'Ecco. ' * (body['seed'] % 3)}"


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """One run of all four notebooks over text of every kind and prompts of 100,000 characters."""
    home = tmp_path_factory.mktemp("road")
    model = str(tiny.make(home / "tiny", "qwen3"))
    pairs = [{"q": text, "good": f"{text} È la risposta lunga.", "bad": text[::-1]} for text in KINDS.values()]
    pairs += [{"q": LONG, "good": "Una risposta lunga.", "bad": "Corta."}]
    pairs += [{"q": "Riassumi.", "good": LONG, "bad": f"{LONG[:20_000]} e basta."}]
    pairs += [
        {"q": f"Che cosa fa il numero {i}?", "good": f"Conta fino a {i} e ride.", "bad": "No."} for i in range(12)
    ]
    prompts = [{"q": f"Scrivi di questo, {name}: {text}", "kind": name} for name, text in KINDS.items()]
    prompts += [{"q": LONG, "kind": "long"}, {"q": WIDE, "kind": "wide"}]
    held = [{"q": f"Un'altra domanda sul tema {name}: {text[::-1]}"} for name, text in KINDS.items()]
    (home / "training.yaml").write_text("{max_length: 512, per_device_train_batch_size: 2, max_steps: 2, lora_r: 2, "
                                        "gradient_accumulation_steps: 1}")  # fmt: skip
    with servers.ChatServer(policy_or_judge) as server:
        judge = judge_file(home / "judge 😀.yaml", server.url)
        sampling = "temperature: 0.9, top_p: 1.0, max_tokens: 24"
        profile = write_profile(
            home / "profile",
            {
                "01_rerank": {"dataset": ascii_jsonl(home / "pairs.jsonl", pairs), "prompt_column": "q",
                              "chosen_column": "good", "rejected_column": "bad", "judge": judge},
                "02_sample": {"prompts": ascii_jsonl(home / "prompts.jsonl", prompts), "prompt_column": "q",
                              "exclude": "", "model": model, "engine": server.url, "sampling": sampling,
                              "system_prompt": SYSTEM, "n_samples": 3},
                "03_judge": {"judge": judge, "language": "", "min_chosen": 0.0},
                "04_dpo": {"model": model, "training": str(home / "training.yaml"), "judge": judge, "language": "",
                           "eval_prompts": ascii_jsonl(home / "held.jsonl", held), "prompt_column": "q",
                           "sampling": sampling},
            },
        )  # fmt: skip
        run_dir = home / "runs" / "ogni 😀 testo"
        ended = run_profile(profile, run_dir)
        assert ended.returncode == 0, ended.stderr
        plan = run.read_profile(profile, run_dir)
        yield types.SimpleNamespace(run_dir=run_dir, rows=pairs, prompts=prompts, held=held, plan=plan)


# --- text of every kind, and prompts of 100,000 characters, through all four notebooks


def read(road, stem, config, features):
    return sources.read_checked(stem, config, features, run_dir=road.run_dir)


def test_rows_of_every_kind_are_judged_with_their_text_unchanged(road):
    judged = read(road, "01_rerank", "judged", records.JUDGED)
    seen = [(row["prompt"][0]["content"], *(r["text"] for r in row["responses"])) for row in judged]
    assert seen == [tuple(map(encodable, row.values())) for row in road.rows]
    assert {row["verdict"] for row in judged} == {"kept"}, "the longer answer, in both orders"
    built = {row["prompt_id"]: row for row in read(road, "01_rerank", "pairs", PAIRS)}
    assert [built[row["prompt_id"]]["chosen"][0]["content"] for row in judged] == [texts[1] for texts in seen]


def test_answers_that_the_judge_does_not_read_to_their_end_are_counted(road):
    assert metrics(road.run_dir, "01_rerank")["judging"]["shortened"] == 2


def test_every_dropped_prompt_has_its_reason_and_the_others_are_sampled_and_paired(road):
    assert metrics(road.run_dir, "02_sample")["dropped"] == {"too long": 1, "over context": 1}
    sampled = read(road, "02_sample", "samples", records.SAMPLES)
    asked = [[turn["content"] for turn in row["prompt"]] for row in sampled]
    assert sorted(asked) == sorted([SYSTEM, encodable(row["q"])] for row in road.prompts[:-2])
    said = {row["prompt_id"]: {r["text"] for r in row["responses"]} for row in sampled}
    answers = " ".join(text for texts in said.values() for text in texts)
    assert [name for name, text in KINDS.items() if encodable(text) not in answers] == []
    built = read(road, "03_judge", "pairs", PAIRS)
    assert len(built) == len(KINDS)
    assert all({row["chosen"][0]["content"], row["rejected"][0]["content"]} <= said[row["prompt_id"]] for row in built)


def test_pairs_too_long_to_train_on_are_counted_and_the_others_trained_on(road):
    counts = metrics(road.run_dir, "04_dpo")["pairs"]
    assert counts["too_long"] >= 2, "the two rows of 100,000 characters"
    assert counts["train"] + counts["curves"] + counts["too_long"] == len(road.rows) + len(KINDS)
    held = read(road, "04_dpo", "evaluation_held", records.EVALUATION)
    assert {row["prompt"][0]["content"] for row in held} == {encodable(row["q"]) for row in road.held}


@pytest.mark.parametrize("stem", params.STEMS)
def test_notebooks_and_cards_stay_readable(road, stem):
    cells = json.loads((road.run_dir / f"{stem}.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    assert "Traceback" not in printed, "of a kernel that cannot send half an emoji"
    assert stem not in ("01_rerank", "02_sample") or encodable(KINDS["surrogate"]) in printed
    card = (road.run_dir / stem / "README.md").read_text(encoding="utf-8")
    # what turns a line of text around is written out
    assert (printable(SYSTEM) if stem == "02_sample" else "judge 😀") in card


# --- what changes between stages


def test_a_source_that_changed_asks_only_what_is_new_and_what_rests_on_it_is_no_longer_done(road):
    assert done(road) == {"01_rerank": True, "02_sample": True, "03_judge": True, "04_dpo": True}
    rows = [*road.rows[:3], road.rows[3] | {"bad": "Tutt'altro."}, *road.rows[4:]]
    ascii_jsonl(Path(road.plan["01_rerank"]["dataset"]), rows)
    assert done(road) == {"01_rerank": False, "02_sample": True, "03_judge": True, "04_dpo": True}
    known = len(stored(road.run_dir))
    run.execute("01_rerank", road.plan["01_rerank"])
    assert len(stored(road.run_dir)) == known + 3, "the changed row in two orders, and the trial's repeat"
    assert done(road) == {"01_rerank": True, "02_sample": True, "03_judge": True, "04_dpo": False}
    ascii_jsonl(Path(road.plan["02_sample"]["prompts"]), road.prompts[1:])
    assert done(road) == {"01_rerank": True, "02_sample": False, "03_judge": True, "04_dpo": False}


def test_samples_that_were_replaced_are_judged_anew(road):
    rows = read(road, "02_sample", "samples", records.SAMPLES)
    Stage("02_sample", road.run_dir).write(
        {"samples": dataset(rows[1:], records.SAMPLES)}, params={}, metrics={}, summary=""
    )
    assert not done(road)["03_judge"]


def done(road):
    return {stem: run.is_done(stem, values) for stem, values in road.plan.items()}


def test_a_stage_that_is_written_anew_while_a_later_one_reads_it_says_so(tmp_path, monkeypatch):
    write(tmp_path, "old")
    before = folders._configs(tmp_path / "01_rerank")
    write(tmp_path, "new")
    with monkeypatch.context() as late:
        late.setattr(folders, "_configs", lambda _: before)
        with pytest.raises(InputError, match=r"it is not there; if the stage was written anew .*run the same cell"):
            content(tmp_path)
    assert content(tmp_path) == "new"


# --- a run folder from another version


def test_rows_with_other_columns_name_the_column_and_the_way_on(tmp_path):
    old = records.Features({**PROMPTS, "topic": records.Value("string")})
    Stage("01_rerank", tmp_path).write({"prompts": dataset([prompt_row(topic="x")], old)}, **EMPTY)
    with pytest.raises(InputError, match=r"column 'topic' is not in the schema; if another version .* run that stage"):
        content(tmp_path)
    write(tmp_path, "new")
    assert content(tmp_path) == "new"


@pytest.mark.parametrize("mark", ["[]", '{"params": 1}', "3", "", "\udcff"])
def test_the_mark_of_another_version_means_not_done(mark, tmp_path):
    (tmp_path / "01_rerank").mkdir()
    (tmp_path / "01_rerank.ipynb").touch()
    (tmp_path / "01_rerank" / "run.json").write_bytes(mark.encode(errors="surrogateescape"))
    assert not run.is_done("01_rerank", {"run_dir": str(tmp_path), "dataset": "a/b"})


@pytest.mark.parametrize("numbers", [None, "", "[]", "{}", '{"proof": {"held": {}}}', '{"proof": {"held": 3}}'])
def test_metrics_of_another_shape_are_named(numbers, tmp_path):
    (tmp_path / "04_dpo").mkdir()
    if numbers is not None:
        (tmp_path / "04_dpo" / "metrics.json").write_text(numbers)
    with pytest.raises(InputError, match=r"metrics.json does not hold the numbers of this version of 04 .*; remove "):
        outcomes.measured(tmp_path)


# --- disks that are full or cannot be written


@pytest.fixture
def disk(tmp_path):
    """A disk of 128 KB, empty; the shell's `mount -o remount` gives it another size, or makes it read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", place]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def remount(place, option):
    subprocess.run(["mount", "-o", f"remount,{option}", place], check=True)


def fill(place):
    """Leave not a byte on a disk; return the file to remove."""
    with (place / "filler").open("wb", buffering=0) as out, suppress(OSError):
        while True:
            out.write(bytes(4096))
    return place / "filler"


EMPTY = {"params": {}, "metrics": {}, "summary": ""}


def write(run_dir, text, **extra):
    stage = Stage("01_rerank", run_dir)
    try:
        stage.write({"prompts": dataset([prompt_row(text)], PROMPTS)}, **EMPTY, **extra)
    finally:
        stage.close()


def content(run_dir):
    (row,) = sources.read_checked("01_rerank", "prompts", PROMPTS, run_dir=run_dir)
    return row["prompt"][0]["content"]


@pytest.mark.parametrize("text", ["new", "".join(map(chr, range(0x4E00, 0x9E00))) * 4])
def test_a_stage_that_does_not_fit_on_its_disk_leaves_the_old_one(text, disk, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").write_bytes(os.urandom(200_000))
    write(disk, "old")
    with pytest.raises(InputError, match=r"cannot write .*/01_rerank \(.*No space left on device.*\); make room there"):
        write(disk, text, extra={"adapter": tmp_path / "adapter"})
    assert content(disk) == "old"
    remount(disk, "size=9m")
    write(disk, text, extra={"adapter": tmp_path / "adapter"})
    assert content(disk) == text


def test_a_read_only_run_folder_is_named_and_can_still_be_read(disk):
    write(disk / "run", "old")
    stage = Stage("02_sample", disk / "run")
    stage.close()
    remount(disk, "ro")
    with pytest.raises(InputError, match=r"run_dir: cannot write to .*Read-only file system\); choose a writable fol"):
        Stage("01_rerank", disk / "run")
    with pytest.raises(InputError, match=r"cannot open the store .*; move it away to start a new one, or name another"):
        Store(disk / "store.sqlite")
    assert content(disk / "run") == "old"
    remount(disk, "rw")
    write(disk / "run", "new")
    assert content(disk / "run") == "new"


@pytest.mark.parametrize("size", [60, 100, 200])  # KB: safetensors, tokenizers, torch is first to find no room
def test_a_full_disk_stops_the_training_in_one_sentence_and_with_room_it_goes_on(size, disk, tiny_llama):
    remount(disk, f"size={size}k")
    options = {"lora_r": 8, "max_steps": 4}

    def trained():
        trainer = small_trainer(tiny_llama, disk, some_pairs(8), options=options)
        log = loop.train(trainer, csv=disk / "log.csv")
        loop.save(trainer, disk / "adapter")
        return list(log.step)

    with pytest.raises(InputError, match=r"cannot write to /.* \(.+\); make room there"):
        trained()
    remount(disk, "size=9m")
    assert trained() == [1, 2, 3, 4]


def test_a_log_that_cannot_be_written_stops_the_training_which_goes_on_with_room(disk, tmp_path, tiny_llama):
    filler = fill(disk)

    def trained():
        trainer = small_trainer(tiny_llama, tmp_path, some_pairs(8), options={"max_steps": 2})
        return loop.train(trainer, csv=disk / "log.csv")

    with pytest.raises(InputError, match=r"No space left on device\); make room there"):
        trained()
    filler.unlink()
    assert list(trained().step) == [1, 2]
    assert (disk / "log.csv").read_text().count("\n") == 3


def test_a_converted_model_that_does_not_fit_leaves_nothing_and_is_converted_with_room(
    disk, tmp_path, tiny_llama, monkeypatch
):
    (tmp_path / "tiny_gguf").mkdir()
    for name in ("__init__.py", "weights.gguf"):
        (tmp_path / "tiny_gguf" / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("AutoTokenizer", "AutoModelForCausalLM"):  # in place of reading the weights of a real package
        real = getattr(gguf, name)
        stand_in = types.SimpleNamespace(from_pretrained=lambda *_, real=real, **__: real.from_pretrained(tiny_llama))
        monkeypatch.setattr(gguf, name, stand_in)
    with pytest.raises(InputError, match=r"cannot write to .*disk \(.*No space left.*\); make room there"):
        models.resolve("package:tiny_gguf", disk)
    assert list(disk.iterdir()) == []
    remount(disk, "size=9m")
    assert (Path(models.resolve("package:tiny_gguf", disk)) / "model.safetensors").is_file()


@pytest.mark.parametrize("option", ["ro", "size=128k"])
def test_a_notebook_that_cannot_be_written_stops_the_command_in_one_sentence(option, disk, tmp_path, capsys):
    demo = {"dataset": str(sources.CHECKOUT / "params/english/off_policy.jsonl"), "prompt_column": "prompt"}
    profile = write_profile(tmp_path / "profile", {"01_rerank": demo | {"judge": "verifier"}})
    filler = fill(disk)
    remount(disk, option)
    assert run.main([str(profile), str(disk / "run")]) == 1
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert f"error: cannot write to {disk / 'run'} (" in said
    assert said.endswith(f"to go on: python -m nbutils.run {profile} {disk / 'run'}")
    assert filler.exists()


# --- writing that is interrupted


class Dies:
    """Stands for a process that dies at its n-th change to files in a folder, and changes nothing from then on."""

    events = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod")

    def __init__(self):
        self.folder, self.left = "", 0
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        if not self.folder or event not in self.events or self.folder not in str(arguments[0]):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def dies():
    """The hook, which Python cannot remove again, switched off at the end."""
    hook = Dies()
    yield hook
    hook.folder = ""


def write_pairs(run_dir, text):
    sources.write_pairs(run_dir / "pairs.parquet", [pair(text)])


def read_pairs(run_dir):
    return sources.read(str(run_dir / "pairs.parquet"))[0]["prompt"][0]["content"]


def two_renamings(monkeypatch):
    """A system that cannot exchange two folders in one step."""
    monkeypatch.setattr(owned.ctypes, "CDLL", lambda _: types.SimpleNamespace())


@pytest.mark.parametrize(("put", "get"), [(write, content), (write_pairs, read_pairs)])
def test_whoever_reads_after_a_death_at_any_step_sees_the_old_or_the_new_and_the_next_run_goes_on(
    put, get, dies, tmp_path
):
    seen = []
    for step in range(100):
        run_dir = tmp_path / str(step)
        put(run_dir, "old")
        dies.folder, dies.left = str(run_dir), step
        try:
            put(run_dir, "new")
            break
        except KeyboardInterrupt:
            pass
        finally:
            dies.folder = ""
        seen.append(get(run_dir))
        put(run_dir, "newer")
        assert get(run_dir) == "newer"
        assert [path.name for path in (run_dir / ".work").glob("*.draft-*")] == []
    assert set(seen) <= {"old", "new"}
    assert seen.count("old") >= (1 if put is write_pairs else 8)
    assert put is write_pairs or "new" in seen


def test_without_an_exchange_in_one_step_a_folder_is_there_again_at_the_next_opening(dies, tmp_path, monkeypatch):
    two_renamings(monkeypatch)
    seen = []
    for step in range(100):
        run_dir = tmp_path / str(step)
        write(run_dir, "old")
        dies.folder, dies.left = str(run_dir), step
        try:
            write(run_dir, "new")
            break
        except KeyboardInterrupt:
            pass
        finally:
            dies.folder = ""
        lost = not (run_dir / "01_rerank").exists()
        Stage("01_rerank", run_dir).close()
        seen.append((lost, content(run_dir)))
    assert any(lost for lost, _ in seen), "between the two renamings there is none"
    assert {text for _, text in seen} == {"old", "new"}


# --- a clock that jumps


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Open 03 with so many seconds of budget, in a stand-in for a notebook; returns the session."""
    monkeypatch.setattr(notebook, "_session", [])
    monkeypatch.setattr(notebook, "_log_to_notebook", lambda: None)
    for name in ("CUDA_VISIBLE_DEVICES", notebook.GPUS_VARIABLE):  # or opening would leave them set
        monkeypatch.setenv(name, "")

    def open_stage(seconds):
        values = run.defaults("03_judge") | {"run_dir": str(tmp_path / "run"), "time_budget_hours": seconds / 3600}
        cell = "\n".join(f"{name}: {type(value).__name__} = {value!r}" for name, value in values.items())
        monkeypatch.setattr(notebook, "get_ipython", lambda: notebook_shell(cell))
        return notebook.open_stage("03_judge")

    yield open_stage
    for session in notebook._session:
        session.stage.close()


@pytest.mark.parametrize(("days", "seconds", "stops"), [(1, 3600, False), (-1, 0.5, True)])
def test_a_clock_that_jumps_neither_ends_a_stage_nor_lets_it_run_for_ever(days, seconds, stops, opened, monkeypatch):
    session, real, jumped = opened(seconds), time.time, []
    monkeypatch.setattr(time, "time", lambda: real() + sum(jumped))

    def say(asked, rng):
        jumped[:] = [days * 86_400]  # while the first request is answered
        time.sleep(0.05)
        return "so"

    engine = ScriptedEngine(say, chunk_size=1)
    requests = [request(str(i)) for i in range(30)]
    if stops:
        with pytest.raises(Interrupted, match="time budget used up"):
            answer(session.store, engine, requests, deadline=session.deadline)
        assert 0 < len(engine.asked) < 30
    else:
        assert None not in answer(session.store, engine, requests, deadline=session.deadline)
