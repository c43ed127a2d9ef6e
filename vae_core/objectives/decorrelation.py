"""Bits that are balanced and say different things. Shapes: B documents, K bits."""

from torch import Tensor


def decorrelation(means_BK: Tensor) -> Tensor:
    """Squared covariances of different bits, by K, and squared means of each bit, of f = 2 q(z = 1 | x) - 1 in [-1, 1].

    0 where every bit halves the batch and no two agree more often than by chance: the wishes of spectral hashing
    (Weiss, Torralba & Fergus 2008), over a batch.
    """
    f_BK = 2 * means_BK - 1
    mean_K = f_BK.mean(dim=0)
    covariance_KK = (f_BK - mean_K).T @ (f_BK - mean_K) / len(f_BK)
    different = covariance_KK.square().sum() - covariance_KK.diagonal().square().sum()
    return different / f_BK.shape[1] + mean_K.square().sum()
