"""Find a corpus's files and cut them into slices, without reading a document."""

import difflib
import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow.parquet as pq

from pipelines.storage import file_facts, is_folder, local_path, matching_files, parquet_source, shown, uri_of
from pipelines.tokenizing.csv_records import csv_header
from pipelines.tokenizing.readers import READ_BYTES, format_of, json_rows, open_rows, refused_if_unreadable
from vae_core.config import Config
from vae_core.errors import Misuse

SMALLEST, LARGEST = 4 << 20, 256 << 20
"""Bytes of a slice: small enough that two cores share a small corpus, large enough that a huge one has few parts."""
PEEKED_ROWS = 1000
PEEKED_BYTES = 16 << 20


class Slice(Config):
    """A piece of one file that is read on its own.

    `start` and `stop` are bytes at line starts (jsonl, txt), row groups (parquet), or the whole file's bytes.
    """

    file: str
    name: str
    """The file's name, or its path below the files' common folder where names repeat."""
    start: int
    stop: int
    first: int = 1
    """Position of its first line or row."""
    bytes: int


def find_files(patterns: Sequence[str]) -> list[Path]:
    """The files, absolute, sorted, each once. Raises Misuse for a pattern without a file, and for no pattern."""
    if not patterns:
        raise Misuse("corpus.files is empty; name the files, for example --set 'corpus.files=[docs/*.jsonl]'")
    found = {path for pattern in patterns for path in _matches(pattern)}
    for path in found:
        format_of(path)
    return sorted(found)


def names(files: Sequence[Path]) -> dict[Path, str]:
    """A name for each file that stays when all of them move: the file's own, or with folders where two are equal."""
    if max(Counter(path.name for path in files).values()) == 1:
        return {path: path.name for path in files}
    try:
        root = Path(os.path.commonpath([path.parent for path in files]))
    except ValueError:  # some lie here, some in a store
        raise Misuse("two files of the corpus have one name; give all of them by path, or all by address") from None
    return {path: path.relative_to(root).as_posix() for path in files}


def suitable_bytes(files: Sequence[Path]) -> int:
    """How large slices of these files should be: a 256th of all, within limits."""
    return min(LARGEST, max(SMALLEST, sum(file_facts(path)[0] for path in files) // 256))


def cut(path: Path, name: str, slice_bytes: int, *, whole_text: bool) -> Iterator[Slice]:
    """The file's slices of about `slice_bytes`."""
    kind = format_of(path)
    if kind.kind == "parquet":
        yield from _row_groups(path, name, slice_bytes)
    elif kind.by_lines and not (whole_text and kind.kind == "txt"):
        yield from _line_ranges(path, name, slice_bytes)
    else:
        size = file_facts(path)[0]
        yield Slice(file=str(path), name=name, start=0, stop=size, bytes=size)


def require_fields(files: Sequence[Path], text: str, identity: str | None, others: Sequence[str]) -> None:
    """Raise Misuse where a field that the corpus config names is in no row, so that a typo fails at once.

    In jsonl, where rows may leave fields out, labels, metadata and filters need to turn up in one file only.
    """
    unseen, known = set(others), set[str]()
    for path in files:
        needed = {text, *filter(None, [identity])}
        match format_of(path).kind:
            case "txt":
                _refuse_fields(path, text, [*filter(None, [identity]), *others])
                unseen.clear()
            case "jsonl":
                seen = _peeked_fields(path, needed | unseen)
                known |= seen
                unseen -= seen
                _require(path, needed if seen else set(), seen)
            case _:
                fields = _declared_fields(path)
                _require(path, needed | set(others) if fields else set(), fields)
                unseen.clear()
    if known:
        _require(files[0], unseen, known)


def _matches(pattern: str) -> list[Path]:
    if uri := uri_of(pattern):
        return _matches_in_store(uri)
    path = local_path(Path(pattern)).expanduser()
    if path.is_dir():
        raise Misuse(f"{pattern} is a folder; name its files by a glob, such as '{pattern.rstrip('/')}/**/*.jsonl'")
    if path.is_file():
        return [path.absolute()]
    if not glob.has_magic(pattern):
        raise Misuse(f"no file {pattern}{_nearest(path.name, _siblings(path))}")
    found = [Path(match).absolute() for match in glob.glob(str(path), recursive=True)]
    files = [match for match in found if match.is_file()]
    if not files:
        raise Misuse(f"no file matches {pattern}" + ("" if path.is_absolute() else f" (looked in {Path.cwd()})"))
    return files


def _matches_in_store(uri: str) -> list[Path]:
    found = matching_files(uri)
    if not found and is_folder(Path(uri)):
        raise Misuse(f"{uri} is a folder; name its files by a glob, such as '{uri}/**/*.jsonl'")
    if not found:
        raise Misuse(f"no file matches {uri}" if glob.has_magic(uri) else f"no file {uri}")
    return found


def _siblings(path: Path) -> list[str]:
    return [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=2)
    return f"; nearest: {', '.join(close)}" if close else ""


def _row_groups(path: Path, name: str, slice_bytes: int) -> Iterator[Slice]:
    with refused_if_unreadable(path), pq.ParquetFile(parquet_source(path)) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    sizes = [sum(group.column(i).total_compressed_size for i in range(group.num_columns)) for group in groups]
    start, first, size, rows = 0, 1, 0, 0
    for number, group in enumerate(groups):
        size, rows = size + sizes[number], rows + group.num_rows
        if size >= slice_bytes or number == len(groups) - 1:
            yield Slice(file=str(path), name=name, start=start, stop=number + 1, first=first, bytes=size)
            start, first, size, rows = number + 1, first + rows, 0, 0


def _line_ranges(path: Path, name: str, slice_bytes: int) -> Iterator[Slice]:
    size, first = file_facts(path)[0], 1
    with open_rows(path) as file:
        start = 0
        while start < size:
            stop = _line_start(file, start + slice_bytes, size)
            yield Slice(file=str(path), name=name, start=start, stop=stop, first=first, bytes=stop - start)
            first += _lines_between(file, start, stop) if stop < size else 0
            start = stop


def _line_start(file: BinaryIO, offset: int, size: int) -> int:
    """The first line start at or behind `offset`, or the file's size."""
    if offset >= size:
        return size
    file.seek(offset - 1)
    while piece := file.readline(READ_BYTES):
        if piece.endswith(b"\n"):
            return file.tell()
    return size


def _lines_between(file: BinaryIO, start: int, stop: int) -> int:
    file.seek(start)
    count = 0
    while start < stop:
        block = file.read(min(READ_BYTES, stop - start))
        count += block.count(b"\n")
        start += len(block)
    return count


def _declared_fields(path: Path) -> set[str]:
    if format_of(path).kind == "parquet":
        with refused_if_unreadable(path), pq.ParquetFile(parquet_source(path)) as file:
            return set(file.schema_arrow.names)
    with open_rows(path) as file:
        return set(csv_header(file, PEEKED_BYTES))


def _peeked_fields(path: Path, wanted: set[str]) -> set[str]:
    """Fields of the first rows, until all the wanted ones were seen."""
    seen: set[str] = set()
    with open_rows(path) as file:
        for position, row in json_rows(file, None, 1, PEEKED_BYTES):
            seen |= row.keys() if isinstance(row, dict) else set()
            if wanted <= seen or position >= PEEKED_ROWS:
                break
    return seen


def _refuse_fields(path: Path, text: str, fields: Sequence[str]) -> None:
    if text != "text" or fields:
        raise Misuse(f"{shown(path)} is plain text and has no field {(fields or [text])[0]!r}; take that setting out")


def _require(path: Path, needed: set[str], fields: set[str]) -> None:
    for field in sorted(needed - fields):
        have = ", ".join(sorted(fields)[:30])
        raise Misuse(f"{shown(path)} has no field {field!r}; its fields: {have}{_nearest(field, sorted(fields))}")
