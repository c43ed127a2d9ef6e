"""Active units against a linear-Gaussian model whose rank is known, and against the plain variance."""

import pytest
import torch
from linear_gaussian import data_batch, linear_gaussian, marginal
from torch import Tensor

from vae_core.diagnostics.units import UnitVariance, active_by_kl


def of(*batches: Tensor) -> UnitVariance:
    units = UnitVariance(batches[0].shape[1])
    for batch in batches:
        units.update(batch)
    return units


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_as_many_units_are_active_as_the_data_has_directions(rank: int) -> None:
    weights = torch.zeros(6, 4, dtype=torch.float64)
    weights[:, :rank] = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q[:, :rank]
    torch.manual_seed(0)
    batch = data_batch(marginal(weights).sample((500,)))
    model = linear_gaussian(weights)
    posterior = model.posterior(batch)
    assert of(posterior.means.detach()).active == rank
    assert active_by_kl(model.latent.kl_groups(posterior).mean(dim=0)) == rank


def test_batches_and_merges_change_nothing_even_far_from_zero() -> None:
    torch.manual_seed(0)
    means = torch.randn(100, 5, dtype=torch.float64) * torch.tensor([1, 0.3, 1e-3, 0, 7]) + 1e6
    streamed, merged = of(*means.split(7)), of(*means[:40].split(9))
    merged.merge(of(means[40:]))
    merged.merge(UnitVariance(5))
    assert torch.allclose(streamed.variances, means.var(dim=0), rtol=1e-6, atol=1e-12)
    assert torch.allclose(merged.variances, means.var(dim=0), rtol=1e-6, atol=1e-12)
    assert streamed.active == 3


def test_one_document_has_no_variance() -> None:
    with pytest.raises(ValueError, match="two or more, got 1"):
        _ = of(torch.ones(1, 3)).variances
