"""How well a ranking agrees with exact neighbours: what can be measured without any label.

Shapes: Q queries, N documents, R places of a ranking.
"""

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.ranking import Ranked

NEIGHBOURS = 100
"""The exact nearest documents of a query that count."""


def neighbour_gains(exact: Ranked, documents: int) -> NDArray[np.float32]:
    """What finding each document is worth to each query: its cosine if it is one of the nearest, else 0. (Q, N)."""
    rows, scores = exact.rows[:, :NEIGHBOURS], exact.scores[:, :NEIGHBOURS]
    gains_QN = np.zeros((len(rows), documents), np.float32)
    np.put_along_axis(gains_QN, rows, np.maximum(scores, 0), axis=1)
    return gains_QN


def neighbour_recall(found_QR: NDArray[np.float64], exact: Ranked) -> NDArray[np.float64]:
    """Share of the exact neighbours among the first NEIGHBOURS places; nan where a query has no neighbour. (Q,).

    `found_QR` says of each place how likely it holds a neighbour.
    """
    there_Q = (exact.scores[:, :NEIGHBOURS] > 0).sum(axis=1)
    return _share(found_QR[:, :NEIGHBOURS].sum(axis=1), there_Q)


def ndcg(gains_QR: NDArray[np.float64], exact: Ranked) -> NDArray[np.float64]:
    """Discounted gain of the first NEIGHBOURS places over that of the exact ranking (Jarvelin & Kekalainen 2002). (Q,).

    nan where a query has no neighbour.
    """
    places = min(NEIGHBOURS, gains_QR.shape[1])
    discounts = 1 / np.log2(np.arange(places) + 2)
    return _share(gains_QR[:, :places] @ discounts, np.maximum(exact.scores[:, :places], 0) @ discounts)


def _share(part_Q: NDArray[np.float64], whole_Q: NDArray[np.float64]) -> NDArray[np.float64]:
    share: NDArray[np.float64] = np.divide(part_Q, whole_Q, out=np.full(len(part_Q), np.nan), where=whole_Q > 0)
    return share
