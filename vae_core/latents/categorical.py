"""M independent variables of K values each (Jang et al. 2017, section 2; Maddison et al. 2017).

Inference: q(z | x) = prod_j Cat(z_j; softmax(logits_j)). The KL is the exact categorical one, never that of the relaxed
values. Shapes: B documents, S samples, M variables, K values, F features.
"""

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from vae_core.config import Config
from vae_core.estimators import EstimatorConfig, GumbelSoftmax, expected_log_px, gumbel, hardest, sample_values
from vae_core.latents.head import Head
from vae_core.latents.latent import Latent, LatentDraw


class CategoricalConfig(Config):
    """Settings of the categorical latent."""

    kind: Literal["categorical"] = "categorical"
    variables: int = Field(default=8, ge=1, le=512, description="of z, independent given the document")
    values: int = Field(default=16, ge=2, le=4096, description="of each variable; a code has a bit for each of them")
    prior: Literal["uniform", "learned"] = Field(default="uniform", description="each value alike, or learned chances")
    estimator: EstimatorConfig = GumbelSoftmax()


class CategoricalPosterior(NamedTuple):
    """q(z | x): logits of every value (B, M, K); minus infinity for a value that cannot be."""

    logits: Tensor

    @property
    def log_odds(self) -> Tensor:
        """log q(z_j = k) - log max over l != k of q(z_j = l), (B, M K): above 0 for the mode alone, a tie or not."""
        best, second = self.logits.topk(2, dim=-1).values.split(1, dim=-1)
        lead = (best - second).clamp(min=torch.finfo(best.dtype).tiny)
        return torch.where(hardest(self.logits) > 0, lead, self.logits - best).flatten(1)

    @property
    def means(self) -> Tensor:
        return self.logits.softmax(dim=-1).flatten(1)


class CategoricalLatent(Latent):
    """A head for q(z | x). z is M one-hot vectors side by side, and so is the code, of M K bits.

    The exact KL has a group for each variable; with a uniform prior it is at most M ln K.
    """

    def __init__(self, config: CategoricalConfig, features: int) -> None:
        super().__init__()
        self.config = config
        self.width = self.code_bits = config.variables * config.values
        self.logits = Head(features, self.width)
        if config.prior == "learned":
            self.prior_logits = nn.Parameter(torch.zeros(config.variables, config.values))

    def forward(self, features: Tensor, samples: int = 1) -> LatentDraw:
        posterior = self.posterior(features)
        if self.training:
            z = sample_values(posterior.logits, samples, self.config.estimator).flatten(2)
        else:
            z = self.mode(posterior).expand(samples, -1, -1)
        hard = hardest(self._by_variable(z.detach())).flatten(2)
        log_q, log_p = self.log_q(posterior, hard), self.log_prior(hard)
        nothing = log_q.new_zeros(z.shape[1])
        prior_z = self.sample_prior(z.shape[1])
        return LatentDraw(z, log_q, log_p, self.kl_groups(posterior), nothing, prior_z, posterior)

    def posterior(self, features: Tensor) -> CategoricalPosterior:
        return CategoricalPosterior(self._by_variable(self.logits(features)))

    def sample(self, posterior: CategoricalPosterior, samples: int) -> Tensor:
        logits = posterior.logits.detach().expand(samples, -1, -1, -1)
        return hardest(logits + gumbel(logits)).flatten(2)

    def mode(self, posterior: CategoricalPosterior) -> Tensor:
        return hardest(posterior.logits).flatten(1)

    def log_q(self, posterior: CategoricalPosterior, z_SBW: Tensor) -> Tensor:
        return log_values(posterior.logits, self._by_variable(z_SBW))

    def log_prior(self, z: Tensor) -> Tensor:
        return log_values(self._prior(), self._by_variable(z))

    def sample_prior(self, count: int) -> Tensor:
        logits = self._prior().detach().expand(count, -1, -1)
        return hardest(logits + gumbel(logits)).flatten(1)

    def kl_groups(self, posterior: CategoricalPosterior) -> Tensor:
        """KL(q(z_j | x) || p(z_j)) in nats, (B, M)."""
        log_q = posterior.logits.log_softmax(dim=-1)
        # 0 log 0 = 0; masked before the product, since 0 times an infinite gradient is not a number.
        log_ratio = (log_q - self._prior().log_softmax(dim=-1)).masked_fill(log_q == -torch.inf, 0)
        return (log_q.exp() * log_ratio).sum(dim=-1)

    def expectation(self, log_px_SB: Tensor, log_q_SB: Tensor) -> Tensor:
        return expected_log_px(log_px_SB, log_q_SB, self.config.estimator) if self.training else log_px_SB

    def _by_variable(self, z: Tensor) -> Tensor:
        return z.unflatten(-1, (self.config.variables, self.config.values))

    def _prior(self) -> Tensor:
        if self.config.prior == "learned":
            return self.prior_logits
        return self._by_variable(self.logits.bias.new_zeros(self.width))


def log_values(logits: Tensor, z: Tensor) -> Tensor:
    """log prob of one-hot z (..., M, K) under softmax(logits), summed over M."""
    return logits.log_softmax(dim=-1).masked_fill(z < 0.5, 0).sum(dim=(-2, -1))
