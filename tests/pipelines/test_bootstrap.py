"""Bootstrap intervals against the normal theory of means."""

import numpy as np
import pytest

from pipelines.evaluation.bootstrap import interval, resampled_means


def test_intervals_are_about_those_of_normal_theory() -> None:
    """2,000 values: the ends lie within a tenth of a standard error of +-1.96; the seed is fixed."""
    values = np.random.default_rng(0).exponential(size=(2000, 2))
    drawn = resampled_means(values, seed=1, resamples=20_000)
    for column in range(2):
        mean, error = values[:, column].mean(), values[:, column].std() / np.sqrt(2000)
        low, high = interval(drawn[:, column])
        assert abs(low - (mean - 1.96 * error)) < 0.1 * error
        assert abs(high - (mean + 1.96 * error)) < 0.1 * error


def test_differences_are_paired() -> None:
    """A ranking that is better by the same amount for every query is so in every resample."""
    values = np.random.default_rng(0).random(500)
    drawn = resampled_means(np.stack([values + 0.1, values], axis=1), seed=0)
    assert interval(drawn[:, 0] - drawn[:, 1]) == pytest.approx([0.1, 0.1])
    assert np.ptp(drawn[:, 0]) > 0.03


def test_one_seed_gives_one_answer() -> None:
    values = np.random.default_rng(0).random((40, 1))
    assert interval(resampled_means(values, seed=4)[:, 0]) == interval(resampled_means(values, seed=4)[:, 0])
    assert interval(resampled_means(values, seed=4)[:, 0]) != interval(resampled_means(values, seed=5)[:, 0])
