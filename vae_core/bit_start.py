"""Where bits begin: as LSI + ITQ has them. Shapes: B documents, N terms of all of them, D coordinates, K bits."""

import torch
from torch import Tensor

from vae_core.batch import Batch
from vae_core.encoders import TransformerEncoder
from vae_core.few_bits import share_of_enough
from vae_core.itq import itq, random_rotation
from vae_core.latents import BernoulliLatent, BernoulliMixtureLatent, Latent

LOG_ODDS = 6.0
"""Their standard deviation at the start. From 3 to 12 P@100 differs no more than between seeds; at 1 less is won.

Of fewer than enough bits, their share of it: a few settled ones hardly leave what LSI says for what training would.
"""


@torch.no_grad()
def start_bits(encoder: TransformerEncoder, latent: Latent, documents: Batch, tfidf_N: Tensor) -> None:
    """Let the log-odds begin at the rotated LSI coordinates of these documents, whose signs are the codes of LSI + ITQ.

    With a joined encoder the coordinates are those of LSI and its own, side by side. More bits than coordinates are
    several rotations of all of them. Without coordinates, and for latents without bits, nothing changes.
    """
    if not encoder.placed_width or not isinstance(latent, BernoulliLatent | BernoulliMixtureLatent):
        return
    head, most = latent.log_odds, encoder.placed_width
    coordinates_BD = encoder.placed(documents, *encoder.read(documents, tfidf_N))
    first = encoder.config.hidden
    for start in range(0, head.out_features, most):
        bits = slice(start, min(start + most, head.out_features))
        rotation = itq(coordinates_BD, random_rotation(bits.stop - start))
        spread = LOG_ODDS * share_of_enough(latent.config)
        size = spread / ((coordinates_BD - rotation.mean_D) @ rotation.turn_DK).std().clamp(min=1e-6)
        head.weight[bits, first : first + most] = size * rotation.turn_DK.T
        head.bias[bits] = -size * (rotation.mean_D @ rotation.turn_DK)
