"""Time and memory of a run as the corpus grows: the stages up to codes, on a corpus and on one four times as large.

LATENTBITS_DOCUMENTS is the size of the larger one, 40,000 if it is not set, LATENTBITS_WORDS the length of a text, 80.
Documents are drawn from a hundred topics over a Zipf vocabulary and repeated with changes, so that some are near
duplicates. Training is one epoch. A million documents take over an hour: each stage is told on stderr when it is done.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench.watched import watched

TOPICS, WORDS, VERSIONS = 100, 30_000, 4
STAGES = ("tokenize", "graph", "pretrain", "encode")
ALL = "all of them"
AT_ONCE = 20_000
GIGABYTES = 8.0


def main() -> Iterator[dict[str, object]]:
    """Seconds a document of each stage, the larger corpus by the smaller; and the most memory."""
    large = int(os.environ.get("LATENTBITS_DOCUMENTS", "40000"))
    length = int(os.environ.get("LATENTBITS_WORDS", "80"))
    with tempfile.TemporaryDirectory() as name:
        found = {size: _measured(Path(name) / str(size), size, length) for size in (large // 4, large)}
    for stage in (*STAGES, ALL):
        each = {documents: stages[stage][0] / documents * 1e3 for documents, stages in found.items()}
        yield {
            "bench": f"scale, {stage}: {large:,} documents against {large // 4:,}",
            "ours": round(each[large], 3),
            "theirs": round(each[large // 4], 3),
            "unit": "ms a document",
            "ratio": round(each[large] / each[large // 4], 3),
            "at_most": 1.3,
            "gigabytes": round(found[large][stage][1] / 1e9, 2),
        }
    peak = found[large][ALL][1] / 1e9
    figure = {"bench": f"scale, most memory at {large:,} documents", "ours": round(peak, 2), "theirs": GIGABYTES}
    yield figure | {"unit": "GB", "ratio": round(peak / GIGABYTES, 3), "at_most": 1.0}


def _measured(folder: Path, documents: int, length: int) -> dict[str, tuple[float, int]]:
    """Seconds and bytes of each stage, run one after the other, and of all."""
    folder.mkdir()
    write_corpus(folder / "corpus.parquet", documents, length)
    command = [str(Path(sys.executable).with_name("latentbits")), "run", "default", "--out", str(folder / "run")]
    command += ["--set", f"corpus.files=[{folder / 'corpus.parquet'}]", "--set", "corpus.id=id"]
    command += ["--set", "pretrain.epochs=1", "--set", "tracking.enabled=false"]
    found = {}
    for stage in STAGES:
        seconds, memory = watched([*command, "--until", stage, *(["--from", stage] if stage != "tokenize" else [])])
        print(f"{documents:,} documents, {stage}: {seconds:.0f} s, {memory / 1e9:.2f} GB", file=sys.stderr, flush=True)
        found[stage] = seconds, memory
    times, memories = zip(*found.values(), strict=True)
    return found | {ALL: (sum(times), max(memories))}


def write_corpus(path: Path, documents: int, length: int) -> None:
    """A parquet file of so many texts of so many words, with an id each."""
    dice = np.random.default_rng(0)
    vocabulary = np.array([f"w{number:05d}" for number in range(WORDS)])
    orders = [dice.permutation(WORDS) for _ in range(TOPICS)]
    with pq.ParquetWriter(path, pa.schema([("id", pa.string()), ("text", pa.string())])) as writer:
        for start in range(0, documents, AT_ONCE):
            rows = range(start, min(start + AT_ONCE, documents))
            topics = [orders[first // VERSIONS % TOPICS] for first in rows[::VERSIONS]]
            texts = [text for order in topics for text in _versions(dice, vocabulary, order, length)]
            ids = [f"d{row}" for row in rows]
            writer.write_table(pa.table([ids, texts[: len(ids)]], schema=writer.schema))


def _versions(dice: np.random.Generator, vocabulary: np.ndarray, order: np.ndarray, length: int) -> list[str]:
    """Some texts of one topic that share two thirds of their words."""
    places = np.minimum((np.exp(dice.random((VERSIONS + 1, length)) * np.log(WORDS)) - 1).astype(int), WORDS - 1)
    words = np.where(dice.random(places.shape) < 0.5, order[places], places)
    shared = dice.random((VERSIONS, length)) < 2 / 3
    return [" ".join(vocabulary[np.where(shared[one], words[-1], words[one])]) for one in range(VERSIONS)]
