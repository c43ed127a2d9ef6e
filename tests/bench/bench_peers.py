"""Published text-hashing methods beside LSI + ITQ at equal bits, each at its own best setting: a line each and width.

LATENTBITS_SPLIT says which part asks, validation (unless told) or test; LATENTBITS_CORPUS which corpus, `ng20 by date`
unless told. `ours` is the published method's P@100 by Hamming distance, `theirs` LSI + ITQ's; `log_odds` and
`asymmetric` are the two where the query keeps its numbers. Ties are averaged. docs/peers.md has more.
"""

import os
import sys
import time
from collections.abc import Iterator

from tests.bench.peers import ammi, bmsh, lsi_itq, nash, vdsh
from tests.bench.peers.protocol import CORPORA, Corpus, asked_part, precision, task

WIDTHS = (16, 32, 64, 128)
METHODS = {"VDSH": vdsh, "NASH": nash, "BMSH": bmsh, "AMMI": ammi}


def main() -> Iterator[dict[str, object]]:
    """Train each method at each width; says so and measures nothing where the corpus is not on this machine."""
    corpus, part = _corpus(), asked_part()
    asked = task(corpus, part)
    if asked is None:
        sys.stderr.write("peers: the corpus is not here; set LATENTBITS_DATA to the folder that has it\n")
        return
    for bits in WIDTHS:
        baseline = precision(lsi_itq.fit(asked.database, bits), asked)
        for name, method in METHODS.items():
            began = time.process_time()
            ours = precision(method.fit(asked.database, bits), asked)
            figure = {
                "bench": f"peers, {corpus}, {bits} bits, {name}",
                "ours": ours.hamming,
                "theirs": baseline.hamming,
            }
            figure |= {"unit": "P@100", "ratio": ours.hamming / baseline.hamming}
            figure |= {"log_odds": ours.log_odds, "asymmetric": baseline.log_odds}
            figure |= {"split": part, "cpu_seconds": round(time.process_time() - began)}
            yield figure | {"settings": method.SETTINGS.model_dump()}


def _corpus() -> Corpus:
    name = os.environ.get("LATENTBITS_CORPUS", CORPORA[0])
    for corpus in CORPORA:
        if name == corpus:
            return corpus
    raise ValueError(f"LATENTBITS_CORPUS is {name!r}; set it to one of {', '.join(CORPORA)}")
