"""Decorrelation against numpy's covariance, and the batches where it is nothing."""

from itertools import product

import numpy as np
import pytest
import torch

from vae_core.latents import BernoulliMixtureConfig, GaussianConfig, LatentConfig
from vae_core.objectives import Objective
from vae_core.objectives.decorrelation import decorrelation
from vae_core.objectives.fitting import settled


def test_is_the_covariances_and_the_means_of_the_bits() -> None:
    means = torch.rand(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    f = 2 * means.numpy() - 1
    covariance = np.cov(f.T, bias=True)
    expected = (covariance**2).sum() / 6 - (np.diag(covariance) ** 2).sum() / 6 + (f.mean(axis=0) ** 2).sum()
    torch.testing.assert_close(decorrelation(means), torch.tensor(expected))


def test_all_codes_once_are_balanced_and_independent() -> None:
    every = torch.tensor(list(product((0.0, 1.0), repeat=4)))
    assert decorrelation(every) == 0
    assert decorrelation(every[:8]) > 0.9  # the first bit is always 0
    assert decorrelation(every[:, [0, 1, 2, 2]]) > 0


@pytest.mark.parametrize(
    ("latent", "given", "expected"),
    [
        (BernoulliMixtureConfig(bits=8), None, 20.0),
        (BernoulliMixtureConfig(bits=16), None, 10.0),
        (BernoulliMixtureConfig(bits=40), None, 4.0),
        (BernoulliMixtureConfig(bits=64), None, 0.0),
        (BernoulliMixtureConfig(bits=16), 0.0, 0.0),
        (BernoulliMixtureConfig(bits=512), 2.0, 2.0),
        (GaussianConfig(), None, 0.0),
    ],
)
def test_few_bits_of_a_mixture_are_decorrelated_unless_somebody_says_otherwise(
    latent: LatentConfig, given: float | None, expected: float
) -> None:
    assert settled(Objective(decorrelation=given), latent).decorrelation == expected
