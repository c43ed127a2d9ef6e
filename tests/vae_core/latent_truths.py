"""One example or more of every kind of latent, and what torch.distributions says of its q, its prior and its KL.

Shapes: B documents, C components, W numbers of z.
"""

from itertools import product

import torch
from documents import all_codes, shaken
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    OneHotCategorical,
    ReshapeTransform,
    TransformedDistribution,
    kl_divergence,
)
from torch.nn.functional import one_hot

from vae_core.latents import (
    BernoulliConfig,
    BernoulliMixtureConfig,
    CategoricalConfig,
    GaussianConfig,
    GaussianMixtureConfig,
    Latent,
    build_latent,
)
from vae_core.latents.bernoulli import BernoulliPosterior
from vae_core.latents.bernoulli_mixture import BernoulliMixturePosterior
from vae_core.latents.categorical import CategoricalPosterior
from vae_core.latents.gaussian import GaussianPosterior
from vae_core.latents.gaussian_mixture import GaussianMixturePosterior

FEATURES, DOCUMENTS, COMPONENTS, BITS, DIMENSIONS = 5, 6, 3, 8, 3
EXAMPLES = {
    "gaussian": GaussianConfig(dimensions=DIMENSIONS),
    "gaussian-learned": GaussianConfig(dimensions=DIMENSIONS, prior="learned"),
    "gaussian-vamp": GaussianConfig(dimensions=DIMENSIONS, prior="vamp", pseudo_inputs=COMPONENTS),
    "gaussian_mixture": GaussianMixtureConfig(dimensions=DIMENSIONS, components=COMPONENTS),
    "gaussian_mixture-optimal": GaussianMixtureConfig(
        dimensions=DIMENSIONS, components=COMPONENTS, assignment="optimal"
    ),
    "bernoulli": BernoulliConfig(bits=BITS),
    "bernoulli-learned": BernoulliConfig(bits=BITS, prior="learned"),
    "bernoulli_mixture": BernoulliMixtureConfig(bits=BITS, components=COMPONENTS, noise=False),
    "bernoulli_mixture-optimal": BernoulliMixtureConfig(
        bits=BITS, components=COMPONENTS, noise=False, assignment="optimal"
    ),
    "categorical": CategoricalConfig(variables=3, values=4),
    "categorical-learned": CategoricalConfig(variables=3, values=4, prior="learned"),
}
REAL = [name for name in EXAMPLES if name.startswith("gaussian")]
DISCRETE = [name for name in EXAMPLES if name not in REAL]
EXACT = [name for name in EXAMPLES if name != "gaussian-vamp"]
MIXTURES = [name for name in EXAMPLES if "mixture" in name]


def latent_of(name: str, **changed: object) -> Latent:
    """The example in double precision, no parameter of which is still where it started."""
    torch.manual_seed(0)
    return shaken(build_latent(EXAMPLES[name].model_copy(update=changed), FEATURES).double(), size=0.8)


def features_of(documents: int = DOCUMENTS, size: float = 1.0) -> Tensor:
    return size * torch.randn(documents, FEATURES, generator=torch.Generator().manual_seed(1)).double()


def flat_one_hot(logits: Tensor) -> Distribution:
    """M one-hot vectors side by side."""
    joined = ReshapeTransform(logits.shape[-2:], (logits.shape[-2] * logits.shape[-1],))
    values = Independent(OneHotCategorical(logits=logits, validate_args=False), 1, validate_args=False)
    return TransformedDistribution(values, joined, validate_args=False)


def normal(mean: Tensor, log_variance: Tensor) -> Distribution:
    return Independent(Normal(mean, (log_variance / 2).exp()), 1)


def bits(log_odds: Tensor) -> Distribution:
    return Independent(Bernoulli(logits=log_odds), 1)


def true_q(posterior: object) -> Distribution:
    """q(z | x) as torch has it."""
    match posterior:
        case GaussianPosterior() | GaussianMixturePosterior():
            return normal(posterior.mean, posterior.log_variance)
        case BernoulliPosterior() | BernoulliMixturePosterior():
            return bits(posterior.log_odds)
        case CategoricalPosterior():
            return flat_one_hot(posterior.logits)
    raise TypeError(type(posterior))


def bounded(log_variances: Tensor) -> Tensor:
    return 6 * torch.tanh(log_variances / 6)


def true_components(latent: Latent) -> Distribution:
    """p(z | c), or p(z) where the prior is no mixture."""
    config, nothing = latent.config, torch.zeros(latent.width).double()
    match config:
        case GaussianConfig(prior="standard"):
            return normal(nothing, nothing)
        case GaussianConfig(prior="learned"):
            return normal(latent.prior_mean, latent.prior_log_variance)
        case GaussianConfig():
            return true_q(latent.posterior(latent.prior_inputs))
        case GaussianMixtureConfig():
            return normal(latent.prior_means, bounded(latent.prior_log_variances))
        case BernoulliConfig():
            return bits(latent.prior_log_odds if config.prior == "learned" else nothing)
        case BernoulliMixtureConfig():
            return bits(latent.prior_log_odds)
        case CategoricalConfig():
            uniform = torch.zeros(config.variables, config.values).double()
            return flat_one_hot(latent.prior_logits if config.prior == "learned" else uniform)
    raise TypeError(type(config))


def true_weights(latent: Latent) -> Categorical:
    """p(c)."""
    if isinstance(latent.config, GaussianConfig):
        return Categorical(logits=torch.zeros(latent.config.pseudo_inputs).double())
    return Categorical(logits=latent.prior_components)


def true_prior(latent: Latent) -> Distribution:
    """p(z) as torch has it."""
    components = true_components(latent)
    return components if components.batch_shape == () else MixtureSameFamily(true_weights(latent), components)


def support(latent: Latent) -> Tensor:
    """Every value of a discrete z, (values, W)."""
    if not isinstance(latent.config, CategoricalConfig):
        return all_codes(latent.width)
    rows = product(range(latent.config.values), repeat=latent.config.variables)
    return one_hot(torch.tensor(list(rows)), latent.config.values).double().flatten(1)


def true_kl_groups(latent: Latent, posterior: object) -> Tensor:
    """Each group by torch's KL of one number, averaged over q(c | x), and of the component."""
    q, p = true_q(posterior), true_components(latent)
    if isinstance(posterior, CategoricalPosterior):
        return kl_divergence(q.base_dist.base_dist, p.base_dist.base_dist)
    if isinstance(posterior, (GaussianPosterior, BernoulliPosterior)):
        return kl_divergence(q.base_dist, p.base_dist.expand(q.base_dist.batch_shape))
    q_c = Categorical(logits=posterior.component_logits)
    by_unit = (q_c.probs.T.unsqueeze(2) * kl_by_component(q, p)).sum(dim=0)
    return torch.cat([by_unit, kl_divergence(q_c, true_weights(latent)).unsqueeze(1)], dim=1)


def kl_by_component(q: Distribution, components: Distribution) -> Tensor:
    """KL(q(z_i | x) || p(z_i | c)) by torch, (C, B, W)."""
    shape = (COMPONENTS, *q.base_dist.batch_shape)
    base = components.base_dist
    if isinstance(base, Normal):
        p = Normal(base.loc.unsqueeze(1).expand(shape), base.scale.unsqueeze(1).expand(shape))
    else:
        p = Bernoulli(logits=base.logits.unsqueeze(1).expand(shape))
    return kl_divergence(q.base_dist.expand(shape), p)
