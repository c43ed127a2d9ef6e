"""Records of a CSV file; one that cannot be read costs its first line, and reading goes on with the next one."""

import csv
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO

from pipelines.tokenizing.readers import BYTE_ORDER_MARK, Row, Rows, next_line, too_long
from vae_core.errors import Misuse

LINE_OVERHEAD = 64
"""Bytes that a line takes in memory beside its text."""


def csv_rows(file: BinaryIO, limit: int) -> Rows:
    """Records under the first line's names, of at most about `limit` bytes. The position counts them from 1."""
    lines = _Lines(file, limit)
    reader = _reader(lines)
    header = _header(reader)
    for position, record in enumerate(_records(reader, lines), 1):
        yield position, record if isinstance(record, str) else _row(header, record)


def csv_header(file: BinaryIO, limit: int) -> list[str]:
    """The column names in the first line; none in an empty file. Raises Misuse where it holds none."""
    return _header(_reader(_Lines(file, limit)))


class _TooLong(Exception):
    pass


class _Lines:
    """Decoded lines; those of the record at hand are kept, so that reading can go on behind the first of them."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self.file = file
        self.limit = limit
        self.number = 0
        """Of the last line that was given, counted from 1."""
        self.record: list[str | None] = []
        self.size = 0
        self.again: deque[str | None] = deque()

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self.size > self.limit:
            raise _TooLong(f"a quote is not closed within {self.limit} bytes")
        line = self.again.popleft() if self.again else self._read()
        self.record.append(line)
        self.number += 1
        if line is None:
            raise _TooLong(too_long(self.limit))
        self.size += len(line) + LINE_OVERHEAD
        return line

    def accept(self) -> None:
        """The lines given so far make whole records."""
        self.record.clear()
        self.size = 0

    def go_back(self) -> int:
        """Give the lines of the record at hand once more, but for the first, whose number is returned."""
        first = self.number - len(self.record) + 1
        self.again.extendleft(reversed(self.record[1:]))
        self.number = first
        self.accept()
        return first

    def _read(self) -> str | None:
        line, length = next_line(self.file, self.limit)
        if length == 0:
            raise StopIteration
        if line is not None and self.number == 0:
            line = line.removeprefix(BYTE_ORDER_MARK)
        return None if line is None else line.decode(errors="surrogateescape")


def _reader(lines: _Lines) -> Any:
    csv.field_size_limit(2 * lines.limit)
    return csv.reader(lines, strict=True)


def _header(reader: Any) -> list[str]:
    try:
        return next(reader, [])
    except (_TooLong, csv.Error) as error:
        raise Misuse(f"the first line of a csv file holds no column names: {error}") from error


def _records(reader: Any, lines: _Lines) -> Iterator[list[str] | str]:
    while True:
        lines.accept()
        try:
            values = next(reader)
        except StopIteration:
            return
        except (_TooLong, csv.Error) as error:
            reason = "a quote is never closed" if str(error) == "unexpected end of data" else str(error)
            yield f"invalid CSV: {reason}; the record begins in line {lines.go_back()}"
            continue
        if values:
            yield values


def _row(header: list[str], values: list[str]) -> Row | str:
    if len(values) != len(header):
        return f"invalid CSV: {len(values)} fields under {len(header)} column names"
    try:
        "".join(values).encode()
    except UnicodeEncodeError as error:
        return f"invalid UTF-8: byte 0x{ord(error.object[error.start]) - 0xDC00:02x} in the record"
    return dict(zip(header, values, strict=True))
