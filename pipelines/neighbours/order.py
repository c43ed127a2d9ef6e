"""An order of the documents in which like ones are near one another. Shapes: N documents, D dimensions.

A walker meets documents like the one where it starts. In this order they lie within what a processor's cache holds, so
that a step among a million documents takes as long as among some ten thousand.
"""

import numpy as np
from numpy.typing import NDArray

from pipelines.neighbours.nearest import clusters


def order_of_likeness(dense_ND: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
    """All rows, cluster by cluster, (N,); there are as many clusters as documents in one, the root of N."""
    return np.argsort(clusters(dense_ND, round(len(dense_ND) ** 0.5), seed), kind="stable")
