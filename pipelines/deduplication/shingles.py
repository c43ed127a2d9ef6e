"""Texts as sets of word shingles, kept on disk, and the Jaccard similarity of pairs of them. Shapes: N texts, P pairs.

A shingle is three words in a row, by a hash of 32 bits; a text of one or two words is one shingle. Case and
punctuation do not count.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.files.durable import replacing

WORDS = 3
"""Words of a shingle."""
MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
FOREIGN = r"[^\x00-\x7F\p{L}\p{N}]+"
IN_WORDS = np.array([byte >= 128 or chr(byte).isalnum() for byte in range(256)])
"""Which bytes of UTF-8 are of words, once punctuation beyond ASCII is gone."""
SKETCH_BITS = 256
TEXTS_AT_ONCE = 1 << 12
VALUES_AT_ONCE = 1 << 23
"""Shingles of pairs that are compared at a time."""
Jaccard = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Shingles:
    """The shingles of N texts: those of text i are values[offsets[i] : offsets[i + 1]], ascending, each once."""

    values: NDArray[np.uint32]
    offsets: Rows
    sums: NDArray[np.uint64]
    """A hash of each text's set; 0 where it is empty."""
    sketches: NDArray[np.uint64]
    """(N, 4): one of 256 bits set for each shingle."""

    @classmethod
    def of(cls, texts: pa.Array | pa.ChunkedArray) -> "Shingles":
        """The shingles of `texts`, in memory."""
        pieces = list(_pieces([texts]))
        counts = np.concatenate([np.zeros(1, np.int64), *(piece.sizes for piece in pieces)])
        return cls(
            np.concatenate([np.empty(0, np.uint32), *(piece.values for piece in pieces)]),
            np.cumsum(counts),
            np.concatenate([np.empty(0, np.uint64), *(piece.sums for piece in pieces)]),
            np.concatenate([np.empty((0, SKETCH_BITS // 64), np.uint64), *(piece.sketches for piece in pieces)]),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Rows:
        """Shingles of each text, (N,)."""
        return np.diff(self.offsets)

    def jaccard(self, left: Rows, right: Rows) -> Jaccard:
        """|A and B| / |A or B| of each pair of texts, (P,); 0 where one of them is empty."""
        shared = np.zeros(len(left), np.int64)
        sizes = self.offsets[left + 1] - self.offsets[left] + self.offsets[right + 1] - self.offsets[right]
        for rows in slices_of(sizes, VALUES_AT_ONCE):
            shared[rows] = self._shared(left[rows], right[rows])
        return shared / np.maximum(1, sizes - shared)

    def jaccard_at_most(self, left: Rows, right: Rows) -> Jaccard:
        """A bound that no pair's Jaccard similarity exceeds, from sizes and sketches alone, (P,).

        Every bit in which two sketches differ is a shingle that one text has and the other has not.
        """
        small, large = self.offsets[left + 1] - self.offsets[left], self.offsets[right + 1] - self.offsets[right]
        apart = np.bitwise_count(self.sketches[left] ^ self.sketches[right]).sum(axis=1, dtype=np.int64)
        apart = np.maximum(apart, np.abs(small - large))
        total = small + large
        return (total - apart) / np.maximum(1, total + apart)

    def _shared(self, left: Rows, right: Rows) -> Rows:
        """Shingles that both texts of each pair have: those that are there twice when both sets lie together."""
        pairs = np.arange(len(left), dtype=np.uint64)
        keys = np.concatenate([self._marked(left, pairs), self._marked(right, pairs)])
        keys.sort()
        twice = keys[1:][keys[1:] == keys[:-1]]
        return np.bincount((twice >> np.uint64(32)).astype(np.int64), minlength=len(left))

    def _marked(self, rows: Rows, marks: NDArray[np.uint64]) -> NDArray[np.uint64]:
        counts = self.offsets[rows + 1] - self.offsets[rows]
        places = np.arange(counts.sum()) + np.repeat(self.offsets[rows] - (np.cumsum(counts) - counts), counts)
        return np.repeat(marks << np.uint64(32), counts) | self.values[places].astype(np.uint64)


def write_shingles(texts: Iterable[pa.Array], folder: Path) -> Shingles:
    """The shingles of a stream of texts, in mapped files of `folder`; what an earlier run finished is opened."""
    sizes = folder / "sizes.npy"
    names = {name: folder / f"{name}.bin" for name in ("values", "sums", "sketches")}
    if not sizes.exists():
        folder.mkdir(parents=True, exist_ok=True)
        counts = _write(texts, names)
        with replacing(sizes) as temporary, temporary.open("wb") as file:
            np.save(file, counts)
    counts = np.load(sizes)
    return Shingles(
        _mapped(names["values"], np.uint32),
        np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        _mapped(names["sums"], np.uint64),
        _mapped(names["sketches"], np.uint64).reshape(-1, SKETCH_BITS // 64),
    )


def slices_of(sizes: Rows, at_once: int) -> Iterator[slice]:
    """Slices of rows, in order, whose sizes sum up to no more than `at_once`, or of one row."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + at_once, side="right")))
        yield slice(start, stop)
        start = stop


def _write(texts: Iterable[pa.Array], names: dict[str, Path]) -> NDArray[np.uint32]:
    counts = [np.empty(0, np.uint32)]
    with names["values"].open("wb") as values, names["sums"].open("wb") as sums, names["sketches"].open("wb") as drawn:
        for piece in _pieces(texts):
            counts.append(piece.sizes.astype(np.uint32))
            values.write(piece.values.tobytes())
            sums.write(piece.sums.tobytes())
            drawn.write(piece.sketches.tobytes())
    return np.concatenate(counts)


def _of_some(texts: pa.Array) -> Shingles:
    """The shingles of a few texts."""
    hashes, owners = _words(texts)
    found, owners = _shingled(hashes, owners, len(texts))
    keys = owners.astype(np.uint64) << np.uint64(32) | found >> np.uint64(32)
    keys.sort()
    keys = keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]
    values, owners = keys.astype(np.uint32), (keys >> np.uint64(32)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(texts)))])
    sums = np.zeros(len(texts), np.uint64)
    np.add.at(sums, owners, _mixed(values.astype(np.uint64)))
    drawn = np.zeros((len(texts), SKETCH_BITS), bool)
    drawn[owners, values % SKETCH_BITS] = True
    return Shingles(values, offsets, sums, np.packbits(drawn, axis=1).view(np.uint64))


def _pieces(texts: Iterable[pa.Array | pa.ChunkedArray]) -> Iterator[Shingles]:
    """The texts some at a time, in order, by as many threads as there are cores: all of the work is done in C."""
    threads = len(os.sched_getaffinity(0))
    waiting: deque[Future[Shingles]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for chunk in _chunks(texts):
            waiting.append(pool.submit(_of_some, chunk))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _words(texts: pa.Array) -> tuple[NDArray[np.uint64], Rows]:
    """A hash of each word, and the text it is of."""
    plain = _without_foreign_punctuation(pc.utf8_lower(pc.fill_null(texts, "")))
    ends = np.frombuffer(plain.buffers()[1], np.int32)[plain.offset : plain.offset + len(plain) + 1].astype(np.int64)
    letters = np.frombuffer(plain.buffers()[2] or b"", np.uint8)[ends[0] : ends[-1]]
    ends -= ends[0]
    inside = IN_WORDS[letters]
    begins = inside.copy()
    begins[1:] &= ~inside[:-1]
    first = ends[:-1][ends[:-1] < len(letters)]
    begins[first] = inside[first]
    places = np.flatnonzero(inside)
    starts = np.flatnonzero(begins[places])
    if not len(starts):
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    lengths = np.diff(np.append(starts, len(places)))
    inner = np.arange(len(places)) - np.repeat(starts, lengths)
    weighted = (letters[places].astype(np.uint64) + np.uint64(1)) * _powers(int(lengths.max()))[inner]
    owners = np.searchsorted(ends, places[starts], side="right") - 1
    return _mixed(np.add.reduceat(weighted, starts)), owners


def _without_foreign_punctuation(texts: pa.Array) -> pa.Array:
    """A space for what is neither ASCII nor a letter or a digit."""
    foreign = pc.invert(pc.string_is_ascii(texts))
    if not pc.any(foreign).as_py():
        return texts
    return pc.replace_with_mask(texts, foreign, pc.replace_substring_regex(texts.filter(foreign), FOREIGN, " "))


def _shingled(hashes: NDArray[np.uint64], owners: Rows, texts: int) -> tuple[NDArray[np.uint64], Rows]:
    """The hash of each three words in a row, and of all words of shorter texts, with the texts they are of."""
    counts = np.bincount(owners, minlength=texts)
    padded = np.concatenate([hashes, np.zeros(WORDS - 1, np.uint64)])
    # Of a short text the words that are not there count as 0.
    room = np.repeat(np.cumsum(counts), counts) - np.arange(len(owners))
    total = np.zeros(len(owners), np.uint64)
    for place in range(WORDS):
        total += np.where(room > place, padded[place : place + len(owners)] * MULTIPLIERS[place], np.uint64(0))
    first = room == counts[owners]
    chosen = (room >= WORDS) | (first & (counts[owners] < WORDS))
    return _mixed(total[chosen]), owners[chosen]


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every bit of the result depends on every bit of the value."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def _powers(count: int) -> NDArray[np.uint64]:
    return np.cumprod(np.full(count, MULTIPLIERS[0]), dtype=np.uint64)


def _chunks(texts: Iterable[pa.Array | pa.ChunkedArray]) -> Iterator[pa.Array]:
    for some in texts:
        for chunk in some.chunks if isinstance(some, pa.ChunkedArray) else [some]:
            for start in range(0, len(chunk), TEXTS_AT_ONCE):
                yield chunk.slice(start, TEXTS_AT_ONCE).cast(pa.string())


def _mapped(path: Path, kind: type[np.uint32 | np.uint64]) -> NDArray[Any]:
    return np.memmap(path, kind, mode="r") if path.stat().st_size else np.empty(0, kind)
