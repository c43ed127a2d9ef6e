"""Texts, ids and codes to hits: encode each text with the model that made the index's codes, and search."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, cast, get_args

import numpy as np

from pipelines.artifact import replacing
from pipelines.corpus import Document
from pipelines.encoder import Encoder
from pipelines.search import Index, Rank, require_model
from pipelines.searching.explain import Explainer
from pipelines.searching.hits import Hits, hits
from pipelines.searching.rerank import CANDIDATES, reranker
from vae_core.errors import LatentbitsError, Misuse

AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How to answer: how many hits, how they are ranked, which documents may be hits, and what is said of them."""

    k: int = 10
    rank: str = "log-odds"
    where: str | None = None
    radius: int | None = None
    rerank: str | None = None
    explain: bool = False


@dataclass(frozen=True)
class Asked:
    """An open index and, where it is needed, its model."""

    path: Path
    model: Path | None = None
    encoder_folder: Path | None = None

    @cached_property
    def index(self) -> Index:
        """Raises Misuse, Unfinished or Damaged."""
        return Index.open(self.path)

    @cached_property
    def encoder(self) -> Encoder:
        """Raises Misuse where the model is gone and Stale where it is another than the index's."""
        encoder = Encoder.load(self.model or self.index.model_path(), self.encoder_folder)
        require_model(self.index, encoder.fingerprint)
        return encoder

    @cached_property
    def explainer(self) -> Explainer:
        """The model in words."""
        return Explainer(self.encoder)


def answer(asked: Asked, texts: Sequence[str], wanted: Wanted = Wanted()) -> list[dict[str, Any]]:
    """For each text its query, the ranking, and its nearest documents, best first.

    `known_words` counts the query's words that the model knows, without any of which there are no hits; it is None
    where the model reads an embedding of the query too. Raises Misuse or Stale where the index, the model or what is
    wanted do not fit.
    """
    if not all(text.strip() for text in texts):
        raise Misuse(
            'the query is empty; say what to look for, for example: latentbits query runs/demo/index "sort a list"'
        )
    _require(wanted)
    return list(_answers(asked, texts, wanted))


def answer_id(asked: Asked, id: str, wanted: Wanted = Wanted()) -> dict[str, Any]:
    """The documents nearest to the one with this id, without itself. Raises Misuse where there is none."""
    _require(wanted, text=False)
    row = asked.index.row_of(id)
    if row is None:
        raise Misuse(f"{asked.path} has no document {id!r}; give the id of a hit")
    found = _answer_code(asked, asked.index.log_odds_of_code(row), wanted, but=id)
    return {"query": id, "rank": wanted.rank, "hits": found}


def answer_code(asked: Asked, code: str, wanted: Wanted = Wanted()) -> dict[str, Any]:
    """The documents nearest to a code of hexadecimal digits. Raises Misuse for one of another width."""
    _require(wanted, text=False)
    found = _answer_code(asked, asked.index.log_odds_of_code(code), wanted)
    return {"query": code, "rank": wanted.rank, "hits": found}


def answer_file(asked: Asked, source: Path, target: Path | None, wanted: Wanted = Wanted()) -> int:
    """Answer each line of `source` (a text, or a JSON object with one) into `target` or standard output.

    Returns the number of queries; `target` is there whole or not at all.
    """
    _require(wanted)
    if not source.is_file():
        what = "is a folder" if source.is_dir() else "is not there"
        raise Misuse(f"{source} {what}; --input takes a file with one query a line")
    if target is not None and not target.parent.is_dir():
        raise Misuse(f"--output {target}: there is no folder {target.parent}; make it first")
    if target is not None and target.is_dir():
        raise Misuse(f"--output {target} is a folder; give a file")
    asked.encoder.model.eval()
    with source.open(encoding="utf-8") as lines:
        answers = _answers(asked, _queries(source, lines), wanted)
        if target is None:
            return _write(answers, sys.stdout)
        with replacing(target) as temporary, temporary.open("w", encoding="utf-8") as file:
            return _write(answers, file)


def _answers(asked: Asked, texts: Iterable[str], wanted: Wanted) -> Iterator[dict[str, Any]]:
    waiting, encoder = iter(texts), asked.encoder
    again = reranker(wanted.rerank, encoder) if wanted.rerank else None
    while some := list(islice(waiting, AT_ONCE)):
        table = encoder.table([Document(str(n), text, [], {}, "query", n) for n, text in enumerate(some)])
        log_odds = encoder.ask(table)
        result = _search(asked.index, log_odds, wanted)
        known = [None if encoder.text_encoder else len(ids) for ids in table.column("term_ids").to_pylist()]
        listed = hits(asked.index, result)
        for number, (text, words) in enumerate(zip(some, known, strict=True)):
            found = _explained(asked, log_odds[number], result.rows[number], listed[number], wanted)
            if again:
                found = again.best(text, found, wanted.k)
            yield {"query": text, "rank": wanted.rank, "known_words": words, "hits": found}


def _answer_code(asked: Asked, log_odds: np.ndarray, wanted: Wanted, but: str | None = None) -> list[dict[str, Any]]:
    result = _search(asked.index, log_odds, wanted, more=but is not None)
    found = _explained(asked, log_odds[0], result.rows[0], hits(asked.index, result)[0], wanted)
    return [hit for hit in found if hit["id"] != but][: wanted.k]


def _search(index: Index, log_odds: np.ndarray, wanted: Wanted, *, more: bool = False) -> Hits:
    most = max(wanted.k, CANDIDATES) if wanted.rerank else wanted.k + more
    k, rank = max(1, min(most, len(index))), cast(Rank, wanted.rank)
    if wanted.radius is not None:
        return index.within_radius(log_odds, wanted.radius, k, rank, wanted.where)
    return index.search(log_odds, k, rank, wanted.where)


def _explained(
    asked: Asked, log_odds: np.ndarray, rows: np.ndarray, found: list[dict[str, Any]], wanted: Wanted
) -> list[dict[str, Any]]:
    if not wanted.explain:
        return found
    explain = asked.explainer.explain
    return [hit | {"why": explain(log_odds, asked.index.code(int(row)))} for hit, row in zip(found, rows, strict=False)]


def _require(wanted: Wanted, *, text: bool = True) -> None:
    if wanted.rank not in get_args(Rank):
        raise Misuse(f"--rank {wanted.rank}: choose {' or '.join(get_args(Rank))}")
    if wanted.rerank and not text:
        raise Misuse("--rerank ranks by how like a query's text is; leave it out, or ask with a text")


def _queries(source: Path, lines: TextIO) -> Iterator[str]:
    is_json = source.suffix in (".jsonl", ".json", ".ndjson")
    number = 1
    try:
        for line in lines:
            if line.strip():
                yield _text(json.loads(line)) if is_json else line.rstrip("\n")
            number += 1
    except UnicodeDecodeError as error:
        raise LatentbitsError(f"{source}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except ValueError as error:
        raise LatentbitsError(f'{source}, line {number}: {error}; write {{"text": "..."}} on each line') from None


def _text(row: Any) -> str:
    text = row.get("text") if isinstance(row, dict) else row
    if not isinstance(text, str) or not text.strip():
        raise ValueError("no text in it")
    return text


def _write(answers: Iterator[dict[str, Any]], file: TextIO) -> int:
    return sum(bool(file.write(json.dumps(found, ensure_ascii=False) + "\n")) for found in answers)
