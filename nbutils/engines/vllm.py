"""Sampling with vLLM in worker processes, one per GPU; the engine of a T4 pair.

vLLM never runs in the notebook's own process: it needs an interpreter with its own torch, may die with the whole
process, and keeps its GPU until the process ends. A worker takes one chunk of requests at a time, as token ids, from
a queue that all share, so no GPU waits for another; a chunk whose worker dies goes to another worker once.
"""

import logging
import os
import queue
import subprocess
import time
import weakref
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nbutils import models
from nbutils.core.errors import GO_ON, InputError
from nbutils.engines import environment, token_ids
from nbutils.engines.on_machine import OnMachine
from nbutils.engines.protocol import Reply, Request
from nbutils.engines.workers import Worker, end
from nbutils.models import weights
from nbutils.models.preflight import FLOAT32_MODELS, Device, pick_device

log = logging.getLogger(__name__)

# a worker that has not loaded its model by then (a download may be part of it) hangs
START_SECONDS = 1200.0
# the least `max_model_len`; more is asked for in powers of two, so that a resumed run starts vLLM as the first did
LEAST_LENGTH = 2048
# the ranks vLLM compiles its LoRA kernels for
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def settings(device: Device, model_type: str) -> dict[str, Any]:
    """Return vLLM's arguments for a device: nothing that its automatic choices get wrong is left to them.

    On a T4 vLLM would look for attention kernels of later GPUs and reserve memory for compiled graphs that it then
    lacks for answers. On a CPU compiling takes a minute and gains little.

    Raises:
        InputError: if the model cannot run there. Gemma 2 and later overflow float16, which is all a T4 computes fast;
            in float32 their attention exceeds its shared memory (81,920 of 65,536 bytes).
    """
    level = ".".join(map(str, device.capability))
    if device.name == "cuda" and device.capability < (7, 0):
        raise InputError(f"vLLM has no code for compute capability {level}, it needs 7.0; use engine: transformers")
    dtype = str(device.dtype(model_type)).removeprefix("torch.")
    result: dict[str, Any] = {
        "dtype": dtype,
        "seed": 0,
        "enable_prefix_caching": True,  # the n samples of a prompt read it once
        "generation_config": "vllm",  # not the model's own sampling defaults beside the request's
        "disable_log_stats": True,
    }
    if device.name == "cpu":
        return result | {"enforce_eager": True, "max_num_seqs": 128}
    result |= {"gpu_memory_utilization": 0.85}  # the notebook's own process holds some
    if device.capability >= (8, 0):
        return result
    if model_type.startswith(FLOAT32_MODELS):
        raise InputError(
            f"vLLM cannot run a {model_type} model on a GPU of compute capability {level}: it overflows float16, and "
            "in float32 its attention does not fit the GPU's shared memory; use engine: transformers, which runs it"
        )
    return result | {
        "attention_backend": "TRITON_ATTN",
        "enforce_eager": True,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 4096,
    }


def _places(gpus: Sequence[environment.Gpu], workers: int) -> tuple[Device, list[dict[str, str]]]:
    """Return the device, and for each worker the environment that gives it its GPU or its cores."""
    if gpus:
        capability = min(gpu.capability for gpu in gpus)
        return Device("cuda", capability, f"{len(gpus)} x {gpus[0].name}"), [
            {"CUDA_VISIBLE_DEVICES": gpu.index} for gpu in gpus
        ]
    cores = sorted(os.sched_getaffinity(0))
    return pick_device(), [
        {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores[w::workers])), "VLLM_CPU_KVCACHE_SPACE": "2"}
        for w in range(min(workers, len(cores)))
    ]


class VllmEngine(OnMachine):
    """A causal language model, optionally with a LoRA adapter that stays unmerged, served by worker processes."""

    # requests a worker draws together: enough that the last answers, drawn with few beside them, cost little
    chunk_size = 128

    def __init__(
        self,
        model: str,
        *,
        cache: Path,
        adapter: str = "",
        chat_template_kwargs: dict[str, Any] | None = None,
        workers: int = 1,
        start_seconds: float = START_SECONDS,
    ):
        """Find GPUs and interpreter and check that the model can run; workers start with the first requests.

        Args:
            model: Hub id, folder or `package:<name>`.
            cache: folder for converted models; the workers' logs stand beside it.
            adapter: folder or Hub id of a LoRA adapter; empty for none.
            chat_template_kwargs: arguments of the chat template, e.g. {"enable_thinking": False}.
            workers: processes on a machine without a GPU, which share its cores; with GPUs there is one for each.
            start_seconds: after which a worker that is not ready counts as hanging.

        Raises:
            InputError: if there is no vLLM and no GPU to install it for, or model or adapter cannot run with it.
        """
        gpus = environment.gpus()
        python = environment.interpreter()
        if python is None and not gpus:
            raise InputError(
                "vLLM is not installed and there is no NVIDIA GPU to install it for; use engine: transformers, or set "
                f"{environment.PYTHON_VARIABLE} to a Python that has vLLM"
            )
        self.device, self._places = _places(gpus, workers)
        self._path = models.resolve(model, cache)
        self._options = settings(self.device, models.model_type(self._path))
        self._adapter = self._set_up(model, self._path, adapter, chat_template_kwargs)
        if self._adapter:
            rank = models.adapter_rank(self._adapter)
            fits = next((r for r in LORA_RANKS if r >= rank), rank)
            self._options |= {"enable_lora": True, "max_lora_rank": fits}
        self.python = python or environment.make(gpus[0])
        self.version = _version(self.python)
        self._logs, self._start_seconds = cache.parent, start_seconds
        self.workers: list[Worker] = []
        self._length = 0
        self._events: queue.Queue[tuple[Worker, dict[str, Any]]] = queue.Queue()
        self.identity |= {
            "engine": "vllm",
            "version": self.version,
            "device": self.device.name,
            "options": self._options,
        }

    def start(self, length: int = LEAST_LENGTH) -> None:
        """Start the workers for prompts and completions of up to `length` tokens together; wait until they can work.

        Raises:
            InputError: if none can. Where some can, the others are reported and the work is done without them.
        """
        if self.workers and length <= self._length:
            return
        self.close()
        weights.with_weights(Path(self._path))  # what a worker would fetch by itself, if at all
        self._length = min(max(LEAST_LENGTH, 1 << (length - 1).bit_length()), self.context)
        setup = {
            "options": self._options
            | {
                "model": self._path,
                "max_model_len": self._length,
                "trust_remote_code": False,
                "load_format": "safetensors",
            },
            "adapter": self._adapter,
            "stop_ids": sorted(self.stop_ids),
        }
        log.info("starting vLLM %s on %s: a minute or two", self.version, self.device.reason)
        starting = [
            Worker(self.python, place, self._logs / f"vllm-{w}.log", setup, self._events)
            for w, place in enumerate(self._places)
        ]
        weakref.finalize(self, end, starting)
        faults = self._await(starting)
        end([w for w in starting if w not in self.workers])
        if not self.workers:
            raise InputError(f"vLLM could not start with {self.python}: {faults[0]}; use engine: transformers")
        for fault in faults:
            log.warning("one of %d vLLM workers could not start, going on without it: %s", len(starting), fault)

    def _await(self, starting: Sequence[Worker]) -> list[str]:
        """Wait for workers to be ready, and return what was wrong with those that will not be."""
        deadline = time.monotonic() + self._start_seconds
        faults = []
        waiting = set(starting)
        while waiting:
            try:
                worker, message = self._events.get(timeout=max(0.0, min(1.0, deadline - time.monotonic())))
            except queue.Empty:
                if time.monotonic() < deadline:
                    continue
                faults += [f"it was not ready after {self._start_seconds:.0f} s (log: {w.log})" for w in waiting]
                break
            if worker not in waiting:
                continue
            waiting.discard(worker)
            if "error" in message:
                faults.append(f"{message['error']} (log: {worker.log})")
            else:
                self.workers.append(worker)
        return faults

    def close(self) -> None:
        """End the workers and free their GPUs."""
        end(self.workers)
        self.workers = []

    def generate(
        self, requests: Sequence[Request], *, seed: int, deadline: float = float("inf")
    ) -> Iterator[tuple[int, Reply]]:
        """Yield one reply per request; the whole call is one chunk and draws from one seed."""
        for _, i, reply in self.generate_chunks([(requests, seed)], deadline=deadline):
            yield i, reply

    def generate_chunks(
        self, chunks: Sequence[tuple[Sequence[Request], int]], *, deadline: float = float("inf")
    ) -> Iterator[tuple[int, int, Reply]]:
        """Yield the replies of whole chunks as workers finish them.

        Raises:
            InputError: if no prompt fits the model's context with its completion, or no worker is left.
        """
        if not chunks or time.monotonic() > deadline:
            return
        prompts, refusals, longest = self._rendered([requests for requests, _ in chunks])
        if longest:
            self.start(longest)
        yield from ((c, i, reply) for c, known in enumerate(prompts) if not known for i, reply in refusals[c].items())
        todo, failed = deque(c for c, known in enumerate(prompts) if known), set[int]()
        running: dict[int, int] = {}  # job -> chunk
        while True:
            for worker in self.workers:
                if not worker.job and todo and time.monotonic() <= deadline:
                    c = todo.popleft()
                    asked = [chunks[c][0][i] for i in prompts[c]]
                    running[worker.draw(asked, chunks[c][1], list(prompts[c].values()))] = c
            if not running and (not todo or time.monotonic() > deadline):
                return
            worker, message = self._events.get()
            if worker not in self.workers:
                continue
            drawn = running.pop(worker.job, None)  # None: the caller of an earlier call stopped listening
            worker.job = 0
            if "error" not in message:
                if drawn is not None:
                    replies = self._replies(chunks[drawn][0], prompts[drawn], message)
                    yield from ((drawn, i, reply) for i, reply in (*refusals[drawn].items(), *replies))
                continue
            self.workers.remove(worker)
            fault = f"a vLLM worker stopped: {message['error']} (log: {worker.log})"
            if not self.workers:
                raise InputError(f"{fault}; {GO_ON}, or use engine: transformers")
            log.warning("%s; going on with %d other(s)", fault, len(self.workers))
            if drawn in failed:
                self.tally.failures += len(chunks[drawn][0])
            elif drawn is not None:
                failed.add(drawn)
                todo.appendleft(drawn)

    def _rendered(
        self, chunks: Sequence[Sequence[Request]]
    ) -> tuple[list[dict[int, "array[int]"]], list[dict[int, Reply]], int]:
        """Return for each chunk the tokens of its prompts by their index, and the replies of those that are refused.

        The last value is the length of the longest prompt with its completion.
        """
        prompts, refusals, longest = [], [], 0
        for requests in chunks:
            rendered, refused = token_ids.prompts(self.tokenizer, requests, self.chat_template_kwargs, self.context)
            longest = max([longest, *(len(ids) + requests[i].sampling.max_tokens for i, ids in rendered.items())])
            prompts.append({i: array("i", ids) for i, ids in rendered.items()})
            refusals.append(refused)
        lost = [reply for refused in refusals for reply in refused.values()]
        token_ids.insist(lost, sum(map(len, chunks)), self.tally)
        return prompts, refusals, longest

    def _replies(
        self, requests: Sequence[Request], prompts: Mapping[int, Sequence[int]], message: Mapping[str, Any]
    ) -> Iterator[tuple[int, Reply]]:
        for (i, ids), completions in zip(prompts.items(), message["outputs"], strict=True):
            samples = []
            for completion, digits in completions:
                options = {int(p): {int(t): value for t, value in step.items()} for p, step in digits.items()}
                samples.append(token_ids.sample(self.tokenizer, completion, self.stop_ids, options))
            self.tally.calls += requests[i].n
            yield i, Reply(tuple(samples), len(ids), sum(s.n_tokens for s in samples))


def _version(python: Path) -> str:
    """Return the version of the distribution that installed `vllm` there; vllm-cpu is one as well."""
    ask = "import importlib.metadata as m; print(m.version(m.packages_distributions()['vllm'][0]))"
    done = subprocess.run([str(python), "-P", "-c", ask], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise InputError(f"{python} has no vLLM; install it there, or use engine: transformers")
    return done.stdout.strip()
