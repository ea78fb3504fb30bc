"""25,000 prompts with five answers of 1,000 characters pass through 02 and 03 in less than 2 GiB of memory each.

Run as a script this is one of the two notebooks without its model and judge: what it holds and in which order is
theirs. Each gets a process of its own, whose peak is read where the kernel keeps it.
"""

import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from builders import ScriptedEngine, children, prompt_row

from nbutils.core import pairs, records, screen, stats, texts
from nbutils.core.sampling import Sample
from nbutils.engines.asking import answer
from nbutils.engines.protocol import Reply, Request
from nbutils.engines.store import Store
from nbutils.files import sources
from nbutils.files.stage import Stage

PROMPTS, ANSWERS, CHARS = 25_000, 5, 1_000
KWARGS = {"enable_thinking": False}


def words():
    """20,000 made-up words with accents, and some with the apostrophe that makes Python keep two bytes a letter."""
    rng = random.Random(1)
    syllables = [a + b for a in "bcdfglmnprstvz" for b in "aeiouàèìòù"]
    plain = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(20_000)]
    return plain + [f"dell’{word}" for word in plain[:1500]]


WORDS = words()


def said(rng):
    return " ".join(rng.choices(WORDS, k=220))[:CHARS]


class Sampler(ScriptedEngine):
    def generate(self, requests, *, seed, deadline):
        rng = random.Random(seed)
        for i, asked in enumerate(requests):
            yield i, Reply(tuple(Sample(said(rng), 300) for _ in range(asked.n)))


def sample(stage):
    """02: half of the replies come from the store, as after an interruption."""

    rng = random.Random(0)
    fits = [prompt_row(f"{i} {said(rng)[:200]}") for i in range(PROMPTS)]
    store, engine = Store(stage.store_path), Sampler(None, chunk_size=50)
    requests = [Request(tuple(row["prompt"]), n=ANSWERS) for row in fits]
    answer(store, engine, requests[: PROMPTS // 2])
    replies = answer(store, engine, requests)
    answers = [s for reply in replies for s in reply.samples]
    distinct = sum(len({s.text for s in reply.samples}) for reply in replies)
    pairs_of_words = stats.distinct(s.text for s in answers)
    sampled = [
        row
        | {
            "responses": [
                {"text": s.text, "n_tokens": s.n_tokens, "finish_reason": s.finish_reason} for s in reply.samples
            ],
            "model": "m",
            "adapter": "",
            "sampling": "",
            "chat_template_kwargs": KWARGS,
        }
        for row, reply in zip(fits, replies, strict=True)
    ]
    told = {texts.language(row["prompt"][-1]["content"]) for row in sampled}
    marks = screen.marks(sampled)  # not their language: that takes twice as long and no memory
    stage.write({"samples": records.dataset(sampled, records.SAMPLES)}, params={}, metrics=marks, summary="")
    return {
        "answers": len(answers),
        "distinct": distinct,
        "told": len(told) > 0,
        "varied": pairs_of_words > 0.5,
        "usable": marks["usable"],
    }


def judge(stage):
    """03, each answer's score being drawn."""

    sampled = sources.read_checked("02_sample", "samples", records.SAMPLES, run_dir=stage.run_dir)
    rows = [screen.from_samples(row) for row in sampled]
    rng = random.Random(0)
    scored = [
        row | {"scores": [[rng.random() for _ in row["responses"]]], "replies": [], "feedback": [], "judge": "j"}
        for row in rows
    ]
    judged = [pairs.select(row) for row in scored]
    built = pairs.build(judged)
    datasets = {
        "pairs": records.dataset(built, records.PAIRS),
        "judged": records.dataset(judged, records.JUDGED),
    }
    stage.write(datasets, params={}, metrics={}, summary="")
    return {"judged": len(judged), "characters": sum(len(r["text"]) for row in judged for r in row["responses"])}


def test_a_dataset_that_is_made_in_parts_has_every_row_in_its_place():
    rows = [prompt_row(f"Name river number {i} — è.", category=str(i)) for i in range(2_001)]
    assert records.dataset(rows, records.PROMPTS).to_list() == rows


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_25000_prompts_pass_through_sampling_and_judging_in_two_gib():
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak is read from /proc")
    with tempfile.TemporaryDirectory() as folder:
        for stem, expected in (
            ("02_sample", {"answers": 125_000, "distinct": 125_000, "told": True, "varied": True, "usable": 125_000}),
            ("03_judge", {"judged": 25_000, "characters": 125_000_000}),
        ):
            script = subprocess.run(
                [sys.executable, __file__, stem, folder],
                env=children(__file__),
                capture_output=True,
                text=True,
                check=False,
            )
            assert script.returncode == 0, script.stderr[-2000:]
            seen = json.loads(script.stdout.splitlines()[-1])
            peak = seen.pop("peak")
            assert seen == expected
            assert 500 < peak < 2048, f"{stem} took {peak} MiB"


if __name__ == "__main__":
    _, stem, folder = sys.argv
    counts = {"02_sample": sample, "03_judge": judge}[stem](Stage(stem, Path(folder) / "run"))
    # not getrusage: there a child begins with the peak of the process that started it
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024
    print(json.dumps(counts | {"peak": peak}))
