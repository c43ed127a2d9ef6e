"""The pairs that hold clusters together: a minimum spanning forest of a stream of pairs. Shapes: U units, P pairs.

Of any number of pairs at most U - 1 are kept, those of the lowest levels; they connect at every level exactly the
units that all pairs up to that level connect (single linkage). So clusters at a stricter level need no second run.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.files.durable import replacing

LINK = np.dtype([("left", "<i8"), ("right", "<i8"), ("level", "<i4"), ("distance", "<i4"), ("jaccard", "<f4")])
"""Two units and how near they are; `level` is what decides between links, the lower the nearer."""
HELD_LINKS = 1 << 21
LEVELS = 100
"""Jaccard similarities are told apart to 1 / LEVELS."""
Rows = NDArray[np.int64]


class Links:
    """A growing forest over `units` units, of which the first `known` count as connected from the start."""

    def __init__(self, units: int, known: int, levels: Sequence[int], start: NDArray[np.void] | None = None) -> None:
        """`levels`, ascending, are those for which `connected` knows an answer."""
        self.units, self.known, self.levels = units, known, np.array(levels)
        self.forest = np.empty(0, LINK) if start is None else start
        self._waiting: list[NDArray[np.void]] = []
        self._held = 0
        self._labels = [self.labels(level) for level in levels] if len(self.forest) else None

    def add(self, links: NDArray[np.void]) -> None:
        """More pairs, LINK (P,)."""
        self._waiting.append(links)
        self._held += len(links)
        if self._held >= max(HELD_LINKS, self.units // 2):
            self.compact()

    def connected(self, left: Rows, right: Rows, levels: Rows) -> NDArray[np.bool_]:
        """Whether a pair of at least this level would change nothing, as far as is known now, (P,)."""
        if self._labels is None:
            return np.zeros(len(left), bool)
        left, right = self._node(left), self._node(right)
        found = left == right
        places = np.searchsorted(self.levels, levels, side="right") - 1
        for place, labels in enumerate(self._labels):
            here = np.flatnonzero(places == place)
            found[here] = labels[left[here]] == labels[right[here]]
        return found

    def compact(self) -> NDArray[np.void]:
        """Drop what closes a cycle, and return the forest."""
        if self._waiting:
            self.forest = self._spanning(np.concatenate([self.forest, *self._waiting]))
            self._waiting, self._held = [], 0
            self._labels = [self.labels(int(level)) for level in self.levels]
        return self.forest

    def labels(self, level: int) -> NDArray[np.int32]:
        """The cluster of each unit when only links up to `level` count, (U,)."""
        from scipy.sparse.csgraph import connected_components

        chosen = self.forest[self.forest["level"] <= level]
        labels: NDArray[np.int32] = connected_components(self._graph(chosen), directed=False)[1]
        return labels

    def parents(self) -> tuple[Rows, NDArray[np.void], Rows]:
        """Each unit's link towards the unit of its cluster that is kept: its other end, the link, and the kept unit.

        Kept are the known units, and of each cluster without one the first; they are their own parent.
        """
        from scipy.sparse.csgraph import breadth_first_order

        forest = self.compact()
        heads = self._heads()
        graph = self._graph(forest, heads)
        before = breadth_first_order(graph, self.units, directed=False)[1][: self.units]
        parents = np.arange(self.units)
        children = np.flatnonzero((before >= 0) & (before < self.units))
        children = children[children >= self.known]
        links = np.zeros(self.units, LINK)
        left, right = self._node(forest["left"]), self._node(forest["right"])
        ends = _pair_keys(left, right)
        order = np.argsort(ends)
        keys = _pair_keys(children, before[children].astype(np.int64))
        found = order[np.searchsorted(ends, keys, sorter=order)]
        links[children] = forest[found]
        parents[children] = np.where(right[found] == children, forest["left"][found], forest["right"][found])
        return parents, links, ends_of(parents)

    def save(self, path: Path) -> None:
        """Write the forest so that `LINK` rows can be loaded from `path`."""
        forest = self.compact()
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, forest)

    def _heads(self) -> Rows:
        labels = self.labels(int(self.levels[-1]) + 1_000_000)
        first = np.unique(labels, return_index=True)[1]
        return first[(first >= self.known) | (first == 0)]

    def _node(self, units: Rows) -> Rows:
        """Known units are one node, the first."""
        return np.where(units < self.known, 0, units) if self.known else units

    def _graph(self, links: NDArray[np.void], heads: Rows | None = None) -> "object":
        from scipy.sparse import coo_array

        left, right, size = self._node(links["left"]), self._node(links["right"]), self.units
        if heads is not None:
            left, right = np.append(left, np.full(len(heads), size)), np.append(right, heads)
            size += 1
        return coo_array((np.ones(len(left), np.int8), (left, right)), shape=(size, size)).tocsr()

    def _spanning(self, links: NDArray[np.void]) -> NDArray[np.void]:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import minimum_spanning_tree

        left, right = self._node(links["left"]), self._node(links["right"])
        order = np.lexsort((links["right"], links["left"], -links["jaccard"], links["distance"], links["level"]))
        links, left, right = links[order], left[order], right[order]
        best = np.sort(np.unique(_pair_keys(left, right), return_index=True)[1])
        best = best[left[best] != right[best]]
        graph = coo_array((np.arange(1.0, len(best) + 1), (left[best], right[best])), shape=(self.units, self.units))
        kept = minimum_spanning_tree(graph.tocsr()).data.astype(np.int64) - 1
        chosen: NDArray[np.void] = links[best[np.sort(kept)]]
        return chosen


def links_of(left: Rows, right: Rows, level: Rows, distance: Rows, jaccard: NDArray[np.float32]) -> NDArray[np.void]:
    """Columns as LINK rows, (P,)."""
    links = np.empty(len(left), LINK)
    columns = {"left": left, "right": right, "level": level, "distance": distance, "jaccard": jaccard}
    for name, column in columns.items():
        links[name] = column
    return links


def level_of(jaccard: float | NDArray[np.floating]) -> Rows:
    """How far from equal two texts are, in steps of 1 / LEVELS: a pair reaches J if its level is at most that of J."""
    return np.ceil((1 - np.asarray(jaccard, np.float64)) * LEVELS - 1e-4).astype(np.int64)


def ends_of(parents: Rows) -> Rows:
    """Where each chain of parents ends, that is, at one that is its own."""
    ends = parents
    while not np.array_equal(ends, further := ends[ends]):
        ends = further
    return ends


def _pair_keys(left: Rows, right: Rows) -> NDArray[np.uint64]:
    low, high = np.minimum(left, right).astype(np.uint64), np.maximum(left, right).astype(np.uint64)
    return low << np.uint64(32) | high
