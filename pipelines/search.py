"""Open an index and rank its documents for queries, exactly. Shapes: Q queries, K bits, C = K/8, k hits.

Ties are broken by row: of two documents with one score the earlier comes first, also at the cut-off. Deleted documents
and documents without a word that the model knows are never hits.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipelines.artifact import Artifact
from pipelines.corpus import Document
from pipelines.indexing.id_lookup import digests
from pipelines.indexing.versions import stamp
from pipelines.searching.hits import Hits as Hits
from pipelines.searching.hits import hits as hits
from pipelines.searching.opened import Opened, open_newest
from pipelines.searching.scan import Candidates, Queries, best_of, joined
from pipelines.searching.scan import Rank as Rank
from pipelines.searching.scan import nearest_codes as nearest_codes
from pipelines.searching.segment import Segment
from pipelines.searching.subset import Subset
from vae_core.errors import Misuse, Stale

if TYPE_CHECKING:
    from pipelines.encoder import Encoder

CODE_LOG_ODDS = 2.0
"""Of each bit of a code that is asked for itself: all bits weigh the same, and the ranking is that of Hamming."""


class Index:
    """An index, its segments mapped into memory, as of one version; `refresh` goes on to the newest."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._stamp = stamp(artifact.path)
        self.opened = open_newest(artifact, None)

    @classmethod
    def open(cls, path: Path | str) -> "Index":
        """The newest version of the index at `path`. Raises Misuse, Unfinished or Damaged."""
        return cls(Artifact.open(Path(path), "index"))

    def refresh(self) -> bool:
        """Go on to the newest version; whether there was a newer one. Searches that run meanwhile finish in theirs."""
        found = stamp(self.artifact.path)
        if found == self._stamp:
            return False
        self.artifact = Artifact.open(self.artifact.path, "index")
        before, self.opened = self.opened, open_newest(self.artifact, self.opened)
        self._stamp = found
        return before.version != self.opened.version

    @property
    def version(self) -> int:
        """The version that answers; 0 is the index as its stage wrote it."""
        return self.opened.version.number

    def __len__(self) -> int:
        """Documents that are not deleted."""
        return self.opened.version.documents

    @property
    def rows(self) -> int:
        """Rows of all documents, deleted ones too: one more than the last row of a hit."""
        return self.opened.starts[-1]

    @property
    def uninformative(self) -> int:
        """Documents that are never hits, since the model knew no word of them."""
        return sum(int(view.uninformative) for view in self.opened.views)

    @property
    def bits(self) -> int:
        return self.opened.views[0].segment.bits

    @property
    def segments(self) -> list[Segment]:
        return [view.segment for view in self.opened.views]

    @property
    def starts(self) -> list[int]:
        """The row of each segment's first document, and the end."""
        return self.opened.starts

    @property
    def model_fingerprint(self) -> str:
        """Fingerprint of the model that made the codes."""
        return self.opened.views[0].segment.facts.get(b"model", b"").decode()

    @cached_property
    def encoder(self) -> "Encoder":
        """The model that made the codes, loaded once. Raises Misuse where it is gone and Stale where it is another."""
        from pipelines.encoder import Encoder

        encoder = Encoder.load(self.model_path())
        require_model(self, encoder.fingerprint)
        return encoder

    def search(
        self,
        query: np.ndarray | str | Sequence[str],
        k: int = 10,
        rank: Rank = "log-odds",
        where: str | None = None,
    ) -> Hits:
        """The k best documents for a text, each of several texts, or each row of log-odds (Q, K).

        A query's code has the bits log-odds > 0. An index that is not flat ranks the candidates that it proposes, but
        with a filter all that pass it.
        `where` is a filter such as "lang = 'en' and year >= 2020". A query whose log-odds are all 0 has no known word,
        and no hits. Raises ValueError for another shape, values that are not numbers, or a k below 1, and Misuse for
        another width or a filter that cannot be read.
        """
        return self._search(query, k, rank, where, exact=False)

    def search_exactly(
        self,
        query: np.ndarray | str | Sequence[str],
        k: int = 10,
        rank: Rank = "log-odds",
        where: str | None = None,
    ) -> Hits:
        """As `search`, of all documents whatever the index's kind."""
        return self._search(query, k, rank, where, exact=True)

    def like(self, id: str, k: int = 10, where: str | None = None) -> Hits:
        """The k documents nearest to the one with this id, without itself. Raises Misuse where there is none."""
        row = self.row_of(id)
        if row is None:
            raise Misuse(f"{self.artifact.path} has no document {id!r}; give the id of a hit")
        found = self.search(self.log_odds_of_code(row), k + 1, where=where)
        others = np.argsort(found.rows[0] == row, kind="stable")[:k]
        return Hits(found.rows[:, others], found.scores[:, others], found.distances[:, others], found.of)

    def within_radius(
        self,
        query: np.ndarray | str | Sequence[str],
        radius: int,
        k: int = 10,
        rank: Rank = "log-odds",
        where: str | None = None,
    ) -> Hits:
        """As `search`, of the documents at most `radius` bits from the query's code."""
        opened = self.opened
        queries = Queries.of(self._log_odds(query), self.bits)
        _require(k, rank)
        if radius < 0:
            raise Misuse(f"the radius must be at least 0 bits, got {radius}")
        chosen = opened.subsets(where)
        best = [
            _one_within(opened, queries[place : place + 1], radius, k, rank, chosen) for place in range(len(queries))
        ]
        none = Candidates.none(0, k)
        rows, scores, distances = (
            np.concatenate([getattr(none, name), *(getattr(one, name) for one in best)])
            for name in ("rows", "scores", "distances")
        )
        return _hits_of(queries, Candidates(rows, scores, distances), rank, opened)

    def _search(
        self, query: np.ndarray | str | Sequence[str], k: int, rank: Rank, where: str | None, *, exact: bool
    ) -> Hits:
        queries = Queries.of(self._log_odds(query), self.bits)
        _require(k, rank)
        opened, found = self._found(queries, k, rank, where, exact)
        best = best_of(found, k).filled(k)
        return _hits_of(queries, best, rank, opened)

    def _found(
        self, queries: Queries, k: int, rank: Rank, where: str | None, exact: bool
    ) -> tuple[Opened, list[Candidates]]:
        """The version that answers, and the best of its segments."""
        opened = self.opened  # which a refresh may replace meanwhile
        return opened, [nearest_of(opened, queries, k, rank, where, exact)]

    def _log_odds(self, query: np.ndarray | str | Sequence[str]) -> np.ndarray:
        if isinstance(query, np.ndarray):
            return query
        return self.text_log_odds([query] if isinstance(query, str) else query)

    def text_log_odds(self, texts: Sequence[str]) -> np.ndarray:
        """What the model that made the codes says of texts, (n, K). Raises Misuse for an empty one."""
        if not all(text.strip() for text in texts):
            raise Misuse("the query is empty; say what to look for")
        table = self.encoder.table([Document(str(n), text, [], {}, "query", n) for n, text in enumerate(texts)])
        return self.encoder.ask(table)

    def documents(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """id, text, labels, component and metadata of each of `rows` (n,)."""
        return self.opened.documents(np.asarray(rows))

    def ids(self, rows: np.ndarray) -> list[str]:
        """The id of each of `rows` (n,)."""
        return self.opened.table(np.asarray(rows), ["id"])["id"].to_pylist()

    def row_of(self, id: str) -> int | None:
        """The row of the document with this id, or None where there is none."""
        places, rows = self.rows_of(pa.array([id], pa.string()))
        return int(rows[0]) if len(places) else None

    def rows_of(self, ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Places in `ids` (n,) of those that are here, and the row of each, by segment."""
        opened, hashed = self.opened, digests(ids)
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
        return self.opened.views[number].segment.codes[row - self.starts[number]]

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
        return self.opened.columns

    def codes(self) -> list[np.ndarray]:
        """The packed codes of each segment, (N, C) uint8, mapped; deleted ones too."""
        return [segment.codes for segment in self.segments]

    def live(self) -> np.ndarray:
        """Which rows are not deleted, (rows,) bool."""
        kept = np.ones(self.rows, bool)
        for view, start in zip(self.opened.views, self.starts, strict=False):
            kept[start + view.deleted] = False
        return kept

    def within(self, code: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows, ascending, of all documents at most `radius` bits from one packed code (C,), and their distances."""
        rows, distances = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
        for view, start in zip(self.opened.views, self.starts, strict=False):
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


def nearest_of(
    opened: Opened,
    queries: Queries,
    k: int,
    rank: Rank,
    where: str | None,
    exact: bool,
    share: tuple[int, int] = (0, 1),
) -> Candidates:
    """The k best of one version; of a `share` (number, of) those of the segments number, number + of, ..."""
    chosen = opened.subsets(where)
    found = []
    for place in range(share[0], len(opened.views), share[1]):
        nearest = chosen[place].nearest(opened.views[place].segment.scan, queries, k, rank, exact=exact)
        found.append(nearest.shifted(opened.starts[place]))
    return best_of(found, k) if found else Candidates.none(len(queries), 0)


def _hits_of(queries: Queries, best: Candidates, rank: Rank, opened: Opened) -> Hits:
    asks = np.any(queries.log_odds != 0, axis=1, keepdims=True)
    best = best.keeping(asks & (best.rows >= 0))
    constant = queries.normaliser[:, None] if rank == "log-odds" else 0.0
    return Hits(best.rows, (best.scores - constant).astype(np.float32), best.distances, opened)


def _one_within(opened: Opened, query: Queries, radius: int, k: int, rank: Rank, chosen: list[Subset]) -> Candidates:
    found = [Candidates.none(1, k)]
    for view, start, subset in zip(opened.views, opened.starts, chosen, strict=False):
        rows, _ = view.segment.scan.within(query.packed[0], radius)
        rows = rows[subset.contains(rows)]
        if len(rows):
            scored = view.segment.scan.scored(query, rows[None])
            found.append((scored if rank == "log-odds" else scored.by_distance()).shifted(start))
    return joined(found).best(k)


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
