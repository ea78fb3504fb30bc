"""A Kaggle of our own: 01 to 04 by papermill in six sessions, each with nothing but its inputs and an empty folder.

What a session has: inputs mounted read-only in the layouts of Kaggle, old and new; a working folder, whose content is
all that the next session may get as an input; `kaggle_secrets`; no home folder, no package index, nbutils from an
attached dataset only; and a limit at which it is killed. Two sessions are stopped by their time budget before that.
"""

import hashlib
import json
import os
import random
import shutil
import site
import subprocess
import sys
import time
from pathlib import Path

import pytest
import servers
import tiny
import yaml

from nbutils.sources import CHECKOUT

TOKEN = "hf_of_the_attached_secret"
SECRETS = f"""
import os, time

class UserSecretsClient:
    def get_secret(self, label):
        return {{"HF_TOKEN": "{TOKEN}"}}[label]

if slow := os.environ.get("STEP_SECONDS"):  # a slow GPU: no way to be in mid-training at a given time without one
    import transformers

    step = transformers.Trainer.training_step

    def slow_step(*given):
        time.sleep(float(slow))
        return step(*given)

    transformers.Trainer.training_step = slow_step
"""
WORDS = ["fiume", "pane", "treno", "inverno", "giardino", "mare", "oro", "libro", "scuola", "gatto", "luna", "sale"]
QUESTIONS = [{"prompt": " ".join(random.Random(i).sample(WORDS, 9))} for i in range(12)]  # no two alike
PAIRS = [row | {"good": "Una buona risposta.", "bad": f"Una risposta {i}."} for i, row in enumerate(QUESTIONS)]


class Judge:
    """Grades a text by its content, and can become slow after some more calls."""

    quick = 10**6  # calls to answer at once

    def __call__(self, body):
        self.quick -= 1
        texts = body["messages"][0]["content"].split("]\n<<")[1:]
        answers = [text.partition(">>\n")[2].partition("\n<</")[0] for text in texts]
        marks = [5 if "buona" in text else 1 + sum(text.encode()) % 4 for text in answers]
        said = {f"score_{i}": mark for i, mark in enumerate(marks, 1)}
        said |= {f"feedback_{i}": "ok" for i in range(1, len(marks) + 1)}
        return servers.Answer(json.dumps(said), delay=0.0 if self.quick > 0 else 2.0)


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

    def session(self, stem, name, values, mounts, *, hours=0.0, limit=150.0, **variables):
        """Run a notebook as a new version does; returns the process, its text and seconds, and keeps its output."""
        for folder in (self.inputs, self.working, self.temporary):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        for place, content in mounts.items():
            shutil.copytree(content, self.inputs / place)
        for path in self.inputs.rglob("*"):
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
        given = {"time_budget_hours": hours} | values
        command = [self.python, "-m", "papermill", CHECKOUT / "notebooks" / f"{stem}.ipynb", "__notebook__.ipynb"]
        command += [word for key, value in given.items() for word in ("-p", key, value)]
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
            path.chmod(path.stat().st_mode | 0o200)
        shutil.copytree(self.working, self.outputs / name)
        return shown(self.working / "__notebook__.ipynb"), time.monotonic() - started


def listing(folder):
    return {p: p.is_file() and hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*")}


def shown(notebook):
    """Return all text in the outputs of a notebook."""
    outputs = [o for cell in json.loads(notebook.read_text())["cells"] for o in cell.get("outputs", ())]
    texts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs]
    return "\n".join("".join(text) for text in texts)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_four_notebooks_in_six_sessions_ask_and_train_nothing_twice(tmp_path):
    kaggle, judge = Kaggle(tmp_path / "kaggle"), Judge()
    kit, data = tmp_path / "kit", tmp_path / "data"
    shutil.copytree(CHECKOUT / "nbutils", kit / "nbutils", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "requirements.txt", kit)
    tiny.make(data / "model", "qwen3")
    write_jsonl(data / "pairs.jsonl", PAIRS)
    write_jsonl(data / "prompts.jsonl", QUESTIONS[:8])
    write_jsonl(data / "held.jsonl", QUESTIONS[8:])
    training = {"max_steps": 30, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "lora_r": 2}
    (data / "training.yaml").write_text(yaml.safe_dump(training | {"max_length": 512, "save_steps": 10}))
    both = {"datasets/me/nbutils": kit, "my-data": data}
    mounted = kaggle.inputs / "my-data"
    policy = {"model": mounted / "model", "prompt_column": "prompt", "sampling": "temperature: 0.9, max_tokens: 24"}
    judged_by = {"judge": mounted / "judge.yaml"}
    judged = judged_by | {"min_chosen": 0.0}
    with servers.ChatServer(judge) as server:
        asked = {"kind": "llm", "server": server.url, "model": "scripted", "template": "rating_it", "concurrency": 2}
        (data / "judge.yaml").write_text(yaml.safe_dump(asked | {"key_variable": "HF_TOKEN"}))

        values = {"dataset": mounted / "pairs.jsonl", "prompt_column": "prompt"} | judged
        values |= {"chosen_column": "good", "rejected_column": "bad"}
        begun = time.monotonic()
        text, _ = kaggle.session("01_rerank", "one", values, both)
        starting = server.times[0] - begun
        assert set(server.tokens) == {TOKEN}
        assert len(server.calls) == (2 + 1) * len(PAIRS), "two orders, and the trial's repeat"
        assert "12 pairs; columns: " in text

        values = policy | {"prompts": mounted / "prompts.jsonl", "exclude": ""}
        text, sampling = kaggle.session("02_sample", "two", values, both)
        assert "8 prompts answered, 0 not" in text

        # the judge gets slow in the middle, and the budget is over
        server.calls.clear()
        judge.quick = 10
        inputs = both | {"notebooks/me/sampling": kaggle.outputs / "two"}
        values = judged | {"language": ""}
        text, took = kaggle.session("03_judge", "three-a", values, inputs, hours=(1.5 * starting + 5) / 3600)
        print(starting, sampling, took, text)
        asked = len(server.calls)
        print(asked)
        assert "time budget used up with" in text
        assert "in a new session, first add this notebook's output as its input" in text
        assert "The cells below were not run." in text
        assert not (kaggle.working / "runs" / "kaggle" / "03_judge").exists()
        judge.quick = 10**6
        inputs |= {"judging": kaggle.outputs / "three-a"}
        text, _ = kaggle.session("03_judge", "three-b", values, inputs)
        print(text, len(server.calls))
        assert f"{asked} replies taken over from {kaggle.inputs}/judging/runs/store.sqlite" in text

        server.calls.clear()
        inputs = both | {"ranking": kaggle.outputs / "one", "notebooks/me/judging": kaggle.outputs / "three-b"}
        values = policy | judged_by | {"training": mounted / "training.yaml", "eval_prompts": mounted / "held.jsonl"}
        values |= {"language": ""}
        hours = (2 * sampling + 5) / 3600
        text, took = kaggle.session("04_dpo", "four-a", values, inputs, hours=hours, STEP_SECONDS="3")
        print("FOUR", took, text)
        assert "time budget used up at step" in text
        inputs |= {"notebooks/me/training": kaggle.outputs / "four-a"}
        text, took = kaggle.session("04_dpo", "four-b", values, inputs)
        print(took, text)
        assert "resuming from checkpoint-" in text
