"""The encoders on the same corpora: P@100 at 64 bits, and documents encoded a second on one core.

Each line compares an encoder with the default, the Transformer; LATENTBITS_SEEDS and LATENTBITS_CORPORA choose fewer.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import torch

from pipelines.artifact import Artifact
from pipelines.encoder import Encoder
from pipelines.files.arrow import record_batches
from pipelines.scatter import cluster
from tests.bench.quality import Measured, Study, available, mean_of

ENCODERS = {
    "Transformer": [],
    "without attention": ["model.encoder.layers=0"],
    "bag of words": ["model.encoder={kind: bag_of_words}"],
    "tokens in order": ["model.encoder={kind: transformer, reads: tokens}"],
    "tokens without attention": ["model.encoder={kind: transformer, reads: tokens, layers: 0}"],
}

DOCUMENTS = 2000
"""Documents that are encoded to time it."""


def main() -> Iterator[dict[str, object]]:
    """Two lines for each corpus and encoder."""
    seeds = [int(seed) for seed in os.environ.get("LATENTBITS_SEEDS", "0,1").split(",")]
    with cluster(), tempfile.TemporaryDirectory() as folder:
        for protocol in available():
            if protocol.random:
                continue
            study = Study(protocol, Path(os.environ.get("LATENTBITS_KEEP", folder)) / protocol.name.replace(" ", "-"))
            found = {name: [study.measure(how, seed) for seed in seeds] for name, how in ENCODERS.items()}
            rates = {name: _documents_a_second(some[0]) for name, some in found.items()}
            for name in ENCODERS:
                yield _quality(f"encoders, {protocol.name}, {name}: quality", found[name], found["Transformer"])
                yield _speed(f"encoders, {protocol.name}, {name}: speed of one core", rates[name], rates["Transformer"])


def _quality(name: str, found: list[Measured], default: list[Measured]) -> dict[str, object]:
    ours, theirs = mean_of(found, "log_odds"), mean_of(default, "log_odds")
    figure = {"bench": name, "ours": round(ours, 4), "theirs": round(theirs, 4), "unit": "P@100"}
    extra = {"hamming": round(mean_of(found, "hamming"), 4), "training_s": round(found[0].training_s)}
    return figure | {"ratio": round(ours / theirs, 3)} | extra


def _speed(name: str, ours: float, theirs: float) -> dict[str, object]:
    figure = {"bench": name, "ours": round(ours), "theirs": round(theirs), "unit": "documents/s"}
    return figure | {"ratio": round(ours / theirs, 2)}


def _documents_a_second(one: Measured) -> float:
    """The encoder's own rate on one core, after it was loaded and has encoded some documents."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    encoder, parts = Encoder.load(one.model), Artifact.open(one.shards, "shards").files(".arrow")
    documents = pa.Table.from_batches(batch for part in parts for batch in record_batches(part)).slice(0, DOCUMENTS)
    encoder.encode(documents.slice(0, DOCUMENTS // 10))
    began = time.perf_counter()
    encoder.encode(documents)
    seconds = time.perf_counter() - began
    torch.set_num_threads(threads)
    return len(documents) / seconds
