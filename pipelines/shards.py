"""Documents of a shards artifact as batches: memory-mapped, any rows in any order."""

from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from pipelines.artifact import Artifact
from pipelines.embeddings import Embeddings
from pipelines.files.arrow import record_batches
from vae_core.batch import Batch, Ragged
from vae_core.condition import UNKNOWN
from vae_core.errors import Misuse


class Shards:
    """All documents of a shards artifact under one row number, in shard order.

    With `classes`, batches say which of them each document is of; with `embeddings`, they have each document's.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        classes: tuple[str, ...] | None = None,
        embeddings: Embeddings | None = None,
    ) -> None:
        parts = [batch for path in artifact.files(".arrow") for batch in record_batches(path)]
        self._tokens = [Lists.of(part.column("tokens")) for part in parts]
        self._terms = [Lists.of(part.column("term_ids")) for part in parts]
        self._counts = [Lists.of(part.column("term_counts")) for part in parts]
        self._classes = None if classes is None else [class_numbers(part.column("labels"), classes) for part in parts]
        self._embeddings = embeddings
        self._starts = np.concatenate([[0], np.cumsum([part.num_rows for part in parts])])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def batch(self, rows: NDArray[np.int64], *, tokens: bool) -> Batch:
        """The documents at `rows`, in that order; without their tokens unless asked for."""
        places = places_of(rows, self._starts)
        return Batch(
            tokens=_ragged(*gather(self._tokens, places)) if tokens else _nothing(len(rows)),
            terms=_ragged(*gather(self._terms, places)),
            counts=torch.from_numpy(gather(self._counts, places)[0].astype(np.float32)),
            classes=None if self._classes is None else torch.tensor([self._classes[p][row] for p, row in places]),
            embeddings=None if self._embeddings is None else torch.from_numpy(self._embeddings.rows(rows)),
        )

    def token_count(self, rows: NDArray[np.int64]) -> int:
        """How many tokens the documents at `rows` have."""
        places = places_of(rows, self._starts)
        return sum(int(self._tokens[part].offsets[row + 1] - self._tokens[part].offsets[row]) for part, row in places)


class Lists:
    """An Arrow list column as two arrays, without a copy."""

    def __init__(self, offsets: NDArray[np.int64], values: NDArray[Any]) -> None:
        self.offsets = offsets
        self.values = values

    @classmethod
    def of(cls, column: pa.ListArray) -> Self:
        return cls(column.offsets.to_numpy(), column.values.to_numpy())

    def ragged(self) -> Ragged:
        first, last = (int(self.offsets[0]), int(self.offsets[-1])) if len(self.offsets) else (0, 0)
        values = torch.from_numpy(self.values[first:last].astype(np.int64))
        return Ragged(values, torch.from_numpy(self.offsets.astype(np.int64) - first))


def places_of(rows: NDArray[np.int64], starts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """In which part each of `rows` lies, and where in it; part p begins with row `starts[p]`."""
    parts = np.searchsorted(starts, rows, side="right") - 1
    return list(zip(parts.tolist(), (rows - starts[parts]).tolist(), strict=True))


def gather(lists: list[Lists], places: list[tuple[int, int]]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The lists at `places` of the parts' columns, one after the other, and where each begins and the last ends."""
    pieces = [lists[part].values[lists[part].offsets[row] : lists[part].offsets[row + 1]] for part, row in places]
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
    return np.concatenate(pieces) if pieces else np.empty(0, np.uint32), offsets


def class_numbers(labels: pa.ListArray, classes: tuple[str, ...]) -> NDArray[np.int64]:
    """For each row the number of its first label that is one of `classes`, UNKNOWN where none is, (N,)."""
    places = pc.index_in(labels.values, value_set=pa.array(classes, pa.string())).fill_null(len(classes))
    numbers, offsets = places.to_numpy(), labels.offsets.to_numpy()
    rows = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    known = ((n for n in numbers[start:end] if n < len(classes)) for start, end in rows)
    return np.fromiter((next(row, UNKNOWN) for row in known), dtype=np.int64, count=len(labels))


def distinct_labels(artifact: Artifact, most: int) -> tuple[str, ...]:
    """All labels of a shards artifact in alphabetical order. Raises Misuse for none, or more than `most`."""
    found: set[str] = set()
    for path in artifact.files(".arrow"):
        for batch in record_batches(path):
            found.update(pc.unique(batch.column("labels").flatten()).to_pylist())
            if len(found) > most:
                raise Misuse(f"{artifact.path} has more than {most:,} labels; list some in model.condition.classes")
    if not found:
        raise Misuse(f"{artifact.path} has no labels to condition on; set corpus.labels and tokenize again")
    return tuple(sorted(found))


def batch_of(
    table: pa.Table | pa.RecordBatch,
    *,
    tokens: bool,
    classes: tuple[str, ...] | None = None,
    embeddings: NDArray[np.float32] | None = None,
) -> Batch:
    """The documents of a table in the shard schema, in order; with `classes`, which of them each is of.

    `embeddings` (N, E) are the documents', where the model reads them.
    """
    if isinstance(table, pa.Table):
        table = table.combine_chunks()
    rows = table.num_rows
    return Batch(
        tokens=Lists.of(_column(table, "tokens")).ragged() if tokens else _nothing(rows),
        terms=Lists.of(_column(table, "term_ids")).ragged(),
        counts=Lists.of(_column(table, "term_counts")).ragged().values.float(),
        classes=None if classes is None else torch.from_numpy(class_numbers(_column(table, "labels"), classes)),
        embeddings=None if embeddings is None else torch.from_numpy(embeddings),
    )


def _column(table: pa.Table | pa.RecordBatch, name: str) -> pa.ListArray:
    column = table.column(name)
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks else pa.array([], type=column.type)
    return column


def _ragged(values: NDArray[Any], offsets: NDArray[np.int64]) -> Ragged:
    return Ragged(torch.from_numpy(values.astype(np.int64)), torch.from_numpy(offsets))


def _nothing(documents: int) -> Ragged:
    return Ragged(torch.zeros(0, dtype=torch.long), torch.zeros(documents + 1, dtype=torch.long))
