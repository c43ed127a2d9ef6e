"""Squared maximum mean discrepancy between two samples (Gretton et al. 2012). Shapes: N and M points of W numbers."""

import torch
from torch import Tensor

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the kernels exp(-|x - y|^2 / (2 s^2 W)), whose sum is used; samples of one scale are about sqrt(2 W) apart."""


def mmd_squared(x_NW: Tensor, y_MW: Tensor) -> Tensor:
    """The unbiased estimate, which may be below 0 where the two agree. Both samples need two points or more."""
    x_NW, y_MW = x_NW.float(), y_MW.float()
    within = _mean_off_diagonal(kernel(x_NW, x_NW)) + _mean_off_diagonal(kernel(y_MW, y_MW))
    return within - 2 * kernel(x_NW, y_MW).mean()


def kernel(x_NW: Tensor, y_MW: Tensor) -> Tensor:
    """The sum of Gaussian kernels of every pair, (N, M)."""
    squares = x_NW.square().sum(1, keepdim=True) + y_MW.square().sum(1) - 2 * x_NW @ y_MW.T
    per_dimension = squares.clamp(min=0) / x_NW.shape[1]
    return torch.stack([(-per_dimension / (2 * s * s)).exp() for s in BANDWIDTHS]).sum(dim=0)


def _mean_off_diagonal(kernel_NN: Tensor) -> Tensor:
    count = len(kernel_NN)
    return (kernel_NN.sum() - kernel_NN.diagonal().sum()) / (count * (count - 1))
