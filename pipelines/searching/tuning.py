"""Which kind of index to take: recall against the exact answer and time, measured on the user's own codes.

Shapes: N codes, Q queries, K bits, C = K/8 bytes, k hits.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import log2
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.progress import Progress, Silent
from pipelines.search import Index
from pipelines.searching.approximate import (
    Approximate,
    ApproximateConfig,
    CandidatesConfig,
    FlatConfig,
    HnswConfig,
    IvfConfig,
    MultiHashConfig,
)
from pipelines.searching.scan import Queries, Scan
from vae_core.codes import MAX_LOG_ODDS
from vae_core.errors import Misuse

ENOUGH = 0.95
"""Recall that an approximate kind must reach to be recommended."""
CLEARLY = 1.2
"""How many times as fast as scanning all codes it must be."""
CHANGED, SURE = 0.1, 3.0
"""Of a query made from a document's code, the share of bits that differ, and the mean |log-odds| of a bit."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind with its settings: recall of the exact k best, milliseconds a query, queries a second in a batch."""

    config: CandidatesConfig
    recall: float
    ms: float
    batch_per_s: float
    bytes_per_document: float
    build_s: float

    @property
    def settings(self) -> str:
        """As `--set` takes them."""
        changed = self.config.model_dump(exclude_none=True)
        return " ".join(f"--set index.candidates.{name}={value}" for name, value in changed.items())


@dataclass(frozen=True, slots=True)
class Tuning:
    """Every kind that was measured, over how many documents and queries, and the one to take."""

    documents: int
    queries: int
    k: int
    kinds: list[Kind]
    take: Kind
    why: str

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        kinds = [asdict(kind) | {"config": kind.config.model_dump(), "settings": kind.settings} for kind in self.kinds]
        return {
            "documents": self.documents,
            "queries": self.queries,
            "k": self.k,
            "kinds": kinds,
            "take": self.take.config.model_dump(),
            "settings": self.take.settings,
            "why": self.why,
        }


def tune(
    index: Path,
    *,
    texts: Sequence[str] | None = None,
    k: int = 10,
    queries: int = 200,
    documents: int = 1_000_000,
    seed: int = 0,
    progress: Progress = Silent(),
) -> Tuning:
    """Measure every kind over the codes of `index`, or over so many of them drawn at random.

    Queries are `texts`, or are made from documents that are then held out: their codes with a tenth of the bits
    changed, bits of unequal weight. Raises Misuse where there are too few documents or no text has a known word.
    """
    opened = Index.open(index)
    dice = np.random.default_rng(seed)
    rows = np.flatnonzero(opened.live())
    if len(rows) < 2 * k + 2:
        raise Misuse(f"{index} has {len(rows):,} documents, too few to measure the {k} best of; take the flat kind")
    log_odds, held_out = _log_odds(opened, texts, rows, min(queries, len(rows) // 2), dice)
    rows = np.setdiff1d(rows, held_out, assume_unique=True)
    rows = np.sort(dice.choice(rows, min(documents, len(rows)), replace=False))
    codes = _codes_at(opened, rows)
    kinds = _measured(Scan.of(codes), codes, Queries.of(log_odds, opened.bits), min(k, len(codes)), progress)
    take, why = _advice(kinds)
    return Tuning(len(codes), len(log_odds), k, kinds, take, why)


def _log_odds(
    opened: Index, texts: Sequence[str] | None, rows: np.ndarray, count: int, dice: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of the queries (Q, K), and the rows that they were made from."""
    if texts is not None:
        encoded = opened.text_log_odds(texts)
        known = encoded[encoded.any(axis=1)]
        if not len(known):
            raise Misuse("the model knows no word of any of these queries; give queries like those it will be asked")
        return known, np.empty(0, np.int64)
    chosen = np.sort(dice.choice(rows, count, replace=False))
    ones = np.unpackbits(_codes_at(opened, chosen), axis=1, bitorder="little").astype(bool)
    ones ^= dice.random(ones.shape) < CHANGED
    sure = dice.exponential(SURE, ones.shape).clip(0.01, MAX_LOG_ODDS)
    return np.where(ones, sure, -sure), chosen


def _measured(scan: Scan, codes: np.ndarray, queries: Queries, k: int, progress: Progress) -> list[Kind]:
    tried = list(_tried(codes))
    progress.start("tune", len(tried) + 1, "kinds")
    best = scan.nearest(queries, k, "log-odds", exact=True)
    floor = best.scores[:, -1] - 1e-9
    found = [_kind(FlatConfig(), scan, queries, k, floor, 0.0, float(codes.shape[1]))]
    progress.advance(1, "flat")
    built: ApproximateConfig | None = None
    for config in tried:
        if built is None or built.kind != config.kind:
            started = time.perf_counter()
            scan.near = Approximate.build(config, codes)
            seconds, built = time.perf_counter() - started, config
            size = codes.shape[1] + scan.near.bytes / len(codes)
        assert scan.near is not None
        scan.near.look_like(config)
        found.append(_kind(config, scan, queries, k, floor, seconds, size))
        progress.advance(1, config.kind)
    progress.finish()
    return found


def _tried(codes: np.ndarray) -> Iterator[ApproximateConfig]:
    bits = max(1, min(32, 8 * codes.shape[1] // 2, round(log2(max(2, len(codes))))))
    tables = max(1, min(4, 8 * codes.shape[1] // bits))
    yield from (HnswConfig(look=look) for look in (32, 64, 128, 256))
    yield from (IvfConfig(probes=probes) for probes in (4, 16, 64))
    yield from (MultiHashConfig(tables=tables, bits=bits, flips=flips) for flips in (0, 1, 2))


def _kind(
    config: CandidatesConfig, scan: Scan, queries: Queries, k: int, floor: np.ndarray, build_s: float, size: float
) -> Kind:
    exact = isinstance(config, FlatConfig)
    scan.nearest(queries[:4], k, "log-odds", exact=exact)
    started = time.perf_counter()
    found = scan.nearest(queries, k, "log-odds", exact=exact)
    batch = time.perf_counter() - started
    alone = []
    for place in range(min(len(queries), 50)):
        started = time.perf_counter()
        scan.nearest(queries[place : place + 1], k, "log-odds", exact=exact)
        alone.append(time.perf_counter() - started)
    recall = float(np.mean(found.scores >= floor[:, None]))
    return Kind(config, recall, 1000 * float(np.median(alone)), len(queries) / batch, size, build_s)


def _advice(kinds: list[Kind]) -> tuple[Kind, str]:
    flat = kinds[0]
    good = [kind for kind in kinds[1:] if kind.recall >= ENOUGH]
    best = min(good, key=lambda kind: kind.ms, default=flat)
    if best is flat:
        return flat, f"no approximate kind finds {ENOUGH:.0%} of the exact answer"
    if best.ms * CLEARLY > flat.ms:
        return flat, f"it is exact, and none with {ENOUGH:.0%} of its answer is clearly faster"
    return best, f"{flat.ms / best.ms:.1f} times as fast as flat, with {best.recall:.1%} of the exact answer"


def _codes_at(opened: Index, rows: np.ndarray) -> np.ndarray:
    """Packed codes of ascending rows, (n, C)."""
    edges = np.searchsorted(rows, opened.starts)
    pieces = zip(opened.codes(), opened.starts, edges, edges[1:], strict=False)
    return np.concatenate([codes[rows[low:high] - start] for codes, start, low, high in pieces])
