"""Which objectives a model can be trained with: found out before training, not in its first step."""

from vae_core.errors import Misuse
from vae_core.estimators import ScoreFunction
from vae_core.few_bits import share_of_enough
from vae_core.latents import (
    BernoulliConfig,
    BernoulliMixtureConfig,
    GaussianConfig,
    GaussianMixtureConfig,
    LatentConfig,
    NonparametricConfig,
)
from vae_core.many_bits import weight_of_a_bit
from vae_core.model import Composition
from vae_core.objectives import Beta, FreeBits, ImportanceWeighted, Objective, RateConfig

BITS = BernoulliConfig | BernoulliMixtureConfig
MIXTURES = BernoulliMixtureConfig | GaussianMixtureConfig
REAL = GaussianConfig | GaussianMixtureConfig
DECORRELATION = 2.5
"""For a mixture of just too few bits; by their share of enough for fewer: 5 at 32 bits, 10 at 16.

That bits differ is worth four points of P@100 at 16 of them and nothing at 64.
"""


def settled(objective: Objective, latent: LatentConfig) -> Objective:
    """The objective with what it leaves open decided for this latent."""
    decorrelation, share = objective.decorrelation, share_of_enough(latent)
    if decorrelation is None:
        decorrelation = DECORRELATION / share if share < 1 else 0.0
    return objective.model_copy(update={"decorrelation": decorrelation, "rate": _settled_rate(objective.rate, latent)})


def require_fitting(model: Composition, objective: Objective, samples: int) -> None:
    """Raise Misuse where a setting of the objective has no meaning for the model's latent, or too few samples."""
    latent = model.latent
    for name in ("dispersion", "component_information"):
        if getattr(objective, name) and not isinstance(latent, MIXTURES):
            raise Misuse(
                f"objective.{name} is about a mixture's components, and a {latent.kind} latent has none; "
                f"set it to 0, or latent.kind to bernoulli_mixture or gaussian_mixture"
            )
    if objective.decorrelation and not isinstance(latent, BITS):
        raise Misuse(
            f"objective.decorrelation is about bits, and a {latent.kind} latent has none; set it to 0, or latent.kind "
            f"to bernoulli or bernoulli_mixture"
        )
    if objective.mmd and isinstance(latent, NonparametricConfig):
        raise Misuse("objective.mmd compares vectors, and the z of a nonparametric latent is a set; set it to 0")
    if isinstance(objective.rate, ImportanceWeighted) and not isinstance(latent, REAL):
        raise Misuse(
            f"objective.rate importance_weighted needs samples that carry a gradient, and those of a {latent.kind} "
            f"latent do not; set latent.kind to gaussian or gaussian_mixture"
        )
    if isinstance(getattr(latent, "estimator", None), ScoreFunction) and samples < 2:
        raise Misuse("the score function compares a document's samples; set pretrain.samples to 2 or more")


def _settled_rate(rate: RateConfig, latent: LatentConfig) -> RateConfig:
    if not isinstance(rate, Beta | FreeBits) or rate.annealing.beta is not None:
        return rate
    annealing = rate.annealing.model_copy(update={"beta": weight_of_a_bit(latent)})
    return rate.model_copy(update={"annealing": annealing})
