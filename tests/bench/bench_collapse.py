"""Posterior collapse and its remedies: one Gaussian sentence VAE trained by each, on the same sentences for as long.

The decoder is an autoregressive Transformer strong enough to write without z. Every line has the held-out ELBO, rate,
distortion, mutual information, active units and marginal KL, in nats a sentence; the ratio is what the line promises:
of the plain ELBO that it collapses, of free bits and of the minimum rate that they reach their target.
LATENTBITS_METHODS chooses fewer, as in `LATENTBITS_METHODS="aggressive,free bits"`.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.artifact import Artifact
from pipelines.corpus import CorpusConfig, Document
from pipelines.diagnosis.examination import (
    DiagnoseConfig,
    examine,
    information_figures,
    likelihood_figures,
    plane_figures,
)
from pipelines.pretrain import pretrain
from pipelines.scatter import cluster
from pipelines.shards import batch_of
from pipelines.tokenize import tokenize
from pipelines.tokenizer import Tokenizer
from pipelines.tokenizing.config import TokenizeConfig
from pipelines.training.engine import PretrainConfig
from tests.bench.sentences import write_sentences
from vae_core.model import VAE, Composition

SENTENCES, HELD_OUT, TOKENS = 12_000, 1000, 48
DIMENSIONS, TARGET = 16, 6.0
MEASURED = DiagnoseConfig(documents=HELD_OUT, samples=20)
MODEL = {
    "encoder": {
        "kind": "transformer",
        "reads": "tokens",
        "weights": "even",
        "width": 64,
        "hidden": 128,
        "grow_after": 0,
        "dropout": 0,
        "term_dropout": 0,
        "positions": TOKENS,
    },
    "latent": {"kind": "gaussian", "dimensions": DIMENSIONS},
    "decoder": {"kind": "transformer", "width": 64, "layers": 2, "positions": TOKENS},
}
TRAINING = {"epochs": 4, "batch_size": 64, "learning_rate": 2e-3, "block_learning_rate": 2e-3}
PLAIN = {"rate": {"kind": "beta", "annealing": {"warmup": 0}}}
FREE = {"rate": {"kind": "free_bits", "nats": TARGET / DIMENSIONS, "annealing": {"warmup": 0.4}}}
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain ELBO": ({"objective": PLAIN}, {}),
    "linear annealing": ({"objective": {"rate": {"kind": "beta", "annealing": {"warmup": 0.5}}}}, {}),
    "cyclical annealing": ({"objective": {"rate": {"kind": "beta", "annealing": {"warmup": 0.5, "cycles": 4}}}}, {}),
    "free bits": ({"objective": {"rate": {"kind": "free_bits", "nats": TARGET / DIMENSIONS}}}, {}),
    "minimum desired rate": ({"objective": {"rate": {"kind": "minimum_rate", "nats": TARGET}}}, {}),
    "three steps": (
        {
            "phases": [
                {"share": 0.3, "objective": {"rate": {"kind": "beta", "annealing": {"beta": 0}}}},
                {"share": 0.7, "reset": ["decoder"], "objective": FREE},
            ]
        },
        {},
    ),
    "aggressive": (
        {
            "phases": [
                {"share": 0.1, "objective": PLAIN, "aggressive": {"most": 15, "window": 5, "checks": 5}},
                {"share": 0.9, "objective": PLAIN},
            ]
        },
        {},
    ),
    "word dropout 0.5": ({"objective": PLAIN}, {"word_dropout": 0.5}),
    "context of 2 words": ({"objective": PLAIN}, {"window": 2, "layers": 1}),
}
"""Training and decoder settings of each."""


def main() -> Iterator[dict[str, object]]:
    """A line for each method."""
    with tempfile.TemporaryDirectory() as name, cluster():
        folder = Path(name)
        files = write_sentences(folder, train=SENTENCES, held_out=HELD_OUT)
        config = TokenizeConfig(subwords=2000, max_tokens=TOKENS - 1)
        shards = tokenize(CorpusConfig(files=(str(files[0]),)), folder / "shards", config)
        for method in os.environ.get("LATENTBITS_METHODS", ",".join(METHODS)).split(","):
            training, decoder = METHODS[method]
            parts = Composition.model_validate(MODEL | {"decoder": MODEL["decoder"] | decoder})
            out = folder / method.replace(" ", "-")
            model = pretrain(shards.path, out, parts, PretrainConfig.model_validate(TRAINING | training))
            yield _line(method, _figures(model, files[1]), _figures(model, files[0]))


def _figures(model: Artifact, sentences: Path) -> dict[str, Any]:
    """Of the first HELD_OUT sentences of a file."""
    tokenizer, vae = Tokenizer.load(model.path), VAE.from_pretrained(model.path)
    rows = [json.loads(line) for line in sentences.read_text().splitlines()[:HELD_OUT]]
    documents = [Document(row["id"], row["text"], [], {}, sentences.name, n) for n, row in enumerate(rows, 1)]
    table = tokenizer.table(documents)
    batches = [batch_of(table.slice(start, 32), tokens=True) for start in range(0, len(table), 32)]
    examined = examine(vae, batches, MEASURED, likelihood=True, advance=lambda _: None)
    figures = plane_figures(examined) | information_figures(vae, examined, MEASURED)
    return figures | (likelihood_figures(examined) or {})


def _line(method: str, held_out: dict[str, Any], trained_on: dict[str, Any]) -> dict[str, object]:
    kept = {name: round(held_out[name], 3) for name in ("elbo", "rate", "distortion", "perplexity")}
    kept |= {"information": held_out["information"], "marginal_kl": held_out["marginal_kl"]}
    kept |= {"active_units": held_out["active_units"], "rate_in_training": round(trained_on["rate"], 3)}
    line: dict[str, object] = {"bench": f"collapse, {method}", "ours": round(trained_on["rate"], 3), "unit": "nats"}
    if method == "plain ELBO":
        return line | {"theirs": 0.5, "ratio": trained_on["rate"] / 0.5, "at_most": 1.0} | kept
    ratio = {"theirs": TARGET, "ratio": trained_on["rate"] / TARGET}
    if method == "minimum desired rate":
        ratio |= {"at_least": 0.95, "at_most": 1.05}
    if method == "free bits":
        ratio |= {"at_least": 0.95}
    return line | ratio | kept
