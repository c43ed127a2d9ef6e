"""What default.yaml finds as it is, on corpora that it was not made on, against LSI + ITQ at as many bits: P@100.

15 % of the documents ask (elsewhere.py has the corpora). LATENTBITS_BITS, LATENTBITS_SEEDS and LATENTBITS_CORPORA
choose, as in `LATENTBITS_BITS=64 LATENTBITS_CORPORA=verses,chapters make bench ONLY=defaults`.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.scatter import cluster
from tests.bench.elsewhere import CORPORA, write_corpus
from tests.bench.quality import Protocol, Study, against_lsi_itq

LEAD = 0.03
"""In P@100."""


def main() -> Iterator[dict[str, object]]:
    """Two lines for each corpus and width, one a ranking: the mean over seeds."""
    widths = [int(bits) for bits in os.environ.get("LATENTBITS_BITS", "64,32").split(",")]
    seeds = [int(seed) for seed in os.environ.get("LATENTBITS_SEEDS", "0").split(",")]
    names = os.environ.get("LATENTBITS_CORPORA", ",".join(CORPORA)).split(",")
    if unknown := set(names) - set(CORPORA):
        raise SystemExit(f"LATENTBITS_CORPORA has {', '.join(sorted(unknown))}; there are {', '.join(CORPORA)}")
    with cluster(), tempfile.TemporaryDirectory() as folder:
        kept = Path(os.environ.get("LATENTBITS_KEEP", folder))
        kept.mkdir(parents=True, exist_ok=True)
        for name in names:
            file = kept / f"{name.replace(' ', '-')}.parquet"
            if not write_corpus(file, CORPORA[name]()):
                sys.stderr.write(f"this machine has no {name}\n")
                continue
            sizes = _sizes(pq.read_table(file))
            study = Study(Protocol(name, str(file), "default"), kept / name.replace(" ", "-"))
            for bits in widths:
                found = [study.measure([f"model.latent.bits={bits}"], seed) for seed in seeds]
                for figure in against_lsi_itq(f"defaults, {name}, {bits} bits", found, LEAD):
                    yield figure | sizes


def _sizes(corpus: pa.Table) -> dict[str, object]:
    labels = {label for labels in corpus["labels"].to_pylist() for label in labels}
    words = mean(len(text.split()) for text in corpus["text"].to_pylist())
    return {"documents": len(corpus), "labels": len(labels), "words": round(words)}
