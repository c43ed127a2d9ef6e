"""Rank packed codes for queries, exactly. Shapes: Q queries, N codes, K bits, C = K/8, k hits, F candidates.

Ties are broken by row: of two codes with one score the earlier comes first, also at the cut-off.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vae_core.codes import MAX_LOG_ODDS
from vae_core.errors import Damaged, Misuse

if TYPE_CHECKING:
    from pipelines.searching.approximate import Approximate

Rank = Literal["log-odds", "hamming"]
PROPOSED, PROPOSED_MORE = 20, 100
"""Candidates by Hamming distance for each hit by log-odds, and some more."""
BYTE_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.float64)
"""The eight bits of each byte, (256, 8)."""
GRID = 2.0**-40
"""Log-odds are rounded to this, so that a sum of 512 of them is exact in float64, whatever its order."""
SCAN_ROWS = 1 << 18
FAST_FROM = 50_000
"""Codes from which fast scanning pays."""
ARRANGE_AFTER = 4
"""Queries after which the codes are arranged for fast scanning: it takes as long as a few queries do without."""
QUERIES_TOGETHER = 0x333322
"""Queries for which fast scanning reads a code once: FAISS's notation for four times three and twice two, four per
cent quicker over 10 M codes than eight times two. More than 24 it refuses."""
WIDE = 4096
"""Candidates of a second look, where the first could not prove its answer."""


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """What is looked for: log-odds, clamped, on the grid, and the packed code that they round to."""

    log_odds: np.ndarray  # (Q, K) float64
    packed: np.ndarray  # (Q, C) uint8

    @classmethod
    def of(cls, log_odds: np.ndarray, bits: int) -> "Queries":
        """Raises Misuse for another width, and ValueError for another shape or values that are not numbers."""
        if log_odds.ndim != 2:
            raise ValueError(f"log-odds must be (queries, bits), got shape {log_odds.shape}")
        if log_odds.shape[1] != bits:
            raise Misuse(
                f"index holds {bits}-bit codes, query has {log_odds.shape[1]}; encode it with the index's own model"
            )
        if np.isnan(log_odds).any():
            raise ValueError(f"log-odds of query {np.isnan(log_odds).any(axis=1).argmax()} are not numbers (nan)")
        clamped = np.clip(log_odds.astype(np.float64), -MAX_LOG_ODDS, MAX_LOG_ODDS)
        return cls(np.round(clamped / GRID) * GRID, np.packbits(log_odds > 0, axis=1, bitorder="little"))

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, chosen: np.ndarray | slice) -> "Queries":
        return Queries(self.log_odds[chosen], self.packed[chosen])

    @property
    def tables(self) -> np.ndarray:
        """What each byte of a code adds to its score, (Q, C, 256)."""
        halves = (self.log_odds.reshape(-1, 4) @ BYTE_BITS[:16, :4].T).reshape(-1, 2, 16)
        return (halves[:, 1, :, None] + halves[:, 0, None, :]).reshape(*self.packed.shape, 256)

    @property
    def normaliser(self) -> np.ndarray:
        """sum_i softplus(a_i), which makes the score a log probability: (Q,)."""
        total: np.ndarray = np.logaddexp(0.0, self.log_odds).sum(axis=1)
        return total


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Rows, scores (float64, without the normaliser) and distances, each (Q, F); a place without a row has row -1."""

    rows: np.ndarray
    scores: np.ndarray
    distances: np.ndarray

    @classmethod
    def none(cls, queries: int, places: int) -> "Candidates":
        shape = (queries, places)
        return cls(np.full(shape, -1, np.int64), np.full(shape, -np.inf), np.full(shape, -1, np.int32))

    def best(self, k: int) -> "Candidates":
        """The k of the highest score, ties by row."""
        order = np.lexsort((self.rows, -self.scores), axis=-1)[:, :k]
        arrays = (self.rows, self.scores, self.distances)
        return Candidates(*(np.take_along_axis(array, order, axis=1) for array in arrays))

    def filled(self, k: int) -> "Candidates":
        """The same with at least k places, the last ones empty."""
        lacking = k - self.rows.shape[1]
        return joined([self, Candidates.none(len(self.rows), lacking)]) if lacking > 0 else self

    def keeping(self, good: np.ndarray) -> "Candidates":
        """The same, with the places that are not `good` (Q, F) emptied."""
        return Candidates(
            np.where(good, self.rows, -1), np.where(good, self.scores, -np.inf), np.where(good, self.distances, -1)
        )

    def by_distance(self) -> "Candidates":
        """The same, scored by minus the distance."""
        scores = np.where(self.rows >= 0, -self.distances.astype(np.float64), -np.inf)
        return Candidates(self.rows, scores, self.distances)

    def renamed(self, rows: np.ndarray) -> "Candidates":
        """The same, each row r called rows[r]."""
        return Candidates(np.where(self.rows >= 0, rows[self.rows], -1), self.scores, self.distances)

    def shifted(self, start: int) -> "Candidates":
        """The same, each row r called start + r."""
        return Candidates(np.where(self.rows >= 0, self.rows + start, -1), self.scores, self.distances)


def best_of(found: list[Candidates], k: int) -> Candidates:
    """The k best of several lists, each of which has its best first; of one list, without sorting it again."""
    if len(found) == 1 and found[0].rows.shape[1] <= k:
        return found[0]
    return joined(found).best(k)


def joined(found: list[Candidates]) -> Candidates:
    """All candidates of each query."""
    return Candidates(
        np.concatenate([one.rows for one in found], axis=1),
        np.concatenate([one.scores for one in found], axis=1),
        np.concatenate([one.distances for one in found], axis=1),
    )


class _Owned:
    """An array over memory of `owner`, which lives as long as any view of it."""

    def __init__(self, array: np.ndarray, owner: Any) -> None:
        self.__array_interface__ = array.__array_interface__
        self.owner = owner


class Scan:
    """Packed codes in memory or mapped from a file, and what FAISS ranks them with."""

    def __init__(self, flat: Any) -> None:
        self.flat = flat
        self.bits = int(flat.d)
        self._weighted: Any = None
        self._fast: Any = None
        self._asked = 0
        self._arranging = Lock()
        self.near: Approximate | None = None

    @classmethod
    def open(cls, path: Path) -> "Scan":
        """The codes in the file `path`, mapped. Raises Damaged."""
        import faiss

        try:
            return cls(faiss.read_index_binary(str(path), faiss.IO_FLAG_MMAP_IFC))
        except RuntimeError as error:
            raise Damaged(
                f"{path} cannot be read ({str(error).splitlines()[-1]}); run index with --overwrite"
            ) from error

    @classmethod
    def of(cls, codes: np.ndarray) -> "Scan":
        """A copy of `codes` (N, C) uint8."""
        import faiss

        flat = faiss.IndexBinaryFlat(8 * codes.shape[1])
        flat.add(np.ascontiguousarray(codes))
        return cls(flat)

    def __len__(self) -> int:
        return int(self.flat.ntotal)

    @property
    def codes(self) -> np.ndarray:
        """The packed codes, (N, C) uint8, without a copy."""
        import faiss

        if not len(self):
            return np.empty((0, self.bits // 8), np.uint8)
        flat = faiss.rev_swig_ptr(self.flat.xb.data(), len(self) * self.bits // 8)
        return np.asarray(_Owned(flat, self.flat)).reshape(len(self), -1)

    def nearest(self, queries: Queries, k: int, rank: Rank, *, exact: bool) -> Candidates:
        """The k best codes; unless it must be `exact`, of the candidates that a structure proposes."""
        if self.near is None or exact or not k:
            return self.by_hamming(queries, k) if rank == "hamming" else self.by_log_odds(queries, k)
        count = k if rank == "hamming" else PROPOSED * k + PROPOSED_MORE
        with threads(len(queries)):
            rows = self.near.propose(queries.packed, count)
        found = self.scored(queries, rows).keeping(rows >= 0)
        return (found.by_distance() if rank == "hamming" else found).best(k)

    def by_hamming(self, queries: Queries, k: int) -> Candidates:
        """The k codes with the fewest differing bits."""
        if k == 0:
            return Candidates.none(len(queries), 0)
        with threads(len(queries)):
            distances, rows = self.flat.search(queries.packed, k)
        return Candidates(rows, -distances.astype(np.float64), distances)

    def within(self, code: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows, ascending, of all codes at most `radius` bits from one packed code (C,), and their distances."""
        if not len(self):
            return np.empty(0, np.int64), np.empty(0, np.int32)
        with threads(1):
            _, distances, rows = self.flat.range_search(code[None], radius + 1)
        order = np.argsort(rows)
        return rows[order], distances[order].astype(np.int32)

    def by_log_odds(self, queries: Queries, k: int) -> Candidates:
        """The k codes of the highest exact score.

        FAISS proposes candidates by scores that are rounded; an answer stands where the rounding cannot have hidden
        a better code, and the queries where it may have are looked at again with more candidates, then code by code.
        """
        if k == 0:
            return Candidates.none(len(queries), 0)
        self._asked += len(queries)
        best = Candidates.none(len(queries), k)
        left = np.arange(len(queries))
        fast = len(self) >= FAST_FROM and self._asked >= ARRANGE_AFTER
        for look, fetch in (
            (self._fast_look, 2 * k + 64),
            (self._fast_look, max(WIDE, 4 * k)),
            (self._look, 2 * k + 16),
        ):
            if (look == self._fast_look and not fast) or not len(left):
                continue
            found, proven = look(queries[left], k, min(len(self), fetch))
            for ours, theirs in (
                (best.rows, found.rows),
                (best.scores, found.scores),
                (best.distances, found.distances),
            ):
                ours[left] = theirs
            left = left[~proven]
        for query in left:
            self._scan_into(best, queries, int(query), k)
        return best

    def scored(self, queries: Queries, rows: np.ndarray) -> Candidates:
        """The exact scores and distances of `rows` (Q, F)."""
        codes, tables = self.codes[rows], queries.tables
        first_QC = 256 * np.arange(tables.shape[0] * tables.shape[1]).reshape(tables.shape[:2])
        scores = np.zeros(rows.shape)
        for byte in range(tables.shape[1]):
            scores += tables.reshape(-1).take(first_QC[:, byte, None] + codes[:, :, byte])
        return Candidates(rows, scores, _differing(codes, queries.packed))

    def _fast_look(self, queries: Queries, k: int, fetch: int) -> tuple[Candidates, np.ndarray]:
        """The best of `fetch` candidates by FAISS's fast scan, and of which queries they are certainly the best."""
        proposed, rows = self._arranged().search(queries.log_odds.astype(np.float32), fetch)
        best = self.scored(queries, rows).best(k)
        # FAISS scores a code by its signs +-1, which is twice our sum less all log-odds, and rounds each of K/4 tables
        # to 255 steps of the widest one.
        spans = 2 * np.abs(queries.log_odds).reshape(len(queries), -1, 4).sum(axis=2).max(axis=1)
        error = 1.01 * (self.bits / 4) * 0.5 * spans / 255 + 1e-3
        hidden = (proposed[:, -1] + error + queries.log_odds.sum(axis=1)) / 2
        return best, (best.scores[:, -1] > hidden) | (fetch == len(self))

    def _look(self, queries: Queries, k: int, fetch: int) -> tuple[Candidates, np.ndarray]:
        """The same, by scores in float32."""
        distances, rows = self.weighted.search(queries.log_odds.astype(np.float32), fetch)
        best = self.scored(queries, rows).best(k)
        close = distances[:, -1] - distances[:, k - 1] <= 2 * self._rounding(queries)
        return best, ~close | (fetch == len(self))

    @property
    def weighted(self) -> Any:
        """A product quantiser that scores packed codes: the 256 centroids of a byte are the signs +-1 of its bits.

        L2 ranks as the inner product does, since |a - s|^2 = |a|^2 + K - 2 a.s.
        """
        if self._weighted is None:
            import faiss

            self._weighted = self._quantiser(8, faiss.METRIC_L2)
        return self._weighted

    def _arranged(self) -> Any:
        """A copy of the codes in the order that FAISS's fast scan reads, with tables of four bits."""
        import faiss

        with self._arranging:
            if self._fast is None:
                self._fast = faiss.IndexPQFastScan(self._quantiser(4, faiss.METRIC_INNER_PRODUCT))
                self._fast.qbs = QUERIES_TOGETHER
            return self._fast

    def _quantiser(self, bits: int, metric: int) -> Any:
        import faiss

        count = self.bits // bits
        index = faiss.IndexPQ(self.bits, count, bits, metric)
        patterns = (2 * BYTE_BITS - 1)[: 1 << bits, :bits].astype(np.float32)
        faiss.copy_array_to_vector(np.tile(patterns, (count, 1)).ravel(), index.pq.centroids)
        index.is_trained = True
        index.codes, index.ntotal = self.flat.xb, len(self)
        return index

    def _rounding(self, queries: Queries) -> np.ndarray:
        """A bound on the float32 error of FAISS's distances: no partial sum exceeds (|a| + |s|)^2."""
        largest = (np.linalg.norm(queries.log_odds, axis=1) + self.bits**0.5) ** 2
        return 2.0**-23 * (self.bits // 8 + 16) * largest

    def _scan_into(self, best: Candidates, queries: Queries, query: int, k: int) -> None:
        one = queries[query : query + 1]
        best.rows[query], best.scores[query] = self._scan(one.tables[0], k, best.scores[query, -1])
        best.distances[query] = _differing(self.codes[best.rows[query : query + 1]], one.packed)[0]

    def _scan(self, table: np.ndarray, k: int, floor: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows and scores of the k best codes for one query, of all that score `floor` or more."""
        rows, scores = np.empty(0, np.int64), np.empty(0)
        for start in range(0, len(self), SCAN_ROWS):
            codes = self.codes[start : start + SCAN_ROWS]
            total = sum(table[byte][codes[:, byte]] for byte in range(codes.shape[1]))
            good = np.flatnonzero(total >= floor)
            rows, scores = np.append(rows, start + good), np.append(scores, total[good])
            order = np.lexsort((rows, -scores))[:k]
            rows, scores = rows[order], scores[order]
        return rows, scores


def _differing(codes: np.ndarray, packed: np.ndarray) -> np.ndarray:
    """Bits in which `codes` (Q, F, C) differ from their query's (Q, C): (Q, F)."""
    differing: np.ndarray = np.bitwise_count(codes ^ packed[:, None]).sum(axis=2, dtype=np.int32)
    return differing


def nearest_codes(codes_NC: np.ndarray, queries_QC: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k codes nearest to each query by Hamming distance, ties by row: (Q, min(k, N)) int64."""
    scan = Scan.of(codes_NC)
    rows: np.ndarray = scan.flat.search(np.ascontiguousarray(queries_QC), min(k, len(codes_NC)))[1]
    return rows


@contextmanager
def threads(at_most: int) -> Iterator[None]:
    """FAISS's binary search shares out queries only: more threads than queries just wait for one another."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(max(1, min(before, at_most)))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
