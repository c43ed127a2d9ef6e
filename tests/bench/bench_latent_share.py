"""What share of a training step each latent takes: its forward and backward pass in that of the whole default model.

Ours is the latent alone, from the encoder's features to their gradient: heads, samples, densities, exact KL. Theirs is
the forward and backward pass of the default Transformer over terms and its bag-of-words decoder with that latent in it,
without the optimiser's step, on 256 documents of about 60 terms of 30,000, of which 10,000 are reconstructed.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vae_core.batch import Batch, Ragged
from vae_core.latents import (
    BernoulliConfig,
    BernoulliMixtureConfig,
    CategoricalConfig,
    GaussianConfig,
    GaussianMixtureConfig,
    LatentConfig,
)
from vae_core.latents.latent import Latent, LatentDraw
from vae_core.model import VAE, VAEConfig

DOCUMENTS, WORDS, VOCABULARY, COMPONENTS = 256, 60, 30_000, 32
ROUNDS = 7
AT_MOST = 0.1
LATENTS: dict[str, LatentConfig] = {
    "bernoulli_mixture": BernoulliMixtureConfig(bits=64, components=COMPONENTS),
    "bernoulli": BernoulliConfig(bits=64),
    "categorical": CategoricalConfig(variables=8, values=16),
    "gaussian": GaussianConfig(dimensions=64),
    "gaussian_vamp": GaussianConfig(dimensions=64, prior="vamp", pseudo_inputs=COMPONENTS),
    "gaussian_mixture": GaussianMixtureConfig(dimensions=64, components=COMPONENTS),
}


def main() -> Iterator[dict[str, object]]:
    """Milliseconds of the latent's pass ("ours") and of the whole step's ("theirs")."""
    batch = _batch()
    for name, config in LATENTS.items():
        torch.manual_seed(0)
        model = VAE(VAEConfig(latent=config, terms=VOCABULARY, tokens=VOCABULARY)).train()
        features = torch.randn(DOCUMENTS, model.encoder.width)
        ours, theirs = _medians(_latent_pass(model.latent, features), _step(model, batch))
        yield {
            "bench": f"latent_share_{name}",
            "ours": round(1000 * ours, 2),
            "theirs": round(1000 * theirs, 2),
            "unit": "ms",
            "ratio": round(ours / theirs, 4),
            "at_most": AT_MOST,
        }


def _latent_pass(latent: Latent, features: Tensor) -> Callable[[], None]:
    def run() -> None:
        latent.zero_grad()
        draw: LatentDraw = latent(features.requires_grad_())
        (draw.z.sum() + draw.kl_groups.sum() - draw.dispersion.sum()).backward()

    return run


def _step(model: VAE, batch: Batch) -> Callable[[], None]:
    def run() -> None:
        model.zero_grad()
        terms = model(batch)
        (terms.kl_groups.sum(dim=1).mean() - terms.log_px.mean()).backward()

    return run


def _medians(one: Callable[[], None], other: Callable[[], None]) -> tuple[float, float]:
    """Seconds of each, in turns, so that what slows the machine slows both; the first turn warms up."""
    turns = [(_seconds(one), _seconds(other)) for _ in range(ROUNDS + 1)][1:]
    return statistics.median(turn[0] for turn in turns), statistics.median(turn[1] for turn in turns)


def _seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _batch() -> Batch:
    """Documents of 20 to 100 distinct terms, whose frequencies fall as in language."""
    dice = random.Random(0)
    weights = [1 / (rank + 30) for rank in range(VOCABULARY)]
    lists = [sorted(set(dice.choices(range(VOCABULARY), weights, k=_length(dice)))) for _ in range(DOCUMENTS)]
    offsets = torch.tensor([0, *(len(one) for one in lists)]).cumsum(dim=0)
    terms = Ragged(torch.tensor([term for one in lists for term in one]), offsets)
    return Batch(tokens=terms, terms=terms, counts=torch.ones_like(terms.values))


def _length(dice: random.Random) -> int:
    return dice.randint(WORDS // 3, WORDS * 5 // 3)
