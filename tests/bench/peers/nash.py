"""NASH: a VAE of words whose code is a Bernoulli latent (Shen et al., ACL 2018, sections 3 and 4).

z_k ~ Bernoulli(1/2); each word of x ~ softmax(E z' + b), z' ~ N(z, diag sigma(x)^2): noise that depends on the data.
q(z_k = 1 | x) = sigmoid(l_k(x)); gradients go straight through the rounding, at 1/2 or at a uniform draw.
Shapes: B documents, H hidden units, K bits.

Tried on the validation part of 20 Newsgroups by date at 64 bits, seed 0: P@100 by Hamming distance / by log-odds.
  two layers, dropout .2, 3e-3: stochastic rounding .495/.509 and rising after 12 epochs, deterministic .509/.535
  the same, deterministic, 1e-3 and KL weight .1: .398/.406 after 6 epochs, stopped there
  one layer, deterministic, 3e-3: dropout .2 .497/.532 (epoch 6, then falling), .5 .523/.550 (6), .7 .530/.548 (9)
"""

from collections.abc import Iterator
from typing import Literal

import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn.functional import softplus

from tests.bench.peers.network import Bags, Encoder, Hidden, WordDecoder, encoder, train
from vae_core.config import Config


class Settings(Config):
    """Chosen on the validation part of 20 Newsgroups by date, 64 bits."""

    epochs: int = 9
    batch: int = 128
    learning_rate: float = 3e-3
    hidden: int = 500
    layers: int = 1
    dropout: float = 0.7
    kl_weight: float = 1.0
    warmup: float = 5
    """Epochs over which the KL's weight grows from 0."""
    rounding: Literal["stochastic", "deterministic"] = "deterministic"
    """In training; codes are always rounded at 1/2."""


SETTINGS = Settings()
NOISE_START = -4.0
"""log sigma^2 before training: noise of the bits' own size would leave nothing to learn from."""


def fit(rows: csr_matrix, bits: int, seed: int = 0, settings: Settings = SETTINGS) -> Encoder:
    """The log-odds of the bits."""
    learning = fits(rows, bits, seed, settings)
    return [next(learning) for _ in range(settings.epochs)][-1]


def fits(rows: csr_matrix, bits: int, seed: int = 0, settings: Settings = SETTINGS) -> Iterator[Encoder]:
    """The encoder after each epoch, without end."""
    torch.manual_seed(seed)
    model = Nash(rows, bits, settings)
    for _ in train(model.loss, model.parameters(), rows, settings.batch, settings.learning_rate):
        yield encoder(model, model)


class Nash(nn.Module):
    """The bits' log-odds, the noise's scale and the words' softmax."""

    def __init__(self, rows: csr_matrix, bits: int, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.hidden = Hidden(rows.shape[1], settings.hidden, settings.dropout, settings.layers)
        self.log_odds, self.log_variance = nn.Linear(settings.hidden, bits), nn.Linear(settings.hidden, bits)
        nn.init.constant_(self.log_variance.bias, NOISE_START)
        self.words = WordDecoder(bits, rows)

    def forward(self, bags: Bags) -> Tensor:
        return self.log_odds(self.hidden(bags))

    def loss(self, bags: Bags, epoch: float) -> Tensor:
        features_BH = self.hidden(bags)
        log_odds_BK = self.log_odds(features_BH)
        z_BK = straight_through(log_odds_BK, self.settings.rounding)
        noise_BK = (self.log_variance(features_BH) / 2).exp() * torch.randn_like(z_BK)
        weight = self.settings.kl_weight * min(1.0, epoch / self.settings.warmup)
        return (weight * kl(log_odds_BK) - self.words(z_BK + noise_BK, bags)).mean()


def straight_through(log_odds_BK: Tensor, rounding: str) -> Tensor:
    """Bits whose gradient is that of their chances."""
    chance_BK = log_odds_BK.sigmoid()
    threshold = 0.5 if rounding == "deterministic" else torch.rand_like(chance_BK)
    return chance_BK + ((chance_BK > threshold).float() - chance_BK).detach()


def kl(log_odds_BK: Tensor) -> Tensor:
    """KL(q(z | x), Bernoulli(1/2)^K) in nats, (B,): K log 2 less the entropy."""
    negative_entropy_BK = log_odds_BK.sigmoid() * log_odds_BK - softplus(log_odds_BK)
    return (negative_entropy_BK + torch.tensor(2.0).log()).sum(dim=1)
