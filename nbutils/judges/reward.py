"""Judging by a reward model: a language model with one number for a head, trained on preferences.

It reads a prompt with one response and gives a raw score without unit or zero. It explains nothing, draws nothing and
sees no other response, so there is one order and no noise.
"""

import itertools
import json
import logging
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nbutils import models
from nbutils.core.errors import InputError
from nbutils.core.records import Row
from nbutils.core.sampling import Sample, Sampling
from nbutils.engines.asking import answer
from nbutils.engines.protocol import Engine, Reply, Request, Tally
from nbutils.engines.store import Store
from nbutils.judges.fence import neutral, shorten
from nbutils.judges.files import RewardFile
from nbutils.judges.judge import Judgement
from nbutils.models import preflight, weights

log = logging.getLogger(__name__)

# Nothing is sampled; spelt out because every field is part of the key a score is stored under.
SAMPLING = Sampling(temperature=0.0, top_p=1.0, max_tokens=1)


class RewardJudge:
    """A reward model as a judge; it is in memory only while scores are computed."""

    def __init__(self, name: str, file: RewardFile, *, cache: Path):
        """Read config and tokenizer, no weights.

        Args:
            cache: folder for converted models.

        Raises:
            InputError: if the model cannot be found, has no chat template or another number of labels than one.
        """
        self.name, self.file, self.model = name, file, file.model
        self.path = models.resolve(file.model, cache)
        if (labels := models.label_count(self.path)) != 1:
            raise InputError(
                f"judge {name}: model {file.model}: expected a model with one label (a reward model), got {labels}"
            )
        self.tokenizer = models.load_tokenizer(self.path)
        self.special_tokens = models.special_tokens(self.tokenizer)

    @cached_property
    def engine(self) -> "RewardEngine":
        """Made when the first score is wanted: looking for a device takes GPU memory."""
        return RewardEngine(self.model, self.path, self.tokenizer, preflight.pick_device(), self.file.batch_size)

    def score(
        self, rows: Sequence[Row], store: Store, *, deadline: float = float("inf"), repeat: bool = False
    ) -> list[Judgement]:
        """Score every response of every row in one order; the raw scores are stored.

        A score is sigmoid(raw - m), m the median raw score of all responses in this call: the run's median. So 0.5 is
        a typical answer of this run, and a threshold says how far from it an answer must be, not how good it is. A row
        with a response that the model could not score gets no scores.

        Args:
            deadline: `time.monotonic()` after which no further batch is started.
            repeat: asks for a second opinion to measure noise by; there is none, so every judgement is empty.

        Raises:
            InputError: if the model has no trained head, or one text does not fit the GPU's memory.
            Interrupted: at the deadline; every score so far is stored.
        """
        if repeat:
            return [Judgement() for _ in rows]
        requests = [self.request(row, response["text"]) for row in rows for response in row["responses"]]
        replies = answer(store, self.engine, requests, deadline=deadline, title="judging")
        middle = statistics.median([_raw(reply) for reply in replies if reply] or [0.0])
        left = iter(replies)
        return [self._judgement(row, list(itertools.islice(left, len(row["responses"]))), middle) for row in rows]

    def tally(self) -> Tally:
        """Return how many texts were scored so far; what came from the store is not counted."""
        return self.engine.tally if "engine" in vars(self) else Tally()

    def notes(self) -> dict[str, int]:
        """Return nothing: no server stands between."""
        return {}

    def explain(self, row: Row) -> str:
        """Return the very text the model reads for the first response, and what it does with it."""
        messages = [dict(m) for m in self.request(row, row["responses"][0]["text"]).messages]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        return f"{text}\n\n{self.model} gives one number for this text, and reads every other response by itself, too."

    def request(self, row: Row, text: str) -> Request:
        """Return the prompt's turns and the response as the assistant's; no text can open another turn."""
        turns = [*row["prompt"], {"role": "assistant", "content": shorten(text, self.file.max_characters)}]
        messages = ({"role": t["role"], "content": neutral(t["content"], self.special_tokens)} for t in turns)
        return Request(tuple(messages), sampling=SAMPLING)

    def _judgement(self, row: Row, replies: Sequence[Reply | None], middle: float) -> Judgement:
        raw = [_raw(reply) if reply else None for reply in replies]
        scores = [_sigmoid(value - middle) for value in raw if value is not None]
        answered = len(scores) == len(raw)
        record = {
            "order": 0,
            "attempt": 1,
            "text": json.dumps(raw),
            "outcome": "parsed" if answered else "unanswered",
            "prompt_tokens": sum(reply.prompt_tokens for reply in replies if reply),
            "completion_tokens": 0,
            "shortened": sum(len(response["text"]) > self.file.max_characters for response in row["responses"]),
        }
        feedback = [f"raw score {value:.3f}" for value in raw if value is not None]
        return Judgement([scores], [feedback], [record]) if answered else Judgement(replies=[record])


class RewardEngine(Engine):
    """Answers a request with the raw score of its messages, as text; see `engines.Engine`."""

    chunk_size = 0
    special_tokens: tuple[str, ...] = ()  # broken up by the judge, which has the tokenizer before there is an engine

    def __init__(
        self, model: str, path: str, tokenizer: PreTrainedTokenizerBase, device: preflight.Device, batch_size: int
    ):
        self.model, self.path, self.tokenizer, self.device, self.batch_size = model, path, tokenizer, device, batch_size
        self.tally = Tally()
        # the batch size moves a score by rounding only
        self.identity: dict[str, Any] = {
            "engine": "reward",
            "model": weights.plain(model),
            "weights": models.weights_digest(path),
            "device": device.name,
            "dtype": str(device.dtype(models.model_type(path))),
        }

    def generate(
        self, requests: Sequence[Request], *, seed: int = 0, deadline: float = float("inf")
    ) -> Iterator[tuple[int, Reply]]:
        """Yield scores batch by batch, longest texts first: a lack of memory shows at once, and halves the batches.

        The weights are loaded here and let go at the end. Texts over the model's context and scores that are no finite
        number are left out.
        """
        texts = [self._ids(request) for request in requests]
        context = models.context_length(self.path)
        left = sorted((i for i, ids in enumerate(texts) if len(ids) <= context), key=lambda i: -len(texts[i]))
        if len(left) < len(texts):
            log.warning("%d texts are over the %d tokens that %s reads", len(texts) - len(left), context, self.model)
        if not left or time.monotonic() > deadline:
            return
        model, size = models.load_reward_model(self.path, self.device), self.batch_size
        while left and time.monotonic() <= deadline:
            batch = left[:size]
            try:
                scores = raw_scores(model, [texts[i] for i in batch])
            except torch.cuda.OutOfMemoryError:
                if len(batch) == 1:
                    raise InputError(
                        f"a text of {len(texts[batch[0]])} tokens does not fit the GPU's memory beside {self.model}; "
                        "lower max_characters in the judge file or choose a smaller model"
                    ) from None
                size = len(batch) // 2
                log.warning("a batch of %d texts did not fit the GPU's memory; going on with %d", len(batch), size)
                continue
            left = left[size:]
            for i, score in zip(batch, scores, strict=True):
                if math.isfinite(score):
                    self.tally.calls += 1
                    yield i, Reply((Sample(repr(score)),), prompt_tokens=len(texts[i]))
                else:
                    log.warning("%s gave %s for a text of %d tokens", self.model, score, len(texts[i]))

    def _ids(self, request: Request) -> list[int]:
        # the template alone adds special tokens, so BOS comes at most once
        messages = [dict(m) for m in request.messages]
        return list(self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))


@torch.inference_mode()
def raw_scores(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> list[float]:
    """Return the model's number for each text, given as token ids.

    The classifiers of transformers score the last token whose id is not the padding id. Where that id also occurs in
    texts, as `<|im_end|>` does for many models, it would be the wrong token; so the padding is an id that no text has.
    """
    used = set(itertools.chain(*texts))
    pad = next(i for i in range(model.get_input_embeddings().num_embeddings) if i not in used)
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = pad
    width = max(map(len, texts))
    ids = torch.tensor([[*t, *[pad] * (width - len(t))] for t in texts], device=model.device)
    mask = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in texts], device=model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return [float(score) for score in logits.float()[:, 0].tolist()]


def _raw(reply: Reply) -> float:
    return float(reply.samples[0].text)


def _sigmoid(x: float) -> float:
    return (1 + math.tanh(x / 2)) / 2  # 1 / (1 + exp(-x)) overflows
