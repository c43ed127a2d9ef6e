"""Two-sample tests against SciPy, closed forms, and their own level and power under repetition."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from vae_core.diagnostics.two_sample import (
    compare_columns,
    holm,
    kolmogorov_smirnov,
    permutation_test,
    proportions,
)
from vae_core.mmd import BANDWIDTHS, mmd_squared


def normal(count: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("n", "m"), [(200, 300), (1000, 1000)])
def test_kolmogorov_smirnov_is_that_of_scipy(n: int, m: int) -> None:
    x = normal(n, 4, 0) + torch.tensor([0.0, 0.02, 0.1, 1.0])
    y = normal(m, 4, 1)
    ours = kolmogorov_smirnov(x, y)
    for column in range(4):
        theirs = stats.ks_2samp(x[:, column].numpy(), y[:, column].numpy(), method="asymp")
        assert float(ours.effects[column]) == pytest.approx(theirs.statistic, abs=1e-12)
        assert float(ours.p_values[column]) == pytest.approx(theirs.pvalue, abs=0.01)
    assert ours.differing() == 1 + int(n == 1000 and stats.ks_2samp(x[:, 2], y[:, 2]).pvalue * 3 <= 0.05)


def test_ties_are_counted_on_both_sides() -> None:
    x, y = torch.tensor([[1.0], [1.0], [2.0], [3.0]]), torch.tensor([[1.0], [2.0], [2.0], [2.0], [4.0]])
    theirs = stats.ks_2samp(x[:, 0].numpy(), y[:, 0].numpy())
    assert float(kolmogorov_smirnov(x, y).effects[0]) == pytest.approx(theirs.statistic)


def test_the_test_of_proportions_is_the_chi_squared_test_of_scipy() -> None:
    chances = torch.tensor([0.5, 0.1, 0.9, 0.3], dtype=torch.float64)
    x = torch.bernoulli(chances.expand(400, -1), generator=dice(0))
    y = torch.bernoulli((chances + torch.tensor([0, 0, 0, 0.2])).expand(300, -1), generator=dice(1))
    ours = proportions(x, y)
    for column in range(4):
        ones = [int(x[:, column].sum()), int(y[:, column].sum())]
        theirs = stats.chi2_contingency([ones, [400 - ones[0], 300 - ones[1]]], correction=False)
        assert float(ours.p_values[column]) == pytest.approx(theirs.pvalue, rel=1e-9)
        assert float(ours.effects[column]) == pytest.approx(ones[0] / 400 - ones[1] / 300)
    assert compare_columns(x, y).p_values.tolist() == ours.p_values.tolist()
    assert compare_columns(x + 0.5, y).p_values.tolist() != ours.p_values.tolist()


def test_a_bit_that_never_changes_differs_from_nothing() -> None:
    assert proportions(torch.zeros(9, 1), torch.zeros(5, 1)).p_values.tolist() == [1]


def test_holms_correction_by_hand() -> None:
    given = torch.tensor([0.01, 0.04, 0.03, 0.005, 0.9], dtype=torch.float64)
    assert holm(given).tolist() == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.9])
    assert holm(torch.tensor([0.6, 0.7])).tolist() == [1, 1]


def expected_kernel(m1: Tensor, v1: float, m2: Tensor, v2: float) -> float:
    """E k(X, Y) of normals with means m and variance v in each of W numbers."""
    width, squares = len(m1), (m1 - m2).square()
    total = 0.0
    for s in BANDWIDTHS:
        wide = s * s * width
        total += float(((wide / (wide + v1 + v2)) ** 0.5 * (-squares / (2 * (wide + v1 + v2))).exp()).prod())
    return total


def test_the_discrepancy_of_two_normals_is_the_closed_form() -> None:
    mean, zero = torch.tensor([0.5, -0.3, 0.0]), torch.zeros(3)
    truth = expected_kernel(mean, 0.5, mean, 0.5) + expected_kernel(zero, 1, zero, 1)
    truth -= 2 * expected_kernel(mean, 0.5, zero, 1)
    found = [
        permutation_test(math.sqrt(0.5) * normal(150, 3, seed) + mean, normal(200, 3, 999 + seed), 1, dice())
        for seed in range(60)
    ]
    distances = torch.tensor([one.mmd_squared for one in found], dtype=torch.float64)
    error = float(distances.std()) / math.sqrt(60)
    assert error < 0.01
    assert abs(float(distances.mean()) - truth) < 4.9 * error
    assert truth > 20 * error


def test_the_first_division_is_the_given_one() -> None:
    x, y = normal(30, 2, 0, shift=0.3), normal(40, 2, 1)
    assert permutation_test(x, y, 3, dice()).mmd_squared == pytest.approx(float(mmd_squared(x, y)), abs=1e-5)


def test_the_permutation_test_rejects_as_often_as_its_level_says_under_the_null() -> None:
    p_values = [
        permutation_test(normal(25, 2, 2 * seed), normal(25, 2, 2 * seed + 1), 99, dice(seed)).p_value
        for seed in range(400)
    ]
    rejected = sum(p <= 0.1 for p in p_values)
    assert stats.binomtest(rejected, 400, 0.1).pvalue > 1e-6
    assert 15 < rejected < 75
    assert min(p_values) >= 0.01


def test_the_permutation_test_sees_a_shift_and_bits_that_go_together() -> None:
    assert permutation_test(normal(200, 5, 0, shift=0.4), normal(200, 5, 1), 199, dice()).p_value == 1 / 200
    bits = torch.bernoulli(torch.full((300, 1), 0.5), generator=dice(3)).expand(-1, 8)
    free = torch.bernoulli(torch.full((300, 8), 0.5), generator=dice(4))
    assert permutation_test(bits, free, 199, dice()).p_value == 1 / 200
    assert compare_columns(bits, free).differing() == 0
