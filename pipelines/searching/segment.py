"""A segment of an index, its files mapped: codes to scan, documents to show, ids to look up."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.files.npy import read_npy
from pipelines.indexing.id_lookup import IdLookup
from pipelines.indexing.segment_files import (
    CANDIDATES_FILE,
    CODES_FILE,
    DOCUMENTS_FILE,
    LOOKUP_FILE,
    UNINFORMATIVE_FILE,
)
from pipelines.searching.approximate import Approximate
from pipelines.searching.scan import Scan
from vae_core.errors import Damaged


class Segment:
    """Rows 0 to N-1, none of which ever changes.

    All files are opened at once, so that one that a later version no longer needs, and removes, is readable to the end.
    `lookup` finds rows by id; `uninformative` are those of the documents without a known word.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scan = Scan.open(folder / CODES_FILE)
        near = folder / CANDIDATES_FILE
        self.scan.near = Approximate.open(near) if near.exists() else None
        reader = open_documents(folder / DOCUMENTS_FILE)
        self.schema = reader.schema
        self.facts: dict[bytes, bytes] = self.schema.metadata or {}
        self.batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self.ends = np.cumsum([0, *(len(batch) for batch in self.batches)])
        if self.ends[-1] != len(self):
            raise Damaged(
                f"{folder} holds {len(self):,} codes and {self.ends[-1]:,} documents; run index with --overwrite"
            )
        self.lookup = IdLookup(folder / LOOKUP_FILE, lambda rows: self.table(rows, ["id"])["id"])
        self.uninformative = _rows(folder / UNINFORMATIVE_FILE)

    def __len__(self) -> int:
        return len(self.scan)

    @property
    def bits(self) -> int:
        return self.scan.bits

    @property
    def codes(self) -> np.ndarray:
        """The packed codes, (N, C) uint8, mapped."""
        return self.scan.codes

    def table(self, rows: np.ndarray, columns: list[str] | None = None) -> pa.Table:
        """The documents at `rows` (n,), in their order; only the batches that hold one are touched."""
        order = np.argsort(rows)
        sought = rows[order]
        edges = np.searchsorted(sought, self.ends)
        taken = [
            _columns(self.batches[number], columns).take(pa.array(sought[low:high] - self.ends[number]))
            for number, (low, high) in enumerate(pairwise(edges))
            if low < high
        ]
        table = pa.Table.from_batches(taken, _columns_of(self.schema, columns)).combine_chunks()
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order))
        return table.take(pa.array(places))

    def column(self, name: str) -> list[pa.Array]:
        """One column of all documents, mapped; labels and text that no document has are not kept, and made here."""
        if name in self.schema.names:
            return [batch.column(name) for batch in self.batches]
        return [nothing(name, len(batch)) for batch in self.batches]


def shown(table: pa.Table) -> list[dict[str, Any]]:
    """Documents as id, text, labels, component and metadata."""
    return [_shown(document) for document in table.to_pylist()]


def _shown(document: dict[str, Any]) -> dict[str, Any]:
    kept = {"text": document.get("text") or "", "labels": document.get("labels") or []}
    kept |= {"component": document.get("component") or 0, "metadata": document.get("metadata") or {}}
    return {"id": document["id"]} | kept


def nothing(name: str, count: int) -> pa.Array:
    """A column that says nothing of any document."""
    if name == "labels":
        return pa.ListArray.from_arrays(pa.array(np.zeros(count + 1, np.int32)), pa.array([], pa.string()))
    if name == "text":
        return pa.array([""] * count, pa.string())
    return pa.nulls(count)


def _rows(path: Path) -> np.ndarray:
    try:
        return read_npy(path).astype(np.int64)
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} cannot be read as .npy ({error}); run index with --overwrite") from error


def _columns(batch: pa.RecordBatch, columns: list[str] | None) -> pa.RecordBatch:
    return batch if columns is None else batch.select(columns)


def _columns_of(schema: pa.Schema, columns: list[str] | None) -> pa.Schema:
    return schema if columns is None else pa.schema([schema.field(name) for name in columns])


def open_documents(path: Path) -> pa.ipc.RecordBatchFileReader:
    """A segment's documents, mapped. Raises Damaged."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (OSError, pa.ArrowInvalid) as error:
        raise Damaged(f"{path} cannot be read as Arrow ({error}); run index with --overwrite") from error
