"""Real numbers whose prior is a mixture of normals, which can be kept apart (Shi et al. 2020, arXiv 1906.06719).

Generative: c ~ Cat(pi), z | c ~ N(mu_c, diag sigma_c^2). Inference: q(c, z | x) = q(c | x) N(z; mu, diag sigma^2).
Shapes: B documents, S samples, D dimensions, C components, F features.
"""

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.special import log_ndtr

from vae_core.config import Config
from vae_core.latents.gaussian import GaussianHead, GaussianPosterior, gaussian_kl, normal
from vae_core.latents.head import Head
from vae_core.latents.latent import Latent, LatentDraw

LOG_VARIANCE_LIMIT = 6.0
"""A component that shrank onto one document would have infinite density there."""


class GaussianMixtureConfig(Config):
    """Settings of the Gaussian mixture latent."""

    kind: Literal["gaussian_mixture"] = "gaussian_mixture"
    dimensions: int = Field(default=32, ge=1, le=4096, description="of z; its code has a bit for each: z above 0")
    components: int = Field(default=20, ge=1, le=65535, description="of the prior")
    assignment: Literal["amortised", "optimal"] = Field(
        default="amortised", description="q(c | x): a head of its own, or the closed form that makes the KL smallest"
    )


class GaussianMixturePosterior(NamedTuple):
    """q(c, z | x): mean and log variance, each (B, D), and logits of every component (B, C)."""

    mean: Tensor
    log_variance: Tensor
    component_logits: Tensor

    @property
    def of_z(self) -> GaussianPosterior:
        """q(z | x) without its component."""
        return GaussianPosterior(self.mean, self.log_variance)

    @property
    def log_odds(self) -> Tensor:
        """logit q(z_i > 0 | x)."""
        return self.of_z.log_odds

    @property
    def means(self) -> Tensor:
        return self.mean


class Natural(NamedTuple):
    """Normals by 1 / sigma^2, mu / sigma^2, and twice the log-partition function: mu^2 / sigma^2 + log sigma^2."""

    precision: Tensor
    shift: Tensor
    twice_partition: Tensor


class GaussianMixtureLatent(Latent):
    """z = mu + sigma * noise. The exact KL of q(c, z | x) has D + 1 groups: each dimension, then the component.

    GM-VAE, and with the dispersion in the objective DGM-VAE: L = ELBO + beta_d L_d, where
    L_d = sum_c q(c | x) A(eta_c) - A(sum_c q(c | x) eta_c) >= 0 is the Jensen gap of the log-partition function A in
    natural parameters eta. The KL contains L_d, so that the ELBO pulls components that share documents together;
    beta_d = 1 takes the pull away. For beta_d > 0 L is no bound on log p(x): report the ELBO beside it. DEM-VAE is the
    same for any exponential family; the Bernoulli mixture has it too (Shi et al. 2020; their code's `beta`
    is 1 - beta_d).
    """

    def __init__(self, config: GaussianMixtureConfig, features: int) -> None:
        super().__init__()
        self.config = config
        self.components = config.components
        self.width = self.code_bits = config.dimensions
        self.head = GaussianHead(features, config.dimensions)
        self.component = Head(features, config.components) if config.assignment == "amortised" else None
        self.prior_components = nn.Parameter(torch.zeros(config.components))
        # Apart from the start: components that are equal have equal gradients and stay so.
        self.prior_means = nn.Parameter(torch.randn(config.components, config.dimensions))
        self.prior_log_variances = nn.Parameter(torch.zeros(config.components, config.dimensions))

    def forward(self, features: Tensor, samples: int = 1) -> LatentDraw:
        # Under autocast the products over components would be in bfloat16, and the KL is a difference of them.
        with torch.autocast(features.device.type, enabled=False):
            return self._draw(features, samples)

    def _draw(self, features: Tensor, samples: int) -> LatentDraw:
        posterior = self.posterior(features)
        z = self.sample(posterior, samples) if self.training else self.mode(posterior).expand(samples, -1, -1)
        return LatentDraw(
            z=z,
            log_q=self.log_q(posterior, z),
            log_p=self.log_prior(z),
            kl_groups=self.kl_groups(posterior),
            dispersion=self.dispersion(posterior),
            prior_z=self.sample_prior(z.shape[1]),
            posterior=posterior,
        )

    def posterior(self, features: Tensor) -> GaussianMixturePosterior:
        q: GaussianPosterior = self.head(features)
        if self.component is not None:
            return GaussianMixturePosterior(*q, self.component(features))
        second_moment = q.mean.square() + q.log_variance.exp()
        return GaussianMixturePosterior(*q, self._expected_log_joint(q.mean, second_moment))

    def sample(self, posterior: GaussianMixturePosterior, samples: int) -> Tensor:
        return posterior.of_z.distribution().rsample((samples,))

    def mode(self, posterior: GaussianMixturePosterior) -> Tensor:
        return posterior.mean

    def log_q(self, posterior: GaussianMixturePosterior, z_SBW: Tensor) -> Tensor:
        return posterior.of_z.distribution().log_prob(z_SBW)

    def log_prior(self, z: Tensor) -> Tensor:
        return self._expected_log_joint(z, z.square()).logsumexp(dim=-1)

    def sample_prior(self, count: int) -> Tensor:
        component = torch.multinomial(self.prior_components.detach().softmax(dim=0), count, replacement=True)
        return normal(self.prior_means[component], self._log_variances()[component]).sample()

    def kl_groups(self, posterior: GaussianMixturePosterior) -> Tensor:
        """Exact KL(q(c, z | x) || p(c, z)) in nats, (B, D + 1).

        sum_c q(c | x) KL(q(z | x) || p(z | c)) = KL(q(z | x) || p(z | eta_bar)) + L_d, exactly, with eta_bar the mean
        of the natural parameters under q(c | x).
        """
        eta_bar = self._mean_natural(posterior)
        by_dimension = gaussian_kl(posterior.of_z, _moments(eta_bar)) + _jensen_gap(eta_bar)
        log_q_BC = posterior.component_logits.log_softmax(dim=-1)
        component = (log_q_BC.exp() * (log_q_BC - self.prior_components.log_softmax(dim=0))).sum(dim=-1, keepdim=True)
        return torch.cat([by_dimension, component], dim=-1)

    def dispersion(self, posterior: GaussianMixturePosterior) -> Tensor:
        """L_d, the Jensen gap of the log-partition function, (B,)."""
        return _jensen_gap(self._mean_natural(posterior)).sum(dim=-1)

    def components_of(self, code_BK: Tensor) -> Tensor:
        """log p(c | the signs of z), (B, C): all that a code of bits z_i > 0 tells of the component."""
        t_CD = self.prior_means * (-0.5 * self._log_variances()).exp()
        above, below = log_ndtr(t_CD), log_ndtr(-t_CD)
        log_signs = code_BK.to(t_CD.dtype) @ (above - below).T + below.sum(dim=1)
        return (self.prior_components.log_softmax(dim=0) + log_signs).log_softmax(dim=-1)

    def _log_variances(self) -> Tensor:
        return LOG_VARIANCE_LIMIT * (self.prior_log_variances / LOG_VARIANCE_LIMIT).tanh()

    def _natural(self) -> Natural:
        log_variances = self._log_variances()
        precision = (-log_variances).exp()
        shift = self.prior_means * precision
        return Natural(precision, shift, self.prior_means * shift + log_variances)

    def _mean_natural(self, posterior: GaussianMixturePosterior) -> Natural:
        """The components' means under q(c | x), each (B, D), by one matrix product."""
        means = posterior.component_logits.softmax(dim=-1) @ torch.cat(self._natural(), dim=1)
        return Natural(*means.chunk(3, dim=-1))

    def _expected_log_joint(self, mean: Tensor, second_moment: Tensor) -> Tensor:
        """E log p(c, z) of a z (..., D) with these first two moments of each number, (..., C)."""
        precision, shift, twice_partition = self._natural()
        exponent = mean @ shift.T - 0.5 * second_moment @ precision.T
        constant = 0.5 * (twice_partition.sum(dim=1) + self.config.dimensions * math.log(2 * math.pi))
        return exponent - constant + self.prior_components.log_softmax(dim=0)


def _moments(natural: Natural) -> GaussianPosterior:
    return GaussianPosterior(natural.shift / natural.precision, -natural.precision.log())


def _jensen_gap(mean: Natural) -> Tensor:
    """Mean of A(eta_c) less A at the mean of eta_c, of each dimension."""
    at_mean = mean.shift.square() / mean.precision - mean.precision.log()
    return 0.5 * (mean.twice_partition - at_mean)
