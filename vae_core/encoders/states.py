"""What an encoder hands to a latent of sets: a vector for every token. Shapes: B documents, T places, D width."""

from typing import NamedTuple

import torch
from torch import Tensor

from vae_core.batch import Ragged


class States(NamedTuple):
    """Vectors (B, T, D), and which places hold one, (B, T) bool; the others are padding, and zero."""

    vectors: Tensor
    mask: Tensor


def states_of(vectors_ND: Tensor, ids: Ragged) -> States:
    """The ids' vectors (N, D) as padded rows; T is the longest document's length, at least 1."""
    documents, longest = len(ids.lengths), max(1, int(ids.lengths.max()))
    slots = ids.rows * longest + ids.positions
    flat = vectors_ND.new_zeros(documents * longest, vectors_ND.shape[1]).index_copy(0, slots, vectors_ND)
    mask = torch.zeros(documents * longest, dtype=torch.bool, device=slots.device).index_fill(0, slots, True)
    return States(flat.unflatten(0, (documents, longest)), mask.unflatten(0, (documents, longest)))
