"""Rows, engines and processes that the tests build their cases from."""

import gzip
import json
import multiprocessing
import os
import random
import shutil
import types
from pathlib import Path

import pytest
from huggingface_hub.constants import HF_HUB_CACHE

from nbutils.core.records import prompt_id
from nbutils.core.sampling import Sample
from nbutils.core.screen import marked
from nbutils.core.turns import messages
from nbutils.engines.protocol import Engine, Reply, Request, Tally

HELPERS = Path(__file__).parent
DATA = Path(__file__).resolve().parents[3] / "shared/data"


def real(name):
    """Return the rows of a file of real data, or skip the test where the folder is absent."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs the real data in {DATA}, which is not part of the project")
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as stream:
        return [json.loads(line) for line in stream] if ".jsonl" in name else json.load(stream)


def prompt_row(text="Name a river.", **columns):
    """A row of the `prompts` schema."""
    prompt = messages(text)
    return {"prompt_id": prompt_id(prompt), "prompt": prompt, "checks": "", "reference": "", "category": ""} | columns


def response(text, finish_reason="stop", model="m"):
    """A response that is taken for usable until `marked` has seen it."""
    return {"text": text, "n_tokens": len(text.split()), "finish_reason": finish_reason, "model": model, "mark": ""}


def scored(texts, scores=(), text="Name a river.", **columns):
    """A row with responses and the scores a judge gave them, not yet decided on."""
    return prompt_row(text) | {
        "responses": marked(response(t) if isinstance(t, str) else t for t in texts),
        "scores": [list(order) for order in scores],
        "replies": [],
        "feedback": [],
        "judge": "scripted",
        "label": "",
        "verdict": "",
        "chat_template_kwargs": {},
        **columns,
    }


def request(text="hi", **fields):
    return Request(messages=({"role": "user", "content": text},), **fields)


class ScriptedEngine(Engine):
    """Answers with `script(request, rng)`, a text or a Sample, and remembers what it was asked.

    None is a request that fails for good.

    With a `chunk_size` it is like an engine that batches: `rng` is seeded once for all requests drawn together.
    """

    special_tokens = ()

    def __init__(self, script, *, chunk_size=0, model="scripted"):
        self.script, self.chunk_size, self.tally = script, chunk_size, Tally()
        self.identity = {"engine": "scripted", "model": model}
        self.asked = []

    def generate(self, requests, *, seed, deadline):
        rng = random.Random(seed)
        for i, asked in enumerate(requests):
            self.asked.append(asked)
            said = self.script(asked, rng)
            if said is not None:
                yield i, Reply((said if isinstance(said, Sample) else Sample(said),))


def notebook_shell(*cells):
    """What `open_stage` sees of the IPython that runs a notebook's cells."""
    events = types.SimpleNamespace(register=lambda *_: None)
    return types.SimpleNamespace(user_ns={"In": ["", *cells]}, set_custom_exc=lambda *_: None, events=events)


def published(folder, repository, commit, *, ref="main"):
    """Put a folder into the Hub's cache as a commit of a repository, as a download would."""
    cached = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir(exist_ok=True)
    (cached / "refs" / ref).write_text(commit)


def children(file):
    """Return the environment of a process that imports what a test file has, and the helpers."""
    return os.environ | {"PYTHONPATH": f"{HELPERS}:{Path(file).parent}"}


def child(function, *arguments):
    """Start `function` in a forked process and return the process; it can be joined or killed.

    Not for anything that uses Arrow: its threads do not survive a fork.
    """
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments, daemon=True)
    process.start()
    return process
