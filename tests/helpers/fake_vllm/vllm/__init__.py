"""A stand-in for vLLM that a worker process can import: answers in random tokens, and fails as the tests want.

FAULTS in its environment names what goes wrong, as `fault` or, for one worker only, `fault@CUDA_VISIBLE_DEVICES`.
What it was started with and asked is appended to the file SEEN as JSON lines.
"""

import json
import os
import random
import signal
import time
from dataclasses import asdict, dataclass, field

FAULTS = [
    name.partition("@")[0]
    for name in os.environ.get("FAULTS", "").split(",")
    if name.partition("@")[2] in ("", os.environ.get("CUDA_VISIBLE_DEVICES"))
]

if "no import" in FAULTS:
    raise ImportError("libcudart.so.13: cannot open shared object file: No such file or directory")


def seen(**what):
    with open(os.environ["SEEN"], "a") as stream:
        stream.write(json.dumps(what | {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}) + "\n")


@dataclass
class SamplingParams:
    n: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    stop_token_ids: list
    logprobs: int | None
    detokenize: bool


@dataclass
class Option:
    logprob: float
    decoded_token: str


@dataclass
class Completion:
    token_ids: list
    logprobs: list | None = None


@dataclass
class Output:
    prompt_token_ids: list
    outputs: list = field(default_factory=list)


class LLM:
    def __init__(self, **options):
        names = ("CUDA_VISIBLE_DEVICES", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_USE_FLASHINFER_SAMPLER", "PYTHONPATH")
        seen(options=options, environment={name: os.environ.get(name) for name in names}, pid=os.getpid())
        print("a line of vLLM's own on stdout, which must not be taken for an answer")
        if "hang" in FAULTS:
            time.sleep(600)
        if "no memory" in FAULTS:
            raise RuntimeError(
                "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 14.56 GiB"
            )
        self.chunks = 0

    def reset_prefix_cache(self):
        return True

    def generate(self, prompts, options, lora_request=None, use_tqdm=True):
        self.chunks += 1
        seen(
            chunk=[p["prompt_token_ids"] for p in prompts],
            lora=lora_request and lora_request.path,
            **asdict(options[0]),
        )
        if self.chunks == 2:
            if "dies" in FAULTS:
                os.kill(os.getpid(), signal.SIGKILL)
            if "no memory later" in FAULTS:
                raise RuntimeError("CUDA out of memory. Tried to allocate 64.00 MiB.")
        time.sleep(float(os.environ.get("CHUNK_SECONDS", "0")))
        return [
            Output(
                [1, *p["prompt_token_ids"]] if "extra token" in FAULTS else p["prompt_token_ids"],
                [self.completion(o) for _ in range(o.n)],
            )
            for p, o in zip(prompts, options, strict=True)
        ]

    def completion(self, options):
        length = random.randint(1, options.max_tokens)
        ids = [random.randint(60, 200) if options.temperature else 70 + i for i in range(length)]
        if length < options.max_tokens:
            ids.append(options.stop_token_ids[0])
        return Completion(ids)
