"""Latent semantic indexing of a corpus that need not fit into memory: a truncated SVD, block of rows by block of rows.

Randomised subspace iteration (Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1) on the side of the terms, so
that what is held does not grow with the documents. Shapes: N rows, V terms, D dimensions, L of them while it searches.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh, qr
from scipy.sparse import csr_matrix

Blocks = Callable[[], Iterator[csr_matrix]]
"""Reads the corpus once more from the start: rows (n, V), as many at a time as suits the reader."""
SPARE = 16
"""Dimensions beyond those asked for, which make the ones that are kept exact sooner."""
PASSES = 5
"""Over the corpus, before the one that measures what was found."""
NOTHING = 1e-5
"""A singular value below this share of the largest is rounding."""


def fit_lsi(
    blocks: Blocks, terms: int, dimensions: int, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The right singular vectors (V, D) and singular values (D,) of the rows of `blocks`, the largest first.

    There are fewer than `dimensions` where the corpus has no more. A row x lies at x @ vectors. The vectors' signs
    are such that the entry largest in size is positive; how rows are cut into blocks changes only the rounding.
    """
    width = min(dimensions + SPARE, terms)
    basis_VL = np.random.default_rng(seed).standard_normal((terms, width)).astype(np.float32)
    for _ in range(PASSES):
        image_VL = np.zeros((terms, width))
        for block in blocks():
            image_VL += block.T @ (block @ basis_VL)
        basis_VL = qr(image_VL, mode="economic", overwrite_a=True)[0].astype(np.float32)
    squares, turn_LL = eigh(_gram(blocks, basis_VL))
    order = np.argsort(-squares)[:dimensions]
    values = np.sqrt(np.maximum(squares[order], 0))
    kept = order[values > NOTHING * values.max(initial=0)]
    vectors_VD = basis_VL @ turn_LL[:, kept].astype(np.float32)
    return vectors_VD * _signs(vectors_VD), values[: len(kept)]


def _gram(blocks: Blocks, basis_VL: NDArray[np.float32]) -> NDArray[np.float64]:
    """The products of the rows' coordinates with one another, summed over rows: (L, L)."""
    gram_LL = np.zeros((basis_VL.shape[1], basis_VL.shape[1]))
    for block in blocks():
        placed_nL = (block @ basis_VL).astype(np.float64)
        gram_LL += placed_nL.T @ placed_nL
    return gram_LL


def _signs(vectors_VD: NDArray[np.float32]) -> NDArray[np.float32]:
    largest = np.abs(vectors_VD).argmax(axis=0)
    return np.where(vectors_VD[largest, np.arange(vectors_VD.shape[1])] < 0, -1, 1).astype(np.float32)
