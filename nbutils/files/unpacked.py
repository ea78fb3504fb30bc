"""What files unpack to, counted while they are read: some kilobytes can stand for any amount of memory.

Used by `tables`. Honest data, a text in every row that is another, packs to a tenth, at times to a thirtieth; what
packs to less than a hundredth is one thing repeated. That may be meant, a system prompt in every row say: such a text
is held once, and counts for less. Below `HELD` bytes nobody minds.
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

HELD, RATIO = 2**29, 100  # bytes that may stand behind what is read, and behind each byte of it if that is more
SHORT, LONG, TEXTS = 64, 2**15, 1000  # characters of a text that may repeat, and how many texts are remembered
REPEATED, PASSING = 8, 4  # which part of a byte counts that is held already, or that is unpacked and not held: its time
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
    """Files unpack to more than their size can honestly hold."""


class Account:
    """What a file, or those of a folder, have unpacked to so far."""

    def __init__(self) -> None:
        self._files = self._size = self._held = self._passed = 0
        self._texts: dict[str, str] = {}

    def opened(self, size: int) -> None:
        """Count one file more, of so many bytes."""
        self._files, self._size = self._files + 1, self._size + size

    def keep(self, row: Any) -> None:
        """Count a row that is kept; a text that has come before is put in place of its own copy in it.

        Raises:
            TooMuchError: if all rows are more than the files can honestly hold.
        """
        if len(self._texts) > TEXTS:
            self._texts.clear()
        self._held += weight(row, self._texts)
        self._insist(self._held)

    def passed(self, part: bytes) -> None:
        """Count what was unpacked; a line that is empty takes its time, and one that is none its memory.

        Raises:
            TooMuchError: as `keep`.
        """
        self._passed += len(part) // PASSING + LINE * (part.count(b"\n") + part.count(b"\r"))
        self._insist(self._passed)

    def _insist(self, size: int) -> None:
        most = max(HELD, RATIO * self._size)
        if size > most:
            whose = "its" if self._files == 1 else f"its and {self._files - 1} other files'"
            raise TooMuchError(
                f"{whose} {max(self._size / 2**20, 0.1):,.1f} MiB unpack to more than {most / 2**20:,.0f} MiB of "
                "rows, as only one thing repeated does; if it is meant so, write it as plain .jsonl"
            )


def weight(row: Any, texts: dict[str, str] | None = None) -> int:
    """Return about how many bytes of memory a row of plain values takes; names of columns are not counted.

    Args:
        texts: that came before, and get those of this row; one that did replaces its copy in the row.
    """
    texts = {} if texts is None else texts
    total, left = sys.getsizeof(row), [row]
    while left:
        value = left.pop()
        for place, part in value.items() if isinstance(value, dict) else enumerate(value):
            if part is None or part == "":  # there is one of each
                continue
            size = sys.getsizeof(part)
            if isinstance(part, dict | list | tuple):
                left.append(part)
            may_repeat = isinstance(part, str) and SHORT < len(part) <= LONG and not isinstance(value, tuple)
            if may_repeat and (known := texts.setdefault(part, part)) is not part:
                value[place], size = known, size // REPEATED
            total += size
    return total


def unpacked(stream: io.BufferedReader, ending: str, account: Account) -> io.BufferedReader:
    """Return what a packed file holds, as a stream that ends in `TooMuchError` where it is more than honest data.

    Args:
        ending: of the file's name, one of `ENDINGS`.
    """
    return io.BufferedReader(_Unpacked(stream, ending, account), 2**17)


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
        self._account.passed(part)
        buffer[: len(part)] = part
        return len(part)
