"""Latents: posterior head, prior and KL of each family, one file each. A new one is also a line in each list below."""

from typing import Annotated, assert_never

from pydantic import Field

from vae_core.latents.bernoulli import BernoulliConfig, BernoulliLatent
from vae_core.latents.bernoulli_mixture import BernoulliMixtureConfig, BernoulliMixtureLatent
from vae_core.latents.categorical import CategoricalConfig, CategoricalLatent
from vae_core.latents.gaussian import GaussianConfig, GaussianLatent
from vae_core.latents.gaussian_mixture import GaussianMixtureConfig, GaussianMixtureLatent
from vae_core.latents.latent import Latent, LatentDraw
from vae_core.latents.nonparametric import NonparametricConfig, NonparametricLatent

__all__ = [
    "BernoulliConfig",
    "BernoulliLatent",
    "BernoulliMixtureConfig",
    "BernoulliMixtureLatent",
    "CategoricalConfig",
    "CategoricalLatent",
    "GaussianConfig",
    "GaussianLatent",
    "GaussianMixtureConfig",
    "GaussianMixtureLatent",
    "Latent",
    "LatentConfig",
    "LatentDraw",
    "NonparametricConfig",
    "NonparametricLatent",
    "build_latent",
    "reads_states",
]

LatentConfig = Annotated[
    BernoulliMixtureConfig
    | BernoulliConfig
    | CategoricalConfig
    | GaussianConfig
    | GaussianMixtureConfig
    | NonparametricConfig,
    Field(discriminator="kind"),
]


SETS: tuple[str, ...] = ("nonparametric",)
"""Kinds whose z is a set of vectors, read off the encoder's vector of every token."""


def build_latent(config: LatentConfig, features: int) -> Latent:
    """The latent that `config` describes, read off `features` numbers a document."""
    match config:
        case BernoulliMixtureConfig():
            return BernoulliMixtureLatent(config, features)
        case BernoulliConfig():
            return BernoulliLatent(config, features)
        case CategoricalConfig():
            return CategoricalLatent(config, features)
        case GaussianConfig():
            return GaussianLatent(config, features)
        case GaussianMixtureConfig():
            return GaussianMixtureLatent(config, features)
        case NonparametricConfig():
            return NonparametricLatent(config, features)
        case _:
            assert_never(config)


def reads_states(config: LatentConfig) -> bool:
    """Whether the latent is given the encoder's vector of every token, not one vector a document."""
    return config.kind in SETS
