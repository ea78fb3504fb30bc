"""02 with a policy behind a server: a prompt it refuses is dropped and counted, and what is odd is said."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
import tiny
from servers import Answer, ChatServer, echo

from nbutils.core import records
from nbutils.files import sources
from nbutils.files.sources import CHECKOUT


@pytest.mark.nightly
def test_a_policy_behind_a_server_that_refuses_a_prompt_and_options_is_sampled_all_the_same(tmp_path):
    def policy(body):
        if "vietata" in echo(body):
            return Answer(status=400, error="Invalid prompt: content_filter")
        for name in ("max_tokens", "min_p"):
            if name in body:
                return Answer(
                    status=400, error=f"Unsupported parameter: '{name}'. Use 'max_completion_tokens' instead."
                )
        return Answer(f"Risposta {body['seed']} su {echo(body)}", finish_reason="end_turn")

    questions = ["Racconta in breve il mare d'inverno.", "Come si impasta il pane di casa?", "Dimmi la cosa vietata.",
                 "Perché la luna cambia forma ogni notte?", "Quanto impiega un treno da Roma a Bari?"]  # fmt: skip
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": q}) + "\n" for q in questions))
    values = {"run_dir": tmp_path / "run", "prompts": tmp_path / "prompts.jsonl", "prompt_column": "prompt",
              "exclude": "", "max_prompts": 0, "model": tiny.make(tmp_path / "model", "qwen3"), "n_samples": 2,
              "sampling": "max_tokens: 60", "chat_template_kwargs": ""}  # fmt: skip
    with ChatServer(policy) as server:
        command = [sys.executable, "-m", "papermill", CHECKOUT / "notebooks/02_sample.ipynb", tmp_path / "out.ipynb"]
        command += [word for name, value in (values | {"engine": server.url}).items() for word in ("-p", name, value)]
        done = subprocess.run(
            [str(word) for word in command], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
            timeout=280, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows = sources.read_checked("02_sample", "samples", records.SAMPLES, run_dir=tmp_path / "run")
    assert [row["prompt"][-1]["content"] for row in rows] == [q for q in questions if "vietata" not in q]
    assert Counter(r["finish_reason"] for row in rows for r in row["responses"]) == {"stop": 8}
    metrics = json.loads((tmp_path / "run/02_sample/metrics.json").read_text())
    assert metrics["refused"] == 1
    assert metrics["doubts"] == [
        "1 of 5 requests were refused: 400: Invalid prompt: content_filter",
        "4 of 5 replies are with the server's own top_k, min_p and repetition penalty",
    ]
    drawn = [body for body in server.calls if "luna" in echo(body)]
    assert drawn[-1].keys() >= {"temperature", "top_p", "max_completion_tokens"}
