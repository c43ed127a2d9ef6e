"""The documents most similar to each document, in words and in topics.

Similarity is `weight` times the cosine of two documents' BM25 vectors plus the product of their dense vectors, which
hold LSI coordinates and, where there are some, embeddings. Words tell near documents apart, topics find the ones that
say the same in other words. Shapes: N documents, n of a block, V terms, D dimensions, C candidates, k found.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pipelines.neighbours.word_matrix import WordMatrix

ROWS_AT_ONCE = 256
PAIRS_AT_ONCE = 5_000_000
"""Of candidates and their words, some 25 bytes each: what bounds the memory where documents are long."""


class Similar(NamedTuple):
    """For n documents the rows of the k most similar others, and how similar they are, the most similar first."""

    rows: NDArray[np.int64]
    """(n, k)"""
    scores: NDArray[np.float32]
    """(n, k), none below 0"""

    def at(self, places: NDArray[np.int64]) -> "Similar":
        """Those of the documents at these places of the n, in that order."""
        return Similar(self.rows[places], self.scores[places])


class Similarity:
    """Finds the documents most similar to others: among those that `candidates` names, (n, C) rows for n rows, or all.

    To compare with all is faster up to some ten thousand documents, and its time grows with their square.
    """

    def __init__(
        self,
        words: WordMatrix,
        dense_ND: NDArray[np.float32],
        weight: float,
        candidates: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None,
    ) -> None:
        self._words, self._dense_ND, self._weight, self._candidates = words, dense_ND, weight, candidates
        self._all_VN = None if candidates else words.rows(np.arange(len(words))).T.tocsr()

    def of(self, rows: NDArray[np.int64], k: int) -> Similar:
        """The k most similar other documents of those at `rows`; k is less than the number of candidates."""
        # All at once: FAISS finds those of 4,096 rows in a seventeenth of the time a row that 256 take.
        others = None if self._candidates is None else self._candidates(rows)
        at_once = ROWS_AT_ONCE if others is None else self._rows_at_once(others)
        found = []
        for start in range(0, len(rows), at_once):
            here = slice(start, start + at_once)
            found.append(self._among_all(rows[here], k) if others is None else self._among(rows[here], others[here], k))
        return Similar(*(np.concatenate(part) for part in zip(*found, strict=True)))

    def _rows_at_once(self, others_nC: NDArray[np.int64]) -> int:
        pairs = self._words.pairs(others_nC.ravel()) / len(others_nC)
        return int(np.clip(PAIRS_AT_ONCE / max(1.0, pairs), 1, ROWS_AT_ONCE))

    def _among(self, rows_n: NDArray[np.int64], others_nC: NDArray[np.int64], k: int) -> Similar:
        scores_nC = self._weight * _products(self._words.rows(rows_n), self._words.rows(others_nC.ravel()))
        scores_nC += np.einsum("nd,ncd->nc", self._dense_ND[rows_n], self._dense_ND[others_nC])
        return _most_similar(scores_nC, rows_n, others_nC, k)

    def _among_all(self, rows_n: NDArray[np.int64], k: int) -> Similar:
        everyone = np.broadcast_to(np.arange(len(self._words)), (len(rows_n), len(self._words)))
        return _most_similar(self._with_all(rows_n), rows_n, everyone, k)

    def _with_all(self, rows_n: NDArray[np.int64]) -> NDArray[np.float32]:
        products: csr_matrix = self._words.rows(rows_n) @ self._all_VN
        return self._weight * products.toarray() + self._dense_ND[rows_n] @ self._dense_ND.T


def _most_similar(
    scores_nC: NDArray[np.float32], rows_n: NDArray[np.int64], others_nC: NDArray[np.int64], k: int
) -> Similar:
    """The k best of each row's scores, which are of the documents `others_nC`, itself left out."""
    scores_nC[others_nC == rows_n[:, None]] = -1
    best_nk = np.argpartition(-scores_nC, k - 1, axis=1)[:, :k]
    scores_nk = np.take_along_axis(scores_nC, best_nk, axis=1)
    order_nk = np.argsort(-scores_nk, axis=1, kind="stable")
    rows_nk = np.take_along_axis(others_nC, np.take_along_axis(best_nk, order_nk, axis=1), axis=1)
    return Similar(rows_nk, np.maximum(np.take_along_axis(scores_nk, order_nk, axis=1), 0).astype(np.float32))


def _products(queries: csr_matrix, others: csr_matrix) -> NDArray[np.float32]:
    """Row q of `queries` times each of its C rows of `others`, which follow one another: (n, C)."""
    count = others.shape[0] // queries.shape[0]
    pairs = np.diff(others.indptr)
    query_P = np.repeat(np.repeat(np.arange(queries.shape[0]), count), pairs)
    products_P = queries.toarray()[query_P, others.indices] * others.data
    sums = np.zeros(len(pairs), np.float32)
    sums[pairs > 0] = np.add.reduceat(products_P, others.indptr[:-1][pairs > 0]) if len(products_P) else 0
    return sums.reshape(-1, count)
