"""The nearest of many vectors by inner product: exactly, or from some hundred thousand rows on by inverted lists.

Shapes: N vectors, Q queries, D dimensions, k hits.
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
            index = faiss.index_factory(width, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
            sample = np.random.default_rng(0).choice(rows, min(rows, LEARNED_FROM * lists), replace=False)
            index.train(np.ascontiguousarray(vectors_ND[np.sort(sample)]))
            faiss.ParameterSpace().set_index_parameter(index, "nprobe", PROBES)
        for start in range(0, rows, 65_536):
            index.add(np.ascontiguousarray(vectors_ND[start : start + 65_536]))
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
