"""The process in which vLLM runs, one per GPU and under an interpreter of its own; started by `nbutils.engines.vllm`.

It reads JSON lines from stdin, first its settings, then chunks of requests, and writes one JSON line per answer to
the stdout it was started with. That interpreter need not have nbutils: nothing of it is imported here.
"""

import json
import os
import random
import sys
import threading
import time
from typing import Any


def main() -> int:
    """Serve until stdin ends, an error ends vLLM, or the parent is gone; return the exit status."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what vLLM prints goes to the log

    def say(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    settings = json.loads(sys.stdin.readline())
    try:
        llm, lora = _load(settings)
    except Exception as error:
        say(error=_describe(error))
        raise
    say(ready=True)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            outputs = _draw(llm, lora, job, settings["stop_ids"])
        except Exception as error:  # what vLLM's engine is worth after that nobody knows
            say(error=_describe(error))
            raise
        say(outputs=outputs)
    return 0


def _load(settings: dict[str, Any]) -> tuple[Any, Any]:
    import vllm
    from vllm.lora.request import LoRARequest

    llm = vllm.LLM(**settings["options"])
    return llm, LoRARequest("adapter", 1, settings["adapter"]) if settings["adapter"] else None


def _draw(llm: Any, lora: Any, job: dict[str, Any], stop_ids: list[int]) -> list[list[Any]]:
    """Return for every request its completions, each as token ids and, by place, what else a digit could have been.

    vLLM runs inside this process, so its draws come from torch's own generators: a seed per request would slow a GPU
    down and crashes on a CPU. No prompt is left from an earlier chunk, so that a chunk gives the same samples whatever
    was drawn before it.
    """
    import numpy as np
    import torch
    from vllm import SamplingParams

    random.seed(job["seed"])
    np.random.seed(job["seed"] % 2**32)
    torch.manual_seed(job["seed"])  # the GPU's as well
    llm.reset_prefix_cache()
    options = [
        SamplingParams(
            n=request["n"] if request["temperature"] else 1,  # vLLM refuses to answer greedily more than once
            temperature=request["temperature"],
            top_p=request["top_p"],
            top_k=request["top_k"],
            max_tokens=request["max_tokens"],
            stop_token_ids=stop_ids,
            logprobs=20 if request["logprobs"] else None,
            detokenize=request["logprobs"],
        )
        for request in job["requests"]
    ]
    prompts = [{"prompt_token_ids": request["ids"]} for request in job["requests"]]
    outputs = llm.generate(prompts, options, lora_request=lora, use_tqdm=False)
    result = []
    for request, output in zip(job["requests"], outputs, strict=True):
        if list(output.prompt_token_ids) != request["ids"]:
            raise RuntimeError("vLLM changed the tokens of a prompt")
        drawn = [[list(completion.token_ids), _digits(completion.logprobs or [])] for completion in output.outputs]
        result.append(drawn * (request["n"] // len(drawn)))
    return result


def _digits(steps: list[Any]) -> dict[int, dict[int, float]]:
    """Return place -> token -> log-probability where a token of the completion may be a number."""
    return {
        place: {token: option.logprob for token, option in step.items()}
        for place, step in enumerate(steps)
        if any((option.decoded_token or "").strip().isdigit() for option in step.values())
    }


def _describe(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:300]}"


def _follow(parent: int) -> None:
    """End with the parent: a notebook that was killed must not leave a GPU occupied."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
