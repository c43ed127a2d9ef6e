"""What each part of the recipe is worth: P@100 with it left out, on validation parts, 64 bits.

LATENTBITS_SEEDS and LATENTBITS_CORPORA choose seeds and corpora, as in bench_quality, 20 Newsgroups by date unless they
do, and LATENTBITS_PART the parts whose name has that in it; the encoder has no attention, which trains fastest.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipelines.scatter import cluster
from tests.bench.quality import Measured, Study, available, mean_of

FAST = "model.encoder.layers=0"
LEFT_OUT = {
    "the neighbours": ["graph=null"],
    "the words in the graph": ["graph.words_weight=0"],
    "LSI in the graph, nearly": ["graph.words_weight=40"],
    "20,000 of the 30,000 words": ["tokenize.terms=10000"],
    "the bits' start as LSI + ITQ": ["model.encoder.lsi=0"],
    "word dropout": ["model.encoder.term_dropout=0"],
    "the document's own words": ["model.decoder.neighbours=1"],
    "one length for all": ["model.decoder.length=own"],
    "the data-dependent noise": ["model.latent.noise=false"],
    "rounding (bits are drawn)": ["model.latent.estimator={kind: straight_through, draw: sample}"],
    "the price of the rate": ["pretrain.objective.rate.annealing.beta=0"],
    "annealing": ["pretrain.objective.rate.annealing.warmup=0"],
    "the mixture (one component)": ["model.latent.components=1"],
    "the query head": ["pretrain.query_head=false"],
}
ADDED = {
    "decorrelation of 64 bits": ["pretrain.objective.decorrelation=5"],
    "attention": ["model.encoder.layers=1"],
    "word vectors that stay LSI's": ["model.encoder.word_vectors=lsi"],
    "word vectors that learn": ["model.encoder.word_vectors=learned"],
}


def main() -> Iterator[dict[str, object]]:
    """A line for each part: with it left out or added, against the recipe."""
    seeds = [int(seed) for seed in os.environ.get("LATENTBITS_SEEDS", "0,1").split(",")]
    chosen = os.environ.get("LATENTBITS_CORPORA", "newsgroups by date").split(",")
    with cluster(), tempfile.TemporaryDirectory() as folder:
        for protocol in (one for one in available() if one.name in chosen):
            kept = Path(os.environ.get("LATENTBITS_KEEP", folder)) / "ablation" / protocol.name.replace(" ", "-")
            yield from _parts(Study(protocol, kept), seeds)


def _parts(study: Study, seeds: list[int]) -> Iterator[dict[str, object]]:
    recipe, part = [study.measure([FAST], seed) for seed in seeds], os.environ.get("LATENTBITS_PART", "")
    changes = {f"without {what}": settings for what, settings in LEFT_OUT.items()}
    changes |= {f"with {what}": settings for what, settings in ADDED.items()}
    for what, settings in changes.items():
        if part not in what or study.same([FAST, *settings], [FAST]):
            continue
        found = [study.measure([FAST, *settings], seed) for seed in seeds]
        yield _line(f"{study.protocol.name}, {what}", found, recipe)


def _line(what: str, found: list[Measured], recipe: list[Measured]) -> dict[str, object]:
    ours, theirs = mean_of(found, "log_odds"), mean_of(recipe, "log_odds")
    return {
        "bench": f"ablation, 64 bits {what}, log-odds",
        "ours": round(ours, 4),
        "theirs": round(theirs, 4),
        "unit": "P@100",
        "ratio": round(ours / theirs, 3),
        "hamming": [round(mean_of(some, "hamming"), 4) for some in (found, recipe)],
        "by_seed": [round(one.log_odds, 4) for one in found],
    }
