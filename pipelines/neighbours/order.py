"""Orders of the documents in which those that are read together are near. Shapes: N documents, D dimensions.

More of what a search or a walk reads next is then in the processor's cache already.
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
    """All rows, (N,), those near one another from which a walker with these `moves` (N, N) meets the same documents.

    The order of likeness of vectors that BLURS steps of the walk have mixed with their neighbours'.
    """
    for _ in range(BLURS):
        dense_ND = unit_rows(moves @ dense_ND)
    return order_of_likeness(dense_ND, seed)
