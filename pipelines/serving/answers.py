"""What the service knows: an open index and the model that made its codes. Q queries, K bits.

Everything here blocks; the application calls it from one thread, so that an answer is of one version of the index.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.corpus import Document
from pipelines.encoder import Encoder
from pipelines.search import Hits, Index, Rank, hits, require_model
from pipelines.searching.explain import Explainer
from pipelines.serving.requests import Query
from pipelines.vocabulary import words
from vae_core.errors import LatentbitsError, Misuse

NO_WORD = "the model knows no word of this query; ask with words like those it was trained on"


class Unknown(Misuse):
    """There is no document of that id."""


class Unavailable(LatentbitsError):
    """Something that answers is away for a moment; asking again is the remedy."""


Outcome = dict[str, Any] | LatentbitsError
"""An answer, or why there is none."""


class Searcher:
    """Answers queries from the newest version of an index."""

    def __init__(self, index: Index, encoder: Encoder, refresh_s: float = 1.0) -> None:
        self.index = index
        self.encoder = encoder
        self.refresh_s = refresh_s
        self._looked = time.monotonic()
        self._explainer = Explainer(encoder)

    @classmethod
    def open(
        cls, index: Path, model: Path | None = None, encoder_folder: Path | None = None, refresh_s: float = 1.0
    ) -> "Searcher":
        """The index at `index` with its own model. Raises Misuse, Stale or Damaged where they cannot be used."""
        opened = Index.open(index)
        encoder = Encoder.load(model or opened.model_path(), encoder_folder)
        require_model(opened, encoder.fingerprint)
        return cls(opened, encoder, refresh_s)

    def answer(self, queries: Sequence[Query]) -> list[Outcome]:
        """For each query its answer, or the error that is its own; all texts are encoded in one pass."""
        self.refresh()
        asked = self._asked(queries)
        outcomes: list[Outcome] = [one if isinstance(one, LatentbitsError) else {} for one in asked]
        groups: dict[tuple[Rank, str | None], list[int]] = {}
        for place, (query, one) in enumerate(zip(queries, asked, strict=True)):
            if isinstance(one, _Asked):
                groups.setdefault((query.rank, query.filter), []).append(place)
        for (rank, where), places in groups.items():
            self._answer_group(queries, asked, outcomes, places, rank, where)
        return outcomes

    def refresh(self, *, now: bool = False) -> None:
        """Go on to a newer version of the index, where there is one; looked for every `refresh_s` seconds."""
        if now or time.monotonic() - self._looked >= self.refresh_s:
            self._looked = time.monotonic()
            self.index.refresh()

    def document(self, id: str) -> dict[str, Any]:
        """The document of this id, with its code. Raises Unknown."""
        self.refresh()
        row = self._row(id)
        (document,) = self.index.documents(np.array([row]))
        return document | {"code": self.index.code(row).tobytes().hex()}

    def encode(self, texts: Sequence[str]) -> dict[str, Any]:
        """The texts' codes, as POST /encode answers."""
        table = self._table(texts)
        encoded = self.encoder.encode(table)
        packed = encoded.codes.bytes_NC.numpy()
        known = self._known(table)
        codes = [
            {"code": code.tobytes().hex(), "component": int(component), "confidence": float(sure), "known_words": count}
            for code, component, sure, count in zip(packed, encoded.components, encoded.confidence, known, strict=True)
        ]
        return {"bits": self.encoder.bits, "model": self.encoder.fingerprint, "codes": codes}

    def _asked(self, queries: Sequence[Query]) -> "list[_Asked | LatentbitsError]":
        texts = [query.text for query in queries if query.text is not None]
        table = self._table(texts) if texts else None
        encoded = iter(zip(self.encoder.ask(table), self._known(table), strict=True) if texts else ())
        asked: list[_Asked | LatentbitsError] = []
        for query in queries:
            try:
                asked.append(_Asked(*next(encoded)) if query.text is not None else self._by_code(query))
            except LatentbitsError as error:
                asked.append(error)
        return asked

    def _by_code(self, query: Query) -> "_Asked":
        code = query.code if query.code is not None else self._row(query.asked)
        return _Asked(self.index.log_odds_of_code(code)[0], None)

    def _answer_group(
        self,
        queries: Sequence[Query],
        asked: "list[_Asked | LatentbitsError]",
        outcomes: list[Outcome],
        places: list[int],
        rank: Rank,
        where: str | None,
    ) -> None:
        """Answer the queries at `places`, which share ranking and filter, by one search for the most hits of any."""
        known = [one for place in places if isinstance(one := asked[place], _Asked)]
        wanted = [
            0 if one.known_words == 0 else _fetched(queries[place]) for place, one in zip(places, known, strict=True)
        ]
        most = max(1, min(len(self.index), max(wanted)))
        try:
            found = self.index.search(np.stack([one.log_odds for one in known]), most, rank, where)
        except LatentbitsError as error:
            for place in places:
                outcomes[place] = error
            return
        kept = _cut(found, wanted)
        for place, one, rows, listed in zip(places, known, kept.rows, hits(self.index, kept), strict=True):
            outcomes[place] = self._written(queries[place], one, rows, listed)

    def _written(
        self, query: Query, asked: "_Asked", rows: NDArray[np.int64], listed: list[dict[str, Any]]
    ) -> dict[str, Any]:
        others = [(hit, int(row)) for hit, row in zip(listed, rows[rows >= 0], strict=True) if hit["id"] != query.id]
        answer: dict[str, Any] = {"query": query.asked, "rank": query.rank}
        if query.text is not None:
            answer["known_words"] = asked.known_words
        answer["hits"] = [hit for hit, _ in others[: query.k]]
        if asked.known_words == 0:
            answer["message"] = NO_WORD
        if query.explain:
            for hit, row in others[: query.k]:
                code = self.index.code(row)
                hit |= {"why": self._explainer.explain(asked.log_odds, code), "code": code.tobytes().hex()}
            answer["code"] = np.packbits(asked.log_odds > 0, bitorder="little").tobytes().hex()
            answer["log_odds"] = [round(float(value), 4) for value in asked.log_odds]
            vocabulary = self.encoder.tokenizer.vocabulary.ids
            answer["words"] = [word for word in dict.fromkeys(words(query.text or "")) if word in vocabulary]
        return answer

    def _table(self, texts: Sequence[str]) -> Any:
        documents = [Document(str(number), text, [], {}, "query", number) for number, text in enumerate(texts)]
        return self.encoder.table(documents)

    def _known(self, table: Any) -> list[int | None]:
        counts = table.column("term_ids").combine_chunks().value_lengths().to_pylist()
        return [None] * len(counts) if self.encoder.text_encoder else counts

    def _row(self, id: str) -> int:
        row = self.index.row_of(id)
        if row is None:
            raise Unknown(f"the index has no document {id!r}; give the id of a hit")
        return row


def _fetched(query: Query) -> int:
    """How many hits to look for: of a document one more, since it is the nearest to itself."""
    return query.k + (query.id is not None)


def _cut(found: Hits, wanted: Sequence[int]) -> Hits:
    """The same, with as many hits of each query as it wants."""
    beyond = np.arange(found.rows.shape[1]) >= np.array(wanted)[:, None]
    return replace(found, rows=np.where(beyond, -1, found.rows))


class _Asked(NamedTuple):
    log_odds: NDArray[np.float32]  # (K,)
    known_words: int | None
