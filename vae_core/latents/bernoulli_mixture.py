"""Bits whose prior is a mixture of Bernoulli components (Dong et al. 2019, arXiv 1908.11078).

Generative: c ~ Cat(pi), z_i | c ~ Bernoulli(sigmoid(u_ci)). Inference: q(c, z | x) = q(c | x) prod_i q(z_i | x).
Shapes: B documents, S samples, K bits, C components, F features.
"""

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily
from torch.nn.functional import softplus

from vae_core.config import Config
from vae_core.estimators import EstimatorConfig, StraightThrough, expected_log_px, sample_bits
from vae_core.latents.bernoulli import log_bits
from vae_core.latents.head import Head
from vae_core.latents.latent import Latent, LatentDraw

COMPONENTS = 20
"""Of a prior of which nobody says how many it has."""


class BernoulliMixtureConfig(Config):
    """Settings of the Bernoulli mixture latent."""

    kind: Literal["bernoulli_mixture"] = "bernoulli_mixture"
    bits: int = Field(default=64, ge=8, le=512, multiple_of=8, description="of a code")
    components: int | None = Field(
        default=None, ge=1, le=65535, description="of the prior; null: a fifth of the root of the number of documents"
    )
    assignment: Literal["amortised", "optimal"] = Field(
        default="amortised", description="q(c | x): a head of its own, or the closed form that makes the KL smallest"
    )
    estimator: EstimatorConfig = StraightThrough()
    noise: bool = Field(default=True, description="add Gaussian noise of a learned, data-dependent scale in training")


class BernoulliMixturePosterior(NamedTuple):
    """q(c, z | x): log-odds of every bit (B, K) and logits of every component (B, C)."""

    log_odds: Tensor
    component_logits: Tensor

    @property
    def means(self) -> Tensor:
        return self.log_odds.sigmoid()


class BernoulliMixtureLatent(Latent):
    """Heads for q(c, z | x) and the mixture prior. The exact KL has K + 1 groups: each bit, then the component."""

    def __init__(self, config: BernoulliMixtureConfig, features: int) -> None:
        super().__init__()
        self.config = config
        self.components = components = config.components or COMPONENTS
        self.width = self.code_bits = config.bits
        self.log_odds = Head(features, config.bits)
        self.component = Head(features, components) if config.assignment == "amortised" else None
        self.noise = Head(features, config.bits) if config.noise else None
        if self.noise is not None:
            nn.init.constant_(self.noise.bias, -2.0)
        self.prior_components = nn.Parameter(torch.zeros(components))
        self.prior_log_odds = nn.Parameter(0.5 * torch.randn(components, config.bits))

    def forward(self, features: Tensor, samples: int = 1) -> LatentDraw:
        # Under autocast the products over components would be in bfloat16, and the KL is a difference of them.
        with torch.autocast(features.device.type, enabled=False):
            return self._draw(features, samples)

    def _draw(self, features: Tensor, samples: int) -> LatentDraw:
        posterior = self.posterior(features)
        if self.training:
            z = sample_bits(posterior.log_odds, samples, self.config.estimator)
        else:
            z = self.mode(posterior).expand(samples, -1, -1)
        hard = (z.detach() > 0.5).to(z.dtype)
        if self.training and self.noise is not None:
            scale_BK = self.noise(features).clamp(-6, 2).exp()
            z = z + scale_BK * torch.randn_like(z)
        return LatentDraw(
            z=z,
            log_q=self.log_q(posterior, hard),
            log_p=self.log_prior(hard),
            kl_groups=self.kl_groups(posterior),
            dispersion=self.dispersion(posterior),
            prior_z=self.sample_prior(z.shape[1]),
            posterior=posterior,
        )

    def posterior(self, features: Tensor) -> BernoulliMixturePosterior:
        log_odds = self.log_odds(features)
        if self.component is not None:
            return BernoulliMixturePosterior(log_odds, self.component(features))
        return BernoulliMixturePosterior(log_odds, self._optimal_components(log_odds))

    def sample(self, posterior: BernoulliMixturePosterior, samples: int) -> Tensor:
        return torch.bernoulli(posterior.means.expand(samples, -1, -1))

    def mode(self, posterior: BernoulliMixturePosterior) -> Tensor:
        return (posterior.log_odds > 0).to(posterior.log_odds.dtype)

    def log_q(self, posterior: BernoulliMixturePosterior, z_SBW: Tensor) -> Tensor:
        return log_bits(posterior.log_odds, z_SBW)

    def log_prior(self, z: Tensor) -> Tensor:
        return self._log_joint(z).logsumexp(dim=-1)

    def sample_prior(self, count: int) -> Tensor:
        component = torch.multinomial(self.prior_components.detach().softmax(dim=0), count, replacement=True)
        return torch.bernoulli(self.prior_log_odds.detach().sigmoid()[component])

    def prior(self) -> MixtureSameFamily:
        """p(z), with c summed out, as a distribution over codes (..., K)."""
        bits = Independent(Bernoulli(logits=self.prior_log_odds, validate_args=False), 1, validate_args=False)
        return MixtureSameFamily(Categorical(logits=self.prior_components), bits, validate_args=False)

    def kl_groups(self, posterior: BernoulliMixturePosterior) -> Tensor:
        """Exact KL(q(c, z | x) || p(c, z)) in nats, (B, K + 1): chain rule, no sampling, no loop over components."""
        a_BK, u_CK = posterior.log_odds, self.prior_log_odds
        q_BC = posterior.component_logits.softmax(dim=-1)
        p_BK = a_BK.sigmoid()
        negative_entropy_BK = p_BK * a_BK - softplus(a_BK)
        cross_BK = p_BK * (q_BC @ u_CK) - q_BC @ softplus(u_CK)
        log_q_BC = posterior.component_logits.log_softmax(dim=-1)
        component_B = (q_BC * (log_q_BC - self.prior_components.log_softmax(dim=-1))).sum(dim=-1)
        return torch.cat([negative_entropy_BK - cross_BK, component_B.unsqueeze(1)], dim=1)

    def dispersion(self, posterior: BernoulliMixturePosterior) -> Tensor:
        """sum_c q(c | x) A(u_c) - A(sum_c q(c | x) u_c) >= 0 of A(u) = sum_i softplus(u_i), (B,) (Shi et al. 2020)."""
        q_BC, u_CK = posterior.component_logits.softmax(dim=-1), self.prior_log_odds
        return q_BC @ softplus(u_CK).sum(dim=1) - softplus(q_BC @ u_CK).sum(dim=1)

    def components_of(self, code_BK: Tensor) -> Tensor:
        return self._log_joint(code_BK.to(self.prior_log_odds.dtype)).log_softmax(dim=-1)

    def expectation(self, log_px_SB: Tensor, log_q_SB: Tensor) -> Tensor:
        return expected_log_px(log_px_SB, log_q_SB, self.config.estimator) if self.training else log_px_SB

    def _log_joint(self, z: Tensor) -> Tensor:
        """log p(c, z) of bits (..., K), (..., C)."""
        u_CK = self.prior_log_odds
        return z @ u_CK.T - softplus(u_CK).sum(dim=1) + self.prior_components.log_softmax(dim=0)

    def _optimal_components(self, a_BK: Tensor) -> Tensor:
        """log pi_c - KL(q(z | x) || p(z | c)) up to what all components share, (B, C)."""
        u_CK = self.prior_log_odds
        return self.prior_components.log_softmax(dim=0) + a_BK.sigmoid() @ u_CK.T - softplus(u_CK).sum(dim=1)
