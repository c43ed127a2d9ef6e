"""The files of a segment, and how they are written. Shapes: n documents of a block, C = K/8 bytes of a code."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.artifact import Part, checksum, replacing
from pipelines.indexing.code_files import CodeFiles, packed_bytes
from pipelines.indexing.id_lookup import digests, write_lookup
from pipelines.searching.approximate import Approximate, CandidatesConfig, FlatConfig

CODES_FILE = "codes.faiss"
DOCUMENTS_FILE = "documents.arrow"
LOOKUP_FILE = "lookup.npy"
UNINFORMATIVE_FILE = "uninformative.npy"
OWN_CODES = "codes.parquet"
"""The codes of documents that were added from no codes artifact: what codes.faiss can be made from."""
CANDIDATES_FILE = "candidates.faiss"
"""In an index that is not flat: the structure that proposes candidates."""
SEGMENT_FILES = (CODES_FILE, DOCUMENTS_FILE, LOOKUP_FILE, UNINFORMATIVE_FILE)
SHOWN = ("id", "labels", "text", "component", "metadata")
MAY_BE_EMPTY = ("labels", "text")
NO_WORD_CONFIDENCE = 0.5 + 1e-6
"""A document without any known word has log-odds 0, which is a confidence of a half, but for rounding."""


class Block(NamedTuple):
    """Some documents of a segment: their shown columns, codes (n, C) uint8, and which have no known word (n,) bool."""

    documents: pa.RecordBatch
    codes: np.ndarray
    uninformative: np.ndarray


class Layout(NamedTuple):
    """How a segment keeps its documents: their columns, bytes of a code, and where hits are looked for."""

    schema: pa.Schema
    code_bytes: int
    candidates: CandidatesConfig

    @property
    def files(self) -> tuple[str, ...]:
        """Names of its files."""
        return SEGMENT_FILES if isinstance(self.candidates, FlatConfig) else (*SEGMENT_FILES, CANDIDATES_FILE)


def write_segment(folder: Path, blocks: Iterable[Block], layout: Layout) -> None:
    """Write the files of a segment into `folder`, in one pass over its documents; each is there whole or not at all."""
    import faiss

    folder.mkdir(parents=True, exist_ok=True)
    flat: Any = faiss.IndexBinaryFlat(8 * layout.code_bytes)
    digested: list[np.ndarray] = []
    unknown: list[np.ndarray] = []
    with ExitStack() as stack:
        paths = {name: stack.enter_context(replacing(folder / name)) for name in SEGMENT_FILES}
        with pa.OSFile(str(paths[DOCUMENTS_FILE]), "wb") as sink, pa.ipc.new_file(sink, layout.schema) as writer:
            for block in blocks:
                unknown.append(flat.ntotal + np.flatnonzero(block.uninformative))
                flat.add(np.ascontiguousarray(block.codes))
                digested.append(digests(block.documents.column("id")))
                writer.write_batch(block.documents.cast(layout.schema))
        faiss.write_index_binary(flat, str(paths[CODES_FILE]))
        if not isinstance(layout.candidates, FlatConfig):
            near = Approximate.build(layout.candidates, faiss.vector_to_array(flat.xb).reshape(-1, layout.code_bytes))
            near.write(stack.enter_context(replacing(folder / CANDIDATES_FILE)))
        write_lookup(paths[LOOKUP_FILE], np.concatenate([np.empty(0, np.uint32), *digested]))
        write_rows(paths[UNINFORMATIVE_FILE], np.concatenate([np.empty(0, np.int64), *unknown]))


def write_codes(path: Path, codes: np.ndarray) -> None:
    """Packed codes (N, C) as a flat binary index of FAISS."""
    import faiss

    flat = faiss.IndexBinaryFlat(8 * codes.shape[1])
    flat.add(np.ascontiguousarray(codes))
    faiss.write_index_binary(flat, str(path))


def write_rows(path: Path, rows: np.ndarray) -> None:
    """Row numbers as a .npy file of uint32."""
    with path.open("wb") as file:
        np.save(file, rows.astype(np.uint32))


def shown_schema(files: CodeFiles) -> pa.Schema:
    """What a segment keeps of each document; a column that is empty in all of them is left out."""
    empty = files.empty_columns(MAY_BE_EMPTY)
    shown = [name for name in SHOWN if name in files.schema.names and name not in empty]
    return pa.schema([files.schema.field(name) for name in shown], files.schema.metadata)


def blocks_of(files: CodeFiles, start: int, stop: int, schema: pa.Schema) -> Iterator[Block]:
    """The documents start <= r < stop of codes, with the columns of `schema`."""
    for batch in files.read(start, stop):
        yield block_of(batch, schema)


def block_of(batch: pa.RecordBatch, schema: pa.Schema) -> Block:
    """One batch in the codes schema as a block with the columns of `schema`."""
    codes = packed_bytes(batch.column("code"))
    unknown = np.zeros(len(batch), bool)
    if "confidence" in batch.schema.names:
        confidence = batch.column("confidence").to_numpy(zero_copy_only=False)
        unknown = (confidence <= NO_WORD_CONFIDENCE) & ~codes.any(axis=1)
    return Block(batch.select(schema.names).cast(schema), codes, unknown)


def part_of(root: Path, name: str, rows: int) -> Part:
    """What is recorded of the file `name`, relative to the index's folder."""
    path = root / name
    return Part(name=name, rows=rows, bytes=path.stat().st_size, checksum=checksum(path), statistics={})
