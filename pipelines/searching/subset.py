"""Search only some rows of a segment, such as those that pass a filter. Shapes: N rows, Q queries, k hits."""

from functools import cached_property

import numpy as np

from pipelines.searching.scan import Candidates, Queries, Rank, Scan

GATHERED = 0.25
"""Share of a segment up to which its rows are copied together, so that only they are scanned."""


class Subset:
    """Some rows of a segment of N; `mask` (N,) bool is None where all are in it."""

    def __init__(self, rows: int, mask: np.ndarray | None, *, filtered: bool = False) -> None:
        self.total = rows
        self.mask = mask
        self.filtered = filtered

    def where(self, mask: np.ndarray) -> "Subset":
        """Those of the rows that `mask` (N,) bool has too."""
        return Subset(self.total, mask if self.mask is None else mask & self.mask, filtered=True)

    @cached_property
    def chosen(self) -> int:
        """How many rows are in it."""
        return self.total if self.mask is None else int(np.count_nonzero(self.mask))

    @cached_property
    def rows(self) -> np.ndarray:
        """The rows in it, ascending."""
        return np.arange(self.total) if self.mask is None else np.flatnonzero(self.mask)

    def contains(self, rows: np.ndarray) -> np.ndarray:
        """Which of `rows` are in it."""
        return np.ones(len(rows), bool) if self.mask is None else self.mask[rows]

    def nearest(self, scan: Scan, queries: Queries, k: int, rank: Rank, *, exact: bool = False) -> Candidates:
        """The k best of its rows, as many as there are; what passed a filter is always ranked exactly.

        Few rows are copied together and scanned alone. Of many, enough of all rows are found that k of them are
        expected to be in it, and where they are not, the queries in question ask the copied rows.
        """
        k = min(k, self.chosen)
        if self.mask is None or not k:
            return scan.nearest(queries, k, rank, exact=exact)
        exact = exact or self.filtered
        share = self.chosen / self.total
        if share <= GATHERED or k > self.total // 8:
            return self._gathered_nearest(scan, queries, k, rank)
        found = scan.nearest(queries, min(self.total, int(1.25 * k / share) + 16), rank, exact=exact)
        kept = found.keeping((found.rows >= 0) & self.mask[found.rows])
        best = kept.best(k)
        short = np.flatnonzero(best.rows[:, -1] < 0)
        if len(short) and (exact or scan.near is None):
            again = self._gathered_nearest(scan, queries[short], k, rank)
            for ours, theirs in (
                (best.rows, again.rows),
                (best.scores, again.scores),
                (best.distances, again.distances),
            ):
                ours[short] = theirs
        return best

    def _gathered_nearest(self, scan: Scan, queries: Queries, k: int, rank: Rank) -> Candidates:
        if self._copied is None:
            self._copied = Scan.of(scan.codes[self.rows])
        return self._copied.nearest(queries, k, rank, exact=True).renamed(self.rows)

    _copied: Scan | None = None


def subset_of(rows: int, hidden: np.ndarray) -> Subset:
    """All of `rows` rows but the `hidden` ones."""
    if not len(hidden):
        return Subset(rows, None)
    mask = np.ones(rows, bool)
    mask[hidden] = False
    return Subset(rows, mask)
