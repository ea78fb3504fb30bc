"""Every reply a model ever gave, in one SQLite file that all runs beside it share: nothing is asked twice.

Used by 01, 02, 03 and 04 through `answer`. A reply is stored under a key of everything that determines it, so a second
run, a killed run or an ablation asks only what is missing. Replies that make no sense to a parser are stored like any
other: parsing happens later, on the stored text. Errors of a server are logged and never stored. `Store.take` brings
in the replies of another machine.
"""

import json
import logging
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nbutils.core import secrets
from nbutils.core.errors import InputError
from nbutils.core.sampling import Sample
from nbutils.engines.protocol import Engine, Reply, Request, count
from nbutils.engines.strangers import (
    LARGEST_ROW,
    SIGNED,
    VERSION,
    UnsoundError,
    connect,
    is_reply,
    layout,
    refuse_odd_files,
    rows_of,
    schema,
)
from nbutils.files import seals

log = logging.getLogger(__name__)

LARGEST_STRANGER = 2**31  # bytes of a store that is copied to see whose its replies are
MOST_STRANGE = 1000  # rows of nobody known after which the rest of a store is not looked at


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
            refuse_odd_files(self.path.resolve())
            self._db = connect(self.path)
            version, made = schema(self._db)
            if version == 0 and not made:
                self._create()
            elif version == VERSION and layout(made) != SIGNED:
                self._add_signatures()
        except (sqlite3.DatabaseError, OSError, UnsoundError) as error:
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
        if layout(schema(self._db)[1]) != SIGNED:  # another process may have been faster
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
        asked = (secrets.masked(json.dumps(asdict(request))) for _, _, request, _ in replies)
        rows = [
            self._row(key, engine.identity["model"], text, json.dumps(_written(reply)), time.time())
            for text, (key, engine, _, reply) in zip(asked, replies, strict=True)
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
            refuse_odd_files(path)
            size = sum(part.stat().st_size for part in parts)
            if not own and size > LARGEST_STRANGER:
                raise UnsoundError(f"it has {size / 2**30:.1f} GiB and no run of yours is known to have written it")
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / "taken.sqlite"
                for part in parts:
                    shutil.copyfile(part, f"{copy}{part.name.removeprefix(path.name)}")
                with closing(connect(copy)) as db, self._transaction():
                    rows = self._known(rows_of(db, size), strange, own=own)
                    self._db.executemany(_INSERT, rows)
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from None
        except UnsoundError as error:
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
            if is_reply(row) and (own or seals.same(self._mac(*row[:4]), row[5])):
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


def _sample(stored: dict[str, Any]) -> Sample:
    numbers = {int(place): options for place, options in stored.pop("numbers", {}).items()}
    sample = Sample(**stored | {"n_tokens": count(stored.get("n_tokens", -1))}, numbers=numbers)
    if not (isinstance(sample.text, str) and isinstance(sample.finish_reason, str)):
        raise TypeError("no sample of the kit's")
    return sample
