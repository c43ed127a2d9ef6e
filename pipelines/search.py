"""Open an index and rank its documents for queries, exactly. Shapes: Q queries, N codes, K bits, C = K/8, k hits.

Ties are broken by database row: of two documents with one score the earlier comes first, also at the cut-off.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipelines.artifact import Artifact
from vae_core.codes import MAX_LOG_ODDS
from vae_core.errors import Damaged, Misuse, Stale

CODES_FILE = "codes.faiss"
DOCUMENTS_FILE = "documents.arrow"
"""The two files of a segment."""
Rank = Literal["log-odds", "hamming"]
BYTE_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.float64)
"""The eight bits of each byte, (256, 8)."""
ONES = BYTE_BITS.sum(axis=1).astype(np.int32)
GRID = 2.0**-40
"""Log-odds are rounded to this, so that a sum of 512 of them is exact in float64, whatever its order."""
SCAN_ROWS = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """The k best documents of each query, best first; places that no document fills have row -1 and score -inf.

    scores: log q(code | query) in nats for the ranking by log-odds, minus the distance for Hamming.
    distances: bits in which the document's code differs from the query's own.
    """

    rows: np.ndarray  # (Q, k) int64
    scores: np.ndarray  # (Q, k) float32
    distances: np.ndarray  # (Q, k) int32


class Index:
    """A complete index, its segments mapped into memory."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        names = {Path(part.name).parent for part in artifact.manifest.parts}
        self.segments: list[_Segment] = []
        self.starts = [0]
        for folder in sorted(names):
            self.segments.append(_Segment(artifact, folder))
            self.starts.append(self.starts[-1] + len(self.segments[-1]))

    @classmethod
    def open(cls, path: Path) -> "Index":
        """The index at `path`. Raises Misuse, Unfinished or Damaged."""
        return cls(Artifact.open(path, "index"))

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def bits(self) -> int:
        return self.segments[0].bits

    @property
    def model_fingerprint(self) -> str:
        """Fingerprint of the model that made the codes."""
        return self.segments[0].facts.get(b"model", b"").decode()

    def search(self, log_odds: np.ndarray, k: int, rank: Rank = "log-odds") -> Hits:
        """The k best documents for each row of `log_odds` (Q, K), exactly; a query's code has the bits log-odds > 0.

        Raises ValueError for another shape, values that are not numbers, or a k below 1.
        """
        queries = _Queries.of(log_odds, self.bits)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if rank not in ("log-odds", "hamming"):
            raise ValueError(f"rank must be 'log-odds' or 'hamming', got {rank!r}")
        found = [_empty(len(queries), k)]
        for segment, start in zip(self.segments, self.starts, strict=False):
            nearest = segment.by_hamming if rank == "hamming" else segment.by_log_odds
            found.append(_shifted(nearest(queries, min(k, len(segment))), start))
        best = _best(_joined(found), k)
        constant = queries.normaliser[:, None] if rank == "log-odds" else 0.0
        return Hits(best.rows, (best.scores - constant).astype(np.float32), best.distances)

    def documents(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """id, text, labels, component and metadata of each of `rows` (n,)."""
        segments = np.searchsorted(self.starts, rows, side="right") - 1
        return [
            self.segments[segment].document(int(row) - self.starts[segment])
            for row, segment in zip(rows, segments, strict=True)
        ]

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all documents, mapped: id, text, labels or component."""
        chunks = [batch.column(name) for segment in self.segments for batch in segment.batches]
        return pa.chunked_array(chunks, type=self.segments[0].schema.field(name).type)

    def codes(self) -> list[np.ndarray]:
        """The packed codes of each segment, (N, C) uint8, mapped."""
        return [segment.codes for segment in self.segments]

    def within(self, code: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows, ascending, of all documents at most `radius` bits from one packed code (C,), and their distances."""
        found = [segment.within(code, radius) for segment in self.segments]
        rows = [start + rows for start, (rows, _) in zip(self.starts, found, strict=False)]
        return np.concatenate(rows), np.concatenate([distances for _, distances in found])

    def model_path(self) -> Path:
        """The folder of the model that made the codes, found through the lineage. Raises Misuse where it is gone."""
        codes = self.artifact.input_path("codes")
        beside = self.artifact.path.resolve().parent / "model"
        model = Artifact.open(codes).input_path("model") if codes.exists() else beside
        if not model.exists():
            gone = model if codes.exists() else codes
            raise Misuse(f"{gone}, which {self.artifact.path} was made from, is gone; name the model with --model")
        return model


def require_model(index: Index, fingerprint: str) -> None:
    """Raise Stale unless the codes in `index` were made by the model with this fingerprint."""
    if index.model_fingerprint != fingerprint:
        raise Stale(
            f"{index.artifact.path} holds codes of the model {index.model_fingerprint} and this model is "
            f"{fingerprint}; give the index's own model, or encode and index again with this one"
        )


def hits(index: Index, result: Hits) -> list[list[dict[str, Any]]]:
    """Each query's hits, ready to print: id, score, distance, text, labels, component, metadata."""
    answers = []
    for rows, scores, distances in zip(result.rows, result.scores, result.distances, strict=True):
        found = rows >= 0
        measured = zip(index.documents(rows[found]), scores[found], distances[found], strict=True)
        answers.append([_hit(document, float(score), int(distance)) for document, score, distance in measured])
    return answers


def nearest_codes(codes_NC: np.ndarray, queries_QC: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k codes nearest to each query by Hamming distance, ties by row: (Q, min(k, N)) int64."""
    import faiss

    flat = faiss.IndexBinaryFlat(8 * codes_NC.shape[1])
    flat.add(np.ascontiguousarray(codes_NC))
    rows: np.ndarray = flat.search(np.ascontiguousarray(queries_QC), min(k, len(codes_NC)))[1]
    return rows


@dataclass(frozen=True, slots=True, eq=False)
class _Queries:
    log_odds: np.ndarray  # (Q, K) float64, clamped, on the grid
    packed: np.ndarray  # (Q, C) uint8

    @classmethod
    def of(cls, log_odds: np.ndarray, bits: int) -> "_Queries":
        if log_odds.ndim != 2:
            raise ValueError(f"log-odds must be (queries, bits), got shape {log_odds.shape}")
        if log_odds.shape[1] != bits:
            raise ValueError(
                f"index holds {bits}-bit codes, query has {log_odds.shape[1]}; encode it with the index's own model"
            )
        if np.isnan(log_odds).any():
            raise ValueError(f"log-odds of query {np.isnan(log_odds).any(axis=1).argmax()} are not numbers (nan)")
        clamped = np.clip(log_odds.astype(np.float64), -MAX_LOG_ODDS, MAX_LOG_ODDS)
        return cls(np.round(clamped / GRID) * GRID, np.packbits(log_odds > 0, axis=1, bitorder="little"))

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def tables(self) -> np.ndarray:
        """What each byte of a code adds to its score, (Q, C, 256)."""
        return self.log_odds.reshape(len(self), self.packed.shape[1], 8) @ BYTE_BITS.T

    @property
    def normaliser(self) -> np.ndarray:
        """sum_i softplus(a_i), which makes the score a log probability: (Q,)."""
        total: np.ndarray = np.logaddexp(0.0, self.log_odds).sum(axis=1)
        return total


@dataclass(frozen=True, slots=True, eq=False)
class _Candidates:
    rows: np.ndarray
    scores: np.ndarray
    distances: np.ndarray


class _Segment:
    def __init__(self, artifact: Artifact, folder: Path) -> None:
        self.flat = _read_codes(artifact.path / folder / CODES_FILE)
        self.bits = int(self.flat.d)
        self._weighted: Any = None
        self.reader = _read_documents(artifact.path / folder / DOCUMENTS_FILE)
        self.schema = self.reader.schema
        self.facts: dict[bytes, bytes] = self.schema.metadata or {}
        self.batches = [self.reader.get_batch(number) for number in range(self.reader.num_record_batches)]
        self.ends = np.cumsum([len(batch) for batch in self.batches])
        if sum(len(batch) for batch in self.batches) != len(self):
            raise Damaged(f"{artifact.path / folder} holds {len(self)} codes and another number of documents")

    def __len__(self) -> int:
        return int(self.flat.ntotal)

    @property
    def codes(self) -> np.ndarray:
        import faiss

        if not len(self):
            return np.empty((0, self.bits // 8), np.uint8)
        flat: np.ndarray = faiss.rev_swig_ptr(self.flat.xb.data(), len(self) * self.bits // 8)
        return flat.reshape(len(self), -1)

    def document(self, row: int) -> dict[str, Any]:
        number = int(np.searchsorted(self.ends, row, side="right"))
        batch = self.batches[number]
        (document,) = batch.slice(row - int(self.ends[number]) + len(batch), 1).to_pylist()
        return {"metadata": {}} | document

    def by_hamming(self, queries: _Queries, k: int) -> _Candidates:
        if k == 0:
            return _empty(len(queries), 0)
        with _threads(len(queries)):
            distances, rows = self.flat.search(queries.packed, k)
        return _Candidates(rows, -distances.astype(np.float64), distances)

    def within(self, code: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
        if not len(self):
            return np.empty(0, np.int64), np.empty(0, np.int32)
        with _threads(1):
            _, distances, rows = self.flat.range_search(code[None], radius + 1)
        order = np.argsort(rows)
        return rows[order], distances[order].astype(np.int32)

    def by_log_odds(self, queries: _Queries, k: int) -> _Candidates:
        """The k best by exact score: of what FAISS finds in float32, or, where that may lack one, of all codes."""
        if k == 0:
            return _empty(len(queries), 0)
        fetch = min(len(self), 2 * k + 16)
        distances, rows = self.weighted.search(queries.log_odds.astype(np.float32), fetch)
        tables = queries.tables
        best = _best(self._scored(queries, tables, rows), k)
        if fetch < len(self):
            close = distances[:, -1] - distances[:, k - 1] <= 2 * self._rounding(queries)
            for query in np.flatnonzero(close):
                best.rows[query], best.scores[query] = self._scan(tables[query], k, best.scores[query, -1])
            best.distances[close] = self._differing(queries.packed[close], best.rows[close])
        return best

    @property
    def weighted(self) -> Any:
        """A product quantiser that scores packed codes: the 256 centroids of a byte are the signs +-1 of its bits.

        L2 ranks as the inner product does, since |a - s|^2 = |a|^2 + K - 2 a.s.
        """
        import faiss

        if self._weighted is None:
            count = self.bits // 8
            index = faiss.IndexPQ(self.bits, count, 8, faiss.METRIC_L2)
            signs = np.tile((2 * BYTE_BITS - 1).astype(np.float32), (count, 1))
            faiss.copy_array_to_vector(signs.ravel(), index.pq.centroids)
            index.is_trained = True
            index.codes, index.ntotal = self.flat.xb, len(self)
            self._weighted = index
        return self._weighted

    def _rounding(self, queries: _Queries) -> np.ndarray:
        """A bound on the float32 error of FAISS's distances: no partial sum exceeds (|a| + |s|)^2."""
        largest = (np.linalg.norm(queries.log_odds, axis=1) + self.bits**0.5) ** 2
        return 2.0**-23 * (self.bits // 8 + 16) * largest

    def _scored(self, queries: _Queries, tables: np.ndarray, rows: np.ndarray) -> _Candidates:
        codes = self.codes[rows]
        bytes_C = np.arange(codes.shape[2])
        scores = tables[np.arange(len(rows))[:, None, None], bytes_C, codes].sum(axis=2)
        return _Candidates(rows, scores, self._differing(queries.packed, rows))

    def _differing(self, packed: np.ndarray, rows: np.ndarray) -> np.ndarray:
        differing: np.ndarray = ONES[self.codes[rows] ^ packed[:, None]].sum(axis=2, dtype=np.int32)
        return differing

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


@contextmanager
def _threads(at_most: int) -> Iterator[None]:
    """FAISS's binary search shares out queries only: more threads than queries just wait for one another."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(max(1, min(before, at_most)))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _best(found: _Candidates, k: int) -> _Candidates:
    order = np.lexsort((found.rows, -found.scores), axis=-1)[:, :k]
    arrays = (found.rows, found.scores, found.distances)
    return _Candidates(*(np.take_along_axis(array, order, axis=1) for array in arrays))


def _joined(found: list[_Candidates]) -> _Candidates:
    return _Candidates(
        np.concatenate([one.rows for one in found], axis=1),
        np.concatenate([one.scores for one in found], axis=1),
        np.concatenate([one.distances for one in found], axis=1),
    )


def _shifted(found: _Candidates, start: int) -> _Candidates:
    return _Candidates(found.rows + start, found.scores, found.distances)


def _empty(queries: int, k: int) -> _Candidates:
    shape = (queries, k)
    return _Candidates(np.full(shape, -1, np.int64), np.full(shape, -np.inf), np.full(shape, -1, np.int32))


def _hit(document: dict[str, Any], score: float, distance: int) -> dict[str, Any]:
    shown = {name: document[name] for name in ("text", "labels", "component", "metadata")}
    return {"id": document["id"], "score": score, "distance": distance} | shown


def _read_codes(path: Path) -> Any:
    import faiss

    try:
        return faiss.read_index_binary(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise Damaged(f"{path} cannot be read ({str(error).splitlines()[-1]}); run index with --overwrite") from error


def _read_documents(path: Path) -> pa.ipc.RecordBatchFileReader:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (OSError, pa.ArrowInvalid) as error:
        raise Damaged(f"{path} cannot be read as Arrow ({error}); run index with --overwrite") from error
