"""Orders of the documents in which those that are read together are near. Shapes: N documents, D dimensions.

What a search or a walk reads then lies within what a processor's cache holds, though there are a million documents.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pipelines.evaluation.references import unit_rows
from pipelines.neighbours.nearest import clusters

BLURS = 5
"""Steps along the graph after which documents that the same walks meet have nearly the same vectors."""


def order_of_likeness(dense_ND: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
    """All rows, cluster by cluster, (N,); there are as many clusters as documents in one, the root of N."""
    return np.argsort(clusters(dense_ND, round(len(dense_ND) ** 0.5), seed), kind="stable")


def order_of_meetings(moves: csr_matrix, dense_ND: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
    """All rows, (N,), those near one another that a walker meets together, whose moves (N, N) are symmetric.

    By likeness of the vectors that the walk blurs: each becomes the mean of its neighbours', of length one, some times.
    """
    for _ in range(BLURS):
        dense_ND = unit_rows(moves @ dense_ND)
    return order_of_likeness(dense_ND, seed)
