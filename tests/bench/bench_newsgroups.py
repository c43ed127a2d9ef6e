"""The recipe `newsgroups`, from the parquet file to the report: minutes, and P@100 beside LSI + ITQ and SimHash."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from jobs.config import load_config
from jobs.run import run
from tests.bench.corpora import corpus_file

SECONDS = 900.0


def main() -> Iterator[dict[str, object]]:
    """Run the recipe; says so and measures nothing where the corpus is not on this machine."""
    corpus = corpus_file("ng20.parquet")
    if corpus is None:
        sys.stderr.write("newsgroups: ng20.parquet is not here; set LATENTBITS_DATA to the folder that has it\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"corpus.files=[{json.dumps(str(corpus))}]", f"out={json.dumps(folder + '/run')}"]
        began = time.monotonic()
        run(load_config("newsgroups", settings))
        seconds = time.monotonic() - began
        report = json.loads((Path(folder) / "run" / "report" / "report.json").read_text())
    name = "newsgroups, parquet to report"
    yield {"bench": name, "ours": seconds, "theirs": SECONDS, "unit": "s", "ratio": seconds / SECONDS, "at_most": 1.0}
    averaged = report["ties_averaged"]
    for ranking, baseline in (("log_odds", "lsi_itq_asymmetric"), ("hamming", "lsi_itq"), ("hamming", "simhash")):
        ours, theirs = averaged[ranking], averaged[baseline]
        figure = {"bench": f"newsgroups, 64 bits by {ranking} against {baseline}", "ours": ours, "theirs": theirs}
        yield figure | {"unit": "P@100", "ratio": ours / theirs, "at_least": 1.0}
