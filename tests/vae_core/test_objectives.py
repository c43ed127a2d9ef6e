"""Losses against numbers worked out by hand, and the gradients that free bits may not have."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from vae_core.latents.bernoulli_mixture import BernoulliMixturePosterior
from vae_core.model import Terms
from vae_core.objectives import Beta, FreeBits, beta_at, loss

KL = [[0.5, 2.0, 0.0], [3.0, 0.25, 1.0]]
LOG_PX = [[-10.0, -20.0], [-14.0, -24.0]]


def terms_of(kl: Tensor, log_px: list[list[float]] = LOG_PX) -> Terms:
    nothing = torch.zeros(len(kl), 1)
    return Terms(torch.tensor(log_px), kl, nothing, BernoulliMixturePosterior(nothing, nothing))


@pytest.mark.parametrize(
    ("rate", "progress", "expected"),
    [
        (Beta(beta=2, warmup=0.5), 0.0, 0.0),
        (Beta(beta=2, warmup=0.5), 0.125, 0.5),
        (Beta(beta=2, warmup=0.5), 0.25, 1.0),
        (Beta(beta=2, warmup=0.5), 0.5, 2.0),
        (Beta(beta=2, warmup=0.5), 1.0, 2.0),
        (Beta(beta=2, warmup=1), 0.5, 1.0),
        (Beta(beta=0.3, warmup=0), 0.0, 0.3),
        (Beta(beta=0), 1.0, 0.0),
        (FreeBits(nats=1, beta=4, warmup=0.5), 0.25, 2.0),
        (FreeBits(nats=1), 0.0, 1.0),
    ],
)
def test_beta_rises_linearly_and_stays(rate: Beta | FreeBits, progress: float, expected: float) -> None:
    assert beta_at(rate, progress) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rate", "price"),
    [
        (Beta(beta=1, warmup=0), (2.5 + 4.25) / 2),
        (Beta(beta=3, warmup=0), 3 * (2.5 + 4.25) / 2),
        (FreeBits(nats=1), ((1 + 2 + 1) + (3 + 1 + 1)) / 2),
        (FreeBits(nats=1, beta=2), (1 + 2 + 1) + (3 + 1 + 1)),
        (FreeBits(nats=3, per="document"), (3 + 4.25) / 2),
        (FreeBits(nats=9, per="document"), 9),
    ],
)
def test_loss_is_the_mean_over_documents_and_reports_the_true_rate(rate: Beta | FreeBits, price: float) -> None:
    result = loss(terms_of(torch.tensor(KL)), rate, progress=1.0)
    assert float(result.distortion) == pytest.approx(17)
    assert float(result.rate) == pytest.approx((2.5 + 4.25) / 2)
    assert float(result.total) == pytest.approx(17 + price)
    assert result.beta == rate.beta


def test_the_price_follows_the_schedule() -> None:
    halfway = loss(terms_of(torch.tensor(KL)), Beta(beta=2, warmup=1), progress=0.25)
    assert float(halfway.total) == pytest.approx(17 + 0.5 * (2.5 + 4.25) / 2)


def gradient(rate: Beta | FreeBits) -> Tensor:
    kl = torch.tensor(KL, requires_grad=True)
    return torch.autograd.grad(loss(terms_of(kl), rate, progress=1.0).total, kl)[0]


def test_groups_under_the_threshold_have_no_gradient_and_those_above_have_betas() -> None:
    above = (torch.tensor(KL) > 0.75).float()
    expected = gradient(Beta(beta=2, warmup=0)) * above
    assert torch.equal(gradient(FreeBits(nats=0.75, beta=2)), expected)
    assert expected.unique().tolist() == [0.0, 1.0]


def test_documents_under_the_threshold_have_no_gradient_and_those_above_have_betas() -> None:
    assert gradient(FreeBits(nats=3, per="document", beta=2)).tolist() == [[0.0] * 3, [1.0] * 3]


@pytest.mark.parametrize("per", ["group", "document"])
def test_a_threshold_below_every_group_is_the_plain_objective(per: str) -> None:
    kl = torch.tensor(KL) + 0.1
    plain = loss(terms_of(kl), Beta(warmup=0), progress=1.0)
    free = loss(terms_of(kl), FreeBits(nats=0.05, per=per), progress=1.0)
    assert torch.equal(plain.total, free.total)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=6), st.floats(0.01, 20))
def test_free_bits_never_price_less_than_the_rate_or_the_thresholds(groups: list[float], nats: float) -> None:
    kl = torch.tensor([groups], dtype=torch.float64)
    total = float(loss(terms_of(kl, [[0.0]]), FreeBits(nats=nats), progress=1.0).total)
    assert total >= max(len(groups) * nats, sum(groups)) * (1 - 1e-12)


def test_a_threshold_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        FreeBits(nats=0)
