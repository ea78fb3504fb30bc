"""Sampling with `transformers` in this process, on any GPU or CPU; the engine of the demo and of a P100.

One chunk of requests is expanded to n sequences each and drawn in batches from one seed. `generate` runs a batch until
its last answer ends, and most end early: so it is called for a stretch of tokens at a time, and what is unfinished goes
on in new, full batches. A batch that does not fit the memory is drawn in halves.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from nbutils import models, weights
from nbutils.engines import Engine, Reply, Request, Sample, Sampling, Tally, token_ids
from nbutils.errors import InputError
from nbutils.preflight import Device

log = logging.getLogger(__name__)

# Tokens generated before the unfinished answers are gathered into new batches; doubled from stretch to stretch.
STRETCH = 48

# The nucleus nearly always lies within this many tokens; sorting them alone takes a tenth of the time of sorting all.
PREFIX = 1024


def nucleus(scores: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens a draw may take after temperature, top-k and top-p (Holtzman et al. 2020).

    Args:
        scores: next-token logits, shape (batch, vocabulary).

    Returns:
        Scores over the temperature, at minus infinity outside the nucleus, and the token ids they belong to; both of
        shape (batch, candidates). What transformers' own options give, without sorting the vocabulary where the
        nucleus is smaller.
    """
    scores = scores.float() / sampling.temperature
    size = scores.shape[-1]
    limit = min(sampling.top_k or size, size)
    if sampling.top_p == 1 and limit == size:
        return scores, torch.arange(size, device=scores.device).expand_as(scores)
    for prefix in (limit,) if sampling.top_k else (min(PREFIX, size), size):
        values, tokens = scores.topk(prefix)
        # top-k comes first: then only those k tokens share the probability
        total = (values if sampling.top_k else scores).logsumexp(-1, keepdim=True)
        before = (values - total).exp().cumsum(-1) - (values - total).exp()
        if prefix == limit or bool((before[:, -1] >= sampling.top_p).all()):
            break
    return values.masked_fill(before >= sampling.top_p, float("-inf")), tokens


class Draw(LogitsProcessor):  # type: ignore[misc]
    """Draws the next token among the nucleus and leaves it as the only choice.

    `generate` would draw from the whole vocabulary; on a CPU that and the sorting take as long as a small model itself.
    """

    def __init__(self, sampling: Sampling):
        self.sampling = sampling

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores, shape (batch, vocabulary), that are finite for the drawn token alone."""
        values, tokens = nucleus(scores, self.sampling)
        drawn = tokens.gather(-1, torch.multinomial(values.softmax(-1), 1))
        return torch.full_like(scores, float("-inf")).scatter(-1, drawn, 0.0)


class Watch(LogitsProcessor):  # type: ignore[misc]
    """Keeps the most probable tokens of every step, before anything is drawn."""

    TOP = 20  # more than a scale of digits has levels

    def __init__(self) -> None:
        self.steps: list[tuple[list[list[float]], list[list[int]]]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores, shape (batch, vocabulary), as they came."""
        values, tokens = scores.float().log_softmax(-1).topk(min(self.TOP, scores.shape[-1]))
        self.steps.append((values.tolist(), tokens.tolist()))
        return scores


# New token ids, and for each what else could have stood there (token id -> log-probability) where that was asked for.
Piece = tuple[list[int], list[dict[int, float]]]


class TransformersEngine(Engine):
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
        four_bit: bool = False,
    ):
        """Load the model.

        Args:
            model: Hub id, folder or `package:<name>`.
            cache: folder for converted models.
            adapter: folder or Hub id of a LoRA adapter; empty for none.
            chat_template_kwargs: arguments of the chat template, e.g. {"enable_thinking": False}.
            batch_size: sequences generated at once; part of the identity, since it shapes the random draws.
            four_bit: hold the base in 4 bits, as QLoRA trains on it.

        Raises:
            InputError: if the model or the adapter cannot be had, or the adapter was trained on another base.
        """
        path = models.resolve(model, cache)
        if adapter:
            adapter = models.check_adapter(path, adapter)
        self.tokenizer = models.load_tokenizer(path)
        self.context = models.context_length(path)
        self.model = models.load_model(path, device, four_bit=four_bit)
        if adapter:
            self.model = models.load_adapter(self.model, adapter)
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.batch_size = batch_size
        self.special_tokens = models.special_tokens(self.tokenizer)
        self.tally = Tally()
        self.stop_ids = models.stop_ids(path, self.tokenizer)
        # `generate` would add the model's own defaults, a repetition penalty say, to the options a request states
        self.model.generation_config = GenerationConfig()
        self.identity = {
            "engine": "transformers",
            "model": weights.plain(model),
            "weights": models.weights_digest(path),
            "adapter": models.weights_digest(adapter) if adapter else "",
            "device": device.name,
            "dtype": str(self.model.dtype),
            "batch_size": batch_size,
            "chat_template_kwargs": self.chat_template_kwargs,
        } | ({"four_bit": True} if four_bit else {})
        if adapter and self.model.dtype != torch.float32:
            self.identity["rotary"] = "float32"  # older stores hold answers of adapters with rounded frequencies

    def generate(
        self, requests: Sequence[Request], *, seed: int, deadline: float = float("inf")
    ) -> Iterator[tuple[int, Reply]]:
        """Yield one reply per request; the whole call is one chunk and draws from one seed.

        Where memory runs out, batches are halved for the rest of the chunk. The next chunk starts from `batch_size`
        again: were the smaller size kept, a resumed run would draw other samples than an unbroken one. A request of
        which a single sequence does not fit the memory is left out: another machine may have more.

        Raises:
            InputError: if no prompt fits the model's context with its completion, or no sequence the memory.
        """
        prompts, refused = token_ids.prompts(self.tokenizer, requests, self.chat_template_kwargs, self.context)
        token_ids.insist(refused.values(), len(requests), self.tally)
        yield from refused.items()
        torch.manual_seed(seed)
        self._at_once = self.batch_size
        samples: dict[tuple[int, int], Sample] = {}
        pending: dict[tuple[int, int], list[int]] = {
            (i, k): [] for i, request in enumerate(requests) if i in prompts for k in range(request.n)
        }
        options: dict[tuple[int, int], list[dict[int, float]]] = {job: [] for job in pending}
        too_large = set[int]()
        stretch = STRETCH
        while pending:
            for sampling, batch in self._batches(requests, prompts, pending):
                texts = [prompts[i] + pending[i, k] for i, k in batch]
                left = sampling.max_tokens - len(pending[batch[0]])
                watched = any(requests[i].logprobs for i, _ in batch)
                drawn = self._continue(texts, sampling, min(stretch, left), watched, not samples)
                for job, piece in zip(batch, drawn, strict=True):
                    if piece is None:
                        too_large.add(job[0])
                        del pending[job]
                        continue
                    new, seen = piece
                    pending[job] = pending[job] + new
                    if requests[job[0]].logprobs:  # beside it in the batch may be one without
                        options[job] += seen
                    if new[-1] in self.stop_ids or len(new) == left:
                        seen_at = dict(enumerate(options.pop(job)))
                        samples[job] = token_ids.sample(self.tokenizer, pending.pop(job), self.stop_ids, seen_at)
            stretch *= 2
        self.tally.failures += len(too_large)
        for i in prompts.keys() - too_large:
            request = requests[i]
            done = tuple(samples[i, k] for k in range(request.n))
            self.tally.calls += request.n
            yield i, Reply(done, len(prompts[i]), sum(s.n_tokens for s in done))

    def _batches(
        self, requests: Sequence[Request], prompts: Mapping[int, list[int]], pending: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[Sampling, list[tuple[int, int]]]]:
        """Yield batches of jobs drawn with the same options, sorted by length so that little is padded."""
        jobs = sorted(pending, key=lambda job: (str(requests[job[0]].sampling), len(prompts[job[0]]), job))
        for sampling, group in itertools.groupby(jobs, key=lambda job: requests[job[0]].sampling):
            alike = list(group)
            for start in range(0, len(alike), self.batch_size):
                yield sampling, alike[start : start + self.batch_size]

    def _continue(
        self, texts: list[list[int]], sampling: Sampling, limit: int, watched: bool, alone: bool
    ) -> list[Piece | None]:
        """Return the piece that continues each text, in as many batches as the memory asks for.

        Args:
            alone: whether nothing was drawn before: then a text that does not fit the memory ends the run, else its
                piece is None.
        """
        pieces: list[Piece | None] = []
        while len(pieces) < len(texts):
            batch = texts[len(pieces) : len(pieces) + self._at_once]
            drawn = self._try(batch, sampling, limit, watched)
            if drawn is not None:
                pieces += drawn
                continue
            if len(batch) == 1:
                fault = (
                    f"the model {self.identity['model']} and one sequence of {len(batch[0]) + limit} tokens do not fit "
                    f"the memory of this machine ({self.model.device}); lower max_tokens, leave out the longest "
                    "prompts or choose a smaller model"
                )
                if alone and not any(pieces) and not self.tally.calls:
                    raise InputError(fault)
                log.warning("%s", fault)
                pieces.append(None)
                continue
            self._at_once = len(batch) // 2
            log.warning(
                "%d sequences at once do not fit the memory; the rest of this chunk is drawn with %d at a time",
                len(batch),
                self._at_once,
            )
        return pieces

    def _try(self, texts: list[list[int]], sampling: Sampling, limit: int, watched: bool) -> list[Piece] | None:
        """Return the piece of each text, or None where memory ran out: no random number is used up then."""
        on_gpu = self.model.device.type == "cuda"
        states = torch.get_rng_state(), torch.cuda.get_rng_state_all() if on_gpu else []
        try:
            return self._draw(texts, sampling, limit, watched)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
        # outside of `except`: the error holds the frames, and so the tensors, of what failed
        torch.cuda.empty_cache()
        torch.set_rng_state(states[0])
        torch.cuda.set_rng_state_all(states[1])
        return None

    @torch.inference_mode()
    def _draw(self, texts: list[list[int]], sampling: Sampling, limit: int, watched: bool) -> list[Piece]:
        """Return up to `limit` new tokens for each text, ending with its first stop token if there is one."""
        watch = Watch()
        width = max(map(len, texts))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(t)) + t for t in texts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in texts], device=self.model.device)
        # greedy over what `Draw` has drawn
        config = GenerationConfig(
            max_new_tokens=limit, do_sample=False, pad_token_id=pad, eos_token_id=sorted(self.stop_ids)
        )
        processors = LogitsProcessorList([watch] if watched else [])
        if sampling.temperature > 0:
            processors.append(Draw(sampling))
        output = self.model.generate(
            inputs=ids, attention_mask=mask, generation_config=config, logits_processor=processors
        )
        pieces = []
        for row, ids_row in enumerate(output[:, width:].tolist()):
            new = self._until_stop(ids_row)
            steps = [(values[row], tokens[row]) for values, tokens in watch.steps[: len(new)]]
            pieces.append((new, [dict(zip(tokens, values, strict=True)) for values, tokens in steps]))
        return pieces

    def _until_stop(self, ids: list[int]) -> list[int]:
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids) - 1)
        return ids[: end + 1]
