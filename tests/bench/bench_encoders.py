"""The three encoders on the same corpora: P@100 at 64 bits, and documents encoded a second on all cores together.

Each line compares an encoder with the default, the Transformer; LATENTBITS_SEEDS and LATENTBITS_CORPORA choose fewer.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from pipelines.scatter import cluster
from tests.bench.quality import Measured, Study, available, mean_of

ENCODERS = {
    "Transformer": [],
    "without attention": ["model.encoder.layers=0"],
    "bag of words": ["model.encoder={kind: bag_of_words}"],
}


def main() -> Iterator[dict[str, object]]:
    """Two lines for each corpus and encoder."""
    seeds = [int(seed) for seed in os.environ.get("LATENTBITS_SEEDS", "0,1").split(",")]
    with cluster(), tempfile.TemporaryDirectory() as folder:
        for protocol in available():
            if protocol.random:
                continue
            study = Study(protocol, Path(os.environ.get("LATENTBITS_KEEP", folder)) / protocol.name.replace(" ", "-"))
            found = {name: [study.measure(how, seed) for seed in seeds] for name, how in ENCODERS.items()}
            documents = _documents(study)
            for name in ENCODERS:
                yield from _lines(f"encoders, {protocol.name}, {name}", found[name], found["Transformer"], documents)


def _documents(study: Study) -> int:
    parts = next(study.folder.glob("trained*")).glob("codes/part-*.parquet")
    return sum(pq.read_metadata(part).num_rows for part in parts)


def _lines(name: str, found: list[Measured], default: list[Measured], documents: int) -> Iterator[dict[str, object]]:
    ours, theirs = mean_of(found, "log_odds"), mean_of(default, "log_odds")
    quality = {"bench": f"{name}: quality", "ours": round(ours, 4), "theirs": round(theirs, 4), "unit": "P@100"}
    extra = {"hamming": round(mean_of(found, "hamming"), 4), "training_s": round(found[0].training_s)}
    yield quality | {"ratio": round(ours / theirs, 3)} | extra
    fast, usual = (documents / min(one.encoding_s for one in some) for some in (found, default))
    rate = {"bench": f"{name}: speed", "ours": round(fast), "theirs": round(usual), "unit": "documents/s"}
    yield rate | {"ratio": round(fast / usual, 2)}
