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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nbutils import seals, secrets
from nbutils.engines import Engine, Reply, Request, Sample, count
from nbutils.errors import InputError, out_of_time
from nbutils.records import digest

log = logging.getLogger(__name__)

VERSION = 1
_TABLE = "CREATE TABLE replies (key TEXT PRIMARY KEY, model TEXT, request TEXT, reply TEXT, at REAL{})"
SIGNED = _TABLE.format(", mac TEXT")
LAYOUTS = (_TABLE.format(""), SIGNED)  # as earlier versions wrote it, which signed nothing, and as this one does
LARGEST_ROW = 2**24  # bytes; thousands of times a usual one
LARGEST_STRANGER = 2**31  # bytes of a store that is copied to see whose its replies are
MOST_STRANGE = 1000  # rows of nobody known after which the rest of a store is not looked at


class _UnsoundError(Exception):
    """A file is no store as the kit writes it."""


class Store:
    """A SQLite file of replies (WAL: one writer at a time, readers never wait, a killed process loses no commit)."""

    def __init__(self, path: str | Path, *, key: bytes = b""):
        """Open or create the file.

        Args:
            key: to sign replies with, so that `take` knows them on another machine (`seals`).

        Raises:
            InputError: if it is no store, was written by another version, or its folder is not writable.
        """
        self.path = Path(path)
        self._secret = key
        self.unreadable: set[str] = set()  # keys whose stored reply makes no sense; `put` replaces it
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _refuse_odd_files(self.path.resolve())
            self._db = _connect(self.path)
            version, made = _schema(self._db)
            if version == 0 and not made:
                self._create()
            elif version == VERSION and _layout(made) != SIGNED:
                self._add_signatures()
        except (sqlite3.DatabaseError, OSError, _UnsoundError) as error:
            raise InputError(
                f"cannot open the store {self.path}: {error}; move it away to start a new one, or name another run_dir"
            ) from None
        if version not in (0, VERSION):
            raise InputError(
                f"the store {self.path} was written by version {version} of its format, expected {VERSION}; "
                "move it away to start a new one, or run the kit that wrote it"
            )
        if version == 0 and made:
            raise InputError(f"{self.path} is a database of another program; name another run_dir or move the file")

    def _create(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(
            f"BEGIN IMMEDIATE;{SIGNED.replace('TABLE', 'TABLE IF NOT EXISTS')};PRAGMA user_version={VERSION};COMMIT"
        )

    def _add_signatures(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        if _layout(_schema(self._db)[1]) != SIGNED:  # another process may have been faster
            self._db.execute("ALTER TABLE replies ADD COLUMN mac TEXT")
        self._db.execute("COMMIT")

    def get(self, key: str) -> Reply | None:
        """Return the reply stored under this key, or None; one that cannot be read counts as missing.

        Raises:
            InputError: if the file is damaged.
        """
        try:
            # as bytes: decoding damaged ones is up to us, SQLite would stop there
            row = self._first("SELECT CAST(reply AS BLOB) FROM replies WHERE key = ?", key)
        except sqlite3.DataError:  # longer than a row may be
            row = (b"",)
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
            self._row(
                key, engine.identity["model"], secrets.masked(json.dumps(asdict(request))), json.dumps(_written(reply)),
                time.time(),
            )  # fmt: skip
            for key, engine, request, reply in replies
        ]
        if large := [row for row in rows if sum(map(len, row[:4])) >= LARGEST_ROW - 1000]:
            log.warning("%d replies of more than %d MiB are not stored", len(large), LARGEST_ROW >> 20)
            rows = [row for row in rows if row not in large]
        bad = self.unreadable.intersection(row[0] for row in rows)
        try:
            with self._transaction():
                self._db.executemany("DELETE FROM replies WHERE key = ?", [(key,) for key in bad])
                self._db.executemany(_INSERT, rows)
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from None
        self.unreadable -= bad

    def take(self, path: Path, *, own: bool = True) -> int:
        """Add the replies of another store and return how many are new here; that store may lie on a read-only input.

        A copy is opened, since SQLite writes beside whatever it opens. The copy is made with the -wal, in which a
        killed process left its last replies. A file that is no store as the kit writes it is warned of and passed over.

        Args:
            own: take all replies. Else only those that were signed with the key of this store: by this user's run.

        Raises:
            InputError: if there is no room for the copy or for the replies.
        """
        parts = [part for end in ("", "-wal") if (part := Path(f"{path}{end}")).exists() or part.is_symlink()]
        strange: Counter[str] = Counter()
        before = len(self)
        try:
            _refuse_odd_files(path)
            size = sum(part.stat().st_size for part in parts)
            if not own and size > LARGEST_STRANGER:
                raise _UnsoundError(f"it has {size / 2**30:.1f} GiB and no run of yours is known to have written it")
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / "taken.sqlite"
                for part in parts:
                    shutil.copyfile(part, f"{copy}{part.name.removeprefix(path.name)}")
                with closing(_connect(copy)) as db, self._transaction():
                    rows = self._known(_rows(db, size), strange, own=own)
                    self._db.executemany(_INSERT, rows)
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from None
        except _UnsoundError as error:
            log.warning("the store %s is damaged or not of this kit and is passed over: %s", path, error)
            return 0
        except OSError as error:
            raise InputError(
                f"cannot copy the store {path} to {tempfile.gettempdir()}: {error.strerror or error}; free space there "
                "or detach that input, and run the same command again"
            ) from None
        if strange:
            log.warning(
                "%s%d replies of the store %s are not taken: %s",
                "at least " * (not own and strange["rows"] >= MOST_STRANGE), strange["rows"], path,
                "they are not as the kit writes them" if own else "no run with your key wrote them",
            )  # fmt: skip
        return len(self) - before

    def _known(self, rows: Iterable[Any], strange: Counter[str], *, own: bool) -> Iterator[tuple[Any, ...]]:
        """Yield the rows to take, signed; count the others."""
        for row in rows:
            if _is_reply(row) and (own or seals.same(self._mac(*row[:4]), row[5])):
                yield self._row(*row[:5])
            else:
                strange["rows"] += 1
                if strange["rows"] >= MOST_STRANGE and not own:
                    return

    def _row(self, key: str, model: str, request: str, reply: str, at: float) -> tuple[Any, ...]:
        return key, model, request, reply, at, self._mac(key, model, request, reply)

    def _mac(self, *content: str) -> str:
        return seals.mac(self._secret, ["reply", *content])

    def _first(self, query: str, *values: str) -> Any:
        try:
            return self._db.execute(query, values).fetchone()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.DataError):
                raise
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


_INSERT = "INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?)"


def _connect(path: Path) -> sqlite3.Connection:
    """Open a file whoever wrote it: no code of its schema runs, and no row larger than one may be is loaded."""
    db = sqlite3.connect(path, timeout=60, isolation_level=None)
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_ROW)
    db.execute("PRAGMA trusted_schema=OFF")
    return db


def _refuse_odd_files(path: Path) -> None:
    """Check the files that SQLite opens under a name before it does: it would follow links and wait for pipes."""
    for end in ("", "-wal", "-shm", "-journal"):
        part = Path(f"{path}{end}")
        if part.is_symlink() or (part.exists() and not part.is_file()):
            raise _UnsoundError(f"{part.name} is a link or no regular file")


def _schema(db: sqlite3.Connection) -> tuple[int, list[str]]:
    """Return a file's version and the statements that made what it holds, the first three.

    Raises:
        _UnsoundError: if there is so much that reading it would take minutes or fill the memory.
    """
    countdown = iter(range(100))
    db.set_progress_handler(lambda: next(countdown, None) is None, 1000)
    try:
        # one statement: a file that another process is creating is seen before or after, never half made
        made = db.execute(
            "SELECT user_version, coalesce(sql, name) FROM pragma_user_version LEFT JOIN sqlite_master"
            " ORDER BY rootpage"
        ).fetchmany(3)
    except sqlite3.OperationalError as error:
        raise _UnsoundError("it holds too many tables" if next(countdown, None) is None else str(error)) from None
    finally:
        db.set_progress_handler(None, 0)
    return made[0][0], [text for _, text in made if text is not None]


def _layout(made: Sequence[str]) -> str:
    """Return the statement that made the table; nothing else may be in the file: no view, no trigger, no other index.

    Raises:
        _UnsoundError: if it is not one of the kit's.
    """
    if len(made) != 2 or made[0] not in LAYOUTS or made[1] != "sqlite_autoindex_replies_1":
        raise _UnsoundError("it does not hold the one table of a store, and nothing else")
    return made[0]


def _rows(db: sqlite3.Connection, size: int) -> Iterator[Any]:
    """Yield each row of another store of a size in bytes, its signature last; None for a row that cannot be read.

    Raises:
        _UnsoundError: if it is no store as the kit writes it.
    """
    try:
        version, made = _schema(db)
        if version != VERSION:
            raise _UnsoundError(f"it has version {version} of the format, expected {VERSION}")
        query = "SELECT *, NULL FROM replies WHERE rowid = ?"  # NULL is the signature that an earlier version lacks
        _layout(made)
        db.execute("PRAGMA cache_size=-8000")  # KiB; the file could ask for one of its own size
        for count, (number,) in enumerate(db.execute("SELECT rowid FROM replies NOT INDEXED")):
            if count > size // 32:  # pages that point at one another hold rows without end
                raise _UnsoundError("it holds more rows than fit into its size")
            try:
                row = db.execute(query, (number,)).fetchone()
            except (sqlite3.DataError, sqlite3.OperationalError):  # too large, or no text
                row = None
            yield row
    except sqlite3.DatabaseError as error:
        raise _UnsoundError(str(error)) from None


def _is_reply(row: Any) -> bool:
    """Return whether a row's columns are of the kinds that `put` stores."""
    return row is not None and all(isinstance(v, str) for v in row[:4]) and isinstance(row[4], float)


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
        for c, i, said in engine.generate_chunks([(asked, s) for _, asked, s in todo], deadline=deadline):
            if c != current:
                if batch:  # the last chunk had requests that failed for good
                    store.put(batch)
                batch, current = [], c
            missing, asked, _ = todo[c]
            known[missing[i]] = reply = _masked(said)
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
    notes, refused = tuple(map(str, stored.get("notes", ()))), str(stored.get("refused", ""))
    if not samples and not refused:
        raise ValueError("no answer, and no reason for none")
    return Reply(samples, prompt_tokens, tokens, refused, notes)


def _masked(reply: Reply) -> Reply:
    """Return a reply without what it repeats of this machine's secrets, at the same places."""
    samples = tuple(replace(sample, text=secrets.masked(sample.text)) for sample in reply.samples)
    refused, notes = secrets.masked_values((reply.refused, reply.notes))
    return replace(reply, samples=samples, refused=refused, notes=notes)


def _sample(stored: dict[str, Any]) -> Sample:
    numbers = {int(place): options for place, options in stored.pop("numbers", {}).items()}
    sample = Sample(**stored | {"n_tokens": count(stored.get("n_tokens", -1))}, numbers=numbers)
    if not (isinstance(sample.text, str) and isinstance(sample.finish_reason, str)):
        raise TypeError("no sample of the kit's")
    return sample


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
