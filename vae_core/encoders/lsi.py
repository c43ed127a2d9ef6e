"""Term vectors from latent semantic indexing (Deerwester et al. 1990). Shapes: B documents, V terms, D dimensions."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from vae_core.batch import Batch

ITERATIONS = 4
"""Power iterations of the randomised SVD (Halko et al. 2011)."""


def lsi_vectors(documents: Batch, idf_V: Tensor, dimensions: int) -> Tensor:
    """Unit rows of V S, (V, D), of the TF-IDF matrix's randomised SVD; zeros for terms that do not occur."""
    return unit_rows(*truncated_svd(documents, idf_V, dimensions))


def unit_rows(right_VD: Tensor, singular_D: Tensor) -> Tensor:
    """Rows of V S of unit length; those of zeros stay so."""
    vectors_VD = right_VD * singular_D
    return vectors_VD / vectors_VD.norm(dim=1, keepdim=True).clamp(min=1e-9)


def truncated_svd(documents: Batch, idf_V: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """V (V, D) and S (D,) of the TF-IDF matrix's randomised SVD; the row of a term that does not occur is zero.

    Where the matrix has fewer than D singular values, the other columns are zero.
    """
    terms = documents.terms
    indices = torch.stack([terms.rows, terms.values])
    size = (len(documents), len(idf_V))
    matrix = torch.sparse_coo_tensor(indices, documents.tfidf(idf_V), size, check_invariants=False)
    kept = min(dimensions, *size)
    _, singular_D, right_VD = torch.svd_lowrank(matrix, q=kept, niter=ITERATIONS)
    # Rounding leaves a speck in the rows of terms that do not occur, which must not grow to unit length.
    occurs_V = singular_D.new_zeros(len(idf_V)).index_fill(0, terms.values, 1.0)
    right_VD = pad(right_VD * occurs_V.unsqueeze(1), (0, dimensions - kept))
    return right_VD, pad(singular_D, (0, dimensions - kept))
