"""Which documents make step t of training: a pure function of (seed, t), whatever the number of workers."""

import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 4
MOST_HELD_OUT, FEWEST_HELD_OUT = 1000, 8
"""Documents that are held out of a large corpus; and with fewer than these they would tell nothing, so none are."""
HELD_OUT_SEED = 7_368_787
"""Added to the seed, so that they are not the first documents of training's order."""


def rows_of_step(step: int, *, documents: int, batch_size: int, seed: int) -> NDArray[np.int64]:
    """Rows of the global batch of `step` (0-based), (batch_size,) or (documents,) where there are fewer.

    Every epoch is a new permutation of all rows; the last, incomplete batch of an epoch is left out. A permutation
    is computed row by row, never stored, so that a billion documents take no more memory than a thousand.
    """
    batch_size = min(batch_size, documents)
    epoch, batch = divmod(step, documents // batch_size)
    places = np.arange(batch * batch_size, (batch + 1) * batch_size, dtype=np.uint64)
    return _permuted(places, documents, key=f"{seed}/{epoch}")


def steps_per_epoch(documents: int, batch_size: int) -> int:
    """How many whole batches an epoch has, at least one."""
    return documents // min(batch_size, documents)


def rows_of_worker(rows: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """One worker's share of a global batch: every `world_size`-th row."""
    return rows[rank::world_size]


def held_out_rows(documents: int, share: float, seed: int) -> NDArray[np.int64]:
    """The rows that training leaves out, in order."""
    count = held_out_count(documents, share)
    if not count:
        return np.empty(0, np.int64)
    return np.sort(rows_of_step(0, documents=documents, batch_size=count, seed=seed + HELD_OUT_SEED))


def held_out_count(documents: int, share: float) -> int:
    """How many documents training leaves out: a share of all, at most MOST_HELD_OUT, and none of a handful."""
    count = min(MOST_HELD_OUT, int(share * documents))
    return count if count >= FEWEST_HELD_OUT else 0


def among_the_rest(rows: NDArray[np.int64], held_out: NDArray[np.int64]) -> NDArray[np.int64]:
    """From the places of documents among those that are not held out to their rows among all."""
    return rows + np.searchsorted(held_out - np.arange(len(held_out)), rows, side="right")


def digest(rows: NDArray[np.int64]) -> str:
    """A short name for the rows of a step, by which two runs' data orders are compared."""
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:12]


def _permuted(places: NDArray[np.uint64], size: int, key: str) -> NDArray[np.int64]:
    """A pseudo-random permutation of range(size) at `places`: a Feistel network on the next even power of two.

    Results outside the range are sent through again until they fall inside (cycle walking; Black & Rogaway 2002).
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    round_keys = np.frombuffer(hashlib.sha256(key.encode()).digest(), dtype="<u8")[:ROUNDS]
    result = _feistel(places, half, round_keys)
    while (outside := result >= size).any():
        result[outside] = _feistel(result[outside], half, round_keys)
    return result.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half: int, round_keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return (left << np.uint64(half)) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014); wraps around by design."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
