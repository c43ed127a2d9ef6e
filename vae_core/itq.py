"""Iterative quantisation (Gong & Lazebnik 2011): the rotation after which signs say most of a vector.

Shapes: N vectors, D dimensions, K bits.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ITERATIONS = 50


class Rotation(NamedTuple):
    """The vectors' mean (D,), and where each dimension goes (D, K)."""

    mean_D: Tensor
    turn_DK: Tensor


def itq(vectors_ND: Tensor, start_KK: Tensor) -> Rotation:
    """The rotation of the vectors' K principal directions that brings them nearest to their signs.

    Turns of signs and rotation (their section 3.1) begin with the orthogonal matrix `start_KK`. Vectors of fewer
    dimensions than bits are turned within the space of the bits.
    """
    mean_D = vectors_ND.double().mean(dim=0)
    centred_ND = vectors_ND - mean_D.to(vectors_ND.dtype)
    directions_DD = torch.linalg.eigh(centred_ND.double().T @ centred_ND.double())[1]
    directions_DP = directions_DD.flip(1)[:, : len(start_KK)]
    placed_NP = centred_ND @ directions_DP.to(centred_ND.dtype)
    turn_PK = start_KK.double()[: placed_NP.shape[1]]
    for _ in range(ITERATIONS):
        signs_NK = torch.where(placed_NP @ turn_PK.to(placed_NP.dtype) > 0, 1.0, -1.0).to(placed_NP.dtype)
        left_PP, _, right_PK = torch.linalg.svd((placed_NP.T @ signs_NK).double(), full_matrices=False)
        turn_PK = left_PP @ right_PK
    return Rotation(mean_D.to(vectors_ND.dtype), (directions_DP @ turn_PK).to(vectors_ND.dtype))


def random_rotation(bits: int) -> Tensor:
    """An orthogonal matrix (K, K) by torch's random numbers."""
    return torch.linalg.qr(torch.randn(bits, bits, dtype=torch.float64))[0]
