"""What a text loses when most of its vectors go: with the nonparametric bottleneck (NVIB), and without it.

Sentences of 8 to 16 subwords; an encoder and a decoder of one layer each; accuracy is the share of the tokens of
held-out sentences that the decoder, reading only what it wrote itself, puts in their place. NVIB decides in training
which vectors to drop. The plain model is the same encoder and decoder with a Gaussian vector for every token and
ordinary attention to them; its vectors are dropped after training, as many of each text, at random or those of least
norm, whichever costs it less.
"""

import math
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.artifact import Artifact
from pipelines.corpus import CorpusConfig
from pipelines.scatter import cluster
from pipelines.shards import Shards
from pipelines.tokenize import TokenizeConfig, tokenize
from tests.bench.sentences import write_sentences
from vae_core.batch import Batch
from vae_core.decoders.autoregressive import token_accuracy
from vae_core.denoising_attention import Mixture
from vae_core.generation import generate, sequence_decoder
from vae_core.latents.gaussian import GaussianPosterior, gaussian_kl
from vae_core.latents.nonparametric import NonparametricLatent, NonparametricPosterior
from vae_core.model import VAE, VAEConfig

WIDTH, HEADS, SUBWORDS, TERMS = 64, 4, 1000, 30_000
STEPS, DOCUMENTS, RATE = 1500, 32, 3e-3
FREE, STEADY = 0.2, 0.5  # shares of training: before the first the KL is free, after the other the rate falls
SHORTEST, LONGEST, HELD_OUT = 8, 16, 400
SEEDS = (0, 1, 2)
SLIGHT_G, SLIGHT, CHOSEN = 1e-5, 0.01, 4.0
CURVE = (2.0, 6.0)
WANTED = 0.6  # share of the vectors to drop at no more than 2 % of the accuracy
T_975 = 4.303  # Student's t of two degrees of freedom: three seeds


@dataclass(frozen=True)
class Study:
    """One training: NVIB at a KL weight, or (None) the plain model."""

    weight: float | None
    seed: int


@dataclass(frozen=True)
class Outcome:
    """Of the held-out sentences: share of vectors dropped, and accuracy on their own and under teacher forcing."""

    dropped: float
    free: float
    taught: float


def main() -> Iterator[dict[str, object]]:
    """Accuracies ("ours" with most vectors dropped), each a mean over seeds with its 95 % interval."""
    with tempfile.TemporaryDirectory() as name:
        shards = _shards(Path(name))
        slight, chosen = ([Study(weight, seed) for seed in SEEDS] for weight in (SLIGHT, CHOSEN))
        plain = [Study(None, seed) for seed in SEEDS]
        studies = [*chosen, *slight, *(Study(weight, 0) for weight in CURVE)]
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            outcomes = dict(zip(studies, pool.map(_nvib, [shards] * len(studies), studies), strict=True))
            shares = [outcomes[study].dropped for study in chosen]
            theirs = list(pool.map(_plain, [shards] * len(plain), plain, shares))
    for weight in sorted({study.weight or 0.0 for study in studies}):
        yield _point(weight, [outcome for study, outcome in outcomes.items() if study.weight == weight])
    ours = [outcomes[study] for study in chosen]
    yield _figure("share of vectors dropped", [one.dropped for one in ours], [WANTED] * len(SEEDS))
    kept = [one.free / outcomes[study].free for one, study in zip(ours, slight, strict=True)]
    yield _figure("accuracy kept", kept, [1.0] * len(SEEDS))
    theirs_kept = [few.free / every.free for few, every in theirs]
    yield _figure("accuracy kept, against dropping without nvib", kept, theirs_kept) | {"at_least": 1.0}


def _point(weight: float, outcomes: list[Outcome]) -> dict[str, object]:
    """A point of the curve: the share of vectors kept beside the accuracy."""
    free, taught, dropped = (
        statistics.mean(getattr(one, field) for one in outcomes) for field in ("free", "taught", "dropped")
    )
    figure = {"bench": f"nvib, KL weight {weight:g}", "ours": round(free, 4), "theirs": round(taught, 4)}
    return figure | {"unit": "accuracy, own words / taught", "kept": round(1 - dropped, 4), "ratio": round(free, 4)}


def _figure(name: str, ours: list[float], theirs: list[float]) -> dict[str, object]:
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return {
        "bench": f"nvib, {name}",
        "ours": round(statistics.mean(ours), 4),
        "theirs": round(statistics.mean(theirs), 4),
        "unit": "share",
        "ratio": round(statistics.mean(ratios), 4),
        "interval": round(T_975 * statistics.stdev(ratios) / math.sqrt(len(ratios)), 4),
    }


def _nvib(shards: Path, study: Study) -> Outcome:
    assert study.weight is not None
    model = _trained(_model(), shards, study, study.weight)
    batch = _held_out(shards)
    posterior = model.posterior(batch)
    z = model.latent.mode(posterior)
    kept = (z.log_weights[:, 1:] > -math.inf).sum(dim=1) / posterior.lengths
    return _outcome(model, batch, z, 1 - float(kept.mean()))


def _plain(shards: Path, study: Study, dropped: float) -> tuple[Outcome, Outcome]:
    """The plain model with this share of its vectors dropped, and with all of them."""
    model = _model()
    assert isinstance(model.latent, NonparametricLatent)
    model.latent = PlainVectors(model.latent.config, model.encoder.width)
    model = _trained(model, shards, study, SLIGHT)
    batch = _held_out(shards)
    posterior = model.posterior(batch)
    orders = (torch.rand(posterior.mask.shape), posterior.centres.norm(dim=2))
    few = [_outcome(model, batch, model.latent.mode(_fewer(posterior, order, dropped)), dropped) for order in orders]
    return max(few, key=lambda one: one.free), _outcome(model, batch, model.latent.mode(posterior), 0.0)


def _fewer(posterior: NonparametricPosterior, worth_BN: Tensor, dropped: float) -> NonparametricPosterior:
    """The posterior with this share of each document's vectors dropped, those of least worth."""
    worth_BN = worth_BN.masked_fill(~posterior.mask, -math.inf).index_fill(1, torch.tensor(0), -math.inf)
    rank_BN = worth_BN.argsort(dim=1, descending=True).argsort(dim=1)
    kept_B = ((1 - dropped) * posterior.lengths).round().clamp(min=1)
    return posterior._replace(pseudo_counts=posterior.pseudo_counts.masked_fill(rank_BN >= kept_B.unsqueeze(1), 0.0))


class PlainVectors(NonparametricLatent):
    """A Gaussian for every token, and weights that make denoising attention ordinary attention to all of them."""

    def sample(self, posterior: NonparametricPosterior, samples: int) -> Mixture:
        return _equal(posterior, super().sample(posterior, samples))

    def mode(self, posterior: NonparametricPosterior) -> Mixture:
        impulses = Mixture(posterior.pseudo_counts, posterior.centres, torch.zeros_like(posterior.centres))
        return _equal(posterior, impulses)

    def kl_groups(self, posterior: NonparametricPosterior) -> Tensor:
        zeros = torch.zeros_like(posterior.centres)
        normals = GaussianPosterior(posterior.centres, posterior.log_variances)
        by_vector_BN = gaussian_kl(normals, GaussianPosterior(zeros, zeros)).sum(dim=2) * posterior.mask
        return torch.stack([by_vector_BN.sum(dim=1), torch.zeros(len(by_vector_BN))], dim=1)


def _equal(posterior: NonparametricPosterior, z: Mixture) -> Mixture:
    absent = ~posterior.mask.index_fill(1, torch.tensor(0), False) | (posterior.pseudo_counts == 0)
    norms = z.means.square().sum(dim=-1) / (2 * math.sqrt(WIDTH / HEADS))
    return z._replace(log_weights=norms.masked_fill(absent, -math.inf).log_softmax(dim=-1))


@torch.inference_mode()
def _outcome(model: VAE, batch: Batch, z: Mixture, dropped: float) -> Outcome:
    decoder = sequence_decoder(model)
    lesson = decoder.teacher.lesson(batch, training=False)
    taught = float(token_accuracy(decoder.logits(lesson.inputs, z), lesson.targets).mean())
    starts = batch.tokens.offsets.tolist()
    texts = [batch.tokens.values[start:end].tolist() for start, end in pairwise(starts)]
    right = [sum(map(int.__eq__, written, text)) for written, text in zip(generate(decoder, z), texts, strict=True)]
    return Outcome(dropped, sum(right) / starts[-1], taught)


def _model() -> VAE:
    encoder = {"kind": "transformer", "reads": "tokens", "weights": "even", "width": WIDTH, "heads": HEADS}
    decoder = {"kind": "denoising_attention", "width": WIDTH, "layers": 1, "heads": HEADS, "positions": 32}
    settings: dict[str, Any] = {
        "encoder": encoder | {"positions": 32, "dropout": 0.0, "term_dropout": 0.0, "grow_after": 0.0},
        "latent": {"kind": "nonparametric", "dimensions": WIDTH},
        "decoder": decoder | {"word_dropout": 0.3},
    }
    return VAE(VAEConfig.model_validate(settings | {"terms": TERMS, "tokens": SUBWORDS}))


def _trained(model: VAE, shards: Path, study: Study, weight: float) -> VAE:
    """The model after STEPS steps; the KL's price rises from when most texts are copied, and then stays.

    The price is of L_D. L_G has a slight one: vectors that must be vague make collapse come sooner.
    """
    torch.set_num_threads(1)
    torch.manual_seed(study.seed)
    rows, prices = _rows(shards / "train"), torch.tensor([SLIGHT_G, weight])
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98))
    for step in range(STEPS):
        done = step / STEPS
        optimiser.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / 50, (1 - done) / (1 - STEADY))
        terms = model(rows.batch(torch.randint(len(rows), (DOCUMENTS,))))
        rising = min(1.0, max(0.0, (done - FREE) / (STEADY - FREE)))
        loss = rising * (terms.kl_groups.mean(dim=0) @ prices) - terms.log_px.mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.eval()


@dataclass(frozen=True)
class _Rows:
    """The sentences of 8 to 16 subwords among those of some shards."""

    shards: Shards
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, which: Tensor) -> Batch:
        return self.shards.batch(self.numbers[which.numpy()], tokens=True)


def _rows(path: Path) -> _Rows:
    shards = Shards(Artifact.open(path, "shards"))
    lengths = shards.batch(np.arange(len(shards)), tokens=True).tokens.lengths
    return _Rows(shards, np.flatnonzero((lengths >= SHORTEST) & (lengths <= LONGEST)))


def _held_out(shards: Path) -> Batch:
    rows = _rows(shards / "held_out")
    return rows.batch(torch.arange(min(HELD_OUT, len(rows))))


def _shards(folder: Path) -> Path:
    """Shards of sentences to train on and held out ones, with the first ones' subwords."""
    train, held_out = write_sentences(folder, train=40_000, held_out=2_000, longest=12)
    with cluster():
        for path in (train, held_out):
            learned = str(folder / "train" / "tokenizer.json") if path is held_out else None
            config = TokenizeConfig(subwords=SUBWORDS, sample=20_000, tokenizer=learned)
            tokenize(CorpusConfig(files=(str(path),), id="id"), folder / path.stem, config)
    return folder
