"""The codes of a database, to be scored for queries. Shapes: Q queries, N documents, D distinct codes, K bits."""

import numpy as np
from numpy.typing import NDArray

HELD_NUMBERS = 1 << 26
"""Bits of distinct codes that are kept unpacked; of more, CODES_AT_ONCE are unpacked whenever they are asked."""
CODES_AT_ONCE = 1 << 16


class CodeSet:
    """Packed codes (N, K / 8), each distinct one scored once: documents of one code have exactly one score."""

    def __init__(self, codes_NC: NDArray[np.uint8]) -> None:
        width = codes_NC.shape[1]
        whole = np.ascontiguousarray(codes_NC).view(np.dtype((np.void, width)))[:, 0]
        distinct, self._places_N = np.unique(whole, return_inverse=True)
        self._codes_DC = distinct.view(np.uint8).reshape(-1, width)
        self.bits = 8 * width
        self._held_KD = self._unpacked(0, len(distinct)) if len(distinct) * self.bits <= HELD_NUMBERS else None

    def scores(self, weights_QK: NDArray[np.float32]) -> NDArray[np.float32]:
        """The sum of the weights at the ones of each document's code, (Q, N).

        With the query's log-odds as weights this ranks as log q(code | query) does; with +1 and -1 as Hamming does.
        """
        if self._held_KD is not None:
            scores_QD = weights_QK @ self._held_KD
        else:
            starts = range(0, len(self._codes_DC), CODES_AT_ONCE)
            pieces = [weights_QK @ self._unpacked(start, start + CODES_AT_ONCE) for start in starts]
            scores_QD = np.concatenate(pieces, axis=1)
        return np.take(scores_QD, self._places_N, axis=1)

    def _unpacked(self, start: int, stop: int) -> NDArray[np.float32]:
        ones = np.unpackbits(self._codes_DC[start:stop], axis=1, bitorder="little")
        return np.ascontiguousarray(ones.T.astype(np.float32))


def signs(codes_QC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The bits of packed codes as +1 and -1, (Q, K)."""
    return 2 * np.unpackbits(codes_QC, axis=1, bitorder="little").astype(np.float32) - 1
