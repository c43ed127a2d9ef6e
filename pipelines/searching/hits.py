"""What a search finds: rows, scores and distances, and the documents they are. Shapes: Q queries, k hits."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import pandas as pd


class Documents(Protocol):
    """What knows documents by row: an index, or one version of it."""

    def documents(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """id, text, labels, component and metadata of each of `rows` (n,)."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One document that was found: its score in nats (or minus the distance), its distance in bits, and itself."""

    id: str
    score: float
    distance: int
    text: str
    labels: list[str]
    component: int
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """The k best documents of each query, best first; places that no document fills have row -1 and score -inf.

    scores: log q(code | query) in nats for the ranking by log-odds, minus the distance for Hamming.
    distances: bits in which the document's code differs from the query's own.
    """

    rows: np.ndarray  # (Q, k) int64
    scores: np.ndarray  # (Q, k) float32
    distances: np.ndarray  # (Q, k) int32
    of: Documents | None = field(default=None, repr=False)
    """The version of the index that the rows are of."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, query: int) -> list[Hit]:
        """The documents that one query found, best first."""
        one = Hits(self.rows[query][None], self.scores[query][None], self.distances[query][None], self.of)
        return [Hit(**hit) for hit in hits(_known(self), one)[0]]

    def __iter__(self) -> Iterator[list[Hit]]:
        return (self[query] for query in range(len(self)))

    def to_arrow(self) -> pa.Table:
        """All hits of all queries, one a row: query, rank, id, score, distance, text, labels, component, metadata."""
        listed = hits(_known(self), self)
        rows = [
            {"query": query, "rank": rank} | hit
            for query, some in enumerate(listed)
            for rank, hit in enumerate(some, 1)
        ]
        metadata = pa.array([row["metadata"] for row in rows], None if rows else pa.struct([]))
        return pa.Table.from_pylist(rows, schema=_COLUMNS).append_column("metadata", metadata)

    def to_pandas(self) -> "pd.DataFrame":
        """The same as a data frame."""
        return self.to_arrow().to_pandas()


_COLUMNS = pa.schema(
    [
        ("query", pa.int64()),
        ("rank", pa.int64()),
        ("id", pa.string()),
        ("score", pa.float64()),
        ("distance", pa.int64()),
        ("text", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("component", pa.int64()),
    ]
)


def hits(index: Documents, result: Hits) -> list[list[dict[str, Any]]]:
    """Each query's hits, ready to print: id, score, distance, text, labels, component, metadata."""
    found = result.rows >= 0
    documents = iter((result.of or index).documents(result.rows[found]))
    measured = zip(result.scores, result.distances, found, strict=True)
    return [
        [
            _hit(next(documents), float(score), int(distance))
            for score, distance in zip(scores[some], distances[some], strict=True)
        ]
        for scores, distances, some in measured
    ]


def _hit(document: dict[str, Any], score: float, distance: int) -> dict[str, Any]:
    kept = {name: document[name] for name in ("text", "labels", "component", "metadata")}
    return {"id": document["id"], "score": score, "distance": distance} | kept


def _known(result: Hits) -> Documents:
    if result.of is None:
        raise ValueError("these hits do not say which index they are of; take what Index.search returned")
    return result.of
