"""Sampling with `transformers` in this process, on any GPU or CPU; the engine of the demo and of a P100.

One chunk of requests is expanded to n sequences each and drawn in batches from one seed. transformers' `generate` reads
a prompt once for each of its samples and runs a batch until its last answer ends; here a prompt is read once, an answer
that ends leaves the batch and its cache at once, and the last few of a batch go on in a new one. A batch that does not
fit the memory is drawn in halves.
"""

import inspect
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nbutils import models
from nbutils.core.errors import InputError
from nbutils.core.sampling import Sample, Sampling
from nbutils.engines import token_ids
from nbutils.engines.drawing import draw, likeliest
from nbutils.engines.on_machine import OnMachine
from nbutils.engines.protocol import Reply, Request
from nbutils.models.preflight import Device

log = logging.getLogger(__name__)

# Where other batches wait, one ends when no more than this share of it is unfinished: a step of a few rows takes half
# as long as one of all, and reading those few again takes less than their steps.
FEW = 0.25


# New token ids, and for each what else could have stood there (token id -> log-probability) where that was asked for.
Piece = tuple[list[int], list[dict[int, float]]]


class TransformersEngine(OnMachine):
    """A causal language model, optionally with a LoRA adapter."""

    chunk_size = 64

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
        adapter = self._set_up(model, path, adapter, chat_template_kwargs)
        if adapter:
            self.model = models.load_tuned(path, adapter, device, four_bit=four_bit)
        else:
            self.model = models.load_model(path, device, four_bit=four_bit)
        self.batch_size = batch_size
        # logits of the last place alone, and places that padding does not count in, where the model takes either
        unmerged = hasattr(self.model, "get_base_model")  # as peft wraps it
        forward = self.model.get_base_model().forward if unmerged else self.model.forward
        self.takes = inspect.signature(forward).parameters.keys()
        self.identity |= {
            "engine": "transformers",
            "device": device.name,
            "dtype": str(self.model.dtype),
            "batch_size": batch_size,
        } | ({"four_bit": True} if four_bit else {})
        if adapter:  # older stores hold answers of unmerged adapters, and of rounded rotary frequencies
            self.identity |= {"rotary": "float32"} if unmerged else {"merged": True}

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
        while pending:
            for sampling, batch, last in self._batches(requests, prompts, pending):
                texts = [prompts[i] + pending[i, k] for i, k in batch]
                limits = [sampling.max_tokens - len(pending[job]) for job in batch]
                watched = any(requests[i].logprobs for i, _ in batch)
                drawn = self._continue(texts, limits, sampling, watched, last, not samples)
                for job, limit, piece in zip(batch, limits, drawn, strict=True):
                    if piece is None:
                        too_large.add(job[0])
                        del pending[job]
                        continue
                    new, seen = piece
                    pending[job] = pending[job] + new
                    if requests[job[0]].logprobs:  # beside it in the batch may be one without
                        options[job] += seen
                    if not self._goes_on(new, limit):
                        seen_at = dict(enumerate(options.pop(job)))
                        samples[job] = token_ids.sample(self.tokenizer, pending.pop(job), self.stop_ids, seen_at)
        self.tally.failures += len(too_large)
        for i in prompts.keys() - too_large:
            request = requests[i]
            done = tuple(samples[i, k] for k in range(request.n))
            self.tally.calls += request.n
            yield i, Reply(done, len(prompts[i]), sum(s.n_tokens for s in done))

    def _batches(
        self,
        requests: Sequence[Request],
        prompts: Mapping[int, list[int]],
        pending: Mapping[tuple[int, int], list[int]],
    ) -> Iterator[tuple[Sampling, list[tuple[int, int]], bool]]:
        """Yield batches of jobs drawn with the same options, sorted by length so that little is padded.

        The last value tells whether no other batch has the same options.
        """

        def place(job: tuple[int, int]) -> tuple[str, int, tuple[int, int]]:
            return str(requests[job[0]].sampling), len(prompts[job[0]]) + len(pending[job]), job

        for sampling, group in itertools.groupby(sorted(pending, key=place), key=lambda job: requests[job[0]].sampling):
            alike = list(group)
            for start in range(0, len(alike), self.batch_size):
                yield sampling, alike[start : start + self.batch_size], len(alike) <= self.batch_size

    def _continue(
        self, texts: list[list[int]], limits: list[int], sampling: Sampling, watched: bool, last: bool, alone: bool
    ) -> list[Piece | None]:
        """Return the piece that continues each text, in as many batches as the memory asks for.

        Args:
            alone: whether nothing was drawn before: then a text that does not fit the memory ends the run, else its
                piece is None.
        """
        pieces: list[Piece | None] = []
        while len(pieces) < len(texts):
            some = slice(len(pieces), len(pieces) + self._at_once)
            batch = texts[some]
            drawn = self._try(batch, limits[some], sampling, watched, last)
            if drawn is not None:
                pieces += drawn
                continue
            if len(batch) == 1:
                tokens = len(batch[0]) + limits[some.start]
                fault = (
                    f"the model {self.identity['model']} and one sequence of {tokens} tokens do not fit "
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

    def _try(
        self, texts: list[list[int]], limits: list[int], sampling: Sampling, watched: bool, last: bool
    ) -> list[Piece] | None:
        """Return the piece of each text, or None where memory ran out: no random number is used up then."""
        on_gpu = self.model.device.type == "cuda"
        states = torch.get_rng_state(), torch.cuda.get_rng_state_all() if on_gpu else []
        try:
            return self._draw(texts, limits, sampling, watched, last)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
        # outside of `except`: the error holds the frames, and so the tensors, of what failed
        torch.cuda.empty_cache()
        torch.set_rng_state(states[0])
        torch.cuda.set_rng_state_all(states[1])
        return None

    @torch.inference_mode()
    def _draw(
        self, texts: list[list[int]], limits: list[int], sampling: Sampling, watched: bool, last: bool
    ) -> list[Piece]:
        """Return up to its limit of new tokens for each text, ending with its first stop token if there is one.

        Args:
            last: whether the batch runs until all its answers end; else it ends when few are left.
        """
        distinct = {tuple(text): place for place, text in enumerate(dict.fromkeys(map(tuple, texts)))}
        width = max(map(len, distinct))
        pad = self.tokenizer.pad_token_id
        device = self.model.device
        ids = torch.tensor([[pad] * (width - len(text)) + list(text) for text in distinct], device=device)
        mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in distinct], device=device)
        pieces: list[Piece] = [([], []) for _ in texts]
        rows = list(range(len(texts)))  # of which text a row of the batch is; one text may stand in several
        kept = torch.tensor([distinct[tuple(text)] for text in texts], device=device)
        read = self._read(ids, mask, None)
        cache, scores, mask = read.past_key_values, read.logits[kept, -1], mask[kept]
        cache.reorder_cache(kept)
        while True:
            drawn = draw(scores, sampling)
            for row, token in zip(rows, drawn.tolist(), strict=True):
                pieces[row][0].append(token)
            if watched:
                for row, options in zip(rows, likeliest(scores), strict=True):
                    pieces[row][1].append(options)
            going = [k for k, row in enumerate(rows) if self._goes_on(pieces[row][0], limits[row])]
            if len(going) <= (0 if last else int(FEW * len(texts))):
                return pieces
            if len(going) < len(rows):
                rows, kept = [rows[k] for k in going], torch.tensor(going, device=device)
                drawn, mask = drawn[kept], mask[kept]
                cache.reorder_cache(kept)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)
            scores = self._read(drawn[:, None], mask, cache).logits[:, -1]

    def _read(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> Any:
        """Return what the model makes of the ids, shape (batch, new places), that follow those in the cache.

        Args:
            mask: shape (batch, all places), 0 where there is padding.
        """
        places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        # an index and not a count: of a count the head is given a view that is not contiguous, and where its weights
        # take no gradient, as under an adapter, torch 2.13 then copies them for every row
        last = torch.tensor([ids.shape[1] - 1], device=ids.device)
        options = {"position_ids": places, "logits_to_keep": last}
        taken = {name: value for name, value in options.items() if name in self.takes}
        return self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **taken)

    def _goes_on(self, ids: list[int], limit: int) -> bool:
        return len(ids) < limit and ids[-1] not in self.stop_ids
