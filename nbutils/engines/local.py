"""Sampling with `transformers` in this process, on any GPU or CPU; the engine of the demo and of a P100.

One chunk of requests is expanded to n sequences each, sorted by prompt length and drawn in batches from one seed.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from nbutils import models
from nbutils.engines import Reply, Request, Sample, Sampling
from nbutils.errors import InputError
from nbutils.preflight import Device


class Nucleus(LogitsProcessor):  # type: ignore[misc]
    """Temperature, top-k and top-p (Holtzman et al. 2020) like transformers' own, without sorting the whole vocabulary.

    The nucleus nearly always lies within the first thousand tokens; sorting those alone takes a tenth of the time that
    sorting all takes, which on a CPU is as long as the small model itself. Where it does not lie there, all are sorted.
    """

    PREFIX = 1024

    def __init__(self, sampling: Sampling):
        self.temperature, self.top_p, self.top_k = sampling.temperature, sampling.top_p, sampling.top_k

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores, shape (batch, vocabulary), with every token outside the nucleus at minus infinity."""
        scores = scores.float() / self.temperature
        size = scores.shape[-1]
        limit = min(self.top_k or size, size)
        if self.top_p == 1 and limit == size:
            return scores
        for prefix in (limit,) if self.top_k else (min(self.PREFIX, size), size):
            values, tokens = scores.topk(prefix)
            # top-k comes first: then only those k tokens share the probability
            total = (values if self.top_k else scores).logsumexp(-1, keepdim=True)
            before = (values - total).exp().cumsum(-1) - (values - total).exp()
            if prefix == limit or bool((before[:, -1] >= self.top_p).all()):
                break
        values = values.masked_fill(before >= self.top_p, float("-inf"))
        return torch.full_like(scores, float("-inf")).scatter(-1, tokens, values)


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
    def _complete(self, prompts: list[list[int]], sampling: Sampling) -> list[Sample]:
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        drawing = sampling.temperature > 0
        config = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=drawing,
            **({"temperature": 1.0, "top_p": 1.0, "top_k": 0} if drawing else {}),  # `Nucleus` applies them
            pad_token_id=pad,
            eos_token_id=sorted(self.stop_ids),
        )
        processors = LogitsProcessorList([Nucleus(sampling)] if drawing else [])
        output = self.model.generate(
            inputs=ids, attention_mask=mask, generation_config=config, logits_processor=processors
        )
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
