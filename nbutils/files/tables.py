"""Rows of one file (.jsonl, .json, .csv, .parquet, .arrow), one after another: no more is read than is wanted.

The kinds that are text may be packed (.jsonl.gz, .csv.xz).

Used by `sources`. What a file holds decides, not its name and time: nothing is cached. A row is a plain dict. One that
is none, a torn line say, is left out and counted, as long as most are rows.
"""

import csv
import io
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from nbutils.core.errors import InputError, first_line
from nbutils.core.records import Row, encodable
from nbutils.files import disk, unpacked
from nbutils.files.columnar import LARGEST, Odd, arrow_rows, insist_columns, insist_size, parquet_rows

log = logging.getLogger(__name__)

ODD = 0.1  # share of rows that are none; above it the file is of another kind than it says
_OBJECTS = "expected objects, one per row"
TEXTS = ("jsonl", "csv", "json")  # what may be packed
_SPACE = re.compile(r"[ \t\r\n]*")


csv.field_size_limit(LARGEST)


def all_rows(paths: Iterable[Path]) -> Iterator[Row]:
    """Yield the rows of one file after another, as `rows` does: what all take is bounded together."""
    account = unpacked.Account()
    for path in paths:
        yield from rows(path, account=account)


def rows(path: Path, kind: str = "", *, account: unpacked.Account | None = None) -> Iterator[Row]:
    """Yield the rows of a file; nothing is read before the first is asked for, and nothing behind the last.

    Args:
        kind: of the file, where its own name does not end in it.
        account: of the files read with it.

    Raises:
        InputError: if it is no regular file, of another kind than its name says, more than a tenth of its rows are
            none, one is larger than 16 MiB, or all take a hundred times the memory that the file takes on the disk.
    """
    packed = path.suffix if not kind and path.suffix in unpacked.ENDINGS else ""
    kind = kind or Path(path.name.removesuffix(packed)).suffix[1:]
    where = f"{disk.plain(path)} cannot be read as {kind}"
    if kind not in _READERS or (packed and kind not in TEXTS):
        raise InputError(f"{where}: expected one of {', '.join(_READERS)}; unpack it first")
    account = account or unpacked.Account()
    try:
        with disk.opened(path) as file:
            account.opened(os.fstat(file.fileno()).st_size)
            stream = unpacked.unpacked(file, packed, account) if packed else file
            yield from _sound(_READERS[kind](stream), disk.plain(path), where, account)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: a text in it is not UTF-8 ({first_line(error)})") from None
    except RecursionError:
        raise InputError(f"{where}: its values are nested too deep") from None
    except (csv.Error, ValueError, OSError, MemoryError, OverflowError, pa.ArrowException) as error:
        raise InputError(f"{where}: {first_line(error)}") from None


def _sound(read: Iterator[Row | Odd], path: str, where: str, account: unpacked.Account) -> Iterator[Row]:
    """Yield the rows and leave out what is none, until that is too much, or the rows are."""
    good, odd, first = 0, 0, ""
    try:
        for row in read:
            if not isinstance(row, Odd):
                good += 1
                account.keep(row)
                yield row
                continue
            odd, first = odd + 1, first or f"row {good + 1}: {row}"
            if odd > max(good, 100):
                break
        if odd > ODD * (good + odd):
            raise InputError(f"{where}: {first}" + (f" ({odd} of {good + odd} are so)" if odd > 1 else ""))
    finally:  # also where no more is asked for
        if odd and good:
            log.warning("%s of %s are no rows and are left out; the first is %s", odd, path, first)


def _jsonl(stream: io.BufferedReader) -> Iterator[Row | Odd]:
    for number in itertools.count(1):
        line = stream.readline(LARGEST + 1)
        if not line:
            return
        insist_size(number, len(line))
        if line.strip():
            yield _read(line, "utf-8-sig" if number == 1 else "utf-8")


def _read(line: bytes, encoding: str) -> Row | Odd:
    try:
        return _object(json.loads(line.decode(encoding)))
    except UnicodeDecodeError as error:
        return Odd(f"its text is not UTF-8 ({first_line(error)})")
    except RecursionError:
        return Odd("its values are nested too deep")
    except ValueError as error:
        return Odd(first_line(error))


def _object(value: Any) -> Row | Odd:
    # json keeps mixed types as they are and absent values absent, where Arrow and pandas would not
    return encodable(value) if isinstance(value, dict) else Odd(_OBJECTS)


def _json(stream: io.BufferedReader) -> Iterator[Row | Odd]:
    """Yield the objects of a list, or those that stand one after another in place of it."""
    objects, first = _objects(io.TextIOWrapper(stream, encoding="utf-8-sig")), None
    listed = next(objects, None)
    for number, row in enumerate(objects):
        if not listed and number == 0:
            first = row  # an object alone is no list of rows
            continue
        if first is not None:
            yield first
            first = None
        yield row
    if first is not None:
        raise ValueError(_OBJECTS)


def _objects(reader: io.TextIOWrapper) -> Iterator[Any]:
    """Yield whether there is a list, and then every object."""
    text = _more(reader, "")
    if not (text := text.lstrip()):
        return
    listed, at = text[0] == "[", int(text[0] == "[")
    yield listed
    for number in itertools.count():
        text, at = _next(reader, text, at)
        if listed and number:
            if text[at : at + 1] not in (",", "]"):
                raise ValueError(f"row {number} is not followed by a comma or the end of the list")
            if text[at] == ",":
                text, at = _next(reader, text, at + 1)
                if text[at : at + 1] == "]":
                    raise ValueError(_OBJECTS)
        if text[at : at + 1] == ("]" if listed else ""):
            break
        if not listed and text[at] != "{":
            raise ValueError(_OBJECTS)
        row, text, at = _decoded(reader, text[at:], number + 1)
        yield _object(row)
    text, at = _next(reader, text, at + 1)
    if text[at:]:
        raise ValueError("something stands behind the end of the list")


def _next(reader: io.TextIOWrapper, text: str, at: int) -> tuple[str, int]:
    """Return text and place of the next character that is no space; the place is the text's end where there is none."""
    while (found := _SPACE.match(text, at)) and found.end() == len(text):
        if not (more := reader.read(2**16)):
            return text, len(text)
        text, at = more, 0
    return text, found.end() if found else len(text)


def _more(reader: io.TextIOWrapper, text: str) -> str:
    return text + reader.read(max(2**16, len(text)))


def _decoded(reader: io.TextIOWrapper, text: str, number: int) -> tuple[Any, str, int]:
    """Return the object that the text begins with, reading on until it is whole, and what follows."""
    while True:
        try:
            row, end = json.JSONDecoder().raw_decode(text)
        except json.JSONDecodeError:
            insist_size(number, len(text))
            if len(longer := _more(reader, text)) == len(text):
                raise
            text = longer
        else:
            insist_size(number, end)
            if end < len(text) or isinstance(row, dict) or len(longer := _more(reader, text)) == len(text):
                return row, text, end
            text = longer  # a number may go on


def _csv(stream: io.BufferedReader) -> Iterator[Row | Odd]:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    read = [0, 0]  # rows, and characters of the one that is being read

    def lines() -> Iterator[str]:
        while line := text.readline(LARGEST + 1):
            read[1] += len(line)
            insist_size(read[0], read[1])  # a quote that is never closed would swallow the file
            yield line

    table = csv.reader(lines())
    names: list[str] | None = None
    for values in table:
        read[0], read[1] = read[0] + 1, 0
        if not values:
            continue
        if names is None:
            names = _unique(values)
        elif len(values) > len(names):  # else the values would be shifted by a column
            yield Odd("it has more values than the header has names")
        else:
            yield dict(itertools.zip_longest(names, values, fillvalue=""))


def _unique(names: list[str]) -> list[str]:
    """Return the names of columns; one that comes twice, or is empty, gets a number."""
    insist_columns(len(names))
    result: dict[str, None] = {}
    for i, name in enumerate(names):
        taken = (f"{name}.{n}" for n in itertools.count(1))
        own = name or f"Unnamed: {i}"
        result[own if own not in result else next(t for t in taken if t not in result)] = None
    return list(result)


_READERS: dict[str, Callable[[io.BufferedReader], Iterator[Row | Odd]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "parquet": parquet_rows,
    "arrow": arrow_rows,
}
