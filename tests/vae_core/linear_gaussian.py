"""A VAE whose every quantity is known: z ~ N(0, I), x = W z + noise, and a q(z | x) that is linear in x.

A document's x are the counts of its terms, which here are real numbers.
"""

import math

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from vae_core.batch import Batch, Ragged
from vae_core.model import VAE, VAEConfig

WEIGHTS = torch.tensor([[1.0, 0.3], [0.0, 0.8], [-0.5, 0.4], [0.7, -0.2]], dtype=torch.float64)
NOISE = 0.7


class _Data(nn.Module):
    """The features are x itself."""

    reads_tokens = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, batch: Batch, tfidf_N: Tensor, progress: float) -> Tensor:
        del tfidf_N, progress
        return batch.counts.view(len(batch), self.width)


class _Linear(nn.Module):
    reads_tokens = False

    def __init__(self, weights: Tensor, noise: float) -> None:
        super().__init__()
        self.weights, self.noise = weights, noise

    def forward(self, batch: Batch, tfidf_N: Tensor, z_SBW: Tensor) -> Tensor:
        del tfidf_N
        errors = (batch.counts.view(len(batch), -1) - z_SBW @ self.weights.T) / self.noise
        constant = len(self.weights) * (math.log(self.noise) + 0.5 * math.log(2 * math.pi))
        return -0.5 * errors.square().sum(dim=-1) - constant


def linear_gaussian(weights: Tensor = WEIGHTS, noise: float = NOISE) -> VAE:
    """float64. q has the true posterior's mean and the diagonal of its precision."""
    data, width = weights.shape
    settings = {"encoder": {"kind": "bag_of_words"}, "latent": {"kind": "gaussian", "dimensions": width}}
    model = VAE(VAEConfig.model_validate(settings | {"terms": data, "tokens": 1})).double().eval()
    precision = torch.eye(width, dtype=torch.float64) + weights.T @ weights / noise**2
    model.encoder, model.decoder = _Data(data), _Linear(weights, noise)
    head = type(model.latent.head)(data, width).double()
    wanted = -precision.diagonal().log()
    with torch.no_grad():
        head.mean.weight.copy_(torch.linalg.solve(precision, weights.T) / noise**2)
        head.log_variance.weight.zero_()
        head.log_variance.bias.copy_(20 * torch.atanh(wanted / 20))
    model.latent.head = head
    return model


def data_batch(x_BX: Tensor) -> Batch:
    """Documents whose x these are."""
    documents, width = x_BX.shape
    terms = torch.arange(width).repeat(documents)
    nothing = Ragged(torch.zeros(0, dtype=torch.long), torch.zeros(documents + 1, dtype=torch.long))
    return Batch(nothing, Ragged(terms, torch.arange(documents + 1) * width), x_BX.flatten())


def marginal(weights: Tensor = WEIGHTS, noise: float = NOISE) -> MultivariateNormal:
    """p(x)."""
    covariance = weights @ weights.T + noise**2 * torch.eye(len(weights), dtype=torch.float64)
    return MultivariateNormal(torch.zeros(len(weights), dtype=torch.float64), covariance)
