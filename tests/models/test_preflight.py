"""preflight.py: what a GPU says about itself is not believed until it has run a kernel."""

import pytest
import torch

from nbutils.models.preflight import Device, pick_device, unusable

P100_ERROR = "CUDA error: no kernel image is available for execution on the device\nCompile with TORCH_USE_CUDA_DSA"


class FakeGpu:
    """A torch.cuda that reports a GPU; `torch.ones` on it raises or computes on the CPU."""

    def __init__(self, monkeypatch, name, capability, architectures, error=None):
        for attribute, value in {
            "is_available": True,
            "get_device_name": name,
            "get_device_capability": capability,
            "get_arch_list": architectures,
        }.items():
            monkeypatch.setattr(torch.cuda, attribute, lambda *_, value=value: value)
        ones = torch.ones

        def on_gpu(*shape, device="cpu", dtype):
            if error and device == "cuda":
                raise error
            return ones(*shape, dtype=dtype)

        monkeypatch.setattr(torch, "ones", on_gpu)


@pytest.mark.parametrize(
    ("capabilities", "dtype", "words"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32, "this CPU has no bfloat16"),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16, "this CPU has bfloat16"),
        ({"amx_bf16": True}, torch.bfloat16, "this CPU has bfloat16"),
        ({}, torch.float32, "this CPU has no bfloat16"),
    ],
)
def test_without_a_gpu_the_cpu_is_used_in_bfloat16_where_it_has_instructions_for_it(
    capabilities, dtype, words, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    device = pick_device()
    assert (device.name, device.dtype("gemma3_text")) == ("cpu", dtype)
    assert device.reason == f"no GPU is visible to torch; {words} instructions"


def test_the_choice_is_the_same_however_busy_the_machine_is(monkeypatch):
    """Stored replies are found again by a key that holds the number format."""
    clock = iter([1e6 ** (i % 7) for i in range(1000)])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert len({pick_device() for _ in range(10)}) == 1


def test_a_gpu_that_ran_a_kernel_is_used(monkeypatch):
    FakeGpu(monkeypatch, "Tesla T4", (7, 5), ["sm_75"])
    device = pick_device()
    assert (device.name, device.capability) == ("cuda", (7, 5))
    assert device.reason == "Tesla T4 (compute capability 7.5) ran a kernel"


def test_a_p100_the_torch_build_has_no_code_for_falls_to_the_cpu_and_says_which_build_has(monkeypatch):
    FakeGpu(monkeypatch, "Tesla P100-PCIE-16GB", (6, 0), ["sm_70", "sm_75"], RuntimeError(P100_ERROR))
    device = pick_device()
    assert device.name == "cpu"
    assert device.reason.startswith(
        "Tesla P100-PCIE-16GB is visible but this torch build has no code for it (sm_60; it has sm_70, sm_75): install "
        "a torch build for CUDA 12.6, which still has it, or on Kaggle choose the accelerator T4 instead of P100; "
        "using the CPU; "
    )
    assert "\n" not in device.reason


@pytest.mark.parametrize(
    ("name", "capability", "architectures", "remedy"),
    [
        ("Tesla V100", (7, 0), ["sm_75", "sm_80"], "install a torch build for CUDA 12.6, which still has it"),
        ("RTX 5090", (12, 0), ["sm_75", "sm_90"], "install a newer one"),
    ],
)
def test_a_gpu_too_old_or_too_new_for_the_torch_build_is_told_which_to_install(name, capability, architectures, remedy):
    sentence = unusable(name, capability, architectures, P100_ERROR)
    assert sentence.endswith(f"{', '.join(architectures)}): {remedy}; using the CPU")
    assert "Kaggle" not in sentence


def test_a_broken_gpu_the_build_has_code_for_falls_to_the_cpu_with_its_own_error(monkeypatch):
    FakeGpu(monkeypatch, "Tesla T4", (7, 5), ["sm_75"], RuntimeError("CUDA error: out of memory\nmore"))
    device = pick_device()
    assert device.name == "cpu"
    assert device.reason.startswith(
        "Tesla T4 is visible but failed its first kernel (CUDA error: out of memory); using the CPU"
    )


def test_a_gpu_that_computes_nonsense_is_not_used(monkeypatch):
    FakeGpu(monkeypatch, "Tesla T4", (7, 5), ["sm_75"])
    monkeypatch.setattr(torch, "ones", lambda *shape, dtype, **_: torch.zeros(*shape, dtype=dtype))
    device = pick_device()
    assert device.name == "cpu"
    assert "gave 0.0, expected 4096" in device.reason


@pytest.mark.parametrize(
    ("name", "capability", "model_type", "dtype"),
    [
        ("cpu", (0, 0), "llama", torch.float32),
        ("cpu", (0, 0), "gemma3_text", torch.float32),
        ("cuda", (6, 0), "qwen3", torch.float16),
        ("cuda", (6, 0), "gemma3_text", torch.float32),
        ("cuda", (7, 5), "qwen3", torch.float16),
        ("cuda", (7, 5), "gemma3_text", torch.float32),
        ("cuda", (7, 5), "gemma2", torch.float32),
        ("cuda", (7, 5), "glm4", torch.float32),
        ("cuda", (7, 5), "qwen3_moe", torch.float32),
        ("cuda", (7, 5), "qwen3_5_text", torch.float32),
        ("cuda", (8, 0), "gemma3_text", torch.bfloat16),
        ("cuda", (8, 0), "glm4", torch.bfloat16),
        ("cuda", (8, 9), "llama", torch.bfloat16),
        ("cuda", (9, 0), "qwen3", torch.bfloat16),
        ("cuda", (12, 0), "qwen3", torch.bfloat16),
    ],
)
def test_the_number_format_follows_from_gpu_and_model(name, capability, model_type, dtype):
    assert Device(name, capability, "a test").dtype(model_type) == dtype
