"""Rows of a file, whatever its format: each with its position, and a bad one as the reason why it is refused."""

import errno
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage import file_facts, open_file, parquet_source, shown
from vae_core.errors import Damaged, Misuse

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row | str]]
"""Position (the line, or the row where a row is no line; the first is 1) and the row, or the reason to refuse it."""

KINDS = ("parquet", "jsonl", "csv", "txt")
COMPRESSIONS = ("gz", "zst")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BATCH_BYTES = 8 << 20
READ_BYTES = 1 << 20
MISUSED = {
    errno.EACCES: "ask for the right to read it, or take it out of the corpus",
    errno.EPERM: "ask for the right to read it, or take it out of the corpus",
    errno.EISDIR: "give the files in it",
    errno.ENOENT: "it was there a moment ago; put it back, or take it out of the corpus",
}
"""What the system may say of a file that is not damaged, and what to do then."""


class Format(NamedTuple):
    kind: str
    compression: str | None

    @property
    def by_lines(self) -> bool:
        """Whether a file of this format can be read from any line on."""
        return self.kind in ("jsonl", "txt") and self.compression is None


def format_of(path: Path) -> Format:
    """What the name says the file holds. Raises Misuse for an extension that is not read."""
    suffixes = [suffix[1:].lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else None
    kind = suffixes[-1] if suffixes else ""
    if kind not in KINDS or (kind == "parquet" and compression):
        raise Misuse(
            f"{path} has no extension that is read; use .{', .'.join(KINDS)}, "
            f"and .{' or .'.join(COMPRESSIONS)} after all but .parquet"
        )
    return Format(kind, compression)


@contextmanager
def open_rows(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed. Raises Damaged where the compressed stream is cut short or altered."""
    compression = format_of(path).compression
    with refused_if_unreadable(path), open_file(path) as raw:
        if compression and file_facts(path)[0] == 0:
            raise Damaged(f"{path} has no bytes, which is no .{compression} file; fetch or write the file again")
        if compression == "gz":
            with gzip.GzipFile(fileobj=raw) as unzipped, io.BufferedReader(unzipped, READ_BYTES) as file:
                yield file
        elif compression == "zst":
            with io.BufferedReader(pa.CompressedInputStream(raw, "zstd"), READ_BYTES) as file:
                yield file
        else:
            yield raw


@contextmanager
def refused_if_unreadable(path: Path) -> Iterator[None]:
    """Turn what the system refuses into Misuse, and what the decompressors and Arrow raise into Damaged."""
    try:
        yield
    except (EOFError, zlib.error, OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno in MISUSED:
            raise Misuse(f"{shown(path)} cannot be read: {os.strerror(error.errno)}; {MISUSED[error.errno]}") from error
        raise Damaged(f"{shown(path)} cannot be read to its end: {error}; fetch or write the file again") from error


def next_line(file: BinaryIO, limit: int) -> tuple[bytes | None, int]:
    """The next line with its end (b"" after the last one) and its length; None for one over `limit` bytes."""
    line = file.readline(limit)
    if len(line) < limit or line.endswith(b"\n"):
        return line, len(line)
    length = len(line)
    while piece := file.readline(READ_BYTES):
        length += len(piece)
        if piece.endswith(b"\n"):
            break
    return None, length


def json_rows(file: BinaryIO, stop: int | None, first: int, limit: int) -> Rows:
    """One JSON object a line; blank lines are passed over."""
    for position, line in _lines(file, stop, first, limit):
        yield position, line if isinstance(line, str) else _json_row(line)


def text_rows(file: BinaryIO, stop: int | None, first: int, limit: int, field: str) -> Rows:
    """One document a line; blank lines are passed over."""
    for position, line in _lines(file, stop, first, limit):
        yield position, line if isinstance(line, str) else _text_row(line, field)


def whole_text_rows(file: BinaryIO, limit: int, field: str) -> Rows:
    """The whole file as one document."""
    content = file.read(limit + 1)
    yield 1, too_long(limit) if len(content) > limit else _text_row(content.removeprefix(BYTE_ORDER_MARK), field)


def parquet_rows(path: Path, groups: range, first: int, fields: list[str]) -> Rows:
    """Rows of these row groups, as many in memory at a time as take about BATCH_BYTES."""
    position = first - 1
    with refused_if_unreadable(path), pq.ParquetFile(parquet_source(path), buffer_size=READ_BYTES) as file:
        for group in groups:
            facts = file.metadata.row_group(group)
            size = max(1, min(4096, BATCH_BYTES * facts.num_rows // max(1, facts.total_byte_size)))
            for batch in file.iter_batches(size, row_groups=[group], columns=fields):
                for row in _parquet_batch(batch):
                    position += 1
                    yield position, row


def too_long(limit: int) -> str:
    """The reason to refuse a line of more than `limit` bytes."""
    return f"line too long: more than {limit} bytes"


def _lines(file: BinaryIO, stop: int | None, first: int, limit: int) -> Iterator[tuple[int, bytes | str]]:
    """Lines that begin before byte `stop`, without their ends; a string is a reason."""
    offset, position = file.tell() if stop is not None else 0, first - 1
    while stop is None or offset < stop:
        line, length = next_line(file, limit)
        if length == 0:
            return
        if offset == 0 and line:
            line = line.removeprefix(BYTE_ORDER_MARK)
        offset, position = offset + length, position + 1
        if line is None:
            yield position, too_long(limit)
        elif line.strip():
            yield position, line.rstrip(b"\r\n")


def _json_row(line: bytes) -> Row | str:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return _not_utf8(error)
    except (ValueError, RecursionError) as error:
        return f"invalid JSON: {error}"
    return row if isinstance(row, dict) else f"not an object: the line holds a JSON {type(row).__name__}"


def _text_row(content: bytes, field: str) -> Row | str:
    try:
        return {field: content.decode()}
    except UnicodeDecodeError as error:
        return _not_utf8(error)


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"invalid UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start} of the line"


def _parquet_batch(batch: Any) -> Iterator[Row | str]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(batch.num_rows):
            yield _parquet_row(batch.slice(number, 1))


def _parquet_row(batch: Any) -> Row | str:
    try:
        return cast(Row, batch.to_pylist()[0])
    except UnicodeDecodeError as error:
        return f"invalid UTF-8: {error.reason}"
