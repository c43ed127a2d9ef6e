"""What every latent gives the rest of the model. Shapes: B documents, S samples, W numbers the decoder reads of z,
K bits of a code, G groups of the KL, U units. All probabilities are in nats.

A new latent is a file with a settings class, a posterior (a NamedTuple, since ZeRO 3 looks for tensors in tuples, lists
and dicts alone) and a module derived from `Latent`; and a line in each list of `vae_core/latents/__init__.py`.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn


class Posterior(Protocol):
    """q(z | x) of B documents."""

    @property
    def log_odds(self) -> Tensor:
        """logit q(z_i = 1 | x), or of z_i > 0 where z is real, (B, K): above 0 where the code has a one."""

    @property
    def means(self) -> Tensor:
        """E_q[z] by unit, (B, U): a unit is active where this varies between documents (Burda et al. 2016)."""


class LatentDraw(NamedTuple):
    """What a latent hands on in training and at the hard code.

    `z` (S, B, W) for the decoder; `log_q` = log q(z | x) and `log_p` = log p(z), (S, B), of the samples; `kl_groups`
    (B, G), KL(q || p) by group; `dispersion` (B,), the mixture's Jensen gap, 0 elsewhere; `prior_z` (B, W), as many
    draws from the prior; and the posterior.
    """

    z: Any
    log_q: Tensor
    log_p: Tensor
    kl_groups: Tensor
    dispersion: Tensor
    prior_z: Any
    posterior: Any


class Latent(nn.Module, ABC):
    """A posterior head, a prior, and the KL between them. Parameters of the prior have names that begin with `prior`.

    `forward` uses every parameter, so that ZeRO 3 gathers them; the other methods are for whole models.
    """

    width: int
    """How many numbers of z the decoder reads, W."""
    code_bits: int
    """Bits of the code, K; 0: this latent has none."""
    components: int = 1
    """Of the prior; 1 where it is no mixture."""
    reads_states: bool = False
    """Whether `forward` is given the encoder's vector of every token (`States`), not one vector a document."""

    @abstractmethod
    def forward(self, features: Any, samples: int = 1) -> LatentDraw:
        """Samples that carry gradients in training, the code (the posterior's mode) in evaluation, and the KL."""

    @abstractmethod
    def posterior(self, features: Any) -> Any:
        """q(z | x) of the encoder's features (B, F)."""

    @abstractmethod
    def sample(self, posterior: Any, samples: int) -> Any:
        """Exact draws from q(z | x), as the decoder reads them in evaluation, (S, B, W)."""

    @abstractmethod
    def mode(self, posterior: Any) -> Any:
        """The z of the code, (B, W): the posterior's mode."""

    @abstractmethod
    def log_q(self, posterior: Any, z_SBW: Tensor) -> Tensor:
        """log q(z | x), (S, B). A z of shape (S, 1, W) is compared with every document."""

    @abstractmethod
    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) of z (..., W), the component summed out, (...)."""

    @abstractmethod
    def sample_prior(self, count: int) -> Any:
        """Draws from p(z), (count, W)."""

    @abstractmethod
    def kl_groups(self, posterior: Any) -> Tensor:
        """KL(q || p) by group, (B, G)."""

    def components_of(self, code_BK: Tensor) -> Tensor:
        """log p(c | z) of codes, (B, C); one component, of log probability 0, where the prior is no mixture."""
        return code_BK.new_zeros(len(code_BK), 1, dtype=next(self.parameters()).dtype)

    def expectation(self, log_px_SB: Tensor, log_q_SB: Tensor) -> Tensor:
        """log p(x | z) of samples, (S, B), with the gradient that the estimator adds to it; the mean over S counts."""
        del log_q_SB
        return log_px_SB
