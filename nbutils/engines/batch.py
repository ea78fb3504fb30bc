"""Asking by batch files: requests are written for others to answer, at half the price or where there is no network.

A run whose judge says `batch: true` goes as far as its stored replies reach. What is still unasked then stands in
`batches/<judge>/` beside the store, in the form that OpenAI's batches and `vllm run-batch` read, with the store's key
as `custom_id`, and the run stops. `take` puts the results into the store, and the same command goes on. Keys are those
of the server itself, so whoever answered, a run is the same to the last byte.
"""

import json
import logging
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

from nbutils.core.errors import InputError, Interrupted, writing
from nbutils.core.sampling import Sampling
from nbutils.engines import completions, dialect
from nbutils.engines.asking import key_of, masked_reply
from nbutils.engines.protocol import Engine, Reply, Request, Tally
from nbutils.engines.store import Store
from nbutils.engines.wire import GarbledReplyError
from nbutils.files import disk, owned

log = logging.getLogger(__name__)

MOST_REQUESTS, MOST_BYTES = 50_000, 190_000_000  # of a file: OpenAI takes 50,000 and 200 MB
LONGEST = 2**25  # characters of a result
AT_ONCE = 500  # replies stored together
ASKED = "asked.sqlite"  # the requests behind the keys, for those who bring results
_KEY = re.compile(r"[0-9a-f]{32}")


class BatchEngine(Engine):
    """Writes requests down instead of sending them."""

    chunk_size = 0
    special_tokens: tuple[str, ...] = ()

    def __init__(
        self,
        server: str,
        model: str,
        *,
        folder: Path,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        price: tuple[float, float] | None = None,
    ):
        """Prepare to write.

        Args:
            server, model, chat_template_kwargs: as `api.ApiEngine` has them; the replies count as that engine's.
            folder: for the files; its parent keeps what was asked.
            price: US dollars per million tokens in and out, as asked one by one.
        """
        self._model, self._folder, self._price = model, folder, price
        self._extra = {"chat_template_kwargs": dict(chat_template_kwargs)} if chat_template_kwargs else {}
        self.identity: dict[str, Any] = {"engine": "api", "server": server, "model": model, **self._extra}
        self.tally = Tally()
        self._made: Path | None = None
        self._file: IO[str] | None = None
        self._counts: Counter[str] = Counter()

    def generate(
        self, requests: Sequence[Request], *, seed: int, deadline: float = float("inf")
    ) -> Iterator[tuple[int, Reply]]:
        """Write the requests down, and yield nothing."""
        with writing(self._folder):
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            self._made = self._made or owned.draft(self._folder, self._folder.parent)
            with closing(_asked(self._folder.parent)) as asked, asked:
                for request in requests:
                    key = key_of(self, request, seed)
                    known = asked.execute("SELECT count(*) FROM asked WHERE key = ?", (key,)).fetchone()[0]
                    if not known:
                        asked.execute("INSERT INTO asked VALUES (?, ?, ?)", (key, self._model, _written(request)))
                    self._write(key, request, seed)
        yield from ()

    def _write(self, key: str, request: Request, seed: int) -> None:
        options = dialect.options(request, seed, dialect.parts_of(request, neutral=False))
        body = {"model": self._model, "messages": list(request.messages), **options, **self._extra}
        whole = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
        line = json.dumps(whole, ensure_ascii=False) + "\n"
        size = len(line.encode())
        if self._file is None or self._counts["in_file"] == MOST_REQUESTS or self._counts["bytes"] + size > MOST_BYTES:
            self._next()
        cast(IO[str], self._file).write(line)
        self._counts.update(requests=1, in_file=1, bytes=size, all_bytes=size, most_tokens=request.sampling.max_tokens)

    def _next(self) -> None:
        if self._file:
            self._file.close()
        self._counts["files"] += 1
        self._counts["in_file"] = self._counts["bytes"] = 0
        name = f"requests-{self._counts['files']:03d}.jsonl"
        self._file = (cast(Path, self._made) / name).open("w", encoding="utf-8")

    def finish(self) -> None:
        """Put the files into their folder, in the place of those of an earlier time, and stop the run.

        Raises:
            Interrupted: if anything was written.
        """
        if self._made is None:
            return
        if self._file:
            self._file.close()
        made, counts = self._made, self._counts
        self._made, self._file, self._counts = None, None, Counter()
        if not counts["requests"]:
            return owned.abandon(made)
        with writing(self._folder):
            owned.finish(made, self._folder)
        raise Interrupted(
            f"{counts['requests']:,} requests stand in {self._folder} ({self._size(counts)}); have them answered, "
            f"bring the results with `python -m nbutils.batch {self._folder.parent.parent} RESULTS...`, and run the "
            "same command or cell again"
        )

    def _size(self, counts: Counter[str]) -> str:
        # some three characters a token; what is written is known only afterwards
        read, most = counts["all_bytes"] / 3e6, counts["most_tokens"] / 1e6
        size = f"{counts['files']} files, {counts['all_bytes'] / 1e6:.1f} MB, "
        size += f"some {read:.2f} million tokens to read and at most {most:.2f} to write"
        if self._price:
            low, high = read * self._price[0], read * self._price[0] + most * self._price[1]
            size += f", {low:.2f} to {high:.2f} US dollars at the judge file's price and half of that by batch"
        return size


def take(store: Store, results: Path) -> Counter[str]:
    """Put the replies of a result file into the store; return how many lines came to what.

    `stored` are new, `known` were there; the others stay unasked: `failed` (the provider says so), `garbled`, of an
    `unknown` request, by `another model`.

    Args:
        results: JSON lines as OpenAI's batches and `vllm run-batch` write them, in any order, whole or in part.

    Raises:
        InputError: if the file cannot be read, or holds requests and no results.
    """
    counts: Counter[str] = Counter()
    waiting: list[tuple[str, Any, Request, Reply]] = []
    with closing(_asked(store.path.parent / "batches")) as asked, disk.opened(results) as stream:
        for number, raw in enumerate(iter(lambda: stream.readline(LONGEST), b""), 1):
            if not raw.strip():
                continue
            outcome, found = _reply(raw, asked)
            if outcome == "request":
                raise InputError(f"{results}: line {number} is a request; expected the file with the results")
            if found and store.get(found[0]) is None:
                waiting.append(found)
            elif found:
                outcome = "known"
            counts[outcome] += 1
            if len(waiting) == AT_ONCE:
                store.put(waiting)
                waiting = []
        store.put(waiting)
    return counts


def _reply(raw: bytes, asked: sqlite3.Connection) -> tuple[str, tuple[str, Any, Request, Reply] | None]:
    """Return what a line of results comes to, and what to store of it."""
    try:
        line = json.loads(raw)
        key, response, wrong = str(line["custom_id"]), line.get("response"), line.get("error")
        if "response" not in line and "messages" in line.get("body", {}):
            return "request", None
        known = (
            _KEY.fullmatch(key) and asked.execute("SELECT model, request FROM asked WHERE key = ?", (key,)).fetchone()
        )
        if not known:
            return "unknown", None
        if wrong or not isinstance(response, dict) or response.get("status_code", 200) != 200:
            return "failed", None
        model, request = known[0], _read(known[1])
        reply = completions.read(json.dumps(response.get("body")), model, request.sampling.max_tokens)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, GarbledReplyError):
        return "garbled", None
    if any(completions.OTHER in note for note in reply.notes):
        return "by another model", None
    return "stored", (key, SimpleNamespace(identity={"model": model}), request, masked_reply(reply))


def _asked(folder: Path) -> sqlite3.Connection:
    """Open what was asked, a table of keys, models and requests."""
    path = folder / ASKED
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            raise OSError("it is a link")
        db = sqlite3.connect(path, timeout=60)
        db.execute("CREATE TABLE IF NOT EXISTS asked (key TEXT PRIMARY KEY, model TEXT, request TEXT)")
    except (sqlite3.DatabaseError, OSError) as error:
        raise InputError(f"cannot open {path}: {error}; move it away and write the batch files again") from None
    return db


def _written(request: Request) -> str:
    return json.dumps(asdict(request))


def _read(text: str) -> Request:
    fields = json.loads(text)
    messages, sampling = tuple(fields.pop("messages")), Sampling(**fields.pop("sampling"))
    return Request(messages=messages, sampling=sampling, **fields)
