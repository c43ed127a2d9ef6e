"""Real sentences and passages for the studies of language models: of 20 Newsgroups, or of docstrings without it."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from jobs.docstrings import write_docstrings
from tests.bench.corpora import corpus_file

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
WORDS = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")


def write_sentences(folder: Path, *, train: int, held_out: int, longest: int = 24) -> tuple[Path, Path]:
    """Two jsonl files of distinct sentences of 6 to `longest` words, lower-case and without figures, in random order.

    The held-out ones come from other documents than those to train on.
    """
    sentences: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for number, text in enumerate(_texts(folder)):
        for sentence in SENTENCE_END.split(text):
            words = WORDS.findall(sentence)
            if 6 <= len(words) <= longest:
                sentences[number % 5 != 0].setdefault(" ".join(words).lower())
    return _written(folder, sentences, train, held_out)


def write_passages(folder: Path, *, train: int, held_out: int, words: int) -> tuple[Path, Path]:
    """Two jsonl files of passages of 30 to `words` words, otherwise like `write_sentences`."""
    found: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for number, text in enumerate(_texts(folder)):
        for start in range(0, len(every := WORDS.findall(text)), 2 * words):
            if len(every) - start >= 30:
                found[number % 5 != 0].setdefault(" ".join(every[start : start + words]).lower())
    return _written(folder, found, train, held_out)


def _written(folder: Path, found: dict[bool, dict[str, None]], train: int, held_out: int) -> tuple[Path, Path]:
    files = (folder / "train.jsonl", folder / "held_out.jsonl")
    for path, own, count in zip(files, (True, False), (train, held_out), strict=True):
        chosen = sorted(found[own])
        random.Random(0).shuffle(chosen)
        rows = enumerate(chosen[:count])
        path.write_text("".join(json.dumps({"id": f"s{n}", "text": text}) + "\n" for n, text in rows))
    return files


def _texts(folder: Path) -> Iterator[str]:
    corpus = corpus_file("ng20.parquet")
    if corpus is not None:
        for text in pq.read_table(corpus, columns=["text"])["text"].to_pylist():
            body = text.partition("\n\n")[2]
            yield " ".join(line for line in body.splitlines() if line[:1].isalpha())
        return
    write_docstrings(folder / "docstrings.jsonl", limit=30_000)
    for line in (folder / "docstrings.jsonl").open():
        yield json.loads(line)["text"]
