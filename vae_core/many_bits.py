"""Of many bits each counts for less: it costs less, and words learn more slowly from it, by how many there are."""

from vae_core.latents import BernoulliMixtureConfig, LatentConfig

MANY_BITS = 128


def weight_of_a_bit(latent: LatentConfig) -> float:
    """What each bit of a Bernoulli mixture counts for, at most 1; 1 for every other latent."""
    return min(1.0, MANY_BITS / latent.bits) if isinstance(latent, BernoulliMixtureConfig) else 1.0
