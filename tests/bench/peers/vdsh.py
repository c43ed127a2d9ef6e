"""VDSH: a Gaussian VAE of words, rounded at the medians (Chaidaroon & Fang, SIGIR 2017, section 4.1, unsupervised).

z ~ N(0, I); each word of x ~ softmax(E z + b). q(z | x) = N(mu(x), diag sigma(x)^2). A bit is 1 where mu_k is above its
median over the training documents. Shapes: B documents, H hidden units, K bits.

Tried on the validation part of 20 Newsgroups by date at 64 bits, seed 0: P@100 by Hamming distance / by distances from
the medians.
  two layers, dropout .2, 1e-3: .461/.488 after 12 epochs, rising
  one layer, 3e-3: dropout .2 .475/.508 after 3 epochs, then falling; .5 .507/.537 (6), .496/.535 (9)
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from tests.bench.peers.network import Bags, Encoder, Hidden, WordDecoder, encoder, train
from vae_core.config import Config


class Settings(Config):
    """Chosen on the validation part of 20 Newsgroups by date, 64 bits."""

    epochs: int = 6
    batch: int = 128
    learning_rate: float = 3e-3
    hidden: int = 500
    layers: int = 1
    dropout: float = 0.5
    kl_weight: float = 1.0
    warmup: float = 5
    """Epochs over which the KL's weight grows from 0."""


SETTINGS = Settings()


def fit(rows: csr_matrix, bits: int, seed: int = 0, settings: Settings = SETTINGS) -> Encoder:
    """The means less their medians."""
    learning = fits(rows, bits, seed, settings)
    return [next(learning) for _ in range(settings.epochs)][-1]


def fits(rows: csr_matrix, bits: int, seed: int = 0, settings: Settings = SETTINGS) -> Iterator[Encoder]:
    """The encoder after each epoch, without end."""
    torch.manual_seed(seed)
    model = Vdsh(rows, bits, settings)
    for _ in train(model.loss, model.parameters(), rows, settings.batch, settings.learning_rate):
        means = encoder(model, lambda bags: model(bags)[0])
        yield _from(np.median(means(rows), axis=0), means)


def _from(medians_K: np.ndarray, means: Encoder) -> Encoder:
    return lambda rows: means(rows) - medians_K


class Vdsh(nn.Module):
    """The posterior's two heads and the words' softmax."""

    def __init__(self, rows: csr_matrix, bits: int, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.hidden = Hidden(rows.shape[1], settings.hidden, settings.dropout, settings.layers)
        self.mean, self.log_variance = nn.Linear(settings.hidden, bits), nn.Linear(settings.hidden, bits)
        self.words = WordDecoder(bits, rows)

    def forward(self, bags: Bags) -> tuple[Tensor, Tensor]:
        """mu(x) and log sigma(x)^2, (B, K) each."""
        features_BH = self.hidden(bags)
        return self.mean(features_BH), self.log_variance(features_BH)

    def loss(self, bags: Bags, epoch: float) -> Tensor:
        mean_BK, log_variance_BK = self(bags)
        z_BK = mean_BK + (log_variance_BK / 2).exp() * torch.randn_like(mean_BK)
        weight = self.settings.kl_weight * min(1.0, epoch / self.settings.warmup)
        return (weight * kl(mean_BK, log_variance_BK) - self.words(z_BK, bags)).mean()


def kl(mean_BK: Tensor, log_variance_BK: Tensor) -> Tensor:
    """KL(N(mu, diag sigma^2), N(0, I)) in nats, (B,)."""
    return 0.5 * (mean_BK.square() + log_variance_BK.exp() - 1 - log_variance_BK).sum(dim=1)
