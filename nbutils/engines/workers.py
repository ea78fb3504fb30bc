"""A process that runs vLLM for `nbutils.engines.vllm`, seen from the notebook: started, given work, heard and ended."""

import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, cast

from nbutils.engines import vllm_worker
from nbutils.engines.protocol import Request

ENVIRONMENT = {
    # one process, one order of events: with a process of its own vLLM's scheduler gives other samples every time
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # draws from generators of its own
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # likewise, and its compilation fails on Kaggle
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class Worker:
    """A worker process; its answers arrive in `events`, its death as an error."""

    _jobs = itertools.count(1)

    def __init__(
        self,
        python: Path,
        place: Mapping[str, str],
        log_file: Path,
        setup: Mapping[str, Any],
        events: "queue.Queue[tuple[Worker, dict[str, Any]]]",
    ):
        self.log, self.job = log_file, 0  # 0: waits for work
        log_file.parent.mkdir(parents=True, exist_ok=True)
        inherited = dict(os.environ)
        if python != Path(sys.executable):  # what belongs to this interpreter must not reach the other one
            for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MPLBACKEND"):
                inherited.pop(name, None)
        with log_file.open("w") as stream:
            self.process = subprocess.Popen(
                # -P: `import vllm` must not find this folder's module of that name
                [str(python), "-P", str(vllm_worker.__file__)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                start_new_session=True,  # Ctrl-C is for the notebook
                env=inherited | ENVIRONMENT | dict(place),
            )
        self._send(setup)
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def draw(self, requests: Sequence[Request], seed: int, prompts: Sequence[Sequence[int]]) -> int:
        """Send a chunk and return the number its answer will carry."""
        self.job = next(self._jobs)
        asked = [
            asdict(request.sampling) | {"n": request.n, "logprobs": request.logprobs, "ids": list(ids)}
            for request, ids in zip(requests, prompts, strict=True)
        ]
        self._send({"seed": seed, "requests": asked})
        return self.job

    def _send(self, message: Mapping[str, Any]) -> None:
        stdin = cast(IO[str], self.process.stdin)
        with contextlib.suppress(BrokenPipeError):  # it died, which `_listen` reports
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()

    def _listen(self, events: "queue.Queue[tuple[Worker, dict[str, Any]]]") -> None:
        for line in cast(IO[str], self.process.stdout):
            events.put((self, json.loads(line)))
        code = self.process.wait()
        ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        events.put((self, {"error": f"its process was {ended}"}))


def end(workers: Sequence[Worker]) -> None:
    """Kill workers with all that they started; their GPUs are free when this returns."""
    for worker in workers:
        if worker.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ended at this moment
                os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
