"""Precision by label: how many of a query's nearest documents share a label with it. Shapes: Q queries, k hits."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The labels of documents as numbers: document n has `values[offsets[n]:offsets[n + 1]]`, names of `names`."""

    offsets: NDArray[np.int64]
    values: NDArray[np.int64]
    names: pa.Array

    @classmethod
    def of(cls, column: pa.ChunkedArray, names: pa.Array | None = None) -> "Labels":
        """The labels in a column of lists; with `names`, numbered as there and without the labels that are not."""
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        flat = pa.concat_arrays([pa.array([], pa.string()), *(chunk.flatten() for chunk in column.chunks)])
        if names is None:
            names = pc.unique(flat)
        values = pc.fill_null(pc.index_in(flat, value_set=names), -1).to_numpy(zero_copy_only=False).astype(np.int64)
        owners = np.repeat(np.arange(len(lengths)), lengths)[values >= 0]
        counts = np.bincount(owners, minlength=len(lengths))
        return cls(np.concatenate([[0], np.cumsum(counts)]), values[values >= 0], names)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, document: int) -> "Labels":
        """The labels of one document, as those of one."""
        start, stop = self.offsets[document : document + 2]
        return Labels(np.array([0, stop - start]), self.values[start:stop], self.names)

    @property
    def labelled(self) -> NDArray[np.int64]:
        """The documents that have a label."""
        return np.flatnonzero(np.diff(self.offsets))

    def relevant(self, rows: NDArray[np.int64], queries: "Labels") -> NDArray[np.bool_]:
        """Whether document rows[q, i] shares a label with query q: (Q, k). Row -1 is no document, and not relevant."""
        asked = np.zeros((len(queries), max(1, len(self.names))), dtype=bool)
        asked[np.repeat(np.arange(len(queries)), np.diff(queries.offsets)), queries.values] = True
        flat = rows.ravel()
        counts = np.where(flat >= 0, self.offsets[flat + 1] - self.offsets[flat], 0)
        places = np.repeat(np.arange(len(flat)), counts)
        within = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
        labels = self.values[self.offsets[flat[places]] + within]
        found = np.zeros(len(flat), dtype=bool)
        found[places[asked[places // max(1, rows.shape[1]), labels]]] = True
        return found.reshape(rows.shape)


def precision(relevant: NDArray[np.bool_], found: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """Share of relevant ones of each query's first k hits (Q, >= k), or of all where fewer were found: (Q,)."""
    hits = np.maximum(found[:, :k].sum(axis=1), 1)
    shares: NDArray[np.float64] = (relevant & found)[:, :k].sum(axis=1) / hits
    return shares


def precision_over_ties(relevant: NDArray[np.bool_], distances: NDArray[np.int32], k: int) -> float:
    """Expected share of relevant documents among the k nearest, if those at equal distance come in random order.

    `relevant` and `distances` (n,) are those of all documents up to the k-th's distance, or beyond, in any order.
    """
    k = min(k, len(distances))
    if k == 0:
        return 0.0
    last = np.partition(distances, k - 1)[k - 1]
    nearer, tied = distances < last, distances == last
    places = k - nearer.sum()
    return float((relevant[nearer].sum() + places * relevant[tied].mean()) / k)


def without_own(rows: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """`rows` (Q, k + 1) without the query's own row (Q,), or without the last where it is not among them: (Q, k)."""
    is_own = (rows == own[:, None]) & (own[:, None] >= 0)
    is_own[~is_own.any(axis=1), -1] = True
    return rows[~is_own].reshape(len(rows), rows.shape[1] - 1)
