"""A Gaussian VAE against the plain language model: held-out perplexity, the same decoder, trained for as many steps.

Both begin as one language model, the decoder with z = 0. It goes on as it is ("theirs"); or its encoder is trained
first, as an auto-encoder with a decoder of its own, and then both, with annealing and free bits (Li et al. 2019;
"ours"). The VAE's perplexity is by importance sampling, so in expectation too high. Once with a decoder that sees
everything it wrote, and once with one that sees the word before alone, which leaves z something to say (Yang et al.
2017). Each figure is a mean over seeds with its 95 % interval.
"""

import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipelines.artifact import Artifact
from pipelines.corpus import CorpusConfig
from pipelines.scatter import cluster
from pipelines.shards import Shards
from pipelines.tokenize import tokenize
from pipelines.tokenizing.config import TokenizeConfig
from pipelines.training.batches import rows_of_step
from tests.bench.sentences import write_passages
from vae_core.batch import Batch
from vae_core.diagnostics.likelihood import importance_sample, log_mean_exp, perplexity, predicted
from vae_core.model import VAE, VAEConfig
from vae_core.objectives import Annealing, Beta, FreeBits, Objective, loss
from vae_core.schedule import Phase

TRAIN, HELD_OUT, SUBWORDS, TOKENS = 25_000, 400, 2000, 64
DIMENSIONS, FREE_NATS, SAMPLES = 16, 2.0, 20
BATCH, STEPS, ENCODER_STEPS, RATE = 32, 1000, 250, 2e-3
SEEDS = (0, 1, 2)
T_975 = 4.303  # Student's t of two degrees of freedom: three seeds
WINDOWS = {"the word before": 1, "everything before": None}
AUTO_ENCODER = Objective(rate=Beta(annealing=Annealing(beta=0)))
ANNEALED = Objective(rate=FreeBits(nats=FREE_NATS / DIMENSIONS, annealing=Annealing(warmup=0.3)))


@dataclass(frozen=True)
class Study:
    """One pair of trainings; the decoder sees so many words back, or all."""

    shards: Path
    window: int | None
    seed: int


@dataclass(frozen=True)
class Outcome:
    """Held-out perplexities, and the VAE's rate in nats."""

    language_model: float
    vae: float
    rate: float


def main() -> Iterator[dict[str, object]]:
    """A line for each decoder."""
    with tempfile.TemporaryDirectory() as name:
        shards = _shards(Path(name))
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            for seen, window in WINDOWS.items():
                yield _line(seen, list(pool.map(_compared, [Study(shards, window, seed) for seed in SEEDS])))


def _line(seen: str, outcomes: list[Outcome]) -> dict[str, object]:
    ratios = [outcome.vae / outcome.language_model for outcome in outcomes]
    return {
        "bench": f"perplexity, VAE over language model, decoder sees {seen}",
        "ours": round(statistics.mean(outcome.vae for outcome in outcomes), 2),
        "theirs": round(statistics.mean(outcome.language_model for outcome in outcomes), 2),
        "unit": "perplexity of subwords",
        "ratio": round(statistics.mean(ratios), 4),
        "interval": round(T_975 * statistics.stdev(ratios) / math.sqrt(len(ratios)), 4),
        "rate": round(statistics.mean(outcome.rate for outcome in outcomes), 2),
        "at_most": 0.97,
    }


def _compared(study: Study) -> Outcome:
    torch.set_num_threads(1)
    torch.manual_seed(study.seed)
    shards = Shards(Artifact.open(study.shards / "train", "shards"))
    first = _train(_model(study), shards, study.seed, _language_model_loss, STEPS, Phase(trains=("decoder",)))
    language_model, model = _copy(first, study), _copy(first, study)
    _train(language_model, shards, study.seed + 1, _language_model_loss, STEPS, Phase(trains=("decoder",)))
    _train_encoder(model, shards, study)
    _train(model, shards, study.seed + 1, _vae_loss(ANNEALED), STEPS, Phase())
    return _measured(language_model.eval(), model.eval(), Shards(Artifact.open(study.shards / "held_out", "shards")))


def _train_encoder(model: VAE, shards: Shards, study: Study) -> None:
    """Without a price on the rate, and with a decoder that is thrown away; what reads z in the other starts small."""
    kept = {name: value.clone() for name, value in model.decoder.state_dict().items()}
    fresh = _model(study).decoder.state_dict()
    model.decoder.load_state_dict(fresh)
    _train(model, shards, study.seed + 2, _vae_loss(AUTO_ENCODER), ENCODER_STEPS, Phase())
    reads_z = {name: 0.1 * value for name, value in fresh.items() if name.startswith("to_")}
    model.decoder.load_state_dict(kept | reads_z)


Loss = Callable[[VAE, Batch, float], Tensor]


def _language_model_loss(model: VAE, batch: Batch, progress: float) -> Tensor:
    del progress
    return -_of_language_model(model, batch).mean()


def _of_language_model(model: VAE, batch: Batch) -> Tensor:
    """log p(x) of the decoder alone, (B,)."""
    z = torch.zeros(1, len(batch), DIMENSIONS)
    log_px: Tensor = model.decoder(batch, batch.tfidf(model.idf), z)[0]
    return log_px


def _vae_loss(objective: Objective) -> Loss:
    return lambda model, batch, progress: loss(model(batch), objective, progress).total


def _train(model: VAE, shards: Shards, seed: int, of: Loss, steps: int, phase: Phase) -> VAE:
    """Adam with a warm-up and a cosine, over the parts that the phase trains."""
    parameters = [*model.decoder.parameters()] if phase.trains == ("decoder",) else [*model.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    model.train()
    for step in range(steps):
        rows = rows_of_step(step, documents=len(shards), batch_size=BATCH, seed=seed)
        warm = min(1.0, (step + 1) / 50)
        optimizer.param_groups[0]["lr"] = RATE * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        of(model, shards.batch(rows, tokens=True), step / steps).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 300.0)
        optimizer.step()
    return model


@torch.no_grad()
def _measured(language_model: VAE, model: VAE, held_out: Shards) -> Outcome:
    plain, ours, words, rates = [], [], [], []
    for start in range(0, len(held_out), 20):
        batch = held_out.batch(torch.arange(start, min(start + 20, len(held_out))).numpy(), tokens=True)
        plain.append(_of_language_model(language_model, batch).double())
        ours.append(log_mean_exp(importance_sample(model, batch, SAMPLES, chunk=10).log_weights))
        words.append(predicted(model, batch))
        rates.append(model.latent.kl_groups(model.posterior(batch)).sum(dim=1))
    of = [perplexity(torch.cat(log_px), torch.cat(words)) for log_px in (plain, ours)]
    return Outcome(of[0], of[1], float(torch.cat(rates).mean()))


def _model(study: Study) -> VAE:
    """A small decoder; an encoder of words that starts from their LSI vectors, so that it knows topics at once."""
    vocabulary = pq.read_table(study.shards / "train" / "vocabulary.parquet")
    decoder = {"kind": "transformer", "width": 48, "layers": 1, "positions": TOKENS, "window": study.window}
    encoder = {"kind": "transformer", "width": 128, "layers": 0, "hidden": 256, "dropout": 0.1, "term_dropout": 0.2}
    parts = {"encoder": encoder, "latent": {"kind": "gaussian", "dimensions": DIMENSIONS}, "decoder": decoder}
    model = VAE(VAEConfig.model_validate(parts | {"terms": len(vocabulary), "tokens": SUBWORDS}))
    sample = Shards(Artifact.open(study.shards / "train", "shards")).batch(
        rows_of_step(0, documents=TRAIN, batch_size=10_000, seed=0), tokens=False
    )
    counted_on = int(vocabulary.schema.metadata[b"documents"])
    model.start_from(torch.from_numpy(vocabulary["df"].to_numpy().astype("int64")), counted_on, sample)
    return model


def _copy(model: VAE, study: Study) -> VAE:
    copy = _model(study)
    copy.load_state_dict(model.state_dict())
    return copy


def _shards(folder: Path) -> Path:
    """Shards of passages to train on and of held-out ones, with the first ones' subwords."""
    with cluster():
        for path in write_passages(folder, train=TRAIN, held_out=HELD_OUT, words=50):
            given = str(folder / "train" / "tokenizer.json") if path.stem == "held_out" else None
            config = TokenizeConfig(subwords=SUBWORDS, terms=5000, max_tokens=TOKENS - 1, tokenizer=given)
            tokenize(CorpusConfig(files=(str(path),)), folder / path.stem, config)
    return folder
