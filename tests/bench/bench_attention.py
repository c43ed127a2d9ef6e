"""Where attention pays: P@100 at 64 bits with a Transformer block and without, as a corpus grows, in order or as a set.

The corpus is code, functions of installed packages (`functions.py`): what a function is says the order of its tokens
more than a newspaper's. LATENTBITS_DOCUMENTS gives its sizes, LATENTBITS_SEEDS the seeds.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipelines.scatter import cluster
from tests.bench.elsewhere import write_corpus
from tests.bench.functions import labelled_functions
from tests.bench.quality import Measured, Protocol, Study, mean_of

READS = ("terms", "tokens")
LABEL_FLOOR = 1000
"""Functions that a package has at least, of all."""


def main() -> Iterator[dict[str, object]]:
    """A line for each size and way of reading."""
    sizes = [int(size) for size in os.environ.get("LATENTBITS_DOCUMENTS", "10000,100000").split(",")]
    seeds = [int(seed) for seed in os.environ.get("LATENTBITS_SEEDS", "0").split(",")]
    with cluster(), tempfile.TemporaryDirectory() as folder:
        kept = Path(os.environ.get("LATENTBITS_KEEP", folder))
        for size in sizes:
            file = kept / f"functions-{size}.parquet"
            size = write_corpus(file, labelled_functions(), size, LABEL_FLOOR)
            study = Study(Protocol(f"{size} functions", str(file), "default"), kept / f"functions-{size}")
            for reads in READS:
                without, attends = (
                    [study.measure([_encoder(reads, layers)], seed) for seed in seeds] for layers in (0, 1)
                )
                yield _line(f"attention, {size} functions, {reads}", attends, without)


def _encoder(reads: str, layers: int) -> str:
    return f"model.encoder={{kind: transformer, reads: {reads}, layers: {layers}}}"


def _line(name: str, attends: list[Measured], without: list[Measured]) -> dict[str, object]:
    ours, theirs = mean_of(attends, "log_odds"), mean_of(without, "log_odds")
    return {
        "bench": name,
        "ours": round(ours, 4),
        "theirs": round(theirs, 4),
        "unit": "P@100",
        "ratio": round(ours / theirs, 3),
        "hamming": [round(mean_of(some, "hamming"), 4) for some in (attends, without)],
        "lsi_itq_asymmetric": round(mean_of(without, "lsi_itq_asymmetric"), 4),
        "training_s": [round(some[0].training_s) for some in (attends, without)],
    }
