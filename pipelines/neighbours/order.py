"""An order of the documents in which like ones are near one another. Shapes: N documents, D dimensions.

A walker meets documents like the one where it starts. In this order they lie within what a processor's cache holds, so
that a step among a million documents takes as long as among some ten thousand.
"""

import faiss
import numpy as np
from numpy.typing import NDArray

LEARNED_FROM, ROUNDS = 64, 10
"""Documents a cluster that the clusters' centres are learned from, and rounds of k-means."""
ROWS_AT_ONCE = 65_536


def order_of_likeness(dense_ND: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
    """All rows, cluster by cluster, (N,); there are as many clusters as documents in one, the root of N."""
    documents, width = dense_ND.shape
    clusters = max(1, round(documents**0.5))
    sample = np.random.default_rng(seed).choice(documents, min(documents, LEARNED_FROM * clusters), replace=False)
    k_means = faiss.Kmeans(width, clusters, niter=ROUNDS, seed=seed, min_points_per_centroid=1)
    k_means.train(np.ascontiguousarray(dense_ND[np.sort(sample)]))
    cluster_N = np.empty(documents, np.int32)
    for start in range(0, documents, ROWS_AT_ONCE):
        here = slice(start, start + ROWS_AT_ONCE)
        cluster_N[here] = k_means.index.search(np.ascontiguousarray(dense_ND[here]), 1)[1][:, 0]
    return np.argsort(cluster_N, kind="stable")
