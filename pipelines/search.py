"""Open an index and rank its documents for queries, exactly. Shapes: Q queries, K bits, C = K/8, k hits.

Ties are broken by row: of two documents with one score the earlier comes first, also at the cut-off. Deleted documents
and documents without a word that the model knows are never hits.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipelines.artifact import Artifact
from pipelines.filters import Filter, parse_filter
from pipelines.id_lookup import digests
from pipelines.index_versions import SegmentRecord, Version, newest, newest_number
from pipelines.scan import Candidates, Queries, joined
from pipelines.scan import nearest_codes as nearest_codes
from pipelines.segment import Segment, shown
from pipelines.subset import Subset, subset_of
from vae_core.errors import Damaged, Misuse, Stale

Rank = Literal["log-odds", "hamming"]
CODE_LOG_ODDS = 2.0
"""Of each bit of a code that is asked for itself: all bits weigh the same, and the ranking is that of Hamming."""
FILTERS_KEPT = 8


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """The k best documents of each query, best first; places that no document fills have row -1 and score -inf.

    scores: log q(code | query) in nats for the ranking by log-odds, minus the distance for Hamming.
    distances: bits in which the document's code differs from the query's own.
    """

    rows: np.ndarray  # (Q, k) int64
    scores: np.ndarray  # (Q, k) float32
    distances: np.ndarray  # (Q, k) int32
    of: "_Opened | None" = field(default=None, repr=False)
    """The version that the rows are of."""


class Index:
    """An index, its segments mapped into memory, as of one version; `refresh` goes on to the newest."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._opened = _open(artifact, None)

    @classmethod
    def open(cls, path: Path | str) -> "Index":
        """The newest version of the index at `path`. Raises Misuse, Unfinished or Damaged."""
        return cls(Artifact.open(Path(path), "index"))

    def refresh(self) -> bool:
        """Go on to the newest version; whether there was a newer one. Searches that run meanwhile finish in theirs."""
        if newest_number(self.artifact.path) == self.version:
            return False
        self._opened = _open(self.artifact, self._opened)
        return True

    @property
    def version(self) -> int:
        """The version that answers; 0 is the index as its stage wrote it."""
        return self._opened.version.number

    def __len__(self) -> int:
        """Documents that are not deleted."""
        return self._opened.version.documents

    @property
    def rows(self) -> int:
        """Rows of all documents, deleted ones too: one more than the last row of a hit."""
        return self._opened.starts[-1]

    @property
    def uninformative(self) -> int:
        """Documents that are never hits, since the model knew no word of them."""
        return sum(int(view.uninformative) for view in self._opened.views)

    @property
    def bits(self) -> int:
        return self._opened.views[0].segment.bits

    @property
    def segments(self) -> list[Segment]:
        return [view.segment for view in self._opened.views]

    @property
    def starts(self) -> list[int]:
        """The row of each segment's first document, and the end."""
        return self._opened.starts

    @property
    def model_fingerprint(self) -> str:
        """Fingerprint of the model that made the codes."""
        return self._opened.views[0].segment.facts.get(b"model", b"").decode()

    def search(self, log_odds: np.ndarray, k: int, rank: Rank = "log-odds", where: str | None = None) -> Hits:
        """The k best documents for each row of `log_odds` (Q, K); a query's code has the bits log-odds > 0.

        `where` is a filter such as "lang = 'en' and year >= 2020". A query whose log-odds are all 0 has no known word,
        and no hits. Raises ValueError for another shape, values that are not numbers, or a k below 1, and Misuse for
        another width or a filter that cannot be read.
        """
        opened = self._opened
        queries = Queries.of(np.asarray(log_odds), self.bits)
        _require(k, rank)
        chosen = opened.subsets(where)
        found = [Candidates.none(len(queries), k)]
        for view, start, subset in zip(opened.views, opened.starts, chosen, strict=False):
            found.append(subset.nearest(view.segment.scan, queries, k, rank).shifted(start))
        return _hits_of(queries, joined(found).best(k), rank, opened)

    def within_radius(
        self, log_odds: np.ndarray, radius: int, k: int, rank: Rank = "log-odds", where: str | None = None
    ) -> Hits:
        """As `search`, of the documents at most `radius` bits from the query's code."""
        opened = self._opened
        queries = Queries.of(np.asarray(log_odds), self.bits)
        _require(k, rank)
        if radius < 0:
            raise Misuse(f"the radius must be at least 0 bits, got {radius}")
        chosen = opened.subsets(where)
        best = [self._one_within(queries[place : place + 1], radius, k, rank, chosen) for place in range(len(queries))]
        none = Candidates.none(0, k)
        rows, scores, distances = (
            np.concatenate([getattr(none, name), *(getattr(one, name) for one in best)])
            for name in ("rows", "scores", "distances")
        )
        return _hits_of(queries, Candidates(rows, scores, distances), rank, opened)

    def _one_within(self, query: Queries, radius: int, k: int, rank: Rank, chosen: "list[Subset]") -> Candidates:
        found = [Candidates.none(1, k)]
        for view, start, subset in zip(self._opened.views, self._opened.starts, chosen, strict=False):
            rows, distances = view.segment.scan.within(query.packed[0], radius)
            rows = rows[subset.contains(rows)]
            if len(rows):
                scored = view.segment.scan.scored(query, rows[None])
                by_distance = Candidates(scored.rows, -scored.distances.astype(np.float64), scored.distances)
                found.append((scored if rank == "log-odds" else by_distance).shifted(start))
            del distances
        return joined(found).best(k)

    def documents(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """id, text, labels, component and metadata of each of `rows` (n,)."""
        return self._opened.documents(np.asarray(rows))

    def ids(self, rows: np.ndarray) -> list[str]:
        """The id of each of `rows` (n,)."""
        return self._opened.table(np.asarray(rows), ["id"])["id"].to_pylist()

    def row_of(self, id: str) -> int | None:
        """The row of the document with this id, or None where there is none."""
        places, rows = self.rows_of(pa.array([id], pa.string()))
        return int(rows[0]) if len(places) else None

    def rows_of(self, ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Places in `ids` (n,) of those that are here, and the row of each, by segment."""
        opened, hashed = self._opened, digests(ids)
        places, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for view, start in zip(opened.views, opened.starts, strict=False):
            where, found = view.segment.lookup.find(ids, hashed)
            live = ~view.deleted_at(found)
            places.append(where[live])
            rows.append(start + found[live])
        return np.concatenate(places), np.concatenate(rows)

    def code(self, row: int) -> np.ndarray:
        """The packed code of one row, (C,) uint8."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self._opened.views[number].segment.codes[row - self.starts[number]]

    def log_odds_of_code(self, code: int | str | np.ndarray) -> np.ndarray:
        """A code as a query (1, K): a row's own, one in hexadecimal digits, or one packed (C,). Raises Misuse."""
        packed = self.code(code) if isinstance(code, int | np.integer) else _packed(code, self.bits)
        ones = np.unpackbits(packed, bitorder="little").astype(np.float32)
        return (2 * ones[None] - 1) * np.float32(CODE_LOG_ODDS)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all rows, mapped: id, text, labels or component."""
        chunks = [chunk for segment in self.segments for chunk in segment.column(name)]
        types = [segment.schema.field(name).type for segment in self.segments if name in segment.schema.names]
        typed = types[0] if types else chunks[0].type if chunks else pa.null()
        return pa.chunked_array([chunk.cast(typed) for chunk in chunks], type=typed)

    def columns(self) -> dict[str, str]:
        """What a filter may name, and the type of each."""
        return self._opened.columns

    def codes(self) -> list[np.ndarray]:
        """The packed codes of each segment, (N, C) uint8, mapped; deleted ones too."""
        return [segment.codes for segment in self.segments]

    def live(self) -> np.ndarray:
        """Which rows are not deleted, (rows,) bool."""
        kept = np.ones(self.rows, bool)
        for view, start in zip(self._opened.views, self.starts, strict=False):
            kept[start + view.deleted] = False
        return kept

    def within(self, code: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows, ascending, of all documents at most `radius` bits from one packed code (C,), and their distances."""
        rows, distances = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
        for view, start in zip(self._opened.views, self.starts, strict=False):
            found, differing = view.segment.scan.within(code, radius)
            live = ~view.deleted_at(found)
            rows.append(start + found[live])
            distances.append(differing[live])
        return np.concatenate(rows), np.concatenate(distances)

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
    found = result.rows >= 0
    opened = result.of or index._opened
    documents = iter(opened.documents(result.rows[found]))
    return [
        [_hit(next(documents), float(score), int(distance)) for score, distance in zip(*measured, strict=True)]
        for measured in _measured(result, found)
    ]


def _measured(result: Hits, found: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    places = zip(result.scores, result.distances, found, strict=True)
    return [(scores[some], distances[some]) for scores, distances, some in places]


def _hit(document: dict[str, Any], score: float, distance: int) -> dict[str, Any]:
    kept = {name: document[name] for name in ("text", "labels", "component", "metadata")}
    return {"id": document["id"], "score": score, "distance": distance} | kept


class _View:
    """A segment as one version has it: without the rows that were deleted."""

    def __init__(self, segment: Segment, record: SegmentRecord, root: Path) -> None:
        self.segment = segment
        self.record = record
        self.deleted = _deleted(root, record)
        silent = np.setdiff1d(segment.uninformative, self.deleted, assume_unique=True)
        self.uninformative = len(silent)
        self.hidden = np.concatenate([self.deleted, silent])

    def deleted_at(self, rows: np.ndarray) -> np.ndarray:
        """Which of `rows` are deleted."""
        return np.isin(rows, self.deleted)

    @cached_property
    def shown(self) -> Subset:
        """All rows that may be hits."""
        return subset_of(len(self.segment), self.hidden)


class _Opened:
    """One version of an index, all of it open."""

    def __init__(self, version: Version, views: list[_View]) -> None:
        self.version = version
        self.views = views
        self.starts = [0, *np.cumsum([len(view.segment) for view in views]).tolist()]
        self._filtered: dict[str, list[Subset]] = {}

    @cached_property
    def columns(self) -> dict[str, str]:
        known: dict[str, str] = {}
        for view in self.views:
            for column in view.segment.schema:
                fields = column.type if column.name == "metadata" else [column]
                known |= {one.name: str(one.type) for one in fields if str(one.type) != "null" or one.name not in known}
        return {"labels": "list<string>", "text": "string"} | known

    def subsets(self, where: str | None) -> list[Subset]:
        """Of each segment the rows that may be hits and pass the filter; the last few filters are remembered."""
        if where is None:
            return [view.shown for view in self.views]
        known = self._filtered
        if where not in known:
            parsed: Filter = parse_filter(where, self.columns)
            while len(known) >= FILTERS_KEPT:
                known.pop(next(iter(known)), None)
            known[where] = [view.shown.where(parsed.mask(view.segment)) for view in self.views]
        return known[where]

    def table(self, rows: np.ndarray, columns: list[str] | None = None) -> pa.Table:
        """Documents by row, as a table."""
        numbers = np.searchsorted(self.starts, rows, side="right") - 1
        tables, places = [], []
        for number in np.unique(numbers):
            some = np.flatnonzero(numbers == number)
            tables.append(self.views[number].segment.table(rows[some] - self.starts[number], columns))
            places.append(some)
        if not tables:
            return self.views[0].segment.table(rows, columns)
        merged = pa.concat_tables(tables, promote_options="permissive")
        return merged.take(pa.array(np.argsort(np.concatenate(places), kind="stable")))

    def documents(self, rows: np.ndarray) -> list[dict[str, Any]]:
        return shown(self.table(rows)) if len(rows) else []


def _open(artifact: Artifact, before: "_Opened | None") -> _Opened:
    """The newest version; segments that are open already are used again."""
    known = {view.record.name: view.segment for view in before.views} if before else {}
    while True:
        version = newest(artifact)
        try:
            views = [
                _View(known.get(record.name) or Segment(artifact.path / record.name), record, artifact.path)
                for record in version.segments
            ]
        except Damaged:
            if newest_number(artifact.path) == version.number:
                raise
            continue  # a compaction took its files away meanwhile
        return _Opened(version, views)


def _deleted(root: Path, record: SegmentRecord) -> np.ndarray:
    if record.deleted is None:
        return np.empty(0, np.int64)
    path = root / record.deleted.name
    try:
        return np.load(path).astype(np.int64)
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} cannot be read as .npy ({error}); restore it from a copy of the index") from error


def _hits_of(queries: Queries, best: Candidates, rank: Rank, opened: _Opened) -> Hits:
    asks = np.any(queries.log_odds != 0, axis=1, keepdims=True)
    best = best.keeping(asks & (best.rows >= 0))
    constant = queries.normaliser[:, None] if rank == "log-odds" else 0.0
    return Hits(best.rows, (best.scores - constant).astype(np.float32), best.distances, opened)


def _require(k: int, rank: str) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if rank not in ("log-odds", "hamming"):
        raise ValueError(f"rank must be 'log-odds' or 'hamming', got {rank!r}")


def _packed(code: str | np.ndarray, bits: int) -> np.ndarray:
    try:
        packed = np.frombuffer(bytes.fromhex(code), np.uint8) if isinstance(code, str) else code
    except ValueError:
        raise Misuse(f"the code is not hexadecimal digits; write {bits // 4} of them for {bits} bits") from None
    if 8 * len(packed) != bits:
        raise Misuse(f"the code has {8 * len(packed)} bits and the index {bits}; encode with the index's own model")
    return packed
