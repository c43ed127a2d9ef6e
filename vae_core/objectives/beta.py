"""The ELBO, and the KL with another weight (beta-VAE: Higgins et al. 2017). Shapes: B documents, G groups."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from vae_core.config import Config
from vae_core.errors import Misuse
from vae_core.objectives.annealing import Annealing


class Beta(Config):
    """beta(t) KL; with beta 1 the ELBO, with beta 0 an auto-encoder with noise."""

    kind: Literal["beta"] = "beta"
    annealing: Annealing = Annealing()
    groups: tuple[float, ...] | None = Field(
        default=None, description="a further weight for each group of the KL, such as NVIB's two; null: 1 for all"
    )


def weighted(kl_groups_BG: Tensor, config: Beta) -> Tensor:
    """The KL's groups times their own weights, (B, G). Raises Misuse where their numbers differ."""
    if config.groups is None:
        return kl_groups_BG
    if len(config.groups) != kl_groups_BG.shape[1]:
        raise Misuse(
            f"objective.rate.groups has {len(config.groups)} weights and this latent's KL {kl_groups_BG.shape[1]} "
            f"groups; give one weight for each"
        )
    return kl_groups_BG * kl_groups_BG.new_tensor(config.groups)
