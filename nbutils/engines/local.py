"""Sampling with `transformers` in this process, on any GPU or CPU; the engine of the demo and of a P100.

One chunk of requests is expanded to n sequences each, sorted by prompt length and drawn in batches from one seed.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from nbutils import models
from nbutils.engines import Reply, Request, Sample
from nbutils.errors import InputError
from nbutils.preflight import Device


class TransformersEngine:
    """A causal language model, optionally with a LoRA adapter that stays unmerged."""

    chunk_size = 32

    def __init__(
        self,
        model: str,
        *,
        device: Device,
        cache: Path,
        adapter: str = "",
        chat_template_kwargs: dict[str, Any] | None = None,
        batch_size: int = 64,
    ):
        """Load the model.

        Args:
            model: Hub id, folder or `package:<name>`.
            cache: folder for converted models.
            adapter: folder or Hub id of a LoRA adapter; empty for none.
            chat_template_kwargs: arguments of the chat template, e.g. {"enable_thinking": False}.
            batch_size: sequences generated at once; part of the identity, since it shapes the random draws.
        """
        path = models.resolve(model, cache)
        self.tokenizer = models.load_tokenizer(path)
        self.context = models.context_length(path)
        self.model = models.load_model(path, device)
        if adapter:
            self.model = models.load_adapter(self.model, adapter)
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.batch_size = batch_size
        self.stop_ids = self._stop_ids()
        self.identity = {
            "engine": "transformers",
            "model": model,
            "weights": models.weights_digest(path),
            "adapter": models.weights_digest(adapter) if adapter else "",
            "device": device.name,
            "dtype": str(self.model.dtype),
            "batch_size": batch_size,
            "chat_template_kwargs": self.chat_template_kwargs,
        }

    def generate(
        self, requests: Sequence[Request], *, seed: int, deadline: float = float("inf")
    ) -> Iterator[tuple[int, Reply]]:
        """Yield one reply per request; the whole call is one chunk and draws from one seed.

        Raises:
            InputError: if a prompt and its completion would not fit the model's context.
        """
        prompts = [
            models.render(self.tokenizer, [dict(m) for m in r.messages], self.chat_template_kwargs) for r in requests
        ]
        for prompt, request in zip(prompts, requests, strict=True):
            if len(prompt) + request.sampling.max_tokens > self.context:
                raise InputError(
                    f"a prompt of {len(prompt)} tokens and max_tokens={request.sampling.max_tokens} exceed the model's "
                    f"context of {self.context} tokens; lower max_tokens or leave out the prompt that begins "
                    f"{request.messages[-1]['content'][:60]!r}"
                )
        torch.manual_seed(seed)
        # one batch may hold only sequences drawn with the same options
        jobs = [(i, r.sampling) for i, r in enumerate(requests) for _ in range(r.n)]
        jobs.sort(key=lambda job: (str(job[1]), len(prompts[job[0]]), job[0]))
        samples: list[list[Sample]] = [[] for _ in requests]
        while jobs:
            sampling = jobs[0][1]
            batch = [job for job in jobs[: self.batch_size] if job[1] == sampling]
            jobs = jobs[len(batch) :]
            for (i, _), sample in zip(batch, self._complete([prompts[i] for i, _ in batch], sampling), strict=True):
                samples[i].append(sample)
        for i, drawn in enumerate(samples):
            tokens = sum(s.n_tokens for s in drawn)
            yield i, Reply(tuple(drawn), prompt_tokens=len(prompts[i]), completion_tokens=tokens)

    @torch.inference_mode()
    def next_token_probabilities(self, prompt: list[dict[str, str]], temperature: float = 1.0) -> torch.Tensor:
        """Return the distribution over the vocabulary, shape (vocabulary,), for the first token of an answer."""
        ids = torch.tensor([models.render(self.tokenizer, prompt, self.chat_template_kwargs)], device=self.model.device)
        return torch.softmax(self.model(input_ids=ids).logits[0, -1].float() / temperature, dim=-1).cpu()

    @torch.inference_mode()
    def _complete(self, prompts: list[list[int]], sampling: Any) -> list[Sample]:
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        config = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=sampling.temperature > 0,
            **(drawn if sampling.temperature > 0 else {}),
            pad_token_id=pad,
            eos_token_id=sorted(self.stop_ids),
        )
        output = self.model.generate(inputs=ids, attention_mask=mask, generation_config=config)
        return [self._sample(row[width:].tolist()) for row in output]

    def _sample(self, ids: list[int]) -> Sample:
        """Cut a row at its first stop token; a row without one was cut off by max_tokens."""
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), None)
        text = self.tokenizer.decode(ids if end is None else ids[:end], skip_special_tokens=True)
        n_tokens = len(ids) if end is None else end + 1
        return Sample(text, n_tokens, "length" if end is None else "stop")

    def _stop_ids(self) -> set[int]:
        declared = self.model.generation_config.eos_token_id
        ids = set(declared if isinstance(declared, list) else [declared])
        return {i for i in ids | {self.tokenizer.eos_token_id} if i is not None}
