"""Answering requests from the store or, where it has no reply yet, from the engine: nothing is asked twice."""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from tqdm import tqdm

from nbutils.core import secrets
from nbutils.core.errors import out_of_time
from nbutils.core.records import digest
from nbutils.engines.protocol import Engine, Reply, Request
from nbutils.engines.store import Store

log = logging.getLogger(__name__)


def answer(
    store: Store,
    engine: Engine,
    requests: Sequence[Request],
    *,
    seed: int = 0,
    deadline: float = float("inf"),
    title: str = "asking",
) -> list[Reply | None]:
    """Answer every request from the store or, where it has no reply yet, from the engine.

    Engines that batch draw random numbers for a whole chunk of requests at once, so a chunk is stored whole or not at
    all and its seed is a hash of `seed` and its requests: the same list gives the same samples, interrupted or not.

    Args:
        seed: of the sampling; without meaning at temperature 0.
        deadline: `time.monotonic()` after which no further chunk is started.

    Returns:
        One reply per request in the same order; None where the server failed: it is asked again next time, unless it
        refused, which is a reply.

    Raises:
        Interrupted: at the deadline, from `out_of_time`. Everything answered so far is stored.
    """
    known, order, todo = _missing(store, engine, requests, seed)
    with tqdm(total=len(requests), desc=title, mininterval=10, unit="request") as bar:
        bar.update(len(order) - sum(len(chunk.keys) for chunk in todo))
        batch, current = list[tuple[str, Engine, Request, Reply]](), 0
        for c, i, said in engine.generate_chunks([(t.requests, t.seed) for t in todo], deadline=deadline):
            if c != current:
                if batch:  # the last chunk had requests that failed for good
                    store.put(batch)
                batch, current = [], c
            key, request = todo[c].keys[i], todo[c].requests[i]
            known[key] = reply = masked_reply(said)
            batch.append((key, engine, request, reply))
            bar.set_postfix(retries=engine.tally.retries, failures=engine.tally.failures, refresh=False)
            bar.update(1)
            if not engine.chunk_size or len(batch) == len(todo[c].keys):
                store.put(batch)
                batch = []
        if batch:
            store.put(batch)
    replies = [known[key] for key in order]
    if (unanswered := replies.count(None)) and time.monotonic() > deadline:
        raise out_of_time(f"with {unanswered} of {len(requests)} requests to go ({title})")
    _warn(replies, unanswered if engine.answers else 0)
    return replies


class _Chunk(NamedTuple):
    """Requests to be asked together, their keys in the store, and the seed they are drawn with."""

    keys: list[str]
    requests: list[Request]
    seed: int


def _missing(
    store: Store, engine: Engine, requests: Sequence[Request], seed: int
) -> tuple[dict[str, Reply | None], list[str], list[_Chunk]]:
    """Return what the store has (key -> reply, or None), the key of every request, and the chunks left to ask."""
    size = engine.chunk_size or max(len(requests), 1)
    known: dict[str, Reply | None] = {}
    order: list[str] = []
    queued: set[str] = set()
    todo: list[_Chunk] = []
    for start in range(0, len(requests), size):
        chunk = requests[start : start + size]
        chunk_seed = _chunk_seed(seed, chunk) if engine.chunk_size else seed
        keys = [key_of(engine, request, chunk_seed) for request in chunk]
        wanted = dict(zip(keys, chunk, strict=True))  # a request that occurs twice is asked once
        known |= {key: store.get(key) for key in wanted if key not in known}
        missing = [key for key in wanted if known[key] is None and key not in queued]
        if missing and engine.chunk_size and any(request.sampling.temperature for request in chunk):
            missing = list(wanted)
        if missing:
            queued |= set(missing)
            todo.append(_Chunk(missing, [wanted[key] for key in missing], chunk_seed))
        order += keys
    if store.unreadable:
        log.warning("%d replies in %s cannot be read and are asked again", len(store.unreadable), store.path)
    return known, order, todo


def _warn(replies: Sequence[Reply | None], unanswered: int) -> None:
    reasons = Counter(reply.refused for reply in replies if reply and reply.refused)
    if unanswered:
        log.warning("%d of %d requests were not answered; the next run asks them again", unanswered, len(replies))
    if reasons:
        [(reason, _)] = reasons.most_common(1)
        log.warning(
            "%d of %d requests were refused, and are not asked again: %s", reasons.total(), len(replies), reason
        )


def masked_reply(reply: Reply) -> Reply:
    """Return a reply without what it repeats of this machine's secrets, at the same places."""
    samples = tuple(replace(sample, text=secrets.masked(sample.text)) for sample in reply.samples)
    refused, notes = secrets.masked_values((reply.refused, reply.notes))
    return replace(reply, samples=samples, refused=refused, notes=notes)


def _content(request: Request) -> dict[str, Any]:
    content = asdict(request)
    if not request.logprobs:  # most requests: their keys are the ones of stores older than this option
        del content["logprobs"]
    return content


def key_of(engine: Engine, request: Request, seed: int) -> str:
    # at temperature 0 nothing is drawn, so neither seed nor neighbours in the chunk matter
    drawn = {} if request.sampling.temperature == 0 else {"seed": seed}
    return digest({"engine": engine.identity, "request": _content(request), **drawn}, 32)


def _chunk_seed(seed: int, chunk: Sequence[Request]) -> int:
    text = digest([seed, [_content(request) for request in chunk]])
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
