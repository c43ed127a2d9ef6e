"""Whether the held-out loss, which no label goes into, tells how long to train: trainings of several lengths.

The figure is Spearman's correlation, over lengths, of minus the last held-out loss with P@100 by log-odds; and what
P@100 the length with the lowest held-out loss has, by the best. LATENTBITS_CORPORA chooses one of the two corpora.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scipy.stats import spearmanr

from pipelines.scatter import cluster
from tests.bench.quality import Study, available

EPOCHS = (2, 4, 8, 12, 20, 40)


def main() -> Iterator[dict[str, object]]:
    """Two lines for each of the first protocol and the titles."""
    with cluster(), tempfile.TemporaryDirectory() as folder:
        for protocol in available():
            if protocol.name in ("newsgroups by date", "reuters titles"):
                study = Study(protocol, Path(folder) / protocol.name.replace(" ", "-"))
                pairs = [_length(study, epochs) for epochs in EPOCHS]
                yield from _lines(protocol.name, pairs)


def _length(study: Study, epochs: int) -> tuple[float, float]:
    """The last held-out loss and P@100 of a training of so many epochs."""
    settings = ["model.encoder.layers=0", f"pretrain.epochs={epochs}", "pretrain.patience=1000"]
    found = study.measure(settings)
    (metrics,) = study.folder.glob(f"trained*pretrain.epochs={epochs}-*/model/metrics.jsonl")
    losses = [json.loads(line).get("held_out_loss") for line in metrics.read_text().splitlines()]
    return [loss for loss in losses if loss is not None][-1], found.log_odds


def _lines(name: str, pairs: list[tuple[float, float]]) -> Iterator[dict[str, object]]:
    losses, precisions = zip(*pairs, strict=True)
    curve = {str(epochs): [round(number, 4) for number in pair] for epochs, pair in zip(EPOCHS, pairs, strict=True)}
    correlation = float(spearmanr([-loss for loss in losses], precisions).statistic)
    yield {
        "bench": f"stopping, {name}: held-out loss and P@100 over lengths of training",
        "ours": round(correlation, 3),
        "theirs": 1.0,
        "unit": "Spearman's rho",
        "ratio": round(correlation, 3),
        "epochs": curve,
    }
    chosen, best = precisions[losses.index(min(losses))], max(precisions)
    yield {
        "bench": f"stopping, {name}: length with the lowest held-out loss",
        "ours": round(chosen, 4),
        "theirs": round(best, 4),
        "unit": "P@100",
        "ratio": round(chosen / best, 3),
        "at_least": 0.98,
    }
