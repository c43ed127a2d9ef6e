"""The approximate kinds of index against hnswlib, as quick as each is once it finds 95 % of the exact ten nearest.

hnswlib has no Hamming distance: it is given the signs of the bits as vectors, whose L2 distance ranks alike. Both
graphs have the same number of links and look at as many codes to build them; what a search looks at is raised until
enough is found. Codes are centres with flipped bits, as codes of documents are. All cores, 1,000 queries at once.
MultiHash is left out: it finds what differs in a few bits, and the nearest of such codes differ in a quarter of them.
"""

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pipelines.searching.approximate import Approximate, ApproximateConfig, HnswConfig, IvfConfig
from pipelines.searching.scan import Queries, Scan
from tests.bench.index_codes import clustered_codes
from tests.bench.turns import by_turns

DOCUMENTS, QUERIES, BITS, HITS, ENOUGH = 500_000, 1000, 128, 10, 0.95
LINKS, BUILD = 32, 80
LOOKS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
OURS: dict[str, Sequence[ApproximateConfig]] = {
    "hnsw": [HnswConfig(neighbours=LINKS, build=BUILD, look=look) for look in LOOKS],
    "ivf": [IvfConfig(probes=probes) for probes in (1, 2, 4, 8, 16, 32, 64, 128, 256)],
}
Search = Callable[[], np.ndarray]


def main() -> Iterator[dict[str, object]]:
    """Queries a second of each kind ("ours") and of hnswlib ("theirs"), and the recall that each has there."""
    dice = np.random.default_rng(0)
    codes, asked = clustered_codes(DOCUMENTS, BITS, dice), clustered_codes(QUERIES, BITS, dice)
    queries = Queries.of(_signs(asked), BITS)
    furthest = Scan.of(codes).by_hamming(queries, HITS).distances[:, -1:]

    def recall(rows: np.ndarray) -> float:
        distances = np.bitwise_count(codes[rows] ^ asked[:, None]).sum(axis=2)
        return float(((distances <= furthest) & (rows >= 0)).mean())

    theirs = _first(_hnswlib(codes, asked), recall)
    for kind, configs in OURS.items():
        ours = _first(_ours(codes, queries, configs), recall)
        if ours is None or theirs is None:
            raise AssertionError(f"{kind if ours is None else 'hnswlib'} never finds {ENOUGH:.0%} of the nearest")
        yield _figure(kind, ours, theirs, recall)


def _figure(kind: str, ours: Search, theirs: Search, recall: Callable[[np.ndarray], float]) -> dict[str, object]:
    rates = [QUERIES / seconds for seconds in by_turns(ours, theirs)]
    return {
        "bench": f"search, {kind} against hnswlib",
        "ours": round(rates[0]),
        "theirs": round(rates[1]),
        "unit": "queries/s",
        "ratio": round(rates[0] / rates[1], 2),
        "at_least": 1.0,
        "recall": [round(recall(ours()), 3), round(recall(theirs()), 3)],
    }


def _first(searches: Iterator[Search], recall: Callable[[np.ndarray], float]) -> Search | None:
    return next((search for search in searches if recall(search()) >= ENOUGH), None)


def _ours(codes: np.ndarray, queries: Queries, configs: Sequence[ApproximateConfig]) -> Iterator[Search]:
    scan = Scan.of(codes)
    scan.near = Approximate.build(configs[0], codes)
    for config in configs:
        scan.near.look_like(config)
        yield lambda: scan.nearest(queries, HITS, "hamming", exact=False).rows


def _hnswlib(codes: np.ndarray, asked: np.ndarray) -> Iterator[Search]:
    from hnswlib import Index

    graph = Index(space="l2", dim=BITS)
    graph.init_index(max_elements=len(codes), M=LINKS, ef_construction=BUILD)
    graph.set_num_threads(len(os.sched_getaffinity(0)))
    for start in range(0, len(codes), 50_000):
        graph.add_items(_signs(codes[start : start + 50_000]))
    vectors = _signs(asked)
    for look in LOOKS:
        graph.set_ef(look)
        yield lambda: graph.knn_query(vectors, k=HITS)[0].astype(np.int64)


def _signs(codes: np.ndarray) -> np.ndarray:
    return 2 * np.unpackbits(codes, axis=1, bitorder="little").astype(np.float32) - 1
