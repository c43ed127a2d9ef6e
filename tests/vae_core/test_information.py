"""Information against closed forms, the enumeration of a finite toy, and sums written out; 4.9 standard errors."""

import math

import pytest
import torch
from documents import all_codes
from torch import Tensor
from torch.distributions import Normal

from vae_core.diagnostics.information import (
    Densities,
    densities,
    densities_of,
    exact_information,
    is_saturated,
    marginal_kl,
    mutual_information,
)
from vae_core.latents.bernoulli import BernoulliConfig, BernoulliLatent, BernoulliPosterior
from vae_core.latents.gaussian import GaussianConfig, GaussianLatent, GaussianPosterior


def channel(documents: int, noise: float, seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """x ~ N(0, spread), z = x + N(0, noise): log q(z_i | x_j), and z."""
    torch.manual_seed(seed)
    x = math.sqrt(spread) * torch.randn(documents, dtype=torch.float64)
    z = x + math.sqrt(noise) * torch.randn(documents, dtype=torch.float64)
    return Normal(x, math.sqrt(noise)).log_prob(z.unsqueeze(1)), z


@pytest.mark.parametrize(("documents", "widest"), [(20, 0.5), (200, 0.05)])
def test_the_information_of_a_gaussian_channel_lies_within_the_bracket(documents: int, widest: float) -> None:
    truth = 0.5 * math.log(1 + 1 / 0.1)
    brackets = [mutual_information(densities_of(channel(documents, 0.1, seed)[0])) for seed in range(400)]
    lower, upper = (torch.tensor(ends, dtype=torch.float64) for ends in zip(*brackets, strict=True))
    errors = lower.std() / 20, upper.std() / 20
    assert max(errors) < 0.03
    assert lower.mean() < truth - 4.9 * errors[0] if documents == 20 else lower.mean() < truth
    assert upper.mean() > truth
    assert 0 < (upper - lower).mean() < widest


def test_a_collapsed_posterior_tells_nothing() -> None:
    same = Normal(0.0, 1.0).log_prob(torch.randn(50, dtype=torch.float64)).unsqueeze(1).expand(-1, 50)
    assert mutual_information(densities_of(same)) == pytest.approx((0, 0), abs=1e-12)


def test_distinct_codes_that_are_certain_tell_which_of_the_documents_it_is() -> None:
    certain = torch.zeros(64, 64, dtype=torch.float64).fill_diagonal_(1).log().clamp(min=-1e4)
    bracket = mutual_information(densities_of(certain))
    assert bracket.lower == pytest.approx(math.log(64))
    assert bracket.upper > 1e3
    assert is_saturated(bracket, 64)
    assert not is_saturated(mutual_information(densities_of(channel(200, 0.1, 0)[0])), 200)
    with pytest.raises(ValueError, match="two documents"):
        mutual_information(densities_of(certain[:1, :1]))


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_densities_are_the_sums_over_documents_in_any_blocks(rows: int) -> None:
    torch.manual_seed(0)
    posterior = GaussianPosterior(*(torch.randn(2, 30, 3, dtype=torch.float64)))
    latent = GaussianLatent(GaussianConfig(dimensions=3), features=4)
    z = latent.sample(posterior, 1)[0]
    found = densities(latent, posterior, z, rows)
    q = [Normal(posterior.mean[j], (posterior.log_variance[j] / 2).exp()) for j in range(30)]
    for i in (0, 6, 7, 29):
        each = [float(q[j].log_prob(z[i]).sum().exp()) for j in range(30)]
        others = (sum(each) - each[i]) / 29
        wanted = math.log(each[i]), math.log(sum(each) / 30), math.log(others)
        assert [float(field[i]) for field in found] == pytest.approx(wanted)


def test_the_marginal_kl_of_a_gaussian_channel_lies_within_the_bracket() -> None:
    """q(z) = N(0, 2.25), so that KL(q(z) || N(0, 1)) is known."""
    truth = 0.5 * (2.25 - 1 - math.log(2.25))
    found = []
    for seed in range(40):
        log_q, z = channel(300, 0.25, seed, spread=2.0)
        found.append(marginal_kl(densities_of(log_q), Normal(0.0, 1.0).log_prob(z)))
    lower, upper = (torch.tensor(ends, dtype=torch.float64) for ends in zip(*found, strict=True))
    error = float(lower.std()) / math.sqrt(40)
    assert error < 0.02
    assert lower.mean() - 4.9 * error < truth < upper.mean() + 4.9 * error
    assert (lower < upper).all()
    assert abs(float((lower + upper).mean()) / 2 - truth) < 0.02 + 4.9 * error


def test_rate_is_information_plus_marginal_kl_of_the_same_draws() -> None:
    log_q, z = channel(50, 0.3, 0)
    log_prior = Normal(0.0, 1.0).log_prob(z)
    drawn = densities_of(log_q)
    information, kl = mutual_information(drawn), marginal_kl(drawn, log_prior)
    rate = float((drawn.own - log_prior).mean())
    assert information.lower + kl.upper == pytest.approx(rate)
    assert information.upper + kl.lower == pytest.approx(rate)


def test_every_identity_holds_on_a_finite_toy() -> None:
    """x of 8 values, z of 3 bits, arbitrary tables: H - D <= I <= R with both gaps what the theory says they are."""
    torch.manual_seed(0)
    log_q_ZN = torch.randn(8, 8, dtype=torch.float64).mul(2).log_softmax(dim=0)
    log_p_Z = torch.randn(8, dtype=torch.float64).log_softmax(dim=0)
    log_px_NZ = torch.randn(8, 8, dtype=torch.float64).log_softmax(dim=0)
    found = exact_information(log_q_ZN, log_p_Z)
    joint = log_q_ZN.exp() / 8
    q_z = joint.sum(dim=1)
    entropy = math.log(8)
    information = sum(float(p * (p / (q_z[z] / 8)).log()) for z, row in enumerate(joint) for p in row)
    kl = float((q_z * (q_z.log() - log_p_Z)).sum())
    rate = float((joint * (log_q_ZN - log_p_Z.unsqueeze(1))).sum())
    distortion = -float((joint * log_px_NZ.T).sum())
    decoder_gap = float((joint * ((joint / q_z.unsqueeze(1)).log() - log_px_NZ.T)).sum())
    assert found == pytest.approx((information, kl), abs=1e-12)
    assert rate == pytest.approx(found.information + found.marginal_kl, abs=1e-12)
    assert found.information - (entropy - distortion) == pytest.approx(decoder_gap, abs=1e-12)
    assert entropy - distortion < found.information < rate


def test_a_value_that_a_document_cannot_have_counts_nothing() -> None:
    certain = torch.eye(4, dtype=torch.float64).log()
    uniform = torch.full((4,), -math.log(4), dtype=torch.float64)
    assert exact_information(certain, uniform) == pytest.approx((math.log(4), 0), abs=1e-12)


def test_the_estimates_of_bits_are_those_of_enumeration() -> None:
    torch.manual_seed(0)
    posterior = BernoulliPosterior(torch.randn(60, 4, dtype=torch.float64) * 2)
    latent = BernoulliLatent(BernoulliConfig(bits=4), features=2).double()
    codes = all_codes(4)
    log_q_ZN, log_p_Z = latent.log_q(posterior, codes.unsqueeze(1)), latent.log_prior(codes)
    exact = exact_information(log_q_ZN, log_p_Z)
    draws = [densities(latent, posterior, z, 60) for z in latent.sample(posterior, 900)]
    plug_in = torch.tensor([mutual_information(one).lower for one in draws], dtype=torch.float64)
    error = float(plug_in.std()) / 30
    assert error < 0.005
    assert abs(float(plug_in.mean()) - exact.information) < 4.9 * error
    assert exact.information <= 4 * math.log(2)
    uniform = torch.full((60,), -4 * math.log(2), dtype=torch.float64)
    kl = torch.tensor([marginal_kl(one, uniform).upper for one in draws], dtype=torch.float64)
    assert abs(float(kl.mean()) - exact.marginal_kl) < 4.9 * float(kl.std()) / 30


def test_densities_are_a_tuple_that_statistics_read_by_name() -> None:
    drawn = Densities(*torch.tensor([[1.0, 3.0], [0.0, 1.0], [-1.0, 0.0]]))
    assert mutual_information(drawn) == (1.5, 2.5)
