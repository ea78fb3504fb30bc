"""Asking by batch files: requests are written for others to answer, at half the price or where there is no network.

A run whose judge says `batch: true` goes as far as its stored replies reach. What is still unasked then stands in
`batches/<judge>-<hash>/` beside the store, in the form that OpenAI's batches and `vllm run-batch` read, with the
store's key as `custom_id`, and the run stops. `take` puts the results into the store, and the same command goes on.
Keys are those of the server itself, so whoever answered, the replies are the same to the last byte.
"""

import json
import logging
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

from nbutils.core.errors import InputError, Interrupted, first_line, writing
from nbutils.core.records import digest
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
SAID = 3  # reasons of failed lines that are shown
TEMPORARY = (401, 402, 403, 407, 408, 409, 425, 429)  # of the account, the place or the moment, not of the request
ASKED = "asked.sqlite"  # the requests behind the keys, for those who bring results
_KEY = re.compile(r"[0-9a-f]{32}")
_FIND = "SELECT model, request FROM asked WHERE key = ?"


class BatchEngine(Engine):
    """Writes requests down instead of sending them."""

    chunk_size = 0
    special_tokens: tuple[str, ...] = ()
    answers = False

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
            folder: for the files, to whose name that of their content is added; its parent keeps what was asked.
            price: US dollars per million tokens in and out, as asked one by one.
        """
        self._model, self._folder, self._price = model, folder, price
        self.identity = dialect.identity(server, model, chat_template_kwargs)
        self.tally = Tally()
        self._made: Path | None = None
        self._file: IO[str] | None = None
        self._counts: Counter[str] = Counter()
        self._keys: set[str] = set()  # in these files; a batch takes no key twice

    def generate(
        self, requests: Sequence[Request], *, seed: int, deadline: float = float("inf")
    ) -> Iterator[tuple[int, Reply]]:
        """Write the requests down, and yield nothing."""
        place = self._folder.parent
        with writing(self._folder), _database(place):
            place.mkdir(parents=True, exist_ok=True)
            if self._made is None:
                owned.clear(self._folder, place)
                self._made = owned.draft(self._folder, place)
            try:
                with closing(_asked(place)) as asked, asked:
                    for request in requests:
                        if (key := key_of(self, request, seed)) not in self._keys:
                            self._keys.add(key)
                            row = (key, self._model, _written(request))
                            asked.execute("INSERT OR IGNORE INTO asked VALUES (?, ?, ?)", row)
                            self._write(key, request, seed)
            except BaseException:
                self._drop()
                raise
        yield from ()

    def _write(self, key: str, request: Request, seed: int) -> None:
        options = dialect.options(request, seed, dialect.parts_of(request, neutral=False))
        body = dialect.body(request, self.identity, options)
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
        if self._made is None or not self._keys:
            return self._drop()
        made, counts = self._made, self._counts
        if self._file:
            self._file.close()
        # the same requests in the same place, others beside them: somebody may be at work on those
        folder = self._folder.with_name(f"{self._folder.name}-{digest(sorted(self._keys), 8)}")
        try:
            if folder.is_symlink() or folder.parent.is_symlink():
                raise InputError(f"{folder} is a link or behind one, and is not followed; move it away")
            with writing(folder):
                owned.finish(made, folder)
        finally:
            self._drop()
        raise Interrupted(
            f"requests are written and not sent: {counts['requests']:,} stand in {folder} ({self._size(counts)}); "
            f"have them answered, bring the results with `python -m nbutils.batch {folder.parent.parent} RESULTS...`, "
            "and run the same command or cell again"
        )

    def _drop(self) -> None:
        if self._file:
            self._file.close()
        if self._made:
            owned.abandon(self._made)
        self._made, self._file, self._counts, self._keys = None, None, Counter(), set()

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

    `stored` are new, `known` were there. What the provider refuses of a request (a status from 400 to 499) is a reply
    that says so, `refused`, as long as it answered more than it refused; else the batch is at fault, and like all
    others these lines stay unasked: `failed`, `garbled`, of an `unknown` request, `by another model`.

    Args:
        results: JSON lines as OpenAI's batches and `vllm run-batch` write them, in any order, whole or in part.

    Raises:
        InputError: if the file cannot be read, or holds requests and no results.
    """
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    waiting: dict[str, tuple[str, Any, Request, Reply]] = {}
    refused: dict[str, tuple[str, Any, Request, Reply]] = {}
    place = store.path.parent / "batches"
    with _database(place), closing(_asked(place)) as asked, disk.opened(results) as stream:
        for number, raw in enumerate(iter(lambda: stream.readline(LONGEST), b""), 1):
            if not raw.strip():
                continue
            outcome, found, reason = _reply(raw, asked)
            if outcome == "request" and number == 1:
                raise InputError(f"{results}: line {number} is a request; expected the file with the results")
            if found and (found[0] in waiting or found[0] in refused or store.get(found[0]) is not None):
                outcome = "known"
            elif found:
                (refused if outcome == "refused" else waiting)[found[0]] = found
            counts[outcome] += 1
            reasons.update([reason] if reason else [])
            if len(waiting) == AT_ONCE:
                store.put(list(waiting.values()))
                waiting.clear()
    store.put(list(waiting.values()))
    if counts["refused"] < counts["stored"] + counts["known"]:
        store.put(list(refused.values()))
    elif counts["refused"]:
        counts["failed"] += counts.pop("refused")
    for reason, n in reasons.most_common(SAID):
        log.warning("%s: %d lines: %s", results, n, reason)
    return counts


def _reply(raw: bytes, asked: sqlite3.Connection) -> tuple[str, tuple[str, Any, Request, Reply] | None, str]:
    """Return what a line of results comes to, what to store of it, and what the provider said where it failed."""
    outcome, reason, reply = "stored", "", Reply(())
    try:
        line = json.loads(raw)
        key, response, wrong = str(line["custom_id"]), line.get("response"), line.get("error")
        if "response" not in line and "messages" in line.get("body", {}):
            return "request", None, ""
        known = _KEY.fullmatch(key) and asked.execute(_FIND, (key,)).fetchone()
        if not known:
            return "unknown", None, ""
        model, request = known[0], _read(known[1])
        status = response.get("status_code", 200) if isinstance(response, dict) else None
        if wrong or status != 200:
            reason = first_line(json.dumps(wrong or (response or {}).get("body")))
            its_own = type(status) is int and 400 <= status < 500 and status not in TEMPORARY
            outcome, reply = "refused" if its_own else "failed", Reply((), refused=f"{status}: {reason}")
        else:
            reply = completions.read(json.dumps(response.get("body")), model, request.sampling.max_tokens)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, GarbledReplyError):
        return "garbled", None, ""
    if other := [note for note in reply.notes if completions.OTHER in note]:
        outcome, reason = "by another model", f"{other[0]}, and {model} was asked"
    found = (key, SimpleNamespace(identity={"model": model}), request, masked_reply(reply))
    return outcome, found if outcome in ("stored", "refused") else None, reason


@contextmanager
def _database(place: Path) -> Iterator[None]:
    """Say in one sentence that what was asked cannot be read or written."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise InputError(
            f"cannot use {place / ASKED}: {error}; wait for another process, or move it away and write the batch files "
            "again"
        ) from None


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
