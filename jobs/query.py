"""Texts to hits: encode each query with the model that made the index's codes, and search."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, cast, get_args

from pipelines.artifact import replacing
from pipelines.corpus import Document
from pipelines.encoder import Encoder
from pipelines.search import Index, Rank, hits, require_model
from vae_core.errors import LatentbitsError, Misuse

AT_ONCE = 256


def answer(
    index: Path,
    texts: Sequence[str],
    *,
    k: int = 10,
    rank: str = "log-odds",
    model: Path | None = None,
    encoder_folder: Path | None = None,
) -> list[dict[str, Any]]:
    """For each text its query, the ranking, and its `k` nearest documents, best first.

    `known_words` counts the query's words that the model knows, without any of which the hits mean nothing; it is None
    where the model reads an embedding of the query too, whose sentence encoder lies in `encoder_folder` if not where
    it was.
    Raises Misuse or Stale where the index, the model or the ranking do not fit.
    """
    if not all(text.strip() for text in texts):
        raise Misuse(
            'the query is empty; say what to look for, for example: latentbits query runs/demo/index "sort a list"'
        )
    ranking = _rank(rank)
    return list(_answers(*_opened(index, model, encoder_folder), texts, k, ranking))


def answer_file(
    index: Path,
    source: Path,
    target: Path | None,
    *,
    k: int = 10,
    rank: str = "log-odds",
    model: Path | None = None,
    encoder_folder: Path | None = None,
) -> int:
    """Answer each line of `source` (a text, or a JSON object with one) into `target` or standard output.

    Returns the number of queries; `target` is there whole or not at all.
    """
    ranking = _rank(rank)
    if not source.is_file():
        what = "is a folder" if source.is_dir() else "is not there"
        raise Misuse(f"{source} {what}; --input takes a file with one query a line")
    if target is not None and not target.parent.is_dir():
        raise Misuse(f"--output {target}: there is no folder {target.parent}; make it first")
    if target is not None and target.is_dir():
        raise Misuse(f"--output {target} is a folder; give a file")
    searched, encoder = _opened(index, model, encoder_folder)
    with source.open(encoding="utf-8") as lines:
        answers = _answers(searched, encoder, _queries(source, lines), k, ranking)
        if target is None:
            return _write(answers, sys.stdout)
        with replacing(target) as temporary, temporary.open("w", encoding="utf-8") as file:
            return _write(answers, file)


def _opened(index: Path, model: Path | None, encoder_folder: Path | None) -> tuple[Index, Encoder]:
    searched = Index.open(index)
    encoder = Encoder.load(model or searched.model_path(), encoder_folder)
    require_model(searched, encoder.fingerprint)
    return searched, encoder


def _answers(index: Index, encoder: Encoder, texts: Iterable[str], k: int, rank: Rank) -> Iterator[dict[str, Any]]:
    waiting, k = iter(texts), min(k, len(index))
    while some := list(islice(waiting, AT_ONCE)):
        table = encoder.tokenizer.table([Document(str(n), text, [], {}, "query", n) for n, text in enumerate(some)])
        found = hits(index, index.search(encoder.encode(table).log_odds, k, rank))
        known = [None if encoder.text_encoder else len(ids) for ids in table.column("term_ids").to_pylist()]
        for text, words, best in zip(some, known, found, strict=True):
            yield {"query": text, "rank": rank, "known_words": words, "hits": best}


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


def _rank(name: str) -> Rank:
    if name not in get_args(Rank):
        raise Misuse(f"--rank {name}: choose {' or '.join(get_args(Rank))}")
    return cast(Rank, name)
