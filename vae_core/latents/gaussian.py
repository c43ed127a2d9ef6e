"""Real numbers with a standard normal, learned normal, or VampPrior prior (Kingma and Welling 2014;
Tomczak and Welling 2018, arXiv 1705.07120).

Inference: q(z | x) = N(mu(x), diag sigma(x)^2). Shapes: B documents, S samples, D dimensions, C pseudo-inputs.
"""

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.special import log_ndtr

from vae_core.config import Config
from vae_core.latents.head import Head
from vae_core.latents.latent import Latent, LatentDraw

LOG_VARIANCE_LIMIT = 20.0


class GaussianConfig(Config):
    """Settings of the Gaussian latent."""

    kind: Literal["gaussian"] = "gaussian"
    dimensions: int = Field(default=32, ge=1, le=4096, description="of z; its code has a bit for each: z above 0")
    prior: Literal["standard", "learned", "vamp"] = Field(
        default="standard", description="N(0, I); a learned normal; or a mixture of posteriors of learned pseudo-inputs"
    )
    pseudo_inputs: int = Field(default=50, ge=1, description="of the vamp prior")


class GaussianPosterior(NamedTuple):
    """q(z | x): mean and log variance, each (B, D)."""

    mean: Tensor
    log_variance: Tensor

    @property
    def log_odds(self) -> Tensor:
        """logit q(z_i > 0 | x)."""
        t = self.mean * (-0.5 * self.log_variance).exp()
        return log_ndtr(t) - log_ndtr(-t)

    @property
    def means(self) -> Tensor:
        return self.mean

    def distribution(self) -> Independent[Normal]:
        return normal(self.mean, self.log_variance)


class GaussianHead(nn.Module):
    """Features to a GaussianPosterior; starts near N(0, I), so that the KL starts near 0."""

    def __init__(self, features: int, dimensions: int) -> None:
        super().__init__()
        self.mean = Head(features, dimensions)
        self.log_variance = Head(features, dimensions)
        for layer in (self.mean, self.log_variance):
            nn.init.normal_(layer.weight, std=0.1 * features**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, features_BF: Tensor) -> GaussianPosterior:
        log_variance = self.log_variance(features_BF)
        # tanh bounds smoothly: a hard clamp would kill the gradient where it matters most.
        return GaussianPosterior(
            self.mean(features_BF), LOG_VARIANCE_LIMIT * (log_variance / LOG_VARIANCE_LIMIT).tanh()
        )


class GaussianLatent(Latent):
    """z = mu + sigma * noise. The KL has a group for each dimension, or one in all with the vamp prior.

    Against a normal prior the KL is exact. Against the vamp prior it is log q(z | x) - log p(z) at the samples.
    """

    def __init__(self, config: GaussianConfig, features: int) -> None:
        super().__init__()
        self.config = config
        self.width = self.code_bits = config.dimensions
        self.head = GaussianHead(features, config.dimensions)
        if config.prior == "learned":
            self.prior_mean = nn.Parameter(torch.zeros(config.dimensions))
            self.prior_log_variance = nn.Parameter(torch.zeros(config.dimensions))
        if config.prior == "vamp":
            self.prior_inputs = nn.Parameter(torch.randn(config.pseudo_inputs, features))

    def forward(self, features: Tensor, samples: int = 1) -> LatentDraw:
        posterior = self.posterior(features)
        z = self.sample(posterior, samples) if self.training else self.mode(posterior).expand(samples, -1, -1)
        log_q, log_p = self.log_q(posterior, z), self.log_prior(z)
        groups = (log_q - log_p).mean(dim=0).unsqueeze(1) if self.config.prior == "vamp" else self.kl_groups(posterior)
        nothing = log_q.new_zeros(z.shape[1])
        return LatentDraw(z, log_q, log_p, groups, nothing, self.sample_prior(z.shape[1]), posterior)

    def posterior(self, features: Tensor) -> GaussianPosterior:
        posterior: GaussianPosterior = self.head(features)
        return posterior

    def sample(self, posterior: GaussianPosterior, samples: int) -> Tensor:
        return posterior.distribution().rsample((samples,))

    def mode(self, posterior: GaussianPosterior) -> Tensor:
        return posterior.mean

    def log_q(self, posterior: GaussianPosterior, z_SBW: Tensor) -> Tensor:
        return posterior.distribution().log_prob(z_SBW)

    def log_prior(self, z: Tensor) -> Tensor:
        if self.config.prior == "vamp":
            return self._pseudo().distribution().log_prob(z.unsqueeze(-2)).logsumexp(dim=-1) - self._log_pseudo
        return normal(*self._prior(z)).log_prob(z)

    def sample_prior(self, count: int) -> Tensor:
        if self.config.prior == "vamp":
            chosen = torch.randint(self.config.pseudo_inputs, (count,), device=self.prior_inputs.device)
            mean, log_variance = (x[chosen] for x in self._pseudo())
        else:
            mean, log_variance = (x.expand(count, -1) for x in self._prior(self.head.mean.weight))
        return normal(mean, log_variance).sample()

    def kl_groups(self, posterior: GaussianPosterior) -> Tensor:
        """KL(q(z_i | x) || p(z_i)), (B, D); with the vamp prior one group, estimated by one sample."""
        if self.config.prior == "vamp":
            z = self.sample(posterior, 1)
            return (self.log_q(posterior, z) - self.log_prior(z)).T
        return gaussian_kl(posterior, GaussianPosterior(*self._prior(posterior.mean)))

    def _prior(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.prior == "learned":
            return self.prior_mean, self.prior_log_variance
        return like.new_zeros(self.width), like.new_zeros(self.width)

    def _pseudo(self) -> GaussianPosterior:
        return self.posterior(self.prior_inputs)

    @property
    def _log_pseudo(self) -> float:
        return math.log(self.config.pseudo_inputs)


def normal(mean: Tensor, log_variance: Tensor) -> Independent[Normal]:
    """The diagonal normal over the last axis."""
    return Independent(Normal(mean, (0.5 * log_variance).exp(), validate_args=False), 1, validate_args=False)


def gaussian_kl(q: GaussianPosterior, p: GaussianPosterior) -> Tensor:
    """KL(q_i || p_i) of each dimension in nats.

    expm1(l) - l, not exp(l) - 1 - l: near the prior, where free bits and active units look, the latter is rounding.
    """
    log_ratio = q.log_variance - p.log_variance
    squared = (q.mean - p.mean).square() * (-p.log_variance).exp()
    return 0.5 * (squared + log_ratio.expm1() - log_ratio)
