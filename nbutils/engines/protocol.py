"""One interface for everything that turns messages into text: the policy, a local judge, a judge over the network.

An engine takes requests and yields replies as they come. `local.TransformersEngine` runs a model in this process on any
GPU or CPU, `vllm.VllmEngine` in worker processes, one per GPU; `api.ApiEngine` asks an OpenAI-compatible server. All
are used through `asking.answer`.
"""

import logging
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from nbutils.core.sampling import Sample, Sampling

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """Messages to answer, how often and how. Every field determines the reply and so is part of its key."""

    messages: tuple[Mapping[str, str], ...]
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    response_format: Mapping[str, Any] | None = None  # a JSON schema, where the server enforces one
    attempt: int = 1
    logprobs: bool = False  # also return what each number in the text could have been, where the engine can


@dataclass(frozen=True)
class Reply:
    """The samples of one request and the tokens it cost (-1 if unknown); or why it was refused, and no sample.

    `notes` tell what of the request did not reach the model, or what is odd about the reply.
    """

    samples: tuple[Sample, ...]
    prompt_tokens: int = -1
    completion_tokens: int = field(default=-1)
    refused: str = ""
    notes: tuple[str, ...] = ()


@dataclass
class Tally:
    """What an engine did since it was made: calls it sent (retries among them), retries, requests it gave up."""

    calls: int = 0
    retries: int = 0
    failures: int = 0


def count(value: object) -> int:
    """Return a number of tokens as it came from outside if it can be one, else -1: it will stand in 32 bits.

    >>> count(7), count(True), count("7"), count(10**30)
    (7, -1, -1, -1)
    """
    return value if type(value) is int and 0 <= value < 2**31 else -1


def numbers_in(text: str, tokens: Iterable[tuple[int, str, Mapping[str, float]]]) -> dict[int, dict[str, float]]:
    """Return `Sample.numbers` from the tokens of a text.

    Args:
        tokens: for each token where it begins, its text and the alternatives with their log-probabilities. A token
            that does not stand where it is said to is passed over.
    """
    found: dict[int, dict[str, float]] = {}
    for start, token, options in tokens:
        number = token.strip()
        place = start + len(token) - len(token.lstrip())
        if not (number.isascii() and number.isdigit()) or place < 0 or not text.startswith(number, place):
            continue
        found[place] = {}
        for option, logprob in options.items():
            if (name := option.strip()).isascii() and name.isdigit():  # " 4" and "4" are the same number
                found[place][name] = float(np.logaddexp(logprob, found[place].get(name, -np.inf)))
    return found


class Engine(Protocol):
    """What `asking.answer` needs of an engine."""

    # everything about the engine that determines its replies, "model" among it; JSON-able, part of every key
    identity: dict[str, Any]
    # requests drawn together from one seed; 0 where each request stands alone
    chunk_size: int
    tally: Tally
    # what frames a turn for this engine's tokenizer, where it is known
    special_tokens: tuple[str, ...]
    # whether it answers at all, or only writes down what is asked
    answers: bool = True

    @abstractmethod
    def generate(self, requests: Sequence[Request], *, seed: int, deadline: float) -> Iterator[tuple[int, Reply]]:
        """Yield (index into requests, reply) in any order; a request that fails for now is left out.

        One that will always fail has a reply that says so, see `Reply.refused`.
        """
        ...

    def finish(self) -> None:
        """Called when a judge has asked all it has to ask; an engine that only writes requests stops the run here."""
        return None

    def generate_chunks(
        self, chunks: Sequence[tuple[Sequence[Request], int]], *, deadline: float
    ) -> Iterator[tuple[int, int, Reply]]:
        """Yield (index into chunks, index into its requests, reply), one chunk after the other.

        Args:
            chunks: requests drawn together, and their seed.
            deadline: `time.monotonic()` after which no further chunk is started.
        """
        for c, (requests, seed) in enumerate(chunks):
            if self.chunk_size and time.monotonic() > deadline:
                return
            for i, reply in self.generate(requests, seed=seed, deadline=deadline):
                yield c, i, reply
