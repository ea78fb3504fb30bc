"""A store's file, whoever wrote it: opened without running any code of it, and read within bounds."""

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

VERSION = 1
_TABLE = "CREATE TABLE replies (key TEXT PRIMARY KEY, model TEXT, request TEXT, reply TEXT, at REAL{})"
SIGNED = _TABLE.format(", mac TEXT")
LAYOUTS = (_TABLE.format(""), SIGNED)  # as earlier versions wrote it, which signed nothing, and as this one does
LARGEST_ROW = 2**24  # bytes; thousands of times a usual one


class UnsoundError(Exception):
    """A file is no store as the kit writes it."""


def connect(path: Path) -> sqlite3.Connection:
    """Open a file whoever wrote it: no code of its schema runs, and no row larger than one may be is loaded."""
    db = sqlite3.connect(path, timeout=60, isolation_level=None)
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_ROW)
    db.execute("PRAGMA trusted_schema=OFF")
    return db


def refuse_odd_files(path: Path) -> None:
    """Check the files that SQLite opens under a name before it does: it would follow links and wait for pipes."""
    for end in ("", "-wal", "-shm", "-journal"):
        part = Path(f"{path}{end}")
        if part.is_symlink() or (part.exists() and not part.is_file()):
            raise UnsoundError(f"{part.name} is a link or no regular file")


def schema(db: sqlite3.Connection) -> tuple[int, list[str]]:
    """Return a file's version and the statements that made what it holds, the first three.

    Raises:
        UnsoundError: if there is so much that reading it would take minutes or fill the memory.
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
        raise UnsoundError("it holds too many tables" if next(countdown, None) is None else str(error)) from None
    finally:
        db.set_progress_handler(None, 0)
    return made[0][0], [text for _, text in made if text is not None]


def layout(made: Sequence[str]) -> str:
    """Return the statement that made the table; nothing else may be in the file: no view, no trigger, no other index.

    Raises:
        UnsoundError: if it is not one of the kit's.
    """
    if len(made) != 2 or made[0] not in LAYOUTS or made[1] != "sqlite_autoindex_replies_1":
        raise UnsoundError("it does not hold the one table of a store, and nothing else")
    return made[0]


def rows_of(db: sqlite3.Connection, size: int) -> Iterator[Any]:
    """Yield each row of another store of a size in bytes, its signature last; None for a row that cannot be read.

    Raises:
        UnsoundError: if it is no store as the kit writes it.
    """
    try:
        version, made = schema(db)
        if version != VERSION:
            raise UnsoundError(f"it has version {version} of the format, expected {VERSION}")
        query = "SELECT *, NULL FROM replies WHERE rowid = ?"  # NULL is the signature that an earlier version lacks
        layout(made)
        db.execute("PRAGMA cache_size=-8000")  # KiB; the file could ask for one of its own size
        for count, (number,) in enumerate(db.execute("SELECT rowid FROM replies NOT INDEXED")):
            if count > size // 32:  # pages that point at one another hold rows without end
                raise UnsoundError("it holds more rows than fit into its size")
            try:
                row = db.execute(query, (number,)).fetchone()
            except (sqlite3.DataError, sqlite3.OperationalError):  # too large, or no text
                row = None
            yield row
    except sqlite3.DatabaseError as error:
        raise UnsoundError(str(error)) from None


def is_reply(row: Any) -> bool:
    """Return whether a row's columns are of the kinds that `put` stores."""
    return row is not None and all(isinstance(v, str) for v in row[:4]) and isinstance(row[4], float)
