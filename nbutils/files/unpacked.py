"""What a file unpacks to, counted while it is read: a file of some kilobytes can stand for any amount of memory.

Used by `tables`. Honest data, a text in every row that is another, packs to a tenth, at times to a thirtieth; what
packs to less than a hundredth is one thing repeated. Below `HELD` bytes nobody minds.
"""

import bz2
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from nbutils.core import bounded

HELD, RATIO = 2**29, 100  # bytes that may stand behind any file, and behind each byte of a larger one
LINE = 50  # bytes that a line counts for beside its own
ROOM = 2**30  # bytes that an unpacker may take for itself, whatever the file says that it needs

_OPENERS: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda stream: pa.CompressedInputStream(stream, "zstd"),
}
ENDINGS = tuple(_OPENERS)


class TooMuchError(ValueError):
    """A file unpacks to more than its size can honestly hold."""


class Account:
    """What a file of some size has unpacked to so far."""

    def __init__(self, size: int):
        self._most, self._size, self._held = max(HELD, RATIO * size), size, 0

    def add(self, size: int) -> None:
        """Count so many bytes more.

        Raises:
            TooMuchError: if that is more than the file can honestly hold.
        """
        self._held += size
        if self._held > self._most:
            raise TooMuchError(
                f"its {max(self._size / 2**20, 0.1):,.1f} MiB unpack to more than {self._most / 2**20:,.0f} MiB of "
                "rows, as only one thing repeated does; if it is meant so, write it as plain .jsonl"
            )


def weight(row: Any) -> int:
    """Return about how many bytes of memory a row of plain values takes; names of columns are not counted."""
    total, left = 0, [row]
    while left:
        value = left.pop()
        if value is None or value == "":  # there is one of each
            continue
        total += sys.getsizeof(value)
        if isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, list | tuple):
            left.extend(value)
    return total


def unpacked(stream: io.BufferedReader, ending: str, size: int) -> io.BufferedReader:
    """Return what a packed file holds, as a stream that ends in `TooMuchError` where it is more than honest data.

    Args:
        ending: of the file's name, one of `ENDINGS`.
        size: of the file, in bytes.
    """
    return io.BufferedReader(_Unpacked(stream, ending, Account(size)), 2**17)


class _Unpacked(io.RawIOBase):
    def __init__(self, stream: io.BufferedReader, ending: str, account: Account):
        with bounded.room(ROOM):
            self._source = _OPENERS[ending](stream)
        self._account = account

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            with bounded.room(ROOM):
                part = self._source.read(len(buffer))
        except (zlib.error, lzma.LZMAError, EOFError) as error:
            raise ValueError(f"it cannot be unpacked ({error})") from None
        # a line that is empty takes its time, and one that is none its memory
        self._account.add(len(part) + LINE * (part.count(b"\n") + part.count(b"\r")))
        buffer[: len(part)] = part
        return len(part)
