"""engines/vllm.py with real worker processes that import a stand-in for vLLM (helpers/fake_vllm) and real faults.

What only the real vLLM can show is in tests/check_vllm.py (`make test-vllm`).
"""

import json
import logging
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import tiny
from builders import HELPERS, request
from dpo import CPU
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from nbutils import engines
from nbutils.core.errors import InputError, Interrupted
from nbutils.core.sampling import Sampling
from nbutils.engines.asking import answer
from nbutils.engines.local import TransformersEngine
from nbutils.engines.store import Store
from nbutils.engines.vllm import VllmEngine, settings
from nbutils.models.preflight import Device

T4 = "{index}, GPU-{index}, Tesla T4, 7.5, 570.86.15"
DRAWN = Sampling(max_tokens=12)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with two T4 and an interpreter that has the stand-in; `say(line, ...)` names other GPUs, if any."""
    tools = tmp_path / "tools"
    tools.mkdir()

    def say(*lines):
        script = tools / "nvidia-smi"
        script.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + ("" if lines else "exit 9\n"))
        script.chmod(0o755)

    python = tools / "python"
    fake = HELPERS / "fake_vllm"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={fake} PYTHONDONTWRITEBYTECODE=1 exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("NBUTILS_VLLM_PYTHON", str(python))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.jsonl"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("NBUTILS_GPUS", raising=False)
    say(*(T4.format(index=i) for i in range(2)))
    return say


@pytest.fixture
def load(tiny_qwen, tmp_path):
    """Makes engines, whose workers end with the test."""
    made = []

    def make(chunk_size=4, model=tiny_qwen, **options):
        made.append(VllmEngine(str(model), cache=tmp_path / "models", **options))
        made[-1].chunk_size = chunk_size
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def fault(monkeypatch):
    return lambda *names: monkeypatch.setenv("FAULTS", ",".join(names))


def seen(tmp_path, what):
    """Return what workers were started with ("options") or asked ("chunk")."""
    file = tmp_path / "seen.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line for line in lines if what in line]


def ask(count, n=2):
    return [request(f"Question {i}?", n=n, sampling=DRAWN) for i in range(count)]


def test_every_request_is_drawn_once_and_the_work_is_shared_by_both_gpus(machine, load, store, tmp_path, monkeypatch):
    monkeypatch.setenv("CHUNK_SECONDS", "0.3")
    engine = load()
    replies = answer(store, engine, ask(22))
    assert [len(reply.samples) for reply in replies] == [2] * 22
    chunks = seen(tmp_path, "chunk")
    assert sorted(len(c["chunk"]) for c in chunks) == [2, 4, 4, 4, 4, 4]
    assert {c["gpu"] for c in chunks} == {"0", "1"}
    assert engine.tally.calls == 44
    assert len(store) == 22


def test_a_t4_gets_explicit_settings(machine, load, store, tmp_path):
    load().start(3000)
    worker, other = seen(tmp_path, "options")
    assert {worker["gpu"], other["gpu"]} == {"0", "1"}
    assert (
        worker["options"].items()
        >= {
            "dtype": "float16",
            "attention_backend": "TRITON_ATTN",
            "enforce_eager": True,
            "gpu_memory_utilization": 0.85,
            "max_num_seqs": 64,
            "max_num_batched_tokens": 4096,
            "max_model_len": 2048,  # all that this model has
            "generation_config": "vllm",
        }.items()
    )
    assert worker["environment"]["VLLM_USE_FLASHINFER_SAMPLER"] == "0"


def test_samples_do_not_depend_on_the_number_of_workers_nor_on_what_was_drawn_before(machine, load, tmp_path):
    two = answer(Store(tmp_path / "two.sqlite"), load(), ask(14), seed=3)
    machine(T4.format(index=0))
    one = load()
    assert answer(Store(tmp_path / "one.sqlite"), one, ask(14), seed=3) == two
    assert answer(Store(tmp_path / "again.sqlite"), one, ask(14), seed=3) == two
    assert answer(Store(tmp_path / "other.sqlite"), one, ask(14), seed=4) != two


def test_the_ids_that_reach_vllm_are_those_that_reach_transformers(machine, load, tiny_qwen, tmp_path, monkeypatch):
    asked = [request("Ciao, perché?"), request("Why?")]
    template = {"enable_thinking": False}
    answer(Store(tmp_path / "v"), load(chat_template_kwargs=template), asked)
    local = TransformersEngine(str(tiny_qwen), device=CPU, cache=tmp_path, chat_template_kwargs=template)
    reached = []
    through = local._continue
    monkeypatch.setattr(local, "_continue", lambda texts, *rest: reached.extend(texts) or through(texts, *rest))
    answer(Store(tmp_path / "t"), local, asked)
    (chunk,) = seen(tmp_path, "chunk")
    assert sorted(chunk["chunk"]) == sorted(ids for ids in reached if ids in chunk["chunk"])
    text = AutoTokenizer.from_pretrained(tiny_qwen).decode(chunk["chunk"][0])
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_a_killed_worker_is_reported_and_the_other_does_all_the_work(
    machine, load, store, tmp_path, fault, caplog, monkeypatch
):
    monkeypatch.setenv("CHUNK_SECONDS", "1")  # so that both get a second chunk
    fault("dies@1")
    replies = answer(store, load(), ask(20), seed=5)
    assert all(replies)
    (warning,) = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert "a vLLM worker stopped: its process was killed by SIGKILL (log: " in warning
    assert "going on with 1 other" in warning
    fault()
    monkeypatch.setenv("CHUNK_SECONDS", "0")
    assert answer(Store(tmp_path / "unbroken"), load(), ask(20), seed=5) == replies


def test_when_all_workers_are_gone_what_is_done_is_stored_and_the_next_run_asks_the_rest(
    machine, load, store, tmp_path, fault
):
    fault("dies")
    with pytest.raises(InputError, match=r"killed by SIGKILL .*everything done so far is stored: run the same command"):
        answer(store, load(), ask(20), seed=5)
    assert len(store) == 8  # the first chunk of each
    fault()
    before = len(seen(tmp_path, "chunk"))
    engine = load()
    replies = answer(store, engine, ask(20), seed=5)
    assert len(seen(tmp_path, "chunk")) - before == 3
    assert answer(Store(tmp_path / "unbroken"), engine, ask(20), seed=5) == replies


def test_kill_9_from_outside(machine, load, store, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CHUNK_SECONDS", "0.2")
    engine = load()
    engine.start()
    os.kill(seen(tmp_path, "options")[0]["pid"], signal.SIGKILL)
    assert all(answer(store, engine, ask(12)))
    assert "killed by SIGKILL" in caplog.text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no memory", r"RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB. \(log: .*vllm-\d.log\)"),
        ("no import", r"ImportError: libcudart.so.13: cannot open shared object file"),
        ("hang", r"it was not ready after 6 s"),
    ],
)
def test_a_vllm_that_cannot_start_says_why_and_names_another_engine(machine, load, store, fault, name, said):
    fault(name)
    engine = load(start_seconds=6 if name == "hang" else 60)
    with pytest.raises(InputError, match=f"vLLM could not start with .*{said}.*use engine: transformers") as error:
        answer(store, engine, ask(4))
    assert "\n" not in str(error.value)


def test_one_gpu_that_cannot_start_is_reported_and_the_other_used(machine, load, store, fault, caplog):
    fault("no memory@1")
    assert all(answer(store, load(), ask(8)))
    assert "one of 2 vLLM workers could not start, going on without it: RuntimeError: CUDA out of memory" in caplog.text


def test_memory_that_runs_out_in_the_middle_keeps_what_is_done(machine, load, store, fault):
    machine(T4.format(index=0))
    fault("no memory later")
    with pytest.raises(
        InputError, match=r"CUDA out of memory.*everything done so far is stored.*use engine: transformers"
    ):
        answer(store, load(), ask(12))
    assert len(store) == 4


def test_a_vllm_that_changes_a_prompt_is_stopped(machine, load, store, fault):
    machine(T4.format(index=0))
    fault("extra token")
    with pytest.raises(InputError, match="vLLM changed the tokens of a prompt"):
        answer(store, load(), ask(4))


def test_no_chunk_is_started_after_the_deadline_and_those_begun_are_kept(machine, load, store, monkeypatch):
    monkeypatch.setenv("CHUNK_SECONDS", "3")
    engine = load()
    engine.start()
    with pytest.raises(Interrupted, match="12 of 20 requests to go"):
        answer(store, engine, ask(20), deadline=time.monotonic() + 2)
    assert len(store) == 8


def test_a_call_that_nobody_listens_to_any_more_leaves_no_answers_in_the_next(machine, load, monkeypatch):
    monkeypatch.setenv("CHUNK_SECONDS", "0.5")
    engine = load()
    calls = engine.generate_chunks([(ask(4), 1), (ask(4), 2), (ask(4), 3)])
    next(calls)
    calls.close()  # Ctrl-C
    monkeypatch.setenv("CHUNK_SECONDS", "0")
    others = [request(f"Another {i}?", n=1, sampling=DRAWN) for i in range(6)]
    got = list(engine.generate_chunks([(others, 9)]))
    assert [(c, i, len(reply.samples)) for c, i, reply in got] == [(0, i, 1) for i in range(6)]


def test_a_worker_that_dies_over_a_call_nobody_listens_to_costs_the_next_call_nothing(machine, load, monkeypatch):
    monkeypatch.setenv("CHUNK_SECONDS", "2")
    engine = load()
    calls = engine.generate_chunks([(ask(4), 1), (ask(4), 2), (ask(4), 3), (ask(4), 4)])
    next(calls)
    calls.close()
    for worker in engine.workers:
        if not worker.job:  # it had answered; now both are busy for nobody
            worker.draw(ask(1), 9, [[1, 2]])
    os.kill(engine.workers[0].process.pid, signal.SIGKILL)
    assert [(c, i) for c, i, _ in engine.generate_chunks([(ask(3), 9)])] == [(0, 0), (0, 1), (0, 2)]
    assert engine.tally.failures == 0


def test_greedy_answers_are_asked_once_and_repeated(machine, load, store, tmp_path):
    asked = [request("Why?", n=3, sampling=Sampling(temperature=0, max_tokens=5))]
    (reply,) = answer(store, load(), asked)
    assert len(reply.samples) == 3
    assert len({sample.text for sample in reply.samples}) == 1
    assert seen(tmp_path, "chunk")[0]["n"] == 1


def test_nothing_is_started_for_what_is_stored(machine, load, store, tmp_path):
    replies = answer(store, load(), ask(4))
    started = len(seen(tmp_path, "options"))
    assert answer(store, load(), ask(4)) == replies
    assert len(seen(tmp_path, "options")) == started


def test_closed_workers_are_gone(machine, load, tmp_path):
    engine = load()
    engine.start()
    engine.close()
    for worker in seen(tmp_path, "options"):
        with pytest.raises(ProcessLookupError):
            os.kill(worker["pid"], 0)


def test_workers_end_with_a_notebook_that_was_killed(machine, tiny_qwen, tmp_path):
    code = (
        "import os, signal; from pathlib import Path; from nbutils.engines.vllm import VllmEngine\n"
        f"VllmEngine({str(tiny_qwen)!r}, cache=Path({str(tmp_path)!r}) / 'models').start()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", code) == -signal.SIGKILL
    pids = [worker["pid"] for worker in seen(tmp_path, "options")]
    assert len(pids) == 2
    until = time.time() + 15
    while time.time() < until and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.2)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.fixture(scope="module")
def adapters(tiny_qwen, tmp_path_factory):
    """Folders of LoRA adapters of rank 12, one of this base and one of a wider one."""
    folder = tmp_path_factory.mktemp("adapters")
    for base in (tiny_qwen, tiny.make(folder / "bases/wider", "qwen3", hidden_size=64)):
        lora = LoraConfig(r=12, target_modules=["q_proj"], task_type="CAUSAL_LM")
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(folder / base.name)
    return folder


def test_an_adapter_is_handed_over_unmerged_with_a_rank_vllm_knows(machine, load, store, adapters, tmp_path):
    adapter = str(adapters / "qwen3")
    engine = load(adapter=adapter)
    answer(store, engine, ask(2))
    assert seen(tmp_path, "options")[0]["options"].items() >= {"enable_lora": True, "max_lora_rank": 16}.items()
    assert seen(tmp_path, "chunk")[0]["lora"] == adapter
    assert engine.identity["adapter"] != load().identity["adapter"]


def test_an_adapter_of_another_base_is_refused_before_anything_is_started(machine, load, adapters, tmp_path):
    with pytest.raises(InputError, match="was trained on another base model"):
        load(adapter=str(adapters / "wider"))
    assert seen(tmp_path, "options") == []


def test_a_prompt_over_the_context_is_refused_before_anything_is_started(machine, load, store, tmp_path):
    long = request("word " * 3000, sampling=DRAWN)
    with pytest.raises(InputError, match="exceed the model's context of 2048 tokens"):
        answer(store, load(), [long])
    assert seen(tmp_path, "options") == []


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "gemma3", "gemma4", "glm4", "qwen3_5"])
def test_models_without_float16_are_refused_on_a_t4_with_the_engine_to_use(model_type):
    with pytest.raises(InputError, match=rf"vLLM cannot run a {model_type} model .* 7\.5: .*use engine: transformers"):
        settings(Device("cuda", (7, 5), "a test"), model_type)
    assert settings(Device("cuda", (8, 9), "a test"), model_type)["dtype"] == "bfloat16"


def test_a_p100_is_refused_with_the_engine_to_use(machine, load):
    machine("0, GPU-0, Tesla P100-PCIE-16GB, 6.0, 570.86.15")
    with pytest.raises(InputError, match=r"no code for compute capability 6\.0.*use engine: transformers"):
        load()


def test_later_gpus_keep_vllms_own_choice_of_kernels():
    assert settings(Device("cuda", (8, 9), "an L4"), "qwen3").keys().isdisjoint({"attention_backend", "enforce_eager"})


def test_on_a_cpu_the_workers_share_its_cores(machine, load, tmp_path):
    machine()
    load(workers=2).start()
    bound = [w["environment"]["VLLM_CPU_OMP_THREADS_BIND"] for w in seen(tmp_path, "options")]
    cores = sorted(os.sched_getaffinity(0))
    assert sorted(int(core) for binding in bound for core in binding.split(",")) == cores
    assert {w["environment"]["PYTHONPATH"] for w in seen(tmp_path, "options")} == {
        str(HELPERS / "fake_vllm")  # the wrapper's, not this process's
    }


# engine: auto


def test_auto_takes_vllm_where_it_starts_and_says_so(machine, tiny_qwen, tmp_path, caplog):
    caplog.set_level(logging.INFO, "nbutils")
    engine = engines.load("auto", str(tiny_qwen), cache=tmp_path / "models", batch_size=7)
    engine.close()
    assert engine.identity["engine"] == "vllm"
    assert "engine: vllm 9.9.9 on 2 x Tesla T4" in caplog.text


@pytest.mark.parametrize(
    ("gpus", "faulty", "reason"),
    [
        ([T4.format(index=0)], "no import", r"because vLLM could not start with .*libcudart"),
        (
            ["0, GPU-0, Tesla P100-PCIE-16GB, 6.0, 570.86.15"],
            "",
            r"because vLLM has no code for compute capability 6\.0",
        ),
    ],
)
def test_auto_takes_transformers_where_vllm_cannot_run_and_says_why(
    machine, tiny_qwen, tmp_path, fault, caplog, gpus, faulty, reason
):
    caplog.set_level(logging.INFO, "nbutils")
    machine(*gpus)
    fault(faulty)
    engine = engines.load("auto", str(tiny_qwen), cache=tmp_path / "models", batch_size=7)
    assert engine.identity["engine"] == "transformers"
    assert engine.batch_size == 7
    assert re.search(f"engine: transformers, {reason}", caplog.text)


def test_without_vllm_and_gpu_both_are_named(machine, tiny_qwen, tmp_path, monkeypatch, caplog):
    machine()
    monkeypatch.delenv("NBUTILS_VLLM_PYTHON")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"vLLM is not installed and there is no NVIDIA GPU.*engine: transformers"):
        engines.load("vllm", str(tiny_qwen), cache=tmp_path)
    caplog.set_level(logging.INFO, "nbutils")
    assert engines.load("auto", str(tiny_qwen), cache=tmp_path).identity["engine"] == "transformers"
    assert "because vLLM is not installed" in caplog.text


def test_an_unknown_engine_is_named(tmp_path):
    with pytest.raises(InputError, match=r"engine: expected auto, vllm, transformers or a server's URL.*got 'vlm'"):
        engines.load("vlm", "m", cache=tmp_path)
