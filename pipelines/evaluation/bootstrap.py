"""Confidence intervals over queries. Shapes: Q queries, M rankings, B resamples."""

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
AT_ONCE = 50


def resampled_means(values_QM: NDArray[np.float64], seed: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Means of each column over queries that are drawn with replacement, (B, M); one draw serves all columns.

    So the difference of two columns of the result is that of a paired bootstrap (Efron & Tibshirani 1993, chapter 13).
    """
    queries = len(values_QM)
    chance = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, AT_ONCE):
        drawn = chance.integers(0, queries, (min(AT_ONCE, resamples - start), queries))
        counts_BQ = np.stack([np.bincount(row, minlength=queries) for row in drawn])
        means.append(counts_BQ @ values_QM / queries)
    return np.concatenate(means)


def interval(means_B: NDArray[np.float64]) -> list[float]:
    """The percentile interval at LEVEL of resampled means."""
    low, high = np.quantile(means_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]
