"""Which device and number format this machine really supports, found out by running a kernel, not by asking a flag.

Used by 02 and 04. A GPU can report itself available and fail at its first operation: the P100 (compute capability 6.0)
under a torch build without sm_60 code does. Half precision follows from the GPU and the model, see `Device.dtype`.
"""

from dataclasses import dataclass
from typing import Any

import torch

# Their activations exceed float16's largest number (65,504): they need float32 where there is no bfloat16.
# Gemma and GLM-4 are refused in float16 by vLLM, the two of Qwen are on Unsloth's list of forced float32.
FLOAT32_MODELS = ("gemma", "glm4", "qwen3_moe", "qwen3_5")


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
        models that overflow it. On a CPU float32, or bfloat16 where the CPU has instructions for it.
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
    """Use bfloat16 where the CPU has instructions for it; without them it is the slower format.

    Its flags are read and no kernel is timed: beside other work a timing would come out differently in the next run,
    and nothing stored under the first run's format would be found again.
    """
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch: none known
    fast = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return Device("cpu", (0, 0), f"{reason}; this CPU has {'' if fast else 'no '}bfloat16 instructions", fast)


def unusable(name: str, capability: tuple[int, int], architectures: list[str], error: str) -> str:
    """Explain a GPU that is available but fails, naming the torch build's part in it."""
    wanted = f"sm_{capability[0]}{capability[1]}"
    first = error.strip().splitlines()[0] if error.strip() else "no message"
    if wanted in architectures:
        return f"{name} is visible but failed its first kernel ({first}); using the CPU"
    remedy = "install a newer one"
    if capability < (7, 5):  # builds for CUDA 12.8 begin at sm_70, those for 13 at sm_75
        remedy = "install a torch build for CUDA 12.6, which still has it"
    if capability[0] == 6:
        remedy += ", or on Kaggle choose the accelerator T4 instead of P100"
    return (
        f"{name} is visible but this torch build has no code for it ({wanted}; it has {', '.join(architectures)}): "
        f"{remedy}; using the CPU"
    )
