"""Which device and number format this machine really supports, found out by running a kernel, not by asking a flag.

Used by 02 and 04. A GPU can report itself available and fail at its first operation: the P100 (compute capability 6.0)
under a torch build without sm_60 code does. Half precision follows from the GPU and the model, see `Device.dtype`.
"""

import time
from dataclasses import dataclass

import torch

# Their activations exceed float16's largest number (65,504): they need float32 where there is no bfloat16.
FLOAT32_MODELS = ("gemma", "qwen3_moe", "qwen3_5")


@dataclass(frozen=True)
class Device:
    """A device that has just run a kernel, its compute capability (0, 0 for the CPU) and why it was chosen."""

    name: str
    capability: tuple[int, int]
    reason: str
    fast_bfloat16: bool = False  # of a CPU, where only some have instructions for it

    def dtype(self, model_type: str) -> torch.dtype:
        """Return the number format for the weights of a frozen or sampled model of this type.

        bfloat16 needs compute capability 8.0 (a T4 claims it but emulates it); float16 elsewhere on a GPU, except for
        models that overflow it. On a CPU float32, or bfloat16 where that was measured to be faster.
        """
        if self.name == "cpu":
            return torch.bfloat16 if self.fast_bfloat16 else torch.float32
        if self.capability < (8, 0) and model_type.startswith(FLOAT32_MODELS):
            return torch.float32
        return torch.bfloat16 if self.capability >= (8, 0) else torch.float16


def pick_device() -> Device:
    """Return the first GPU if it can run a matrix product, else the CPU, with the reason in one sentence."""
    if not torch.cuda.is_available():
        return _cpu("no GPU is visible to torch")
    name = torch.cuda.get_device_name(0)
    capability = torch.cuda.get_device_capability(0)
    try:
        ones = torch.ones(16, 16, device="cuda", dtype=torch.float16)
        total = float((ones @ ones).float().sum().item())
        if total != 16**3:
            raise RuntimeError(f"a product of ones gave {total}, expected {16**3}")
    except RuntimeError as error:
        return _cpu(unusable(name, capability, torch.cuda.get_arch_list(), str(error)))
    return Device("cuda", capability, f"{name} (compute capability {capability[0]}.{capability[1]}) ran a kernel")


def _cpu(reason: str) -> Device:
    """Time one matrix product in both formats: without the instructions for it, bfloat16 is the slower one."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        weight, rows = torch.ones(2048, 512, dtype=dtype), torch.ones(64, 512, dtype=dtype)
        tries = []
        for _ in range(5):
            started = time.perf_counter()
            torch.nn.functional.linear(rows, weight)
            tries.append(time.perf_counter() - started)
        seconds[dtype] = min(tries)
    gain = seconds[torch.float32] / seconds[torch.bfloat16]
    fast = gain > 1.5
    return Device("cpu", (0, 0), f"{reason}; bfloat16 ran {gain:.1f} times as fast as float32 on this CPU", fast)


def unusable(name: str, capability: tuple[int, int], architectures: list[str], error: str) -> str:
    """Explain a GPU that is available but fails, naming the torch build's part in it."""
    wanted = f"sm_{capability[0]}{capability[1]}"
    first = error.strip().splitlines()[0] if error.strip() else "no message"
    if wanted in architectures:
        return f"{name} is visible but failed its first kernel ({first}); using the CPU"
    return (
        f"{name} is visible but this torch build has no code for it ({wanted}; it has {', '.join(architectures)}): "
        + ("on Kaggle choose the accelerator T4 instead of P100; " if capability[0] == 6 else "")
        + "using the CPU"
    )
