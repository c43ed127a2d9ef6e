"""The order of documents by score, and what ties do to it. Shapes: Q queries, N documents, R places of a ranking.

Of two documents with one score the earlier comes first, as in search; `Ties` has what random orders give.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROW = (1 << 32) - 1
MOST = (1 << 31) - 1


class Ranked(NamedTuple):
    """The best documents of each query, best first."""

    rows: NDArray[np.int64]
    """(Q, R)"""
    scores: NDArray[np.float32]
    """(Q, R)"""


def ranked(keys_QR: NDArray[np.int64]) -> Ranked:
    """What sorted keys say."""
    order = (~(keys_QR >> 32)).astype(np.int32)
    return Ranked(keys_QR & ROW, (order ^ ((order >> 31) & MOST)).view(np.float32))


def best(keys_QN: NDArray[np.int64], places: int) -> NDArray[np.int64]:
    """The keys of the `places` best documents, sorted, (Q, R); all of them where there are fewer."""
    if places < keys_QN.shape[1]:
        keys_QN = np.partition(keys_QN, places - 1, axis=1)[:, :places]
    return np.sort(keys_QN, axis=1)


def rank_keys(scores_QN: NDArray[np.float32], first_row: int = 0) -> NDArray[np.int64]:
    """One number for each document that is smaller the better it is: of a higher score, then of an earlier row.

    Column n is document `first_row + n`. A float32 that is read as an integer keeps its order, up to the sign.
    """
    bits = (scores_QN + np.float32(0)).view(np.int32)  # -0.0 and 0.0 are one score
    order = bits >> 31
    order &= MOST
    order ^= bits
    keys_QN = np.empty(scores_QN.shape, np.int64)
    halves = keys_QN.view(np.int32).reshape(*scores_QN.shape, 2)  # little-endian: the upper half is the second
    np.invert(order, out=halves[..., 1])
    halves[..., 0] = np.arange(first_row, first_row + scores_QN.shape[1])
    return keys_QN


class Ties:
    """Which places of a ranking hold documents of one score.

    `tied_Q` is how many documents of the whole database have the score of the last place, which may be more than
    those that are still in the ranking; the groups before it are whole.
    """

    def __init__(self, scores_QR: NDArray[np.float32], tied_Q: NDArray[np.int64]) -> None:
        first = np.ones(scores_QR.shape, dtype=bool)
        first[:, 1:] = scores_QR[:, 1:] != scores_QR[:, :-1]
        self._group = (np.cumsum(first) - 1).reshape(scores_QR.shape)
        self._sizes = np.bincount(self._group.ravel())
        self._sizes[self._group[:, -1]] = tied_Q

    def sizes(self, place: int) -> NDArray[np.int64]:
        """How many documents share the score of the one at `place`, it included, (Q,)."""
        return self._sizes[self._group[:, place]]

    def averaged(self, gains_QR: NDArray[np.float32], tied_gain_Q: NDArray[np.float64]) -> NDArray[np.float64]:
        """The expected gain of each place if documents of one score come in random order, (Q, R).

        `gains_QR` are the gains in the ranking's own order, `tied_gain_Q` the sum over all that `tied_Q` counts.
        """
        sums = np.bincount(self._group.ravel(), gains_QR.ravel(), minlength=len(self._sizes))
        sums[self._group[:, -1]] = tied_gain_Q
        return (sums / self._sizes)[self._group]
