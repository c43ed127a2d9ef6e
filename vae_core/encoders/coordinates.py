"""Where a document lies in latent semantic indexing.

Shapes: B documents, N ids of all of them, V terms, D dimensions.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, normalize

from vae_core.batch import Ragged


class Coordinates(nn.Module):
    """Coordinates of unit length, which do not learn: a part that reads them has a document as LSI has it."""

    def __init__(self, vocabulary: int, dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.vectors: Tensor
        self.register_buffer("vectors", torch.zeros(vocabulary, dimensions))

    def forward(self, ids: Ragged, weights_N: Tensor) -> Tensor:
        """(B, D); of a document without a term that the corpus has, zeros."""
        weights_N = weights_N.to(self.vectors.dtype)
        summed_BD = embedding_bag(  # which holds no vector for each id, as index_add does
            ids.values, self.vectors, ids.offsets, mode="sum", per_sample_weights=weights_N, include_last_offset=True
        )
        return normalize(summed_BD, dim=1)

    def start_from(self, singular_VD: Tensor) -> None:
        """Take the first right singular vectors of the corpus's TF-IDF, (V, at least as many as it has)."""
        kept = min(self.dimensions, singular_VD.shape[1])
        self.vectors.zero_()[:, :kept] = singular_VD[:, :kept]
