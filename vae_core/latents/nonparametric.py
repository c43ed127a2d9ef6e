"""The nonparametric variational information bottleneck (NVIB: Henderson and Fehr 2023, arXiv 2207.13529).

The latent is a mixture with as many components as the document has tokens, and one of the prior's. Generative: the
mixture is a draw from a Dirichlet process with base N(0, I). Inference: from the process of pseudo-count alpha_0 and
base sum_i (alpha_i / alpha_0) N(mu_i, diag sigma_i^2); a token with alpha_i = 0 has dropped its vector.

Shapes: B documents, S samples, T places of tokens, N = 1 + T components, the prior's first, L = draws * N vectors of a
sample, P dimensions of a vector, F features.
"""

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Gamma
from torch.nn.functional import threshold

from vae_core.config import Config
from vae_core.denoising_attention import Mixture
from vae_core.encoders.states import States
from vae_core.errors import Misuse
from vae_core.latents.gaussian import GaussianHead, GaussianPosterior, gaussian_kl
from vae_core.latents.latent import Latent, LatentDraw

SMALLEST_COUNT = 1e-6
"""Pseudo-counts up to this are 0: the gradient of a Dirichlet by one of 1e-20 is no number in single precision."""
START_LOG_VARIANCE = -3.0
PRIOR_LENGTH = 32
"""Tokens of the documents that the prior is drawn for where no lengths are given."""


class NonparametricConfig(Config):
    """Settings of the nonparametric latent, a set of vectors that the decoder `denoising_attention` attends to.

    With per_token_pseudo_count 0 the prior expects the same few vectors of every document, so that the KL is least
    where all are dropped; with 1 it expects one for every token.
    """

    kind: Literal["nonparametric"] = "nonparametric"
    dimensions: int = Field(default=128, ge=1, le=4096, description="of each vector of z")
    prior_pseudo_count: float = Field(default=1.0, gt=0, description="of the prior's own component")
    per_token_pseudo_count: float = Field(default=0.0, ge=0, description="that the prior expects of every token beside")
    keep_above: float = Field(
        default=0.0, ge=0, description="in evaluation, vectors of no larger pseudo-count are dropped"
    )
    evaluation: Literal["means", "normals"] = Field(
        default="means", description="what the decoder reads of a component in evaluation: its mean, or all of it"
    )
    draws: int = Field(default=1, ge=1, description="vectors drawn from every component in training")


class NonparametricPosterior(NamedTuple):
    """q(z | x), a Dirichlet process: pseudo-counts alpha (B, N), 0 where a vector is dropped or there is no token.

    Centres and log variances of the components, (B, N, P); `mask` (B, N) is true of the prior's and the tokens'.
    """

    pseudo_counts: Tensor
    centres: Tensor
    log_variances: Tensor
    mask: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens of each document, (B,)."""
        return self.mask[:, 1:].sum(dim=1)

    @property
    def log_odds(self) -> Tensor:
        raise Misuse("a nonparametric latent has no code: its z is a set of vectors; take the latent bernoulli_mixture")

    @property
    def means(self) -> Tensor:
        raise Misuse(
            "a nonparametric latent has no units to count active ones of: its z is a set of vectors; "
            "ask for the sparsity of its posterior instead"
        )


class Sparsity(NamedTuple):
    """Of each document, all (B,): vectors kept, their share of its tokens, the total pseudo-count alpha_0, and the
    effective number of components, exp of the entropy of alpha / alpha_0, the prior's included."""

    kept: Tensor
    share: Tensor
    total: Tensor
    effective: Tensor


class NonparametricLatent(Latent):
    """Heads for q(z | x). The KL has two groups: L_G of the vectors, and L_D of their pseudo-counts.

    z is a `Mixture`: in training one of impulses drawn from q, in evaluation the base of q. A draw has no density here,
    so `log_q` and `log_p` are 0. The KL is that of the paper: with both processes truncated to
    draws * N atoms, L_D is exact and L_G a bound from above on the atoms' part.
    """

    reads_states = True

    def __init__(self, config: NonparametricConfig, features: int) -> None:
        super().__init__()
        self.config = config
        self.width, self.code_bits = config.dimensions, 0
        self.head = GaussianHead(features, config.dimensions)
        # Vectors that start as noise teach the decoder nothing, and it is long in finding out where to look.
        nn.init.normal_(self.head.mean.weight, std=features**-0.5)
        nn.init.constant_(self.head.log_variance.bias, START_LOG_VARIANCE)
        self.pseudo_count = nn.Linear(features, 1)
        nn.init.normal_(self.pseudo_count.weight, std=0.1 * features**-0.5)
        # A rectifier that starts at 0 for some token never hears from the decoder whether it is needed.
        nn.init.ones_(self.pseudo_count.bias)

    def forward(self, features: States, samples: int = 1) -> LatentDraw:
        posterior = self.posterior(features)
        if self.training:
            z = self.sample(posterior, samples)
        else:
            z = Mixture(*(x.expand(samples, *x.shape) for x in self.mode(posterior)))
        nothing = posterior.centres.new_zeros(samples, len(posterior.mask))
        prior_z = self.sample_prior(len(posterior.mask), posterior.lengths)
        return LatentDraw(z, nothing, nothing, self.kl_groups(posterior), nothing[0], prior_z, posterior)

    def posterior(self, features: States) -> NonparametricPosterior:
        normals = self.head(features.vectors)
        weights_BT = self.pseudo_count(features.vectors.to(normals.mean.dtype)).squeeze(-1)
        counts_BT = threshold(weights_BT, SMALLEST_COUNT, 0.0).masked_fill(~features.mask, 0.0)
        prior_B1 = counts_BT.new_full((len(counts_BT), 1), self.config.prior_pseudo_count)
        prior_B1P = normals.mean.new_zeros(len(counts_BT), 1, self.width)
        return NonparametricPosterior(
            torch.cat([prior_B1, counts_BT], dim=1),
            torch.cat([prior_B1P, normals.mean], dim=1),
            torch.cat([prior_B1P, normals.log_variance], dim=1),
            torch.cat([torch.ones_like(features.mask[:, :1]), features.mask], dim=1),
        )

    def sample(self, posterior: NonparametricPosterior, samples: int) -> Mixture:
        """Impulses (S, B, L): `draws` from every component, by weights of one Dirichlet over all of them."""
        draws = self.config.draws
        counts_BL = (posterior.pseudo_counts / draws).repeat(1, draws)
        centres, log_variances = (x.repeat(1, draws, 1) for x in (posterior.centres, posterior.log_variances))
        noise = torch.randn(samples, *centres.shape, dtype=centres.dtype, device=centres.device)
        vectors = centres + (0.5 * log_variances).exp() * noise
        return Mixture(log_dirichlet(counts_BL.expand(samples, -1, -1)), vectors, torch.zeros_like(vectors))

    def mode(self, posterior: NonparametricPosterior) -> Mixture:
        """The base distribution of q, (B, N), less what `keep_above` drops; or impulses at its means.

        The paper reads the normals. But a decoder that trains on impulses may sharpen its queries at no cost, and a
        normal hands a query that is far from everything on as it is, the prior's widest one first.
        """
        counts = threshold(posterior.pseudo_counts, self.config.keep_above, 0.0)
        counts = torch.cat([posterior.pseudo_counts[:, :1], counts[:, 1:]], dim=1)
        log_weights = _log(counts) - counts.sum(dim=1, keepdim=True).log()
        variances = posterior.log_variances.exp()
        if self.config.evaluation == "means":
            variances = torch.zeros_like(variances)
        return Mixture(log_weights, posterior.centres, variances)

    def log_q(self, posterior: NonparametricPosterior, z_SBW: Tensor) -> Tensor:
        del posterior, z_SBW
        raise Misuse(NO_DENSITY)

    def log_prior(self, z: Tensor) -> Tensor:
        del z
        raise Misuse(NO_DENSITY)

    def sample_prior(self, count: int, lengths: Tensor | None = None) -> Mixture:
        """Impulses (count, L) from the prior for documents of these many tokens, (count,)."""
        device = self.pseudo_count.bias.device
        lengths = torch.full((count,), PRIOR_LENGTH, device=device) if lengths is None else lengths
        atoms = self._atoms(lengths)
        present = torch.arange(int(atoms.max()), device=device) < atoms.unsqueeze(1)
        counts = (self._prior_total(lengths) / atoms).unsqueeze(1).masked_fill(~present, 0.0)
        vectors = torch.randn(*present.shape, self.width, dtype=counts.dtype, device=device)
        return Mixture(log_dirichlet(counts), vectors, torch.zeros_like(vectors))

    def kl_groups(self, posterior: NonparametricPosterior) -> Tensor:
        """[L_G, L_D] in nats, (B, 2), neither divided by lengths or dimensions."""
        lengths, counts = posterior.lengths, posterior.pseudo_counts
        atoms, total = self._atoms(lengths), counts.sum(dim=1)
        normals = GaussianPosterior(posterior.centres, posterior.log_variances)
        zeros = torch.zeros_like(posterior.centres)
        by_component_BN = gaussian_kl(normals, GaussianPosterior(zeros, zeros)).sum(dim=-1)
        vectors = atoms * ((counts / total.unsqueeze(1)) * by_component_BN).sum(dim=1)
        weights = symmetric_dirichlet_kl(total, self._prior_total(lengths), atoms)
        return torch.stack([vectors, weights], dim=1)

    def _atoms(self, lengths: Tensor) -> Tensor:
        """How many vectors a draw has, (B,)."""
        return self.config.draws * (lengths + 1)

    def _prior_total(self, lengths: Tensor) -> Tensor:
        """The prior's alpha_0 for documents of these lengths, (B,)."""
        config = self.config
        return config.prior_pseudo_count + config.per_token_pseudo_count * lengths.to(self.pseudo_count.bias.dtype)


NO_DENSITY = (
    "a draw of the nonparametric latent, a set of vectors with weights, has no density to take the logarithm of; "
    "leave out estimates that need log q(z | x), and compare by the KL's two groups"
)


def sparsity(posterior: NonparametricPosterior, above: float = 0.0) -> Sparsity:
    """How many vectors of each document are kept: those with a pseudo-count above `above`."""
    counts = posterior.pseudo_counts
    kept = (counts[:, 1:] > above).sum(dim=1)
    shares = counts / counts.sum(dim=1, keepdim=True)
    entropy = -torch.special.xlogy(shares, shares).sum(dim=1)
    return Sparsity(kept, kept / posterior.lengths.clamp(min=1), counts.sum(dim=1), entropy.exp())


def interpolate(one: NonparametricPosterior, other: NonparametricPosterior, share: float) -> NonparametricPosterior:
    """The union of both documents' components, the first's counted (1 - share) times and the other's `share` times.

    The paper shows interpolations without a formula; this one has both posteriors as its ends.
    """
    counts = torch.cat([one.pseudo_counts[:, :1], (1 - share) * one.pseudo_counts[:, 1:]], dim=1)
    rest = NonparametricPosterior(*(x[:, 1:] for x in other))
    rest = rest._replace(pseudo_counts=share * rest.pseudo_counts)
    pairs = zip(one._replace(pseudo_counts=counts), rest, strict=True)
    return NonparametricPosterior(*(torch.cat(pair, dim=1) for pair in pairs))


def log_dirichlet(counts: Tensor) -> Tensor:
    """Logarithms of a draw from Dirichlet(counts) on the last axis, with pathwise gradients; -inf where a count is 0.

    Normalised gammas, by log Gamma(a) = log Gamma(a + 1) + log(U) / a, since Gamma(a) itself is often below the least
    positive number when a is small (Marsaglia and Tsang 2000).
    """
    positive = counts > 0
    safe = counts.where(positive, torch.ones_like(counts))
    log_uniform = -torch.empty_like(safe).exponential_()
    log_gamma = Gamma(safe + 1, 1.0, validate_args=False).rsample().log() + log_uniform / safe
    return log_gamma.masked_fill(~positive, -torch.inf).log_softmax(dim=-1)


def symmetric_dirichlet_kl(q_total: Tensor, p_total: Tensor, atoms: Tensor) -> Tensor:
    """KL(Dir(q_total / atoms, ...) || Dir(p_total / atoms, ...)) in nats of Dirichlets over `atoms` weights.

    In double precision, because `atoms` large terms nearly cancel.
    """
    q, p, k = q_total.double(), p_total.double(), atoms.double()
    norms = q.lgamma() - p.lgamma() + k * ((p / k).lgamma() - (q / k).lgamma())
    return (norms + (q - p) * ((q / k).digamma() - q.digamma())).to(q_total.dtype)


def _log(counts: Tensor) -> Tensor:
    """log, with -inf and no gradient where a count is 0."""
    positive = counts > 0
    return counts.where(positive, torch.ones_like(counts)).log().masked_fill(~positive, -torch.inf)
