"""Where vLLM can run: the machine's NVIDIA GPUs, and the interpreter that has vLLM or an environment made for it.

vLLM pins its own torch, so on Kaggle it cannot be installed beside the notebook's packages: it gets an environment of
its own, outside the working folder, whose size is limited. Nothing here touches a GPU or imports vLLM.
"""

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nbutils.core.errors import InputError

log = logging.getLogger(__name__)

# names an interpreter that has vLLM
PYTHON_VARIABLE = "NBUTILS_VLLM_PYTHON"
# the GPUs that workers may use, as CUDA_VISIBLE_DEVICES writes them, or `all`; a notebook itself keeps to one of them
GPUS_VARIABLE = "NBUTILS_GPUS"


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU as its driver describes it; `index` is what CUDA_VISIBLE_DEVICES takes."""

    index: str
    name: str
    capability: tuple[int, int]
    driver: tuple[int, ...]


def gpus() -> list[Gpu]:
    """Return the GPUs that this process's user may use, without creating a context on any."""
    try:
        query = ["nvidia-smi", "--query-gpu=index,uuid,name,compute_cap,driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # no driver
        return []
    allowed = os.environ.get(GPUS_VARIABLE, os.environ.get("CUDA_VISIBLE_DEVICES"))
    named = None if allowed in (None, "all") else [name.strip() for name in str(allowed).split(",")]
    found = []
    for line in answer.splitlines():
        fields = [field.strip() for field in line.split(",")]
        try:
            index, uuid, name, capability, driver = fields
            major, minor = map(int, capability.split("."))
            gpu = Gpu(index, name, (major, minor), tuple(map(int, driver.split("."))))
        except ValueError:  # a GPU the driver has lost, say
            log.warning("nvidia-smi says %r, which is no usable GPU", line)
            continue
        if named is None or index in named or uuid in named:
            found.append(gpu)
    return found


def release(gpu: Gpu) -> tuple[str, str]:
    """Return the vLLM requirement that fits a GPU and its driver, and why.

    0.33.0 is built for CUDA 13, which needs driver 580.65.06; 0.19.1 is the last tried release built for CUDA 12,
    whose minor versions all run from driver 525.60.13 on, and the last with code for compute capability 7.0.

    Raises:
        InputError: if the driver is too old.
    """
    driver = ".".join(map(str, gpu.driver))
    if gpu.driver >= (580, 65, 6) and gpu.capability >= (7, 5):
        return "vllm==0.33.0", f"driver {driver} runs CUDA 13"
    if gpu.driver >= (525, 60, 13):
        return "vllm==0.19.1", f"driver {driver} with {gpu.name} runs CUDA 12"
    raise InputError(f"driver {driver} of {gpu.name} is too old for vLLM (525.60.13 needed); use engine: transformers")


def interpreter() -> Path | None:
    """Return an interpreter that has vLLM: the one PYTHON_VARIABLE names, this one, or that of a made environment.

    Raises:
        InputError: if the variable names no file.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise InputError(
                f"{PYTHON_VARIABLE} is {named}, which is no file; expected the path of a Python that has vLLM"
            )
        return Path(named)
    if importlib.util.find_spec("vllm"):
        return Path(sys.executable)
    made = sorted(_home().glob("vllm-*/ready"))
    return made[-1].parent / "bin/python" if made else None


def make(gpu: Gpu) -> Path:
    """Make an environment with the vLLM release that fits a GPU and return its interpreter; minutes, and a download.

    Raises:
        InputError: if no release fits or the installation fails.
    """
    requirement, reason = release(gpu)
    folder = _home() / requirement.replace("==", "-")
    python = folder / "bin/python"
    if (folder / "ready").is_file():
        return python
    log.info("installing %s in %s, because %s; this takes minutes, once per machine", requirement, folder, reason)
    if folder.exists():  # left by an installation that was interrupted
        shutil.rmtree(folder)
    uv = shutil.which("uv")
    steps: list[Sequence[str]]
    if uv:  # Kaggle's image has it; it needs no ensurepip and is faster
        steps = [[uv, "venv", "-q", "-p", sys.executable, str(folder)]]
        steps += [[uv, "pip", "install", "-q", "--python", str(python), requirement]]
    else:
        steps = [[sys.executable, "-m", "venv", str(folder)]]
        steps += [[str(python), "-m", "pip", "install", "-q", requirement]]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1][:300]
            raise InputError(
                f"{requirement} could not be installed in {folder} ({said}); check the network and the room there, "
                "or use engine: transformers"
            )
    (folder / "ready").touch()
    return python


def _home() -> Path:
    """Return a folder that notebooks of one machine share and that no run's output carries along."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nbutils"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or a read-only one
        folder = Path(tempfile.gettempdir()) / "nbutils"
        folder.mkdir(exist_ok=True)
    return folder
