"""Bits whose prior is a mixture of Bernoulli components (Dong et al. 2019, arXiv 1908.11078).

Generative: c ~ Cat(pi), z_i | c ~ Bernoulli(sigmoid(u_ci)). Inference: q(c, z | x) = q(c | x) prod_i q(z_i | x).
Shapes: B documents, S samples, K bits, C components, F features. What a module returns is a tuple by name, since
DeepSpeed's ZeRO 3 looks for tensors in tuples, lists and dicts alone.
"""

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily
from torch.nn.functional import softplus

from vae_core.config import Config


class BernoulliMixtureConfig(Config):
    """Settings of the Bernoulli mixture latent."""

    kind: Literal["bernoulli_mixture"] = "bernoulli_mixture"
    bits: int = Field(default=64, ge=8, le=512, multiple_of=8, description="of a code")
    components: int = Field(default=20, ge=1, le=65535, description="of the prior")
    sampling: Literal["threshold", "bernoulli"] = Field(
        default="threshold", description="bits in training: q > 1/2, or drawn from q; straight-through either way"
    )
    noise: bool = Field(default=True, description="add Gaussian noise of a learned, data-dependent scale in training")


class BernoulliMixturePosterior(NamedTuple):
    """q(c, z | x): log-odds of every bit (B, K) and logits of every component (B, C)."""

    log_odds: Tensor
    component_logits: Tensor

    def bits(self) -> Independent[Bernoulli]:
        """q(z | x) over bits, as a distribution."""
        return Independent(Bernoulli(logits=self.log_odds), 1)

    def mode(self) -> Tensor:
        """The most probable code, (B, K) bool; a bit with log-odds 0 is 0."""
        return self.log_odds > 0


class LatentDraw(NamedTuple):
    """What a latent hands on: samples z (S, B, K), KL(q || p) in nats by group (B, G), and the posterior."""

    z: Tensor
    kl_groups: Tensor
    posterior: BernoulliMixturePosterior


class BernoulliMixtureLatent(nn.Module):
    """Heads for q(c, z | x) and the mixture prior. The KL has K + 1 groups: each bit, then the component."""

    def __init__(self, config: BernoulliMixtureConfig, features: int) -> None:
        super().__init__()
        self.config = config
        self.width = config.bits
        self.log_odds = nn.Linear(features, config.bits)
        self.component = nn.Linear(features, config.components)
        self.noise = nn.Linear(features, config.bits) if config.noise else None
        if self.noise is not None:
            nn.init.constant_(self.noise.bias, -2.0)
        self.prior_components = nn.Parameter(torch.zeros(config.components))
        self.prior_log_odds = nn.Parameter(0.5 * torch.randn(config.components, config.bits))

    def forward(self, features_BF: Tensor, samples: int = 1) -> LatentDraw:
        """Straight-through samples in training, the hard code in evaluation, and the exact KL."""
        features_BF = features_BF.float()
        posterior = BernoulliMixturePosterior(self.log_odds(features_BF), self.component(features_BF))
        z_SBK = self._sample(posterior, samples)
        if self.training and self.noise is not None:
            scale_BK = self.noise(features_BF).clamp(-6, 2).exp()
            z_SBK = z_SBK + scale_BK * torch.randn_like(z_SBK)
        return LatentDraw(z_SBK, self.kl_groups(posterior), posterior)

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

    def prior(self) -> MixtureSameFamily:
        """p(z), with c summed out: log_prob and sample of codes (..., K)."""
        bits = Independent(Bernoulli(logits=self.prior_log_odds, validate_args=False), 1, validate_args=False)
        return MixtureSameFamily(Categorical(logits=self.prior_components), bits, validate_args=False)

    def components_of(self, codes_BK: Tensor) -> Tensor:
        """log p(c | z) of given codes, (B, C)."""
        z_BK = codes_BK.to(self.prior_log_odds.dtype)
        log_joint = z_BK @ self.prior_log_odds.T - softplus(self.prior_log_odds).sum(dim=1) + self.prior_components
        return log_joint.log_softmax(dim=-1)

    def _sample(self, posterior: BernoulliMixturePosterior, samples: int) -> Tensor:
        p_SBK = posterior.log_odds.sigmoid().expand(samples, -1, -1)
        if self.training and self.config.sampling == "bernoulli":
            hard = torch.bernoulli(p_SBK.detach())
        else:
            hard = posterior.mode().to(p_SBK.dtype).expand_as(p_SBK)
        return hard + p_SBK - p_SBK.detach() if self.training else hard
