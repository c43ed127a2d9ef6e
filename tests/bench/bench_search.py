"""Exact search of 10 M codes of 128 bits, k = 100, 64 queries at once, the whole call with ids, against other ways.

Both sides of a figure take turns on the same cores, and the best of a few rounds counts. Log-odds and Hamming search
are measured against FAISS's own IndexBinaryFlat, filtered search against the same search without a filter, Hamming
search against usearch (exact, b1) and a numpy popcount on fewer codes, and the log-odds answer against all scores.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from pipelines.index import IndexConfig, index
from pipelines.search import Index
from pipelines.searching.scan import Queries, Scan
from tests.bench.index_codes import random_queries, write_codes
from tests.bench.turns import by_turns

DOCUMENTS, BITS, QUERIES, HITS = 10_000_000, 128, 64, 100
OTHERS = 1_000_000
TRUTH_QUERIES, TRUTH_ROWS = 16, 250_000
ROUNDING = 1e-9
"""By which sums of one code's log-odds differ with their order, and a little more: codes as near as this are equals."""
Figure = dict[str, object]


def main() -> Iterator[Figure]:
    """Queries a second, or seconds a batch, of ours and theirs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index(write_codes(folder / "codes", DOCUMENTS, BITS).path, folder / "index", IndexConfig())
        opened = Index.open(folder / "index")
        queries = random_queries(QUERIES, BITS)
        yield from _against_faiss(opened, queries)
        yield from _filtered(opened, queries)
        yield _recall(opened, queries[:TRUTH_QUERIES])
        yield from _against_others(opened, queries)


def _whole(opened: Index, queries: np.ndarray, rank: Any, where: str | None = None) -> list[str]:
    found = opened.search(queries, HITS, rank, where)
    return opened.ids(found.rows[found.rows >= 0])


def _against_faiss(opened: Index, queries: np.ndarray) -> Iterator[Figure]:
    raw = faiss.IndexBinaryFlat(BITS)
    for codes in opened.codes():
        raw.add(np.ascontiguousarray(codes))
    packed = np.packbits(queries > 0, axis=1, bitorder="little")
    for rank, bound in (("log-odds", 1.5), ("hamming", 0.95)):
        ours, theirs = by_turns(partial(_whole, opened, queries, rank), partial(raw.search, packed, HITS))
        name = f"search {rank} against IndexBinaryFlat"
        yield _figure(name, QUERIES / ours, QUERIES / theirs, "queries/s", at_least=bound)


def _filtered(opened: Index, queries: np.ndarray) -> Iterator[Figure]:
    """Selectivities of 1 % and 50 %; the first search with a filter, which reads it, is in the next figure."""
    for rank in ("log-odds", "hamming"):
        for share, where in ((1, "year = 3"), (50, "year < 50")):
            started = time.perf_counter()
            _whole(opened, queries, rank, where)
            first = time.perf_counter() - started
            ours, theirs = by_turns(
                partial(_whole, opened, queries, rank, where), partial(_whole, opened, queries, rank)
            )
            figure = _figure(f"search {rank}, filter of {share} %, against unfiltered", ours, theirs, "s", at_most=1.2)
            yield figure | {"first_s": round(first, 3)}


def _recall(opened: Index, queries: np.ndarray) -> Figure:
    """Of our first ten, how many score as the ten best of all do: scores are computed here, in float64, from codes."""
    log_odds, best = np.clip(queries.astype(np.float64), -10, 10), np.full((len(queries), 10), -np.inf)
    for codes in opened.codes():
        for start in range(0, len(codes), TRUTH_ROWS):
            scores = log_odds @ _bits(codes[start : start + TRUTH_ROWS]).T
            best = -np.sort(-np.concatenate([best, scores], axis=1), axis=1)[:, :10]
    found = opened.search(queries, HITS)
    assert all(len(set(rows)) == HITS and min(rows) >= 0 for rows in found.rows.tolist())
    bits = [_bits(np.stack([opened.code(row) for row in rows])) for rows in found.rows[:, :10].tolist()]
    scores = np.einsum("qhk,qk->qh", np.stack(bits), log_odds)
    normaliser = np.logaddexp(0, log_odds).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.scores[:, :10], scores - normaliser, rtol=1e-5)
    good = scores >= best[:, -1:] - ROUNDING
    return _figure("search log-odds, top 10 of the exact", float(good.mean()), 1.0, "share", at_least=1.0)


def _bits(codes: np.ndarray) -> np.ndarray:
    return np.unpackbits(codes, axis=1, bitorder="little").astype(np.float64)


def _against_others(opened: Index, queries: np.ndarray) -> Iterator[Figure]:
    from usearch.index import MetricKind, search

    codes = np.ascontiguousarray(opened.codes()[0][:OTHERS])
    scan, asked = Scan.of(codes), Queries.of(queries, BITS)
    words, packed = codes.view(np.uint64), asked.packed.view(np.uint64)

    def popcount() -> list[np.ndarray]:
        found = []
        for query in packed:
            distances = np.bitwise_count(words ^ query).sum(axis=1, dtype=np.uint16)
            near = np.argpartition(distances, HITS)[:HITS]
            found.append(near[np.argsort(distances[near], kind="stable")])
        return found

    others: dict[str, Callable[[], Any]] = {
        "a numpy popcount": popcount,
        "usearch": lambda: search(codes, asked.packed, HITS, MetricKind.Hamming, exact=True),
    }
    for name, theirs in others.items():
        seconds, other = by_turns(lambda: scan.by_hamming(asked, HITS), theirs)
        yield _figure(f"search hamming against {name}", QUERIES / seconds, QUERIES / other, "queries/s", at_least=1.0)


def _figure(name: str, ours: float, theirs: float, unit: str, **bound: float) -> Figure:
    shown = {"bench": name, "ours": round(ours, 4), "theirs": round(theirs, 4), "unit": unit}
    return shown | {"ratio": round(ours / theirs, 3)} | bound
