"""The recipes' codes at every width, on every corpus that is here, against LSI + ITQ at as many bits: P@100.

LATENTBITS_SPLIT: `validation` (default) or `test`; LATENTBITS_SEEDS, LATENTBITS_BITS and LATENTBITS_CORPORA choose
fewer, as in `LATENTBITS_BITS=64 LATENTBITS_CORPORA=reuters make bench ONLY=quality`.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipelines.scatter import cluster
from tests.bench.quality import Study, against_lsi_itq, available


def main() -> Iterator[dict[str, object]]:
    """Two lines for each corpus and width, one a ranking: the mean over seeds."""
    seeds, widths = (
        [int(one) for one in _chosen(name, few)] for name, few in (("SEEDS", "0,1,2"), ("BITS", "16,32,64,128"))
    )
    with cluster(), tempfile.TemporaryDirectory() as folder:
        for protocol in available():
            study = Study(protocol, Path(os.environ.get("LATENTBITS_KEEP", folder)) / protocol.name.replace(" ", "-"))
            for bits in widths:
                found = [study.measure([f"model.latent.bits={bits}"], seed) for seed in seeds]
                yield from against_lsi_itq(f"quality, {protocol.name}, {bits} bits", found, protocol.lead)


def _chosen(name: str, usual: str) -> list[str]:
    return os.environ.get(f"LATENTBITS_{name}", usual).split(",")
