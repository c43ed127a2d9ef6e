"""A corpus: files of documents, cut into slices that workers read on their own, one document at a time.

A row that holds no good document becomes a Rejection, with its position and the reason, and never ends the read.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipelines.artifact import Input
from pipelines.files.digests import digests
from pipelines.storage import shown
from pipelines.tokenizing import readers, slices
from pipelines.tokenizing.csv_records import csv_rows
from pipelines.tokenizing.slices import Slice
from vae_core.config import Config

__all__ = ["CorpusConfig", "Document", "Rejection", "Slice", "corpus_inputs", "plan_slices", "read_slice"]
BLANK_LINE = re.compile(r"^[ \t]*\r?\n", re.MULTILINE)
SCALARS = (bool, int, float, str)


class CorpusConfig(Config):
    """Which files, and what their fields mean."""

    files: tuple[str, ...] = ()
    """Paths or globs (`**`: any depth), here or at s3://: parquet, jsonl, csv, txt; the last three also .gz, .zst."""
    id: str | None = None
    """The field of the id; without one, a document's id is `<file name>:<position>`."""
    text: str = "text"
    """The field of the text."""
    labels: str | None = None
    """A field that holds a string, an int, or a list of them."""
    metadata: tuple[str, ...] = ()
    """Fields to carry along to codes and index, as they are."""
    where: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Read only rows whose field holds one of these values, compared as strings."""
    cut_header: bool = False
    """Drop each text up to and with its first blank line, as in mail and news."""
    txt: Literal["lines", "files"] = "lines"
    """Whether a document is a line of a .txt file or all of it."""
    max_bytes: int = Field(default=10_000_000, ge=1)
    """Refuse longer texts."""

    @property
    def optional_fields(self) -> list[str]:
        """Fields that a row may leave out."""
        return [*filter(None, [self.labels]), *self.metadata, *self.where]

    @property
    def fields(self) -> list[str]:
        """Every field that is read, each once."""
        return list(dict.fromkeys([self.text, *filter(None, [self.id]), *self.optional_fields]))


@dataclass(frozen=True, slots=True)
class Document:
    """One row of the corpus; `position` is its line or row in `file`, counted from 1."""

    id: str
    text: str
    labels: list[str]
    metadata: dict[str, Any]
    file: str
    position: int


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that was refused; what comes before a colon in `reason` is its kind."""

    file: str
    position: int
    reason: str


def plan_slices(config: CorpusConfig, slice_bytes: int | None = None) -> list[Slice]:
    """The corpus cut into slices of about `slice_bytes`, a size that suits the corpus unless given.

    Order, positions and ids of the documents do not depend on the cuts.
    Raises Misuse for files or fields that are not there, and Damaged for files that cannot be opened.
    """
    files = slices.find_files(config.files)
    named = slices.names(files)
    slices.require_fields(files, config.text, config.id, config.optional_fields)
    size = slice_bytes or slices.suitable_bytes(files)
    whole = config.txt == "files"
    return [piece for path in files for piece in slices.cut(path, named[path], size, whole_text=whole)]


def read_slice(config: CorpusConfig, piece: Slice) -> Iterator[Document | Rejection]:
    """The slice's documents and rejections, in order. Raises Damaged where the file cannot be read on."""
    for position, row in _rows(config, piece):
        try:
            if isinstance(row, str):
                raise _Refused(row)
            if _wanted(config.where, row):
                yield _document(config, piece, position, row)
        except _Refused as refusal:
            yield Rejection(piece.name, position, str(refusal))


def corpus_inputs(config: CorpusConfig) -> tuple[Input, ...]:
    """The files as inputs of an artifact: name, place and SHA-256 of their bytes."""
    files = slices.find_files(config.files)
    named, found = slices.names(files), digests(files)
    return tuple(Input(name=f"file:{named[path]}", uri=shown(path), fingerprint=found[path]) for path in files)


class _Refused(Exception):
    """Why a row is no document."""


def _rows(config: CorpusConfig, piece: Slice) -> readers.Rows:
    path = Path(piece.file)
    kind, compression = readers.format_of(path)
    if kind == "parquet":
        yield from readers.parquet_rows(path, range(piece.start, piece.stop), piece.first, config.fields)
        return
    stop = None if compression else piece.stop
    # In JSON a byte of text may take six (\u0000), and the other fields come on top.
    line_bytes = 6 * config.max_bytes + readers.READ_BYTES
    with readers.open_rows(path) as file:
        if piece.start:
            file.seek(piece.start)
        match kind:
            case "jsonl":
                yield from readers.json_rows(file, stop, piece.first, line_bytes)
            case "csv":
                # A quote in CSV is written twice, and the other fields come on top.
                yield from csv_rows(file, 2 * config.max_bytes + readers.READ_BYTES)
            case _ if config.txt == "files":
                yield from readers.whole_text_rows(file, line_bytes, config.text)
            case _:
                yield from readers.text_rows(file, stop, piece.first, line_bytes, config.text)


def _wanted(where: dict[str, tuple[str, ...]], row: readers.Row) -> bool:
    for field, allowed in where.items():
        held = row.get(field)
        values = held if isinstance(held, list) else [held]
        if not any(_string(value) in allowed for value in values if value is not None):
            return False
    return True


def _document(config: CorpusConfig, piece: Slice, position: int, row: readers.Row) -> Document:
    text = _text(config, row)
    identity = f"{piece.name}:{position}" if config.id is None else _id(row.get(config.id), config.id)
    labels = [] if config.labels is None else _labels(row.get(config.labels), config.labels)
    metadata = {field: _scalar(row.get(field)) for field in config.metadata}
    return Document(identity, text, labels, metadata, piece.name, position)


def _text(config: CorpusConfig, row: readers.Row) -> str:
    text = row.get(config.text)
    if text is None:
        raise _Refused(f"missing text: no field {config.text!r}, or null")
    if not isinstance(text, str):
        raise _Refused(f"text not a string: field {config.text!r} holds {type(text).__name__}")
    text = _encodable(text)
    if config.cut_header and (blank := BLANK_LINE.search(text)):
        text = text[blank.end() :]
    if not text.strip():
        raise _Refused("empty text")
    # No character takes more than four bytes, so most texts need not be encoded to be counted.
    if 4 * len(text) > config.max_bytes and (size := len(text.encode())) > config.max_bytes:
        raise _Refused(f"text too long: {size} bytes, more than max_bytes={config.max_bytes}")
    return text


def _id(value: Any, field: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise _Refused(f"missing id: field {field!r} holds {value!r}"[:200])
    return _encodable(str(value))


def _labels(value: Any, field: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if any(isinstance(item, dict | list) for item in values):
        raise _Refused(f"labels not readable: field {field!r} holds neither strings, ints nor a list of them")
    return [_string(item) for item in values if item is not None and item != ""]


def _scalar(value: Any) -> Any:
    """The value as it is where it is a number, bool, string or None, and otherwise as a string."""
    if isinstance(value, str) or not (value is None or isinstance(value, SCALARS)):
        return _string(value)
    return value


def _string(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else _encodable(str(value))


def _encodable(text: str) -> str:
    """`text` with each lone surrogate, which no UTF-8 can hold, replaced by U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass").decode(errors="replace")
    return text
