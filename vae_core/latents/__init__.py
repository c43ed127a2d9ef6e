"""Latents: posterior head, prior and KL of each family, one file each. A new one is also a line in each list below."""

from vae_core.latents.bernoulli_mixture import BernoulliMixtureConfig, BernoulliMixtureLatent

__all__ = ["BernoulliMixtureConfig", "Latent", "LatentConfig", "build_latent"]

LatentConfig = BernoulliMixtureConfig
Latent = BernoulliMixtureLatent


def build_latent(config: LatentConfig, features: int) -> Latent:
    """The latent that `config` describes, read off `features` numbers a document."""
    return BernoulliMixtureLatent(config, features)
