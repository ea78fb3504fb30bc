"""Whether 50,000 pairs go through notebook 01 as 5,000 do: in bounded memory, and in the same time for each row.

Rows of about 1,800 characters (a prompt of 200, answers of 900 and 700) through the notebook itself, by papermill, with
an LLM judge in two orders and its trial. The judge is a scripted server in a process of its own that answers at once.
What is measured is the notebook's kernel: its peak resident size, its CPU time (user and system) and the wall time.
A run of 100 rows tells what starting costs; it is taken off before the time per row is compared.

    python bench/scale.py [FEW MANY]    5000 and 50000 rows: 5 to 6 ms of CPU a row, a server beside it
                                        name <tab> value <tab> limit <tab> ok|short; exit status 1 if one is short
"""

import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/helpers"))
from servers import serving

ROOT = Path(__file__).resolve().parents[1]
START, FEW, MANY = 100, 5_000, 50_000
LIMITS = {"peak MiB": 2048.0, "CPU per row, many over few": 1.25, "wall time per row, many over few": 1.25}
WORDS = ("il", "fiume", "scende", "dalle", "montagne", "verso", "mare", "e", "porta", "sabbia", "foglie", "piccole")


def main(few: int, many: int) -> int:
    """Measure, print, and tell whether every limit was kept."""
    os.environ |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "bench")]), "OMP_NUM_THREADS": "1"}
    with serving("scale:grade") as url:
        start, *runs = [measured(count, url) for count in (START, few, many)]
    per_row = [
        {what: 1000 * (run[what] - start[what]) / (count - START) for what in ("cpu", "wall")}
        for run, count in zip(runs, (few, many), strict=True)
    ]
    lines = [
        (f"{what} ms per row, {n} rows", at[what], "")
        for at, n in zip(per_row, (few, many), strict=True)
        for what in at
    ]
    lines += [(f"peak MiB, {n} rows", run["peak"], "") for run, n in zip((start, runs[0]), (START, few), strict=True)]
    lines += [
        ("peak MiB", runs[1]["peak"], "peak MiB"),
        ("CPU per row, many over few", per_row[1]["cpu"] / per_row[0]["cpu"], "CPU per row, many over few"),
        (
            "wall time per row, many over few",
            per_row[1]["wall"] / per_row[0]["wall"],
            "wall time per row, many over few",
        ),
    ]
    short = False
    for name, value, limit in lines:
        kept = not limit or value <= LIMITS[limit]
        short |= not kept
        print(f"{name}\t{value:.2f}\t{LIMITS[limit] if limit else '-'}\t{'ok' if kept else 'short'}")
    print(f"load of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr)
    return int(short)


def grade(body: dict[str, Any]) -> str:
    """Give every answer the grade that stands in it."""
    grades = re.findall(r"voto-(\d)", body["messages"][0]["content"])
    return json.dumps(
        {k: v for i, g in enumerate(grades, 1) for k, v in ((f"feedback_{i}", "va bene"), (f"score_{i}", int(g)))}
    )


def write_rows(path: Path, count: int) -> None:
    """Write pairs of which the judge confirms four in ten, swaps four and calls two a tie."""
    draw = random.Random(0)

    def text(length: int) -> str:
        return " ".join(draw.choices(WORDS, k=length // 6))[:length]

    with path.open("w", encoding="utf-8") as out:
        for i in range(count):
            sides = zip(((4, 2), (2, 4), (5, 3), (3, 5), (3, 3))[i % 5], (900, 700), strict=True)
            chosen, rejected = (f"voto-{g} {text(length)}" for g, length in sides)
            out.write(json.dumps({"question": f"{i} {text(200)}", "chosen": chosen, "rejected": rejected}) + "\n")


def measured(count: int, url: str) -> dict[str, float]:
    """Return peak MiB, and seconds of CPU and wall time, of the kernel that ran the notebook over so many rows."""
    done = subprocess.run(
        [sys.executable, __file__, "run", str(count), url], check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def run(count: int, url: str) -> dict[str, float]:
    """Execute the notebook; its kernel is this process's only child."""
    import papermill

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", count)
        judge = {"kind": "llm", "server": url, "model": "scripted", "template": "rating_it", "concurrency": 8}
        (folder / "judge.yaml").write_text(json.dumps(judge))
        given = {"run_dir": str(folder / "runs/scale"), "dataset": str(folder / "rows.jsonl"), "max_rows": 0}
        began = time.perf_counter()
        papermill.execute_notebook(
            str(ROOT / "notebooks/01_rerank.ipynb"),
            str(folder / "out.ipynb"),
            given | {"judge": str(folder / "judge.yaml")},
            kernel_name="python3",
            progress_bar=False,
        )
        wall = time.perf_counter() - began
        verdicts = json.loads((folder / "runs/scale/01_rerank/metrics.json").read_text())["verdicts"]
    assert verdicts == {"kept": 2 * count // 5, "swapped": 2 * count // 5, "tie": count // 5}, verdicts
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"peak": used.ru_maxrss / 1024, "cpu": used.ru_utime + used.ru_stime, "wall": wall}


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        print(json.dumps(run(int(sys.argv[2]), sys.argv[3])))
    else:
        sys.exit(main(*(map(int, sys.argv[1:3]) if len(sys.argv) > 1 else (FEW, MANY))))
