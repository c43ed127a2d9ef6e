"""Pairs of near documents, streamed: by codes within a Hamming radius, or by texts whose shingles overlap.

Both joins are exact, and hold a bounded number of pairs at a time, whatever the corpus repeats.
Shapes: U units (documents that are compared), C = K / 8 bytes, W = words of 64 bits of a code, P pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.deduplication.shingles import Shingles, slices_of

PAIRS_AT_ONCE = 1 << 20
POSTINGS_AT_ONCE = 1 << 24
"""Shingles that one pass of the join of texts holds."""
RARITY_BUCKETS = 1 << 24
TEXTS_AT_ONCE = 1 << 14
SORTING_COST = 10.0
"""What it costs to sort one code, in pairs that are compared in that time."""
Units = NDArray[np.int64]
Words = NDArray[np.uint64]


class Pairs(NamedTuple):
    """Pairs of units, each with left < right."""

    left: Units
    right: Units


class HammingJoin:
    """All pairs of codes at most `radius` bits apart, by multi-index hashing (Norouzi et al. 2014; Manku et al. 2007).

    The bits are dealt out to radius + k blocks; two codes that differ in at most `radius` bits agree in k of these.
    So codes are grouped by each choice of k blocks in turn; k is what costs least on these codes.
    """

    def __init__(self, codes_UC: NDArray[np.uint8], radius: int, known: int = 0) -> None:
        """Codes of the units, of which the first `known` are not compared with one another."""
        self.words = as_words(codes_UC)
        self.radius, self.known = radius, known
        bits = 8 * codes_UC.shape[1]
        choices = [_Blocks(bits, radius, agreeing) for agreeing in (1, 2, 3) if radius + agreeing <= bits]
        self.blocks = min(choices, key=self._cost) if len(choices) > 1 else choices[0]

    def __len__(self) -> int:
        """Passes of the join."""
        return len(self.blocks.tables)

    def pairs(self, table: int) -> Iterator[Pairs]:
        """The pairs that pass number `table` finds; each pair is found by exactly one pass."""
        order, starts = self._grouped(table)
        for left, right in pairs_in_runs(order, starts, self.known):
            apart = self.words[left] ^ self.words[right]
            near = np.bitwise_count(apart).sum(axis=1, dtype=np.int64) <= self.radius
            chosen = np.flatnonzero(near)
            chosen = chosen[self.blocks.first_agreement(apart[chosen]) == table]
            if len(chosen):
                yield Pairs(left[chosen], right[chosen])

    def _grouped(self, table: int) -> tuple[Units, Units]:
        masked = self.words & self.blocks.mask(table)
        keys = (masked * _odd(masked.shape[1])).sum(axis=1, dtype=np.uint64) if masked.shape[1] > 1 else masked[:, 0]
        return _runs(keys)

    def _cost(self, blocks: "_Blocks") -> float:
        tables = range(0, len(blocks.tables), max(1, len(blocks.tables) // 3))
        kept, self.blocks = getattr(self, "blocks", blocks), blocks
        counts = [_pairs_of(self._grouped(table)[1], len(self.words)) for table in tables]
        self.blocks = kept
        return len(blocks.tables) * (SORTING_COST * len(self.words) + float(np.mean(counts)))


class TextJoin:
    """All pairs of texts whose Jaccard similarity may reach `jaccard`, by prefix filtering (Chaudhuri et al. 2006).

    Two such texts share one of the rarest shingles of each: of n, the n - ceil(jaccard n) + 1 rarest. So texts are
    grouped by these. A pair may be found more than once.
    """

    def __init__(self, shingles: Shingles, rows_U: Units, jaccard: float, known: int = 0) -> None:
        """Unit u is the text rows_U[u]; the first `known` units are not compared with one another."""
        self.shingles, self.rows, self.jaccard, self.known = shingles, rows_U, jaccard, known
        self.counts = np.zeros(RARITY_BUCKETS, np.uint32)
        for _, values in self._texts():
            np.add.at(self.counts, values % RARITY_BUCKETS, np.uint32(1))
        self.postings = int(_prefix(shingles.sizes[rows_U], jaccard).sum())

    def __len__(self) -> int:
        """Passes of the join."""
        return max(1, -(-self.postings // POSTINGS_AT_ONCE))

    def pairs(self, table: int) -> Iterator[Pairs]:
        """The pairs that share a shingle of the range of hashes number `table`."""
        edges = [(number << 32) // len(self) for number in range(len(self) + 1)]
        keys = [np.empty(0, np.uint64)]
        for units, values in self._rarest():
            here = (values >= edges[table]) & (values < edges[table + 1])
            keys.append(values[here].astype(np.uint64) << np.uint64(32) | units[here].astype(np.uint64))
        postings = np.concatenate(keys)
        postings.sort()
        found = (postings >> np.uint64(32)).astype(np.uint32)
        starts = np.flatnonzero(np.append(True, found[1:] != found[:-1])[: len(found)])
        yield from pairs_in_runs((postings & np.uint64(0xFFFFFFFF)).astype(np.int64), starts, self.known)

    def _rarest(self) -> Iterator[tuple[Units, NDArray[np.uint32]]]:
        """The prefix of every text, by units and their shingles."""
        for units, values in self._texts():
            first = int(units[0]) if len(units) else 0
            rarity = np.minimum(self.counts[values % RARITY_BUCKETS], 0xFFFF).astype(np.uint64)
            keys = (units - first).astype(np.uint64) << np.uint64(48) | rarity << np.uint64(32) | values
            keys.sort()
            owners = (keys >> np.uint64(48)).astype(np.int64)
            sizes = np.bincount(owners)
            rank = np.arange(len(keys)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            chosen = rank < _prefix(sizes, self.jaccard)[owners]
            yield owners[chosen] + first, (keys[chosen] & np.uint64(0xFFFFFFFF)).astype(np.uint32)

    def _texts(self) -> Iterator[tuple[Units, NDArray[np.uint32]]]:
        for start in range(0, len(self.rows), TEXTS_AT_ONCE):
            rows = self.rows[start : start + TEXTS_AT_ONCE]
            counts = self.shingles.offsets[rows + 1] - self.shingles.offsets[rows]
            shift = self.shingles.offsets[rows] - (np.cumsum(counts) - counts)
            places = np.arange(counts.sum()) + np.repeat(shift, counts)
            yield start + np.repeat(np.arange(len(rows)), counts), self.shingles.values[places]


def pairs_in_runs(order: Units, starts: Units, known: int = 0) -> Iterator[Pairs]:
    """All pairs of `order` that lie in one run, at most about PAIRS_AT_ONCE at a time; runs begin at `starts`.

    Units below `known` are not paired with one another; in a run they come first, as all units do in ascending order.
    """
    ends = np.append(starts[1:], len(order))
    lengths = ends - starts
    long = lengths > 1
    run_starts, lengths = starts[long], lengths[long]
    begins = np.repeat(run_starts, lengths)
    places = np.arange(lengths.sum()) + np.repeat(run_starts - (np.cumsum(lengths) - lengths), lengths)
    partners = np.where(order[places] >= known, places - begins, 0)
    alone = partners == 0
    places, begins, partners = places[~alone], begins[~alone], partners[~alone]
    for rows in slices_of(partners, PAIRS_AT_ONCE):
        count = partners[rows]
        right = np.repeat(places[rows], count)
        inner = np.arange(len(right)) - np.repeat(np.cumsum(count) - count, count)
        yield Pairs(order[np.repeat(begins[rows], count) + inner], order[right])


def as_words(codes_NC: NDArray[np.uint8]) -> Words:
    """Packed codes as words of 64 bits, (N, W), padded with zeros."""
    rest = -codes_NC.shape[1] % 8
    padded = np.pad(codes_NC, ((0, 0), (0, rest))) if rest else codes_NC
    return np.ascontiguousarray(padded).view(np.uint64)


def distances(words_UW: Words, left: Units, right: Units) -> NDArray[np.int64]:
    """Bits in which the codes of each pair differ, (P,)."""
    return np.bitwise_count(words_UW[left] ^ words_UW[right]).sum(axis=1, dtype=np.int64)


@dataclass(frozen=True)
class _Blocks:
    """The bits of a code dealt out to radius + agreeing blocks, and each choice of `agreeing` of them."""

    bits: int
    radius: int
    agreeing: int

    @property
    def tables(self) -> list[tuple[int, ...]]:
        return list(combinations(range(self.radius + self.agreeing), self.agreeing))

    def mask(self, table: int) -> Words:
        """The bits that codes of one group share, (W,)."""
        return np.bitwise_or.reduce(self.block_masks()[list(self.tables[table])], axis=0)

    def block_masks(self) -> Words:
        """The bits of each block, (radius + agreeing, W)."""
        count = self.radius + self.agreeing
        bits = np.arange(self.bits) % count == np.arange(count)[:, None]
        return as_words(np.packbits(bits, axis=1, bitorder="little"))

    def first_agreement(self, apart_PW: Words) -> NDArray[np.int64]:
        """The first choice of blocks in which codes agree, whose differing bits are `apart_PW`."""
        masks = self.block_masks()
        agree = np.stack([~(apart_PW & mask).any(axis=1) for mask in masks], axis=1)
        place = np.full(len(apart_PW), len(self.tables))
        for number in range(len(self.tables) - 1, -1, -1):
            place[agree[:, list(self.tables[number])].all(axis=1)] = number
        return place


def _prefix(sizes: Units, jaccard: float) -> Units:
    """How many of its rarest shingles a text of so many must be grouped by."""
    # A little less than the threshold, so that rounding drops no pair.
    return np.where(sizes > 0, sizes - np.ceil(sizes * (jaccard - 1e-9)).astype(np.int64) + 1, 0)


def _runs(keys: Words) -> tuple[Units, Units]:
    """The order of equal keys, ascending within each, and where each run begins."""
    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    return order, np.flatnonzero(np.append(True, in_order[1:] != in_order[:-1])[: len(keys)])


def _pairs_of(starts: Units, total: int) -> int:
    lengths = np.diff(np.append(starts, total))
    return int((lengths * (lengths - 1) // 2).sum())


def _odd(count: int) -> Words:
    return np.random.default_rng(count).integers(0, 1 << 63, count, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
