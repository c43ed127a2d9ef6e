"""Precision and recall by label: how many of a query's nearest documents share a label with it.

Shapes: Q queries, N documents, R places of a ranking, K of them at which the figures are told.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

RANKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True, eq=False)
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

    def __getitem__(self, documents: slice) -> "Labels":
        """The labels of some documents."""
        start, stop, _ = documents.indices(len(self))
        offsets = self.offsets[start : stop + 1]
        return Labels(offsets - offsets[0], self.values[offsets[0] : offsets[-1]], self.names)

    @property
    def labelled(self) -> NDArray[np.int64]:
        """The documents that have a label."""
        return np.flatnonzero(np.diff(self.offsets))

    def shared_with(self, queries: "Labels") -> NDArray[np.bool_]:
        """Whether each document shares a label with each query, (Q, N)."""
        shared: NDArray[np.bool_] = (queries.matrix @ self._transposed).toarray() > 0
        return shared

    @cached_property
    def matrix(self) -> csr_matrix:
        """1 where a document has a label, (N, labels)."""
        ones = np.ones(len(self.values), np.float32)
        return csr_matrix((ones, self.values, self.offsets), shape=(len(self), len(self.names)))

    @cached_property
    def _transposed(self) -> csr_matrix:
        return self.matrix.T.tocsr()


def ranks(documents: int) -> NDArray[np.int64]:
    """The ranks at which precision and recall are told, of a ranking of so many documents."""
    last = min(documents, RANKS[-1])
    return np.array([*(rank for rank in RANKS if rank < last), last])


def at_ranks(gains_QR: NDArray[np.floating], ranks_K: NDArray[np.int64]) -> NDArray[np.float64]:
    """What the first documents of each ranking gain together, up to each rank: (Q, K)."""
    together: NDArray[np.float64] = np.cumsum(gains_QR, axis=1, dtype=np.float64)[:, ranks_K - 1]
    return together
