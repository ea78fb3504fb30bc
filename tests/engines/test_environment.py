"""engines/environment.py: GPUs as a scripted nvidia-smi tells them, environments made by scripted tools."""

import logging
import os
import sys
from pathlib import Path

import pytest

from nbutils.core.errors import InputError
from nbutils.engines import environment
from nbutils.engines.environment import Gpu, gpus, interpreter, make, release


def gpu(driver, capability=(7, 5), name="Tesla T4"):
    return Gpu("0", name, capability, tuple(map(int, driver.split("."))))


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Writes programs that are found first on PATH; nothing else is."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    for name in ("NBUTILS_GPUS", "CUDA_VISIBLE_DEVICES", "NBUTILS_VLLM_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(name, script):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
        return folder / name

    return write


@pytest.mark.parametrize(
    ("found", "requirement", "reason"),
    [
        (gpu("580.65.06"), "vllm==0.33.0", "driver 580.65.6 runs CUDA 13"),
        (gpu("595.10", (8, 9), "NVIDIA L4"), "vllm==0.33.0", "driver 595.10 runs CUDA 13"),
        (gpu("580.65.05"), "vllm==0.19.1", "driver 580.65.5 with Tesla T4 runs CUDA 12"),
        (gpu("570.86.15"), "vllm==0.19.1", "driver 570.86.15 with Tesla T4 runs CUDA 12"),
        (gpu("590.10", (7, 0), "Tesla V100"), "vllm==0.19.1", "driver 590.10 with Tesla V100 runs CUDA 12"),
    ],
)
def test_the_release_follows_from_driver_and_gpu(found, requirement, reason):
    assert release(found) == (requirement, reason)


def test_a_driver_too_old_is_refused():
    with pytest.raises(InputError, match=r"driver 470\.82\.1 of Tesla T4 is too old for vLLM.*engine: transformers"):
        release(gpu("470.82.01"))


def test_gpus_are_those_the_driver_names(tools):
    tools("nvidia-smi", "echo '0, GPU-a, Tesla T4, 7.5, 570.86.15'; echo '1, GPU-b, NVIDIA B200, 10.0, 580.1'")
    assert gpus() == [
        Gpu("0", "Tesla T4", (7, 5), (570, 86, 15)),
        Gpu("1", "NVIDIA B200", (10, 0), (580, 1)),
    ]


@pytest.mark.parametrize(
    ("variables", "indices"),
    [
        ({"CUDA_VISIBLE_DEVICES": "1"}, ["1"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a"}, ["0"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "0", "NBUTILS_GPUS": "all"}, ["0", "1"]),
        ({"CUDA_VISIBLE_DEVICES": "0", "NBUTILS_GPUS": "0,1"}, ["0", "1"]),  # a notebook keeps to one itself
    ],
)
def test_only_allowed_gpus_are_used(tools, monkeypatch, variables, indices):
    tools("nvidia-smi", 'for i in 0:a 1:b; do echo "${i%:*}, GPU-${i#*:}, Tesla T4, 7.5, 570.86.15"; done')
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert [found.index for found in gpus()] == indices


def test_without_a_driver_there_is_no_gpu(tools):
    tools("nvidia-smi", "echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9")
    assert gpus() == []


def test_a_gpu_the_driver_has_lost_is_reported_and_left_out(tools, caplog):
    tools("nvidia-smi", "echo '0, GPU-a, Tesla T4, 7.5, 570.86.15'; echo '1, GPU-b, [Unknown Error], [N/A], [N/A]'")
    assert [found.index for found in gpus()] == ["0"]
    assert "which is no usable GPU" in caplog.text


UV = 'echo "$@" >> {log}; if [ "$1" = venv ]; then mkdir -p "$5/bin"; touch "$5/bin/python"; fi'


def test_an_environment_is_made_once_and_found_again(tools, tmp_path, caplog):
    caplog.set_level(logging.INFO, "nbutils")
    tools("uv", UV.format(log=tmp_path / "uv.log"))
    folder = tmp_path / "cache/nbutils/vllm-0.19.1"
    assert interpreter() is None
    assert make(gpu("570.86.15")) == interpreter() == folder / "bin/python"
    assert make(gpu("570.86.15")) == folder / "bin/python"
    venv, install = (tmp_path / "uv.log").read_text().splitlines()
    assert venv == f"venv -q -p {sys.executable} {folder}"
    assert install == f"pip install -q --python {folder / 'bin/python'} vllm==0.19.1"
    assert f"installing vllm==0.19.1 in {folder}, because driver 570.86.15 with Tesla T4 runs CUDA 12" in caplog.text


def test_an_environment_whose_installation_failed_is_not_used_and_made_anew(tools, tmp_path):
    tools("uv", UV.format(log=tmp_path / "uv.log") + '; [ "$1" = venv ] || { echo "no space left" >&2; exit 1; }')
    with pytest.raises(InputError, match=r"vllm==0\.33\.0 could not be installed in .* \(no space left\); check"):
        make(gpu("580.65.06"))
    assert interpreter() is None
    tools("uv", UV.format(log=tmp_path / "uv.log"))
    assert make(gpu("580.65.06")) == interpreter()


def test_without_uv_pythons_own_tool_makes_it(tools, tmp_path, monkeypatch):
    python = tools(
        "python", f'echo "$@" >> {tmp_path}/log; [ "$2" = pip ] || {{ mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; }}'
    )
    monkeypatch.setattr(environment.sys, "executable", str(python))
    folder = tmp_path / "cache/nbutils/vllm-0.19.1"
    assert make(gpu("570.86.15")) == folder / "bin/python"
    assert (tmp_path / "log").read_text().splitlines() == [f"-m venv {folder}", "-m pip install -q vllm==0.19.1"]


def test_the_interpreter_a_user_names_comes_first(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("NBUTILS_VLLM_PYTHON", sys.executable)
    assert interpreter() == Path(sys.executable)
    monkeypatch.setenv("NBUTILS_VLLM_PYTHON", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"NBUTILS_VLLM_PYTHON is .*nowhere, which is no file"):
        interpreter()


def test_without_a_home_the_environment_stands_in_the_temporary_folder(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no/such/place")
    monkeypatch.setattr(environment.tempfile, "gettempdir", lambda: str(tmp_path))
    tools("uv", UV.format(log=tmp_path / "uv.log"))
    assert make(gpu("570.86.15")) == tmp_path / "nbutils/vllm-0.19.1/bin/python"
    assert os.access(tmp_path / "nbutils", os.W_OK)
