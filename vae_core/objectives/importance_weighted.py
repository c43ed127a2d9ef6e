"""The importance-weighted bound, tighter than the ELBO for several samples (Burda et al. 2016). Shapes: S samples."""

import math
from typing import Literal

from torch import Tensor

from vae_core.config import Config
from vae_core.errors import Misuse
from vae_core.model import Terms


class ImportanceWeighted(Config):
    """-log mean_s p(x, z_s) / q(z_s | x) over the `pretrain.samples` of each document; real latents only."""

    kind: Literal["importance_weighted"] = "importance_weighted"


def importance_weighted(terms: Terms) -> Tensor:
    """The negative bound, mean over documents. Raises Misuse where samples carry no gradient of their own."""
    if not (terms.log_p.requires_grad and terms.log_q.requires_grad and terms.z.requires_grad):
        raise Misuse(
            "objective.rate importance_weighted needs samples that carry a gradient through p(z) and q(z | x); "
            "take the latent gaussian or gaussian_mixture"
        )
    log_weights_SB = terms.log_px + terms.log_p - terms.log_q
    return math.log(len(log_weights_SB)) - log_weights_SB.logsumexp(dim=0).mean()
