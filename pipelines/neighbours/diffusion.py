"""From each document's most similar others to its neighbours: those that a walker who starts at it is likely to meet.

The walk goes along a graph that joins similar documents, each step with a small chance to begin anew, and ends after
a while: personalised PageRank (Page et al. 1999; Haveliwala 2002) under the symmetric normalisation of Zhou et al.
(2004). A document's row of chances is kept to its largest entries after every step, so that time and memory do not
grow with the square of the corpus. Shapes: N documents, n of a block, k joined to each, M neighbours.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags, hstack, identity, vstack

from pipelines.neighbours.similar import Similar

SHARPNESS = 3
"""Edges weigh the similarity to this power."""
CONTINUE = 0.99
"""The chance to walk on at each step."""
ROWS_AT_ONCE = 512


class Reach(NamedTuple):
    """How far a walk goes: its steps, and how many of the largest entries of a row are kept after each."""

    steps: int
    kept: int


FAR, NEAR, MANY = Reach(steps=30, kept=600), Reach(steps=20, kept=300), 50_000
"""Of up to so many documents, and of more, where a far walk would take the longest of all stages."""
DOCUMENTS_PER_KEPT, LEAST_KEPT = 15, 100
"""One of so many is kept, but so many at least: in a small corpus a walk that keeps more forgets where it began."""


def reach_among(documents: int, count: int) -> Reach:
    """How far to walk where so many neighbours are wanted of each document."""
    reach = FAR if documents <= MANY else NEAR
    return reach._replace(kept=max(2 * count, LEAST_KEPT, min(reach.kept, documents // DOCUMENTS_PER_KEPT)))


def transitions(similar: Similar) -> csr_matrix:
    """The moves of a walker, (2N, N): along the graph, and below it each document's return to itself.

    The first is CONTINUE D^-1/2 W D^-1/2 of the symmetric weights W, in which an edge holds if either end chose it.
    """
    documents, joined = similar.rows.shape
    places = (np.repeat(np.arange(documents), joined), similar.rows.ravel())
    chosen = csr_matrix((similar.scores.ravel() ** SHARPNESS, places), shape=(documents, documents))
    weights = chosen.maximum(chosen.T)
    degrees = np.asarray(weights.sum(axis=1)).ravel()
    scale = diags(np.divide(1, np.sqrt(degrees), out=np.zeros_like(degrees), where=degrees > 0))
    onward = CONTINUE * (scale @ weights @ scale)
    return vstack([onward, (1 - CONTINUE) * identity(documents, np.float32)], format="csr")


def neighbours(
    walk: csr_matrix, rows: NDArray[np.int64], count: int, reach: Reach | None = None
) -> list[NDArray[np.int64]]:
    """For each of `rows` the at most `count` other documents that are met most, the first one most of all."""
    reach = reach or reach_among(walk.shape[1], count)
    blocks = (rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE))
    return [found for block in blocks for found in _most_met(walk, block, count, reach)]


def _most_met(walk: csr_matrix, rows_n: NDArray[np.int64], count: int, reach: Reach) -> list[NDArray[np.int64]]:
    ones = np.ones(len(rows_n), np.float32)
    start = csr_matrix((ones, rows_n, np.arange(len(rows_n) + 1)), shape=(len(rows_n), walk.shape[1]))
    chances = start
    for _ in range(reach.steps):
        # One product of both moves: to add the returns afterwards would take scipy a third of the time of a step.
        chances = _largest(hstack([chances, start], format="csr") @ walk, reach.kept)
    found = []
    for row, document in enumerate(rows_n):
        others, met = _row(chances, row)
        met = np.where(others == document, 0, met)
        order = np.lexsort((others, -met))[:count]
        found.append(others[order[met[order] > 0]].astype(np.int64))
    return found


def _largest(matrix: csr_matrix, kept: int) -> csr_matrix:
    """The same with only the `kept` largest entries of each row."""
    places = []
    for first, last in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        size = last - first
        here = np.argpartition(matrix.data[first:last], size - kept)[size - kept :] if size > kept else np.arange(size)
        places.append(here + first)
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in places])])
    chosen = np.concatenate(places)
    return csr_matrix((matrix.data[chosen], matrix.indices[chosen], offsets), shape=matrix.shape)


def _row(matrix: csr_matrix, row: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    here = slice(matrix.indptr[row], matrix.indptr[row + 1])
    return matrix.indices[here], matrix.data[here]
