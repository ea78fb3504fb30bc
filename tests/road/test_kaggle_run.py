"""A Kaggle of our own: what `make kaggle` wrote, run in six sessions that have nothing but their inputs.

What a session has: the kernel's notebook, unchanged; what its metadata names, mounted read-only in the layouts of
Kaggle, old and new, and a stranger's input that looks like them; a working folder, whose content is all that the next
session may get as an input;
`kaggle_secrets`; no home folder, no package index, nbutils from the attached dataset only; and a limit at which it is
killed. Two sessions are stopped by their time budget before that.
"""

import hashlib
import json
import os
import random
import re
import shutil
import site
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import nbformat
import papermill
import pytest
import servers
import tiny
import yaml

from nbutils import params, run
from nbutils.core import errors
from nbutils.files import sources
from nbutils.files.sources import CHECKOUT
from tools import kaggle

TOKEN = "hf_of_the_attached_secret"
SECRETS = f"""
import os, time

class UserSecretsClient:
    def get_secret(self, label):
        return {{"JUDGE_TOKEN": "{TOKEN}"}}[label]

if slow := os.environ.get("STEP_SECONDS"):  # a slow GPU: no way to be in mid-training at a given time without one
    import transformers

    step = transformers.Trainer.training_step

    def slow_step(*given):
        time.sleep(float(slow))
        return step(*given)

    transformers.Trainer.training_step = slow_step
"""
LATE = 60.0  # seconds after the time budget at which a session is killed
WORDS = ["fiume", "pane", "treno", "inverno", "giardino", "mare", "oro", "libro", "scuola", "gatto", "luna", "sale"]
QUESTIONS = [{"prompt": " ".join(random.Random(i).sample(WORDS, 9))} for i in range(12)]  # no two alike
PAIRS = [row | {"good": "Una buona risposta.", "bad": f"Una risposta {i}."} for i, row in enumerate(QUESTIONS)]


class Judge:
    """Grades a text by its content; after some more replies it is too busy for any, and says so."""

    free = 10**6  # replies it still gives
    replies = 0

    def __call__(self, body):
        if self.free == 0:
            return servers.Answer(status=429, headers={"Retry-After": "120"})
        self.free -= 1
        self.replies += 1
        texts = body["messages"][0]["content"].split("]\n<<")[1:]
        answers = [text.partition(">>\n")[2].partition("\n<</")[0] for text in texts]
        marks = [5 if "buona" in text else 1 + sum(text.encode()) % 4 for text in answers]
        said = {f"score_{i}": mark for i, mark in enumerate(marks, 1)}
        said |= {f"feedback_{i}": "ok" for i in range(1, len(marks) + 1)}
        return json.dumps(said)


class Kaggle:
    """The machine: a Python that has all packages but nbutils, and one session after the other."""

    def __init__(self, home: Path):
        self.inputs, self.working, self.outputs = (home / name for name in ("input", "working", "outputs"))
        self.temporary = home / "tmp"
        # packages by a .pth file, in which further .pth files, such as the one of an editable nbutils, do not count
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "venv"], check=True)
        (packages,) = (home / "venv").glob("lib/python*/site-packages")
        (packages / "image.pth").write_text("\n".join(site.getsitepackages()))
        (packages / "kaggle_secrets.py").write_text(SECRETS)
        self.python = home / "venv" / "bin" / "python"

    def session(self, kernel, again=None, *, stranger=None, limit=200.0, **variables):
        """Run a kernel folder as Save & Run All does, keep its output, and return its text and seconds.

        Args:
            again: an output of the same kernel that is attached as an input.
            stranger: a folder that is attached too, under a name that comes before all others.
            limit: seconds until the machine is gone.
            variables: of the environment.
        """
        facts = json.loads((kernel / "kernel-metadata.json").read_text())
        (package,) = facts["dataset_sources"]
        mounts = {f"datasets/{package}": kernel.parent / "package"}
        for number, name in enumerate(facts["kernel_sources"]):  # the first in the old layout
            owner, slug = name.split("/")
            mounts[f"notebooks/{owner}/{slug}" if number else slug] = self.outputs / slug
        if again:
            mounts[f"notebooks/{facts['id']}"] = again
        if stranger:
            mounts["a-stranger"] = stranger
        for folder in (self.inputs, self.working, self.temporary):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        for place, content in mounts.items():
            shutil.copytree(content, self.inputs / place, symlinks=True)
        for path in self.inputs.rglob("*"):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)
        before = listing(self.inputs)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": "/dev/null/home",
            "TMPDIR": str(self.temporary),
            "NBUTILS_MOUNTS": str(self.inputs),
            "KAGGLE_KERNEL_RUN_TYPE": "Batch",
            "PIP_NO_INDEX": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            # root may write to a read-only folder, and Python would
            "PYTHONDONTWRITEBYTECODE": "1",
        } | variables
        command = [self.python, "-m", "papermill", kernel / facts["code_file"], "__notebook__.ipynb"]
        started = time.monotonic()
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.working,
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert listing(self.inputs) == before
        for path in self.inputs.rglob("*"):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o200)
        kept = self.outputs / facts["id"].split("/")[1]
        if kept.exists():  # an earlier version's
            kept.rename(kept.with_name(f"{kept.name}-before"))
        shutil.copytree(self.working, kept)
        return shown(self.working / "__notebook__.ipynb"), time.monotonic() - started


def listing(folder):
    return {p: p.is_file() and hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*")}


def shown(notebook):
    """Return all text in the outputs of a notebook."""
    outputs = [o for cell in json.loads(notebook.read_text())["cells"] for o in cell.get("outputs", ())]
    texts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs]
    return "\n".join("".join(text) for text in texts)


def imitate(outputs, folder, url):
    """Make of a user's outputs what a stranger could attach: all of it changed, newer, further on."""
    for output in outputs:
        shutil.copytree(output / "runs", folder / "runs", dirs_exist_ok=True)
    with closing(sqlite3.connect(folder / "runs" / "store.sqlite")) as store:
        store.execute("""UPDATE replies SET reply = replace(reply, '"score', '"escore')""")
        store.commit()
    for mark in folder.rglob("0*/params.json"):
        mark.write_text("{}")
        shutil.rmtree(mark.parent / "samples", ignore_errors=True)
        os.utime(mark, (2**32, 2**32))
    for shard in folder.rglob("reference/*.json"):
        shard.write_text(json.dumps({pair: [-1.0, -1.0] for pair in json.loads(shard.read_text())}))
    for state in list(folder.rglob("checkpoint-*/trainer_state.json")):
        state.write_text(json.dumps(json.loads(state.read_text()) | {"global_step": 29}))
        if not state.parent.with_name("checkpoint-29").exists():
            state.parent.rename(state.parent.with_name("checkpoint-29"))
            state.parent.with_name("checkpoint-28").symlink_to("checkpoint-29")
    (folder / "params.yaml").write_text(f"judge: {folder}/judge.yaml\nmin_margin: 0.9\n")
    judge = {"kind": "llm", "server": url, "model": "theirs", "template": "rating_it", "key_variable": "HF_TOKEN"}
    (folder / "judge.yaml").write_text(yaml.safe_dump(judge))
    (folder / "nbutils").mkdir()
    for name in ("__init__.py", "run.py"):
        (folder / "nbutils" / name).write_text("raise SystemExit('the code of a stranger has run')")
    (folder / "requirements.txt").write_text("malware")
    return folder


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@pytest.fixture
def push(tmp_path, monkeypatch):
    """Write the kernel folders of a profile, in a checkout with a model and data, as `make kaggle` does."""
    checkout = tmp_path / "checkout"
    shutil.copytree(CHECKOUT / "notebooks", checkout / "notebooks")
    for name in ("requirements.txt", "LICENSE"):
        shutil.copy(CHECKOUT / name, checkout)
    monkeypatch.setattr(sources, "CHECKOUT", checkout)
    monkeypatch.setattr(run, "NOTEBOOKS", checkout / "notebooks")
    tiny.make(checkout / "data" / "model", "qwen3")
    write_jsonl(checkout / "data" / "pairs.jsonl", PAIRS)
    write_jsonl(checkout / "data" / "prompts.jsonl", QUESTIONS[:8])
    write_jsonl(checkout / "data" / "held.jsonl", [{"prompt": text} for text in tiny.SENTENCES[:4]])
    training = {"max_steps": 30, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "lora_r": 2}
    (checkout / "data" / "training.yaml").write_text(yaml.safe_dump(training | {"max_length": 512, "save_steps": 10}))
    (checkout / "params").mkdir()

    def write(url, **seconds):
        judge = {"kind": "llm", "server": url, "model": "scripted", "template": "rating_it", "concurrency": 2}
        (checkout / "data" / "judge.yaml").write_text(yaml.safe_dump(judge | {"key_variable": "JUDGE_TOKEN"}))
        for stem, values in PROFILE.items():
            budget = {"time_budget_hours": seconds.get(stem, 0) / 3600}
            (checkout / "params" / f"{stem}.yaml").write_text(yaml.safe_dump(values | budget))
        return dict(zip(params.STEMS, kaggle.write(checkout / "params", "me", tmp_path / "build")[1:], strict=True))

    return write


JUDGED = {"judge": "data/judge.yaml", "min_chosen": 0.0}
POLICY = {"model": "data/model", "prompt_column": "prompt", "sampling": "temperature: 0.9, max_tokens: 24"}
PROFILE = {
    "01_rerank": JUDGED
    | {"dataset": "data/pairs.jsonl", "prompt_column": "prompt", "chosen_column": "good", "rejected_column": "bad"},
    "02_sample": POLICY | {"prompts": "data/prompts.jsonl", "exclude": ""},
    "03_judge": JUDGED | {"language": ""},
    "04_dpo": POLICY
    | {"judge": "data/judge.yaml", "training": "data/training.yaml", "eval_prompts": "data/held.jsonl", "language": ""},
}


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_four_kernels_in_six_sessions_ask_and_train_nothing_twice(tmp_path, push):
    machine, judge, loot = Kaggle(tmp_path / "kaggle"), Judge(), Judge()
    with servers.ChatServer(judge) as server, servers.ChatServer(loot) as theirs:
        kernels = push(server.url)
        begun = time.monotonic()
        text, _ = machine.session(kernels["01_rerank"])
        starting = server.times[0] - begun
        assert set(server.tokens) == {TOKEN}
        assert len(server.calls) == (2 + 1) * len(PAIRS), "two orders, and the trial's repeat"
        assert "12 pairs; columns: " in text

        text, sampling = machine.session(kernels["02_sample"])
        assert "8 prompts answered, 0 not" in text

        # the judge has no time in the middle: the stage waits for it, but not longer than its budget
        judge.replies, judge.free = 0, 10
        budgets = {"03_judge": 1.5 * starting + 5, "04_dpo": 2 * sampling + 5}
        short = push(server.url, **budgets)
        text, _ = machine.session(short["03_judge"], limit=budgets["03_judge"] + LATE)
        assert "time budget used up with" in text
        assert "in a new session, first add this notebook's output as its input\nThe cells below were not run." in text
        assert judge.replies == 10
        stopped = next(machine.outputs.glob("*03-judge"))
        assert not (stopped / "runs" / "kaggle" / "03_judge").exists()
        judge.free = 10**6
        kernels = push(server.url)
        sampled = next(machine.outputs.glob("*02-sample"))
        stranger = imitate([sampled, stopped], tmp_path / "one", theirs.url)
        text, _ = machine.session(kernels["03_judge"], stopped, stranger=stranger)
        assert re.search(r"10 replies of the store \S+/a-stranger/runs/store.sqlite are not taken: no run with", text)
        assert "not taken, since no run with your key left it: nbutils, params.yaml in a-stranger; " in text
        assert "not taken from a-stranger: runs/kaggle/02_sample (changed after a run of yours)\n" in text
        assert re.search(r"\n10 replies taken over from \S+-03-judge/runs/store.sqlite\n", text)
        assert judge.replies == (2 + 1) * 8, "nothing is asked twice"
        assert re.search(r"\b[5-8] pairs from 8 prompts", text), "few of the tiny model's answers are of one mark"

        judge.replies = 0
        short = push(server.url, **budgets)
        text, _ = machine.session(short["04_dpo"], limit=budgets["04_dpo"] + LATE, STEP_SECONDS="3")
        step = int(re.search(r"time budget used up at step (\d+) of 30", text)[1])
        assert judge.replies == 0
        kernels = push(server.url)
        begun = next(machine.outputs.glob("*04-dpo"))
        stranger = imitate([begun, next(machine.outputs.glob("*03-judge"))], tmp_path / "two", theirs.url)
        text, _ = machine.session(kernels["04_dpo"], begun, stranger=stranger)
        for name in ("params.yaml", "nbutils", "checkpoint-28", "checkpoint-29"):
            assert re.search(rf"not taken, since no run with your key left it: .*{name}.* in a-stranger; ", text)
        for name in ("03_judge", r"reference/\w+\.json"):
            assert re.search(rf"not taken from a-stranger: .*{name}.* \(changed after a run of yours\)\n", text)
        assert f"resuming from checkpoint-{step}\n" in text
        assert re.search(r"reference log-probabilities: \d+ train pairs, 0 to compute", text)
        assert loot.replies == 0
    done = machine.working / "runs" / "kaggle" / "04_dpo"
    assert len((done / "training.csv").read_text().splitlines()) == 1 + 30
    proof = json.loads((done / "metrics.json").read_text())["proof"]["held"]
    assert proof["answers"] == 3 * 4
    assert judge.replies <= 2 * 3 * 4, "equal answers are not asked for"
    everything = [path for path in machine.outputs.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in everything)


def test_headless_a_stop_that_kaggle_sees_as_none_ends_the_chain(tmp_path, monkeypatch, capsys):
    said = nbformat.v4.new_output("display_data", {"text/plain": "..."}, metadata={errors.STOPPED: "no time left"})
    cells = [nbformat.v4.new_code_cell("", outputs=[said]), nbformat.v4.new_code_cell("")]
    executed = []
    monkeypatch.setattr(
        papermill,
        "execute_notebook",
        lambda *given, **_: executed.append(given) or nbformat.v4.new_notebook(cells=cells),
    )
    run_dir = tmp_path / "run"
    (run_dir / "01_rerank").mkdir(parents=True)  # of an earlier run
    assert run.main([str(CHECKOUT / "params" / "demo"), str(run_dir)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: 01_rerank stopped: no time left (the whole notebook: ")
    assert len(executed) == 1, "no further stage was begun"
    assert not (run_dir / "01_rerank" / "run.json").exists()
