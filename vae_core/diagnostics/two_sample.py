"""Tests of whether draws from q(z) and from p(z) have one distribution. Shapes: N and M points of W numbers, P orders.

With many documents every test rejects: read the effect first (MMD^2, the largest gap of two distribution functions),
then whether it could be chance. The points must be independent: one z a document.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vae_core.mmd import kernel

SERIES = 100
"""Terms of Kolmogorov's series."""


class Discrepancy(NamedTuple):
    """MMD^2, unbiased and so perhaps below 0, and how probable one as large is if the distributions are the same."""

    mmd_squared: float
    p_value: float


class Columns(NamedTuple):
    """For each of W numbers the effect and its p-value, (W,), and how many differ after Holm's correction."""

    effects: Tensor
    p_values: Tensor

    def differing(self, level: float = 0.05) -> int:
        """Columns whose p-value, corrected for how many there are, is at most `level`."""
        return int((holm(self.p_values) <= level).sum())


def permutation_test(x_NW: Tensor, y_MW: Tensor, permutations: int, generator: torch.Generator) -> Discrepancy:
    """MMD^2 with the kernel of `vae_core.mmd`, against as many random divisions of the pooled points.

    p = (1 + divisions at least as far apart) / (1 + permutations), so that the test is exact (Gretton et al. 2012).
    On bits the kernel is one of the Hamming distance. Takes (N + M)^2 numbers of memory.
    """
    pooled = torch.cat([x_NW, y_MW]).double()
    kernel_PP = kernel(pooled, pooled).fill_diagonal_(0)
    first = torch.zeros(1 + permutations, len(pooled), dtype=torch.float64)
    first[0, : len(x_NW)] = 1
    for row in first[1:]:
        row[torch.randperm(len(pooled), generator=generator)[: len(x_NW)]] = 1
    distances = _mmd_squared(kernel_PP, first)
    # The pooled sums differ by rounding between equal divisions.
    as_far = int((distances[1:] >= distances[0] - 1e-12).sum())
    return Discrepancy(float(distances[0]), (1 + as_far) / (1 + permutations))


def kolmogorov_smirnov(x_NW: Tensor, y_MW: Tensor) -> Columns:
    """The largest gap between the distribution functions of each number, with the asymptotic p-value."""
    x_WN, y_WM = (sample.double().T.contiguous().sort(dim=1).values for sample in (x_NW, y_MW))
    at_WP = torch.cat([x_WN, y_WM], dim=1)
    below_x, below_y = (torch.searchsorted(own, at_WP, right=True).double() / own.shape[1] for own in (x_WN, y_WM))
    effects = (below_x - below_y).abs().amax(dim=1)
    return Columns(effects, _kolmogorov_tail(effects, x_WN.shape[1] * y_WM.shape[1] / at_WP.shape[1]))


def proportions(x_NW: Tensor, y_MW: Tensor) -> Columns:
    """The difference between the shares of ones of each bit, x less y, with the p-value of the pooled z-test."""
    x_W, y_W, n, m = x_NW.double().mean(dim=0), y_MW.double().mean(dim=0), len(x_NW), len(y_MW)
    pooled_W = (n * x_W + m * y_W) / (n + m)
    error_W = (pooled_W * (1 - pooled_W) * (1 / n + 1 / m)).sqrt()
    scores_W = torch.where(error_W > 0, (x_W - y_W) / error_W.clamp(min=1e-300), 0.0)
    return Columns(x_W - y_W, torch.special.erfc(scores_W.abs() / math.sqrt(2)))


def compare_columns(x_NW: Tensor, y_MW: Tensor) -> Columns:
    """`proportions` where every number is 0 or 1, else `kolmogorov_smirnov`."""
    return proportions(x_NW, y_MW) if is_binary(x_NW) and is_binary(y_MW) else kolmogorov_smirnov(x_NW, y_MW)


def is_binary(x_NW: Tensor) -> bool:
    """Whether every number is 0 or 1."""
    return bool(((x_NW == 0) | (x_NW == 1)).all())


def holm(p_values_W: Tensor) -> Tensor:
    """P-values of W tests corrected so that any false rejection is as improbable as they say (Holm 1979)."""
    order = p_values_W.argsort()
    left = torch.arange(len(order), 0, -1, dtype=p_values_W.dtype)
    stepped = (p_values_W[order] * left).cummax(dim=0).values.clamp(max=1)
    return torch.empty_like(p_values_W).index_put_((order,), stepped)


def _mmd_squared(kernel_PP: Tensor, first_DP: Tensor) -> Tensor:
    """For each division, as ones for the first sample and zeros for the second, (D,); the diagonal is zero."""
    total = kernel_PP.sum()
    to_first_DP = first_DP @ kernel_PP
    n = first_DP.sum(dim=1)
    m = kernel_PP.shape[0] - n
    within_first = (to_first_DP * first_DP).sum(dim=1)
    across = to_first_DP.sum(dim=1) - within_first
    within_second = total - within_first - 2 * across
    return within_first / (n * (n - 1)) + within_second / (m * (m - 1)) - 2 * across / (n * m)


def _kolmogorov_tail(effects_W: Tensor, effective: float) -> Tensor:
    """P(D > effect) with Stephens' (1970) correction for finite samples of `effective` = N M / (N + M) points."""
    root = math.sqrt(effective)
    scaled_W = effects_W * (root + 0.12 + 0.11 / root)
    terms = torch.arange(1, SERIES + 1, dtype=torch.float64)
    signs = 1 - 2 * ((terms + 1) % 2)
    tail_W = 2 * (signs * (-2 * (terms * scaled_W.unsqueeze(1)).square()).exp()).sum(dim=1)
    # Below 0.2 the series alternates near 1 and the tail is 1 to twelve places.
    return torch.where(scaled_W < 0.2, 1.0, tail_W.clamp(0, 1))
