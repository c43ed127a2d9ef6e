"""The nearest of many vectors by inner product: exactly, or from some hundred thousand rows on nearly so.

Then by inverted lists, in float16, which halves memory and quickens the scan. And clusters of vectors. Shapes: N
vectors, Q queries, D dimensions, k hits.
"""

from pathlib import Path
from typing import Self

import faiss
import numpy as np
from numpy.typing import NDArray

EXACT = 200_000
"""Rows up to which every one is compared; beyond, time would grow with their square."""
LISTS_PER_ROOT, PROBES, LEARNED_FROM = 4, 48, 64
"""Lists for each root of N, lists that a query looks into, and vectors a list that their centres are learned from."""
ROWS_AT_ONCE, ROUNDS = 65_536, 10
"""Vectors that are read at a time, and rounds of k-means."""


class Nearest:
    """An index over rows of vectors. Answers are the same in any process."""

    def __init__(self, index: faiss.Index) -> None:
        self._index = index

    @classmethod
    def build(cls, vectors_ND: NDArray[np.float32], exact: int = EXACT) -> Self:
        """Index all rows; those of an array that is memory-mapped are read a block at a time."""
        rows, width = vectors_ND.shape
        if rows <= exact:
            index: faiss.Index = faiss.IndexFlatIP(width)
        else:
            lists = int(LISTS_PER_ROOT * rows**0.5)
            index = faiss.index_factory(width, f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
            index.train(_sample(vectors_ND, LEARNED_FROM * lists, seed=0))
            faiss.ParameterSpace().set_index_parameter(index, "nprobe", PROBES)
        for start in range(0, rows, ROWS_AT_ONCE):
            index.add(np.ascontiguousarray(vectors_ND[start : start + ROWS_AT_ONCE]))
        return cls(index)

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC))

    def save(self, path: Path) -> None:
        faiss.write_index(self._index, str(path))

    def search(self, queries_QD: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Rows of the k largest inner products, (Q, k), the largest first; -1 where there are fewer."""
        _, rows = self._index.search(np.ascontiguousarray(queries_QD), k)
        return rows


def clusters(vectors_ND: NDArray[np.float32], number: int, seed: int) -> NDArray[np.int32]:
    """Of which cluster each row is, (N,), by k-means on a sample."""
    rows, width = vectors_ND.shape
    k_means = faiss.Kmeans(width, number, niter=ROUNDS, seed=seed, min_points_per_centroid=1)
    k_means.train(_sample(vectors_ND, LEARNED_FROM * number, seed))
    cluster_N = np.empty(rows, np.int32)
    for start in range(0, rows, ROWS_AT_ONCE):
        here = slice(start, start + ROWS_AT_ONCE)
        cluster_N[here] = k_means.index.search(np.ascontiguousarray(vectors_ND[here]), 1)[1][:, 0]
    return cluster_N


def _sample(vectors_ND: NDArray[np.float32], most: int, seed: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).choice(len(vectors_ND), min(len(vectors_ND), most), replace=False)
    return np.ascontiguousarray(vectors_ND[np.sort(rows)])
