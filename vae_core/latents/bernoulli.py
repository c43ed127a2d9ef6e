"""Independent bits with independent prior bits (NASH: Shen et al. 2018, arXiv 1805.05361).

Inference: q(z | x) = prod_i Bernoulli(z_i; sigmoid(a_i)). Shapes: B documents, S samples, K bits, F features.
"""

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent
from torch.nn.functional import softplus

from vae_core.config import Config
from vae_core.estimators import EstimatorConfig, StraightThrough, expected_log_px, sample_bits
from vae_core.latents.head import Head
from vae_core.latents.latent import Latent, LatentDraw


class BernoulliConfig(Config):
    """Settings of the Bernoulli latent."""

    kind: Literal["bernoulli"] = "bernoulli"
    bits: int = Field(default=64, ge=1, le=512, description="of a code; a multiple of 8 to be encoded and searched")
    prior: Literal["uniform", "learned"] = Field(default="uniform", description="each bit 1/2, or a learned chance")
    estimator: EstimatorConfig = StraightThrough()


class BernoulliPosterior(NamedTuple):
    """q(z | x): log-odds of every bit (B, K)."""

    log_odds: Tensor

    @property
    def means(self) -> Tensor:
        return self.log_odds.sigmoid()


class BernoulliLatent(Latent):
    """A head for q(z | x). The exact KL has a group for each bit; with a uniform prior it is at most K ln 2."""

    def __init__(self, config: BernoulliConfig, features: int) -> None:
        super().__init__()
        self.config = config
        self.width = self.code_bits = config.bits
        self.log_odds = Head(features, config.bits)
        if config.prior == "learned":
            self.prior_log_odds = nn.Parameter(torch.zeros(config.bits))

    def forward(self, features: Tensor, samples: int = 1) -> LatentDraw:
        posterior = self.posterior(features)
        if self.training:
            z = sample_bits(posterior.log_odds, samples, self.config.estimator)
        else:
            z = self.mode(posterior).expand(samples, -1, -1)
        hard = (z.detach() > 0.5).to(z.dtype)
        log_q, log_p = self.log_q(posterior, hard), self.log_prior(hard)
        nothing = log_q.new_zeros(z.shape[1])
        prior_z = self.sample_prior(z.shape[1])
        return LatentDraw(z, log_q, log_p, self.kl_groups(posterior), nothing, prior_z, posterior)

    def posterior(self, features: Tensor) -> BernoulliPosterior:
        return BernoulliPosterior(self.log_odds(features))

    def sample(self, posterior: BernoulliPosterior, samples: int) -> Tensor:
        return torch.bernoulli(posterior.means.expand(samples, -1, -1))

    def mode(self, posterior: BernoulliPosterior) -> Tensor:
        return (posterior.log_odds > 0).to(posterior.log_odds.dtype)

    def log_q(self, posterior: BernoulliPosterior, z_SBW: Tensor) -> Tensor:
        return log_bits(posterior.log_odds, z_SBW)

    def log_prior(self, z: Tensor) -> Tensor:
        return log_bits(self._prior(), z)

    def sample_prior(self, count: int) -> Tensor:
        return torch.bernoulli(self._prior().sigmoid().detach().expand(count, -1))

    def kl_groups(self, posterior: BernoulliPosterior) -> Tensor:
        """KL(q(z_i | x) || p(z_i)) in nats, (B, K)."""
        a_BK, b_K = posterior.log_odds, self._prior()
        return a_BK.sigmoid() * (a_BK - b_K) - softplus(a_BK) + softplus(b_K)

    def expectation(self, log_px_SB: Tensor, log_q_SB: Tensor) -> Tensor:
        return expected_log_px(log_px_SB, log_q_SB, self.config.estimator) if self.training else log_px_SB

    def _prior(self) -> Tensor:
        return self.prior_log_odds if self.config.prior == "learned" else self.log_odds.bias.new_zeros(self.width)


def log_bits(log_odds: Tensor, z: Tensor) -> Tensor:
    """log prob of bits z (..., K) that are 1 with these log-odds, summed over K."""
    return Independent(Bernoulli(logits=log_odds, validate_args=False), 1, validate_args=False).log_prob(z)
