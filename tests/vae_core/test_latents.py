"""The Bernoulli mixture against the list of every component and code, and against torch.distributions.

Statistical checks use fixed seeds and 4.9 standard errors: were the seeds drawn anew, any one number of a correct
implementation would fail about once in a million runs.
"""

import math

import numpy as np
import pytest
import torch
from documents import all_codes
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, kl_divergence
from torch.nn.functional import one_hot

from vae_core.estimators import StraightThrough
from vae_core.latents import BernoulliMixtureConfig, BernoulliMixtureLatent
from vae_core.latents.bernoulli_mixture import BernoulliMixturePosterior

BITS, COMPONENTS, DOCUMENTS = 8, 3, 5
CODES = all_codes(BITS)
ERRORS = 4.9


def latent_of(components: int = COMPONENTS, draw: str = "mode", noise: bool = False) -> BernoulliMixtureLatent:
    """A latent with a prior of some contrast, whose log-odds are its features."""
    torch.manual_seed(0)
    estimator = StraightThrough(draw=draw)
    config = BernoulliMixtureConfig(bits=BITS, components=components, estimator=estimator, noise=noise)
    latent = BernoulliMixtureLatent(config, features=BITS)
    with torch.no_grad():
        latent.log_odds.weight.copy_(torch.eye(BITS))
        latent.log_odds.bias.zero_()
        latent.prior_components.copy_(torch.randn(components))
        latent.prior_log_odds.copy_(2 * torch.randn(components, BITS))
    return latent


def posterior_of(components: int = COMPONENTS, size: float = 1.5) -> BernoulliMixturePosterior:
    generator = torch.Generator().manual_seed(1)
    log_odds = size * torch.randn(DOCUMENTS, BITS, generator=generator, dtype=torch.float64)
    logits = size * torch.randn(DOCUMENTS, components, generator=generator, dtype=torch.float64)
    return BernoulliMixturePosterior(log_odds, logits)


def log_p_joint(latent: BernoulliMixtureLatent) -> Tensor:
    """log p(c, z) of every component and code, (C, 256)."""
    bits = Independent(Bernoulli(logits=latent.prior_log_odds.unsqueeze(1)), 1)
    return Categorical(logits=latent.prior_components).logits.unsqueeze(1) + bits.log_prob(CODES)


def log_q_joint(posterior: BernoulliMixturePosterior) -> Tensor:
    """log q(c, z | x) of every component and code, (B, C, 256)."""
    bits = Independent(Bernoulli(logits=posterior.log_odds.unsqueeze(1)), 1).log_prob(CODES)
    return Categorical(logits=posterior.component_logits).logits.unsqueeze(2) + bits.unsqueeze(1)


def kl_by_component_and_bit(latent: BernoulliMixtureLatent, posterior: BernoulliMixturePosterior) -> Tensor:
    """KL(q(z_i | x) || p(z_i | c)), (B, C, K), by torch.distributions."""
    logits = torch.broadcast_tensors(posterior.log_odds.unsqueeze(1), latent.prior_log_odds)
    return kl_divergence(*(Bernoulli(logits=one) for one in logits))


def test_kl_is_the_sum_over_every_component_and_code() -> None:
    latent, posterior = latent_of().double(), posterior_of()
    log_q = log_q_joint(posterior)
    expected = (log_q.exp() * (log_q - log_p_joint(latent))).sum(dim=(1, 2))
    torch.testing.assert_close(latent.kl_groups(posterior).sum(dim=1), expected)


def test_kl_groups_are_torchs_kls_of_each_bit_and_of_the_component() -> None:
    latent, posterior = latent_of().double(), posterior_of()
    by_bit = kl_by_component_and_bit(latent, posterior)
    components = Categorical(logits=posterior.component_logits)
    groups = latent.kl_groups(posterior)
    torch.testing.assert_close(groups[:, :BITS], (components.probs.unsqueeze(2) * by_bit).sum(dim=1))
    component = kl_divergence(components, Categorical(logits=latent.prior_components))
    torch.testing.assert_close(groups[:, BITS], component)


def test_one_component_is_the_plain_bernoulli_latent() -> None:
    latent, posterior = latent_of(components=1).double(), posterior_of(components=1)
    expected = kl_by_component_and_bit(latent, posterior)[:, 0]
    torch.testing.assert_close(latent.kl_groups(posterior)[:, :BITS], expected)
    torch.testing.assert_close(latent.kl_groups(posterior)[:, BITS], torch.zeros(DOCUMENTS, dtype=torch.float64))


def test_kl_vanishes_where_the_posterior_is_the_prior() -> None:
    latent = latent_of(components=1).double()
    posterior = BernoulliMixturePosterior(latent.prior_log_odds, latent.prior_components.unsqueeze(0))
    assert latent.kl_groups(posterior).abs().max() < 1e-12


def test_prior_sums_to_one_over_all_codes_and_agrees_with_the_sum_over_components() -> None:
    latent = latent_of().double()
    log_p = latent.prior().log_prob(CODES).detach()
    assert float(log_p.exp().sum()) == pytest.approx(1)
    torch.testing.assert_close(log_p, log_p_joint(latent).logsumexp(dim=0))


def test_three_kls_are_in_their_order() -> None:
    """KL(q(z) || p(z)) <= -logsumexp_c(log pi_c - KL_c) <= KL with any q(c | x)."""
    latent, posterior = latent_of().double(), posterior_of()
    log_q = Independent(Bernoulli(logits=posterior.log_odds.unsqueeze(1)), 1).log_prob(CODES)
    marginal = (log_q.exp() * (log_q - latent.prior().log_prob(CODES))).sum(dim=1)
    log_pi = latent.prior_components.log_softmax(dim=0)
    tightest = -(log_pi - kl_by_component_and_bit(latent, posterior).sum(dim=2)).logsumexp(dim=1)
    assert (marginal < tightest).all()
    assert (tightest < latent.kl_groups(posterior).sum(dim=1)).all()


def test_best_component_posterior_reaches_the_closed_form_and_nothing_near_it_is_lower() -> None:
    latent, posterior = latent_of().double(), posterior_of()
    weights = latent.prior_components.log_softmax(dim=0) - kl_by_component_and_bit(latent, posterior).sum(dim=2)
    best = weights.detach().log_softmax(dim=1).requires_grad_()
    kl = latent.kl_groups(BernoulliMixturePosterior(posterior.log_odds, best)).sum(dim=1)
    torch.testing.assert_close(kl, -weights.logsumexp(dim=1))
    (gradient,) = torch.autograd.grad(kl.sum(), best)
    assert gradient.abs().max() < 1e-12
    for component in range(COMPONENTS):
        moved = best + 0.1 * one_hot(torch.tensor(component), COMPONENTS)
        assert (latent.kl_groups(BernoulliMixturePosterior(posterior.log_odds, moved)).sum(dim=1) > kl).all()


def test_components_of_a_code_follow_bayes_rule() -> None:
    latent = latent_of().double()
    joint = log_p_joint(latent).exp()
    torch.testing.assert_close(latent.components_of(CODES.bool()).exp(), (joint / joint.sum(dim=0)).T)


def test_mode_is_the_most_probable_code_and_a_tie_is_zero() -> None:
    posterior = posterior_of()
    best = log_q_joint(posterior).logsumexp(dim=1).argmax(dim=1)
    assert torch.equal(latent_of().mode(posterior), CODES[best])
    assert not latent_of().mode(BernoulliMixturePosterior(torch.zeros(1, BITS), torch.zeros(1, 1))).any()


def test_kl_gradient_agrees_with_finite_differences() -> None:
    latent, posterior = latent_of().double(), posterior_of()
    inputs = (posterior.log_odds.requires_grad_(), posterior.component_logits.requires_grad_())
    parameters = (latent.prior_log_odds, latent.prior_components)
    assert torch.autograd.gradcheck(lambda *_: latent.kl_groups(posterior), (*inputs, *parameters))


def numbers(*shape: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float64, shape, elements=st.floats(-50, 50))


@given(numbers(2, BITS), numbers(2, COMPONENTS), numbers(COMPONENTS, BITS))
def test_no_group_of_the_kl_is_negative(log_odds: np.ndarray, logits: np.ndarray, prior: np.ndarray) -> None:
    """Up to rounding: torch's softplus is linear above 20, which is off by as much as exp(-20) = 2e-9."""
    latent = latent_of().double()
    latent.prior_log_odds.data = torch.from_numpy(prior)
    posterior = BernoulliMixturePosterior(torch.from_numpy(log_odds), torch.from_numpy(logits))
    assert latent.kl_groups(posterior).min() >= -1e-8


def test_single_precision_agrees_with_double() -> None:
    posterior = posterior_of(size=5.0)
    single = BernoulliMixturePosterior(posterior.log_odds.float(), posterior.component_logits.float())
    expected = latent_of().double().kl_groups(posterior).float()
    torch.testing.assert_close(latent_of().kl_groups(single), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("extreme", [-50.0, 50.0])
@pytest.mark.parametrize("draw", ["mode", "sample"])
def test_saturated_log_odds_give_finite_values_and_gradients(extreme: float, draw: str) -> None:
    latent = latent_of(draw=draw, noise=True)
    latent.prior_log_odds.data.fill_(-extreme)
    features = torch.full((DOCUMENTS, BITS), extreme, requires_grad=True)
    given = latent(features, samples=2)
    total = given.z.sum() + given.kl_groups.sum()
    total.backward()
    assert total.isfinite()
    assert all(tensor.grad.isfinite().all() for tensor in (features, *latent.parameters()))


ROW = torch.tensor([-2.0, -1.0, -0.5, -0.1, 0.1, 0.5, 1.0, 2.0])


def assert_mean_is(samples: Tensor, expected: Tensor, power: float) -> None:
    """The means of the columns are as expected within ERRORS standard errors, which are below `power`."""
    standard_error = samples.std(dim=0) / math.sqrt(len(samples))
    assert standard_error.max() < power
    assert ((samples.mean(dim=0) - expected).abs() <= ERRORS * standard_error + 1e-6).all()


def test_sampled_bits_are_bits_and_have_the_mean_of_their_probability() -> None:
    z = latent_of(draw="sample")(ROW.unsqueeze(0), samples=50_000).z[:, 0].detach().double()
    assert (z - z.round()).abs().max() < 1e-6
    assert_mean_is(z.round(), ROW.double().sigmoid(), power=0.005)


@pytest.mark.parametrize("draw", ["mode", "sample"])
def test_evaluation_gives_exactly_the_hard_code_with_no_noise(draw: str) -> None:
    latent = latent_of(draw=draw, noise=True).eval()
    features = torch.randn(DOCUMENTS, BITS)
    assert torch.equal(latent(features, samples=3).z, (features > 0).float().expand(3, -1, -1))


def test_training_adds_noise_of_the_learned_scale_and_only_where_it_is_asked_for() -> None:
    """200,000 squares of normal noise, whose mean has the standard error sqrt(2 / 200,000) of their variance."""
    latent = latent_of(noise=True)
    latent.noise.weight.data.zero_()
    latent.noise.bias.data.fill_(math.log(0.3))
    features = torch.randn(25, BITS)
    noise = latent(features, samples=1000).z.detach() - (features > 0).float()
    assert float(noise.square().mean()) == pytest.approx(0.09, rel=ERRORS * math.sqrt(2 / noise.numel()))
    quiet = latent_of(noise=False)(features, samples=2).z
    torch.testing.assert_close(quiet, (features > 0).float().expand(2, -1, -1), atol=1e-6, rtol=0)
