"""Every reply a model ever gave, in one SQLite file that all runs beside it share: nothing is asked twice.

Used by 01, 02, 03 and 04 through `answer`. A reply is stored under a key of everything that determines it, so a second
run, a killed run or an ablation asks only what is missing. Replies that make no sense to a parser are stored like any
other: parsing happens later, on the stored text. Errors of a server are logged and never stored. `Store.take` brings
in the replies of another machine.
"""

import hashlib
import json
import logging
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nbutils.engines import Engine, Reply, Request, Sample, count
from nbutils.errors import InputError, out_of_time
from nbutils.records import digest

log = logging.getLogger(__name__)

VERSION = 1


class Store:
    """A SQLite file of replies (WAL: one writer at a time, readers never wait, a killed process loses no commit)."""

    def __init__(self, path: str | Path):
        """Open or create the file.

        Raises:
            InputError: if it is no store, was written by another version, or its folder is not writable.
        """
        self.path = Path(path)
        self.unreadable: set[str] = set()  # keys whose stored reply makes no sense; `put` replaces it
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            # one statement: a file that another process is creating is seen before or after, never half made
            version, tables = self._db.execute(
                "SELECT user_version, (SELECT count(*) FROM sqlite_master) FROM pragma_user_version"
            ).fetchone()
            if version == 0 and not tables:
                self._create()
        except (sqlite3.DatabaseError, OSError) as error:
            raise InputError(
                f"cannot open the store {self.path}: {error}; move it away to start a new one, or name another run_dir"
            ) from None
        if version not in (0, VERSION):
            raise InputError(
                f"the store {self.path} was written by version {version} of its format, expected {VERSION}; "
                "move it away to start a new one, or run the kit that wrote it"
            )
        if version == 0 and tables:
            raise InputError(f"{self.path} is a database of another program; name another run_dir or move the file")

    def _create(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(
            "BEGIN IMMEDIATE;"
            "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, model TEXT, request TEXT, reply TEXT, at REAL);"
            f"PRAGMA user_version={VERSION};"
            "COMMIT"
        )

    def get(self, key: str) -> Reply | None:
        """Return the reply stored under this key, or None; one that cannot be read counts as missing.

        Raises:
            InputError: if the file is damaged.
        """
        # as bytes: decoding damaged ones is up to us, SQLite would stop there
        row = self._first("SELECT CAST(reply AS BLOB) FROM replies WHERE key = ?", key)
        if row is None:
            return None
        try:
            return _read(json.loads(row[0]))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self.unreadable.add(key)
            return None

    def put(self, replies: Sequence[tuple[str, Engine, Request, Reply]]) -> None:
        """Store replies in one transaction: all of them or, if the process dies or the disk is full, none.

        Two writers may answer the same request; the first one's reply stays, unless it cannot be read.

        Raises:
            InputError: if there is no room or the file is damaged.
        """
        rows = [
            (key, engine.identity["model"], json.dumps(asdict(request)), json.dumps(_written(reply)), time.time())
            for key, engine, request, reply in replies
        ]
        bad = self.unreadable.intersection(row[0] for row in rows)
        try:
            with self._transaction():
                self._db.executemany("DELETE FROM replies WHERE key = ?", [(key,) for key in bad])
                self._db.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?)", rows)
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from None
        self.unreadable -= bad

    def take(self, path: Path) -> int:
        """Add the replies of another store and return how many are new here; that store may lie on a read-only input.

        A copy is opened, since SQLite writes beside whatever it opens. The copy is made with the -wal, in which a
        killed process left its last replies. A file that is no sound store is warned of and passed over.

        Raises:
            InputError: if there is no room for the copy or for the replies.
        """
        try:
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / "taken.sqlite"
                for end in ("", "-wal"):
                    if (part := Path(f"{path}{end}")).exists():
                        shutil.copyfile(part, f"{copy}{end}")
                return self._merge(copy)
        except sqlite3.DatabaseError as error:
            log.warning("the store %s is damaged or not of this kit and is passed over: %s", path, error)
            return 0
        except OSError as error:
            raise InputError(
                f"cannot copy the store {path} to {tempfile.gettempdir()}: {error.strerror or error}; free space there "
                "or detach that input, and run the same command again"
            ) from None

    def _merge(self, other: Path) -> int:
        self._db.execute("ATTACH ? AS other", (str(other),))
        try:
            (version,) = self._db.execute("PRAGMA other.user_version").fetchone()
            if version != VERSION:
                raise sqlite3.DatabaseError(f"it has version {version} of the format, expected {VERSION}")
            new = "SELECT key, model, request, reply, at FROM other.replies WHERE key NOT IN (SELECT key FROM replies)"
            self._db.execute(f"{new} LIMIT 0")  # no such table or column: told before the disk can be to blame
            with self._transaction():
                return self._db.execute(f"INSERT OR IGNORE INTO replies {new}").rowcount
        finally:
            self._db.execute("DETACH other")

    def _first(self, query: str, *values: str) -> Any:
        try:
            return self._db.execute(query, values).fetchone()
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from None

    def _damaged(self, error: sqlite3.DatabaseError) -> InputError:
        return InputError(
            f"cannot read the store {self.path}: {error}; run again, and if that does not help move it away, with its "
            "-wal, to start a new one"
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise InputError(
                    f"cannot write to the store {self.path}: {error}; free space there and run the same command again, "
                    f"the {len(self)} replies already in it are safe"
                ) from None
            raise

    def __len__(self) -> int:
        return int(self._first("SELECT count(*) FROM replies")[0])

    def close(self) -> None:
        self._db.close()


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
    all and its seed is a hash of `seed` and the requests in it: the same list of requests gives the same samples
    whether or not the run was interrupted.

    Args:
        seed: of the sampling; without meaning at temperature 0.
        deadline: `time.monotonic()` after which no further chunk is started.

    Returns:
        One reply per request in the same order; None where the server failed (asked again next time). A request that
        was refused has a reply that says so (`Reply.refused`) and is not asked again.

    Raises:
        Interrupted: at the deadline, from `out_of_time`. Everything answered so far is stored.
    """
    size = engine.chunk_size or max(len(requests), 1)
    known: dict[str, Reply | None] = {}
    order: list[str] = []
    queued: set[str] = set()
    todo: list[tuple[list[str], list[Request], int]] = []
    for start in range(0, len(requests), size):
        chunk = requests[start : start + size]
        chunk_seed = _chunk_seed(seed, chunk) if engine.chunk_size else seed
        keys = [_key(engine, request, chunk_seed) for request in chunk]
        wanted = dict(zip(keys, chunk, strict=True))  # a request that occurs twice is asked once
        known |= {key: store.get(key) for key in wanted if key not in known}
        missing = [key for key in wanted if known[key] is None and key not in queued]
        if missing and engine.chunk_size and any(request.sampling.temperature for request in chunk):
            missing = list(wanted)
        if missing:
            queued |= set(missing)
            todo.append((missing, [wanted[key] for key in missing], chunk_seed))
        order += keys
    if store.unreadable:
        log.warning("%d replies in %s cannot be read and are asked again", len(store.unreadable), store.path)
    with tqdm(total=len(requests), desc=title, mininterval=10, unit="request") as bar:
        bar.update(len(order) - sum(len(missing) for missing, _, _ in todo))
        batch: list[tuple[str, Engine, Request, Reply]] = []
        current = 0
        for c, i, reply in engine.generate_chunks([(asked, s) for _, asked, s in todo], deadline=deadline):
            if c != current:
                if batch:  # the last chunk had requests that failed for good
                    store.put(batch)
                batch, current = [], c
            missing, asked, _ = todo[c]
            known[missing[i]] = reply
            batch.append((missing[i], engine, asked[i], reply))
            bar.set_postfix(retries=engine.tally.retries, failures=engine.tally.failures, refresh=False)
            bar.update(1)
            if not engine.chunk_size or len(batch) == len(asked):
                store.put(batch)
                batch = []
        if batch:
            store.put(batch)
    replies = [known[key] for key in order]
    unanswered = sum(reply is None for reply in replies)
    reasons = Counter(reply.refused for reply in replies if reply and reply.refused)
    if unanswered and time.monotonic() > deadline:
        raise out_of_time(f"with {unanswered} of {len(requests)} requests to go ({title})")
    if unanswered:
        log.warning("%d of %d requests were not answered; the next run asks them again", unanswered, len(requests))
    if reasons:
        [(reason, _)] = reasons.most_common(1)
        log.warning(
            "%d of %d requests were refused, and are not asked again: %s", reasons.total(), len(requests), reason
        )
    return replies


def _written(reply: Reply) -> dict[str, Any]:
    """Return what is stored of a reply; what few replies have is left out, as older kits expect."""
    return {k: v for k, v in asdict(reply).items() if v or k not in ("refused", "notes")}


def _read(stored: dict[str, Any]) -> Reply:
    samples = tuple(map(_sample, stored["samples"]))
    prompt_tokens, tokens = (count(stored.get(f"{side}_tokens", -1)) for side in ("prompt", "completion"))
    notes = tuple(map(str, stored.get("notes", ())))
    return Reply(samples, prompt_tokens, tokens, str(stored.get("refused", "")), notes)


def _sample(stored: dict[str, Any]) -> Sample:
    numbers = {int(place): options for place, options in stored.pop("numbers", {}).items()}
    return Sample(**stored | {"n_tokens": count(stored.get("n_tokens", -1))}, numbers=numbers)


def _content(request: Request) -> dict[str, Any]:
    content = asdict(request)
    if not request.logprobs:  # most requests: their keys are the ones of stores older than this option
        del content["logprobs"]
    return content


def _key(engine: Engine, request: Request, seed: int) -> str:
    # at temperature 0 nothing is drawn, so neither seed nor neighbours in the chunk matter
    drawn = {} if request.sampling.temperature == 0 else {"seed": seed}
    return digest({"engine": engine.identity, "request": _content(request), **drawn}, 32)


def _chunk_seed(seed: int, chunk: Sequence[Request]) -> int:
    text = digest([seed, [_content(request) for request in chunk]])
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
