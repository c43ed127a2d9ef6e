"""Which Hamming radius makes duplicates: measured on a sample of the corpus itself, by the shingles of its texts."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.deduplication.near_pairs import as_words
from pipelines.deduplication.shingles import Shingles

SAMPLE = 1000
"""Documents that each give at most one pair for a radius."""
COMPARED_AT_MOST = 1 << 21
LEVEL = 0.95
WIDEST_SHARE = 8
"""No radius above one bit in so many is looked at."""
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Precision:
    """Of the pairs within `radius` that were drawn, the share whose texts are near duplicates, with its interval."""

    radius: int
    pairs: int
    precision: float
    low: float
    high: float


def measure_precision(
    codes_NC: NDArray[np.uint8], shingles: Shingles, rows: Rows, jaccard: float, widest: int, sample: Rows
) -> list[Precision]:
    """Precision for each radius up to `widest` that has pairs, from one pair at random for each row of `sample`.

    One pair a document: a thousand copies of one page are not a thousand observations. So the pairs are independent,
    and the interval is that of Clopper and Pearson (1934), at 95 %. Pairs are sought among `rows`.
    """
    chance = np.random.default_rng(0)
    step = -(-len(rows) // COMPARED_AT_MOST)
    others = rows[chance.integers(step) :: step] if len(rows) else rows
    words, other_words = as_words(codes_NC), as_words(codes_NC[others])
    drawn: list[list[tuple[int, int]]] = [[] for _ in range(widest + 1)]
    for row in sample:
        apart = np.bitwise_count(other_words ^ words[row]).sum(axis=1, dtype=np.int16)
        near = np.flatnonzero((apart <= widest) & (others != row))
        for radius in range(widest + 1):
            within = near[apart[near] <= radius]
            if len(within):
                drawn[radius].append((int(row), int(others[within[chance.integers(len(within))]])))
    return [_measured(radius, pairs, shingles, jaccard) for radius, pairs in enumerate(drawn) if pairs]


def widest_radius(bits: int) -> int:
    """The largest radius that is looked at."""
    return bits // WIDEST_SHARE


def reached(measured: list[Precision], precision: float) -> int | None:
    """The largest radius up to which every interval's lower end reaches `precision`; None where that of 0 does not."""
    best = None
    for one in measured:
        if one.low < precision:
            break
        best = one.radius
    return best


def interval(successes: int, trials: int) -> tuple[float, float]:
    """The exact binomial interval at LEVEL (Clopper & Pearson 1934)."""
    from scipy.special import betaincinv

    tail = (1 - LEVEL) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, trials - successes + 1, tail))
    high = 1.0 if successes == trials else float(betaincinv(successes + 1, trials - successes, 1 - tail))
    return low, high


def _measured(radius: int, pairs: list[tuple[int, int]], shingles: Shingles, jaccard: float) -> Precision:
    left, right = np.array(pairs).T
    good = int((shingles.jaccard(left, right) >= jaccard).sum())
    return Precision(radius, len(pairs), good / len(pairs), *interval(good, len(pairs)))
