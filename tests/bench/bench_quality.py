"""The recipes' codes at every width, on every corpus that is here, against LSI + ITQ at as many bits: P@100.

LATENTBITS_SPLIT: `validation` (default) or `test`; LATENTBITS_SEEDS, LATENTBITS_BITS and LATENTBITS_CORPORA choose
fewer, as in `LATENTBITS_BITS=64 LATENTBITS_CORPORA=reuters make bench ONLY=quality`.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipelines.scatter import cluster
from tests.bench.quality import Study, available, mean_of

AGAINST = {"log_odds": "lsi_itq_asymmetric", "hamming": "lsi_itq"}


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
                for ranking, baseline in AGAINST.items():
                    ours, theirs = mean_of(found, ranking), mean_of(found, baseline)
                    yield {
                        "bench": f"quality, {protocol.name}, {bits} bits, {ranking}",
                        "ours": round(ours, 4),
                        "theirs": round(theirs, 4),
                        "unit": "P@100",
                        "ratio": round(ours / theirs, 3),
                        "by_seed": [round(getattr(one, ranking), 4) for one in found],
                        "training_s": round(max(one.training_s for one in found)),
                        "at_least": round(1 + protocol.lead / theirs, 3),
                    }


def _chosen(name: str, usual: str) -> list[str]:
    return os.environ.get(f"LATENTBITS_{name}", usual).split(",")
