"""Rows of parquet and of Arrow's own format, some at a time, within bounds whatever the file says of its size."""

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from nbutils.core import bounded
from nbutils.core.errors import first_line
from nbutils.core.records import Row

LARGEST = 2**24  # bytes of a row
COLUMNS = 10_000
FEW, UNPACKED = 16, 2**28  # rows decoded at once; bytes of a column that may unpack from a hundredth of them
ROOM = 2**30  # bytes that rows decoded at once may take, whatever the file says of its size
VALUES = 2**29  # the same of the values made of them: to one value that is stored once any number of rows may point
MANY, SMALL = 64, 2**20  # parts of so many bytes together that are looked at as one


class Odd(str):
    """Why something in the place of a row is none."""


def insist_size(number: int, size: int) -> None:
    if size > LARGEST:
        raise ValueError(f"row {number} is larger than {LARGEST / 2**20:.0f} MiB, which no prompt and answer is")


def insist_columns(count: int) -> None:
    if count > COLUMNS:
        raise ValueError(f"it has {count:,} columns, more than {COLUMNS:,}")


def parquet_rows(stream: io.BufferedReader) -> Iterator[Row | Odd]:
    with bounded.room(ROOM):
        file = parquet.ParquetFile(stream, pre_buffer=False, buffer_size=2**20)
    insist_columns(file.metadata.num_columns)
    decode, done = _decoders(file.schema_arrow), 0
    for group in range(file.metadata.num_row_groups):
        batches = file.iter_batches(_rows_at_once(file.metadata.row_group(group)), row_groups=[group])
        while part := _next_batches(batches):
            table = pa.Table.from_batches(part)
            yield from _plain(table, decode, done)
            done += table.num_rows


def _next_batches(batches: Iterator[Any], most: int = MANY) -> list[Any]:
    """Return the next rows, none behind the last; a MemoryError where they unpack to more than there is room for."""
    part, size = list[Any](), 0
    with bounded.room(ROOM):
        for batch in batches:
            part.append(batch)
            size += batch.nbytes
            if len(part) == most or size > SMALL:
                break
    return part


def _rows_at_once(group: Any) -> int:
    """Return how many rows of a group can be decoded at once: few where little data stands for much.

    Raises:
        ValueError: where a column unpacks to a hundred times its size, or a row holds too many values.
    """
    few = FEW
    for column in (group.column(i) for i in range(group.num_columns)):
        packed, unpacked = max(column.total_compressed_size, 1), column.total_uncompressed_size
        if unpacked > UNPACKED and unpacked > 100 * packed:
            raise ValueError(
                f"its column {column.path_in_schema} unpacks from {packed / 2**20:,.1f} to {unpacked / 2**20:,.0f} MiB"
            )
        if column.num_values > 100_000 * max(group.num_rows, 1):
            raise ValueError(f"its column {column.path_in_schema} holds {column.num_values:,} values in few rows")
        if unpacked > LARGEST or column.num_values > 1000 * group.num_rows:
            few = 1 if unpacked > 20 * packed else few
    return few


def arrow_rows(stream: io.BufferedReader) -> Iterator[Row | Odd]:
    """Yield the rows of a stream, or a file, of Arrow's own format."""
    with bounded.room(ROOM):
        if stream.peek(6)[:6] == b"ARROW1":
            file = pa.ipc.open_file(stream)
            batches: Any = (file.get_batch(i) for i in range(file.num_record_batches))
            schema = file.schema
        else:
            batches = pa.ipc.open_stream(stream)
            schema = batches.schema
    insist_columns(len(schema))
    decode, done = _decoders(schema), 0
    while part := _next_batches(batches, 1):
        batch = part.pop()
        batch.validate(full=True)  # offsets that a stranger wrote may point anywhere
        step = max(FEW, min(MANY * FEW, batch.num_rows * SMALL // max(batch.nbytes, 1)))
        for start in range(0, batch.num_rows, step):
            yield from _plain(batch.slice(start, step), decode, done + start)
        done += batch.num_rows


def _plain(batch: Any, decode: dict[str, Callable[[Any], Any]], before: int) -> Iterator[Row | Odd]:
    if batch.nbytes > LARGEST:
        for i in range(batch.num_rows):
            insist_size(before + i + 1, batch.slice(i, 1).nbytes)
    for row in _values(batch):
        try:
            yield row | {name: value(row[name]) for name, value in decode.items()} if decode else row
        except (ValueError, RecursionError) as error:
            yield Odd(f"a text in it is not the JSON that its column promises ({first_line(error)})")


def _values(batch: Any) -> Iterator[Row]:
    """Yield the rows as plain values: all made at once, or fewer where they take more than there is room for."""
    try:
        with bounded.room(VALUES):
            rows = batch.to_pylist()
    except MemoryError:
        if batch.num_rows == 1:
            raise
        half = batch.num_rows // 2
        yield from _values(batch.slice(0, half))
        yield from _values(batch.slice(half))
    else:
        yield from rows


def _decoders(schema: Any) -> dict[str, Callable[[Any], Any]]:
    """Return column -> what makes values of its JSON texts, for columns that hold some."""
    found = {field.name: _decoder(field.type) for field in schema}
    return {name: decode for name, decode in found.items() if decode}


def _decoder(kind: Any) -> Callable[[Any], Any] | None:
    if isinstance(kind, pa.JsonType):
        return lambda value: None if value is None else json.loads(value)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = _decoder(kind.value_type)
        return (lambda value: value and [inner(part) for part in value]) if inner else None
    if pa.types.is_struct(kind):
        parts = _decoders(kind)
        return (lambda value: value and value | {n: part(value[n]) for n, part in parts.items()}) if parts else None
    return None
