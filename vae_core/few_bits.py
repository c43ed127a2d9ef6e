"""Of few bits each counts: they are decorrelated, learn longer, and begin less settled, by what they lack of enough."""

from vae_core.latents import BernoulliMixtureConfig, LatentConfig

ENOUGH_BITS = 64


def share_of_enough(latent: LatentConfig) -> float:
    """The bits of a Bernoulli mixture as a share of what is enough, at most 1; 1 for every other latent."""
    return min(1.0, latent.bits / ENOUGH_BITS) if isinstance(latent, BernoulliMixtureConfig) else 1.0
