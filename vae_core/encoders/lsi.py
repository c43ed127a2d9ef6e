"""Term vectors from latent semantic indexing (Deerwester et al. 1990). Shapes: B documents, V terms, D dimensions."""

import torch
from torch import Tensor

from vae_core.batch import Batch

ITERATIONS = 4
"""Power iterations of the randomised SVD (Halko et al. 2011)."""


def lsi_vectors(documents: Batch, idf_V: Tensor, dimensions: int) -> Tensor:
    """Unit rows of V S, (V, D), of the TF-IDF matrix's randomised SVD; zeros for terms that do not occur.

    Where the matrix has fewer than D singular values, the other columns are zero.
    """
    terms = documents.terms
    indices = torch.stack([terms.rows, terms.values])
    size = (len(documents), len(idf_V))
    matrix = torch.sparse_coo_tensor(indices, documents.tfidf(idf_V), size, check_invariants=False)
    kept = min(dimensions, *size)
    _, singular, right_VD = torch.svd_lowrank(matrix, q=kept, niter=ITERATIONS)
    # Rounding leaves a speck in the rows of terms that do not occur, which must not grow to unit length.
    occurs_V = singular.new_zeros(len(idf_V)).index_fill(0, terms.values, 1.0)
    vectors_VD = right_VD * singular * occurs_V.unsqueeze(1)
    vectors_VD = vectors_VD / vectors_VD.norm(dim=1, keepdim=True).clamp(min=1e-9)
    return torch.cat([vectors_VD, vectors_VD.new_zeros(len(idf_V), dimensions - kept)], dim=1)
