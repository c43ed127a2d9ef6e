"""Mixed membership against the mixture that drew the points, torch.distributions and SciPy."""

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vae_core.diagnostics.mixed_membership import Membership, fit_mixed_membership, split

CENTRES = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64)
SCALES = torch.tensor([1.0, 0.5], dtype=torch.float64)


def drawn(weights: Tensor, count: int = 2000) -> Tensor:
    return CENTRES[torch.multinomial(weights, count, replacement=True)] + SCALES * torch.randn(
        count, 2, dtype=torch.float64
    )


def fit(groups: list[Tensor], components: int = 3) -> Membership:
    return fit_mixed_membership(groups, components, torch.Generator().manual_seed(0))


def test_the_weights_and_components_of_two_groups_are_recovered() -> None:
    torch.manual_seed(0)
    made = fit([drawn(weights) for weights in WEIGHTS])
    nearest = torch.cdist(CENTRES, made.means).argmin(dim=1)
    assert sorted(nearest.tolist()) == [0, 1, 2]
    assert torch.allclose(made.log_weights.exp()[:, nearest], WEIGHTS, atol=0.05)
    assert torch.allclose(made.means[nearest], CENTRES, atol=0.15)
    assert torch.allclose(made.variances, SCALES.square().expand(3, -1), rtol=0.15)
    wanted = jensenshannon(WEIGHTS[0].numpy(), WEIGHTS[1].numpy()) ** 2
    assert made.distance(1) == pytest.approx(wanted, abs=0.03)


def test_the_objective_never_falls() -> None:
    torch.manual_seed(1)
    made = fit([torch.rand(300, 3), torch.randn(200, 3)], components=6)
    steps = torch.tensor(made.objectives, dtype=torch.float64)
    assert len(steps) > 5
    assert (steps.diff() > -1e-7).all()
    assert steps[-1] > steps[0]


def test_the_density_is_that_of_the_mixture() -> None:
    torch.manual_seed(2)
    made = fit([drawn(weights, 200) for weights in WEIGHTS])
    z = drawn(WEIGHTS[0], 20)
    parts = Independent(Normal(made.means, made.variances.sqrt()), 1)
    wanted = MixtureSameFamily(Categorical(logits=made.log_weights[1]), parts).log_prob(z)
    assert torch.allclose(made.log_density(z, 1), wanted, atol=1e-9)
    held = torch.cat([made.log_density(split(group)[1], g) for g, group in enumerate([z, z])])
    assert len(held) == 10


def test_the_distance_is_that_of_scipy() -> None:
    made = Membership(WEIGHTS.log(), CENTRES, CENTRES, (), 0.0)
    assert made.distance(1) == pytest.approx(jensenshannon(WEIGHTS[0], WEIGHTS[1]) ** 2)
    assert made.distance(0) == 0


def test_fresh_draws_of_the_prior_are_at_no_distance_from_it() -> None:
    torch.manual_seed(3)
    made = fit([torch.randn(4000, 2), torch.randn(4000, 2)], components=2)
    fresh = torch.randn(4000, 2, dtype=torch.float64)
    excess = made.log_density(fresh, 1) - Normal(0.0, 1.0).log_prob(fresh).sum(dim=1)
    error = float(excess.std()) / math.sqrt(4000)
    assert error < 0.005
    assert abs(float(excess.mean())) < 4.9 * error + 0.005
    assert made.distance(1) < 0.01


def test_points_that_are_all_the_same_are_fitted_too() -> None:
    made = fit([torch.zeros(40, 2), torch.randn(40, 2)])
    assert math.isfinite(made.held_out)
    assert torch.isfinite(made.log_weights).all()


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="groups of 3, 50 points are too small"):
        fit([torch.zeros(3, 2), torch.zeros(50, 2)])
