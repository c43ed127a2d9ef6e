"""Groups of draws of z as mixtures of the same Gaussian components, each group with weights of its own.

Whether q(z) lies where p(z) lies: fit draws of both, and compare their weights and densities (mixed membership model;
Blei 2014; used so for text VAEs by Barkhof and Aziz 2022). Fitted by EM with diagonal covariances.
Shapes: N points of W numbers, G groups, T components.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CONCENTRATION = 0.1
"""Of the Dirichlet pseudo-counts, shared among the components: what keeps weights above 0."""
SMALLEST_VARIANCE = 1e-4
STEPS, ENOUGH = 200, 1e-7
"""EM stops after so many steps, or where one raises its objective by less than this a point."""
HELD_OUT_EVERY = 4


@dataclass(frozen=True, slots=True, eq=False)
class Membership:
    """The fitted model: log-weights (G, T), means and variances (T, W), and EM's objective at every step, in nats.

    `held_out` is the mean log-density of the points that were not fitted, in their own group.
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    objectives: tuple[float, ...]
    held_out: float

    def log_density(self, z_NW: Tensor, group: int) -> Tensor:
        """log q_g(z), (N,)."""
        return (log_components(z_NW.double(), self.means, self.variances) + self.log_weights[group]).logsumexp(dim=1)

    def distance(self, group: int, other: int = 0) -> float:
        """The Jensen-Shannon divergence of two groups' weights in nats: 0 where they are the same, at most ln 2."""
        p, q = self.log_weights[group].exp(), self.log_weights[other].exp()
        middle = ((p + q) / 2).log()
        return float((p * (p.log() - middle) + q * (q.log() - middle)).sum() / 2)


def split(group_NW: Tensor) -> tuple[Tensor, Tensor]:
    """The points to fit, and every HELD_OUT_EVERY-th one, to judge by."""
    held = torch.arange(len(group_NW)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return group_NW[~held].double(), group_NW[held].double()


def fit_mixed_membership(
    groups: Sequence[Tensor], components: int, generator: torch.Generator, restarts: int = 5
) -> Membership:
    """The best of some fits from random starts, by the likelihood of the points held out of each group.

    Raises ValueError for a group too small to hold points out of, or fewer points than components.
    """
    fitted, held_out = zip(*(split(group) for group in groups), strict=True)
    if min(map(len, held_out)) == 0 or sum(map(len, fitted)) < components:
        sizes = ", ".join(str(len(group)) for group in groups)
        raise ValueError(f"groups of {sizes} points are too small for {components} components")
    fits = [_fit(fitted, held_out, components, generator) for _ in range(restarts)]
    return max(fits, key=lambda fit: fit.held_out)


def log_components(z_NW: Tensor, means_TW: Tensor, variances_TW: Tensor) -> Tensor:
    """log N(z; m_t, diag v_t), (N, T), without an (N, T, W) intermediate."""
    precisions_TW = 1 / variances_TW
    squares_NT = z_NW.square() @ precisions_TW.T - 2 * z_NW @ (means_TW * precisions_TW).T
    constants_T = (means_TW.square() * precisions_TW + variances_TW.log() + math.log(2 * math.pi)).sum(dim=1)
    return -0.5 * (squares_NT + constants_T)


def _fit(
    groups: Sequence[Tensor], held_out: Sequence[Tensor], components: int, generator: torch.Generator
) -> Membership:
    points_NW = torch.cat(list(groups))
    group_N = torch.cat([torch.full((len(group),), g) for g, group in enumerate(groups)])
    means_TW = _spread_out(points_NW, components, generator)
    variances_TW = points_NW.var(dim=0).clamp(min=SMALLEST_VARIANCE).expand(components, -1)
    log_weights_GT = torch.full((len(groups), components), -math.log(components), dtype=torch.float64)
    objectives: list[float] = []
    while len(objectives) < STEPS:
        log_joint_NT = log_components(points_NW, means_TW, variances_TW) + log_weights_GT[group_N]
        log_p_N = log_joint_NT.logsumexp(dim=1)
        objectives.append(float(log_p_N.sum() + CONCENTRATION / components * log_weights_GT.sum()))
        if len(objectives) > 1 and objectives[-1] - objectives[-2] < ENOUGH * len(points_NW):
            break
        shares_NT = (log_joint_NT - log_p_N.unsqueeze(1)).exp()
        log_weights_GT = _log_weights(shares_NT, group_N, len(groups))
        means_TW, variances_TW = _moments(points_NW, shares_NT, means_TW)
    made = Membership(log_weights_GT, means_TW, variances_TW, tuple(objectives), 0.0)
    judged = torch.cat([made.log_density(points, group) for group, points in enumerate(held_out)]).mean()
    return Membership(log_weights_GT, means_TW, variances_TW, made.objectives, float(judged))


def _log_weights(shares_NT: Tensor, group_N: Tensor, groups: int) -> Tensor:
    """The weights that are most probable under a Dirichlet with CONCENTRATION pseudo-counts in all, (G, T)."""
    counts_GT = shares_NT.new_zeros(groups, shares_NT.shape[1]).index_add(0, group_N, shares_NT)
    counts_GT = counts_GT + CONCENTRATION / shares_NT.shape[1]
    return (counts_GT / counts_GT.sum(dim=1, keepdim=True)).log()


def _moments(points_NW: Tensor, shares_NT: Tensor, centre_TW: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted means and variances, (T, W); a variance at the floor is still the best one above it."""
    mass_T1 = shares_NT.sum(dim=0).clamp(min=1e-12).unsqueeze(1)
    means_TW = shares_NT.T @ points_NW / mass_T1
    # A component that no point belongs to stays where it is.
    means_TW = torch.where(mass_T1 > 1e-9, means_TW, centre_TW)
    squares_TW = shares_NT.T @ points_NW.square() / mass_T1
    return means_TW, (squares_TW - means_TW.square()).clamp(min=SMALLEST_VARIANCE)


def _spread_out(points_NW: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next centre is a point drawn by its squared distance to the nearest one (Arthur 2007)."""
    chosen = [int(torch.randint(len(points_NW), (1,), generator=generator))]
    nearest_N = (points_NW - points_NW[chosen[0]]).square().sum(dim=1)
    for _ in range(count - 1):
        # Where all points are the same, any will do.
        chosen.append(int(torch.multinomial(nearest_N + 1e-12, 1, generator=generator)))
        nearest_N = nearest_N.minimum((points_NW - points_NW[chosen[-1]]).square().sum(dim=1))
    return points_NW[chosen]
