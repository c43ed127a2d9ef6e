"""A KL below a threshold costs no more (Kingma et al. 2016; per document: Li et al. 2019).

The gradient is 0 wherever the KL is below the threshold. Shapes: B documents, G groups.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from vae_core.config import Config
from vae_core.objectives.annealing import Annealing


class FreeBits(Config):
    """beta(t) sum_i max(nats, KL_i), where i are the groups of the KL or the whole of it."""

    kind: Literal["free_bits"] = "free_bits"
    nats: float = Field(gt=0, description="KL that costs nothing, of each group or of all together")
    per: Literal["group", "document"] = Field(
        default="group", description="threshold for each group (bit, dimension), or for all together"
    )
    mean: bool = Field(default=False, description="compare the batch's mean KL with it, not each document's")
    annealing: Annealing = Annealing(warmup=0.0)


def floored(kl_groups_BG: Tensor, config: FreeBits) -> Tensor:
    """max(nats, KL), (B or 1, G or 1)."""
    kl = kl_groups_BG if config.per == "group" else kl_groups_BG.sum(dim=1, keepdim=True)
    kl = kl.mean(dim=0, keepdim=True) if config.mean else kl
    return kl.clamp(min=config.nats)
