"""What every latent of one vector a document promises, checked on each kind, mostly against torch.distributions.

Statistical checks use fixed seeds and 4.9 standard errors, or p > 1e-6: a correct implementation would fail one of them
about once in a million seeds. Shapes: B documents, S samples, W numbers of z, C components.
"""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from latent_truths import (
    BITS,
    COMPONENTS,
    DIMENSIONS,
    DISCRETE,
    DOCUMENTS,
    EXACT,
    EXAMPLES,
    FEATURES,
    MIXTURES,
    REAL,
    bounded,
    features_of,
    latent_of,
    support,
    true_kl_groups,
    true_prior,
    true_q,
)
from pydantic import TypeAdapter
from scipy.stats import chisquare, kstest, norm
from torch import Tensor

from vae_core.latents import LatentConfig, build_latent
from vae_core.latents.bernoulli import BernoulliPosterior
from vae_core.latents.bernoulli_mixture import BernoulliMixturePosterior
from vae_core.latents.categorical import CategoricalPosterior
from vae_core.latents.gaussian import GaussianPosterior
from vae_core.latents.gaussian_mixture import GaussianMixturePosterior

ERRORS, UNLIKELY = 4.9, 1e-6
ELSEWHERE = {"nonparametric": "its z is a set of vectors, and it reads a vector for every token"}

every_latent = pytest.mark.parametrize("name", EXAMPLES)
every_exact_kl = pytest.mark.parametrize("name", EXACT)
every_discrete = pytest.mark.parametrize("name", DISCRETE)


def test_every_kind_of_latent_has_an_example_here_or_a_reason_not_to() -> None:
    kinds = {member.model_fields["kind"].default for member in get_args(get_args(LatentConfig)[0])}
    assert kinds - set(ELSEWHERE) == {config.kind for config in EXAMPLES.values()}


@every_latent
@torch.no_grad()
def test_log_q_is_torchs_for_samples_of_each_document_and_for_z_against_every_document(name: str) -> None:
    latent = latent_of(name)
    posterior = latent.posterior(features_of())
    truth = true_q(posterior)
    z_SBW = truth.sample((4,))
    torch.testing.assert_close(latent.log_q(posterior, z_SBW), truth.log_prob(z_SBW))
    others_N1W = z_SBW[:, :1]
    torch.testing.assert_close(latent.log_q(posterior, others_N1W), truth.log_prob(others_N1W.expand_as(z_SBW)))


@every_latent
@torch.no_grad()
def test_log_prior_is_torchs_and_sums_or_integrates_to_one(name: str) -> None:
    latent = latent_of(name)
    z_SBW = true_q(latent.posterior(features_of())).sample((4,))
    torch.testing.assert_close(latent.log_prior(z_SBW), true_prior(latent).log_prob(z_SBW))
    if name in DISCRETE:
        total = latent.log_prior(support(latent)).exp().sum()
    else:
        grid = torch.linspace(-60, 60, 60_001).double()
        total = torch.trapezoid(latent_of(name, dimensions=1).log_prior(grid.unsqueeze(1)).exp(), grid)
    assert float(total) == pytest.approx(1, abs=1e-6)


@every_exact_kl
@torch.no_grad()
def test_every_group_of_the_kl_is_torchs(name: str) -> None:
    latent = latent_of(name)
    posterior = latent.posterior(features_of())
    torch.testing.assert_close(latent.kl_groups(posterior), true_kl_groups(latent, posterior))


@every_latent
@torch.no_grad()
def test_kl_is_the_mean_of_log_q_less_log_p_or_above_it_where_the_component_counts(name: str) -> None:
    """For mixtures KL(q(c, z) || p(c, z)) >= KL(q(z) || p(z)), by the chain rule."""
    latent, samples = latent_of(name), 20_000
    posterior = latent.posterior(features_of())
    z = true_q(posterior).sample((samples,))
    differences = latent.log_q(posterior, z) - latent.log_prior(z)
    error = differences.std(dim=0) / math.sqrt(samples)
    assert (error < 0.015 * (1 + differences.mean(dim=0).abs())).all()
    if name == "gaussian-vamp":
        kl = latent.train()(features_of(), samples=samples).kl_groups.sum(dim=1)
        assert ((kl - differences.mean(dim=0)).abs() <= ERRORS * math.sqrt(2) * error).all()
    elif name in MIXTURES:
        assert (latent.kl_groups(posterior).sum(dim=1) >= differences.mean(dim=0) - ERRORS * error).all()
    else:
        assert ((latent.kl_groups(posterior).sum(dim=1) - differences.mean(dim=0)).abs() <= ERRORS * error).all()


@every_exact_kl
@given(features=arrays(np.float64, (2, FEATURES), elements=st.floats(-50, 50)))
@settings(max_examples=30)
def test_no_group_of_the_kl_is_negative(name: str, features: np.ndarray) -> None:
    """Up to rounding: torch's softplus is linear above 20, which is off by as much as exp(-20) = 2e-9."""
    latent = latent_of(name)
    assert latent.kl_groups(latent.posterior(torch.from_numpy(features))).min() >= -1e-8


PRIORS_AS_POSTERIORS = {
    "gaussian": lambda _: GaussianPosterior(*torch.zeros(2, 1, DIMENSIONS).double()),
    "gaussian-learned": lambda latent: GaussianPosterior(
        latent.prior_mean.unsqueeze(0), latent.prior_log_variance.unsqueeze(0)
    ),
    "gaussian_mixture": lambda latent: GaussianMixturePosterior(
        latent.prior_means, bounded(latent.prior_log_variances), latent.prior_components.unsqueeze(0)
    ),
    "bernoulli": lambda _: BernoulliPosterior(torch.zeros(1, BITS).double()),
    "bernoulli-learned": lambda latent: BernoulliPosterior(latent.prior_log_odds.unsqueeze(0)),
    "bernoulli_mixture": lambda latent: BernoulliMixturePosterior(
        latent.prior_log_odds, latent.prior_components.unsqueeze(0)
    ),
    "categorical": lambda _: CategoricalPosterior(torch.full((1, 3, 4), 0.7).double()),
    "categorical-learned": lambda latent: CategoricalPosterior(latent.prior_logits.unsqueeze(0) + 2),
}


@pytest.mark.parametrize("name", PRIORS_AS_POSTERIORS)
@torch.no_grad()
def test_kl_vanishes_where_the_posterior_is_the_prior(name: str) -> None:
    """A mixture's prior is among the posteriors where it has one component."""
    latent = latent_of(name, components=1) if name in MIXTURES else latent_of(name)
    assert latent.kl_groups(PRIORS_AS_POSTERIORS[name](latent)).abs().max() < 1e-12


def assert_frequencies(rows_NW: Tensor, values_VW: Tensor, log_probabilities_V: Tensor) -> None:
    """The rows are values with these probabilities; values expected fewer than 5 times are counted together."""
    cells = (rows_NW.unsqueeze(1) == values_VW).all(dim=2)
    assert cells.any(dim=1).all(), "a row is not a value of z"
    observed = cells.sum(dim=0).double().numpy()
    expected = len(rows_NW) * log_probabilities_V.exp().numpy()
    rare = expected < 5
    pooled = [np.append(counts[~rare], counts[rare].sum() + 1e-9) for counts in (observed, expected)]
    assert len(pooled[0]) > 10
    assert chisquare(pooled[0], pooled[1] * pooled[0].sum() / pooled[1].sum()).pvalue > UNLIKELY


@every_discrete
@torch.no_grad()
def test_samples_are_values_of_z_with_the_probabilities_of_q(name: str) -> None:
    latent = latent_of(name)
    posterior = latent.posterior(features_of())
    z_SBW, log_q_VB = latent.sample(posterior, 20_000), true_q(posterior).log_prob(support(latent).unsqueeze(1))
    for document in range(2):
        assert_frequencies(z_SBW[:, document], support(latent), log_q_VB[:, document])


@every_discrete
@torch.no_grad()
def test_draws_from_the_prior_have_its_probabilities(name: str) -> None:
    latent = latent_of(name)
    assert_frequencies(latent.sample_prior(20_000), support(latent), true_prior(latent).log_prob(support(latent)))


@pytest.mark.parametrize("name", REAL)
@torch.no_grad()
def test_real_samples_have_the_distribution_of_q(name: str) -> None:
    latent = latent_of(name)
    posterior = latent.posterior(features_of())
    z_SBW = latent.sample(posterior, 20_000)
    standard = (z_SBW - posterior.mean) / (posterior.log_variance / 2).exp()
    assert all(kstest(one.numpy(), "norm").pvalue > UNLIKELY for one in standard.flatten(1).T)
    assert standard.flatten(1).T.corrcoef().triu(diagonal=1).abs().max() < ERRORS / math.sqrt(20_000)


@pytest.mark.parametrize("name", REAL)
@torch.no_grad()
def test_real_draws_from_the_prior_have_the_distribution_that_its_density_says(name: str) -> None:
    """In one dimension, where the distribution function is the density's integral; means and covariances in three."""
    line = latent_of(name, dimensions=1)
    grid = torch.linspace(-60, 60, 60_001).double()
    below = torch.cumulative_trapezoid(line.log_prior(grid.unsqueeze(1)).exp(), grid)
    draws = line.sample_prior(20_000).squeeze(1).numpy()
    assert kstest(draws, lambda z: np.interp(z, grid[1:].numpy(), below.numpy())).pvalue > UNLIKELY
    latent = latent_of(name)
    ours, torchs = latent.sample_prior(40_000), true_prior(latent).sample((40_000,))
    for power in (ours, torchs), (products(ours), products(torchs)):
        error = sum(one.var(dim=0) / len(one) for one in power).sqrt()
        assert ((power[0].mean(dim=0) - power[1].mean(dim=0)).abs() <= ERRORS * error).all()


def products(z_NW: Tensor) -> Tensor:
    """z_i z_j of every pair."""
    return (z_NW.unsqueeze(1) * z_NW.unsqueeze(2)).flatten(1)


@every_latent
@torch.no_grad()
def test_documents_do_not_see_one_another(name: str) -> None:
    latent, features = latent_of(name).eval(), features_of()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    together, shuffled = latent(features), latent(features[order])
    alone = [latent(features[row : row + 1]) for row in range(DOCUMENTS)]
    for field in ("z", "log_q", "log_p"):
        torch.testing.assert_close(getattr(shuffled, field), getattr(together, field)[:, order])
        torch.testing.assert_close(torch.cat([getattr(one, field) for one in alone], dim=1), getattr(together, field))
    for field in ("kl_groups", "dispersion"):
        torch.testing.assert_close(getattr(shuffled, field), getattr(together, field)[order])
        torch.testing.assert_close(torch.cat([getattr(one, field) for one in alone]), getattr(together, field))


@every_latent
@pytest.mark.parametrize("size", [50.0, 1000.0])
def test_saturated_posteriors_give_finite_values_and_gradients(name: str, size: float) -> None:
    """Logits far beyond 50 and log variances of -20 and 20, in single precision."""
    latent, features = latent_of(name).float(), features_of(size=size).float().requires_grad_()
    draw = latent(features, samples=2)
    total = draw.z.sum() + draw.log_q.sum() + draw.log_p.sum() + draw.kl_groups.sum() + draw.dispersion.sum()
    total.backward()
    assert total.isfinite()
    assert all(tensor.grad.isfinite().all() for tensor in (features, *latent.parameters()))
    assert not draw.posterior.log_odds.isnan().any()


@every_latent
@torch.no_grad()
def test_single_precision_agrees_with_double(name: str) -> None:
    double, single = latent_of(name), latent_of(name).float()
    posterior, rounded = double.posterior(features_of()), single.posterior(features_of().float())
    z = double.sample(posterior, 3)
    for exact, close in (
        (double.log_prior(z), single.log_prior(z.float())),
        (double.log_q(posterior, z), single.log_q(rounded, z.float())),
        (posterior.log_odds, rounded.log_odds),
    ):
        torch.testing.assert_close(close, exact.float(), atol=1e-4, rtol=1e-4)
    if name in EXACT:
        kl = double.kl_groups(posterior).float()
        torch.testing.assert_close(single.kl_groups(rounded), kl, atol=1e-4, rtol=1e-4)


@every_exact_kl
@torch.no_grad()
def test_autocast_to_bfloat16_leaves_the_posterior_and_its_kl_in_single_precision(name: str) -> None:
    latent = latent_of(name).float()
    with torch.autocast("cpu", torch.bfloat16):
        draw = latent(features_of().float())
    exact = latent_of(name)(features_of())
    assert draw.kl_groups.dtype == draw.log_p.dtype == torch.float32
    for ours, truth in (
        (draw.posterior.log_odds, exact.posterior.log_odds),
        (draw.kl_groups, exact.kl_groups),
        (draw.dispersion, exact.dispersion),
    ):
        torch.testing.assert_close(ours, truth.float(), atol=1e-4, rtol=1e-4)
    heads = [module.bfloat16() for module in latent.modules() if isinstance(module, torch.nn.Linear)]
    assert heads
    assert latent(features_of().float()).kl_groups.dtype == torch.float32


@every_discrete
@torch.no_grad()
def test_mode_is_the_most_probable_value_and_the_code(name: str) -> None:
    latent = latent_of(name)
    posterior = latent.posterior(features_of())
    best = true_q(posterior).log_prob(support(latent).unsqueeze(1)).argmax(dim=0)
    assert torch.equal(latent.mode(posterior), support(latent)[best])
    assert torch.equal((posterior.log_odds > 0).double(), latent.mode(posterior))
    assert posterior.log_odds.shape[1] == latent.code_bits


@pytest.mark.parametrize("name", REAL)
def test_real_mode_is_the_top_of_q_and_the_code_is_its_signs(name: str) -> None:
    latent = latent_of(name)
    posterior = latent.posterior(features_of())
    mode = latent.mode(posterior).detach().requires_grad_()
    (slope,) = torch.autograd.grad(latent.log_q(posterior, mode.unsqueeze(0)).sum(), mode)
    assert slope.abs().max() < 1e-9
    moved = mode + 0.1 * torch.randn(50, *mode.shape).double()
    assert (latent.log_q(posterior, moved) < latent.log_q(posterior, mode.unsqueeze(0))).all()
    assert torch.equal(posterior.log_odds > 0, mode > 0)
    deviation = (posterior.log_variance / 2).exp()
    positive = norm.sf(0, posterior.mean.detach().numpy(), deviation.detach().numpy())
    torch.testing.assert_close(posterior.log_odds.sigmoid().detach(), torch.from_numpy(positive))


@every_latent
def test_training_draws_and_evaluation_gives_the_mode(name: str) -> None:
    latent, features = latent_of(name), features_of()
    drawn, given = latent.train()(features, samples=3), latent.eval()(features, samples=2)
    assert drawn.z.shape == (3, DOCUMENTS, latent.width)
    assert drawn.log_q.shape == drawn.log_p.shape == (3, DOCUMENTS)
    assert drawn.prior_z.shape == (DOCUMENTS, latent.width)
    assert drawn.dispersion.shape == (DOCUMENTS,)
    assert given.posterior.means.shape[0] == DOCUMENTS
    assert torch.equal(given.z, latent.mode(given.posterior).expand(2, -1, -1))
    exact = drawn.z.detach() if name in REAL else drawn.z.detach().round()
    torch.testing.assert_close(drawn.z.detach(), exact)
    torch.testing.assert_close(drawn.log_q, true_q(drawn.posterior).log_prob(exact))
    torch.testing.assert_close(drawn.log_p, true_prior(latent).log_prob(exact))


@every_latent
@torch.no_grad()
def test_a_code_has_a_probability_of_every_component_of_the_prior(name: str) -> None:
    latent = latent_of(name)
    log_p_BC = latent.components_of(latent.posterior(features_of()).log_odds > 0)
    assert log_p_BC.shape == (DOCUMENTS, COMPONENTS if name in MIXTURES else 1)
    torch.testing.assert_close(log_p_BC.logsumexp(dim=1), torch.zeros(DOCUMENTS).double())


@every_latent
def test_every_parameter_is_used_and_those_of_the_prior_are_called_so(name: str) -> None:
    """z and log q move the posterior's parameters; log p at fixed z moves the prior's alone."""
    latent = latent_of(name)
    draw = latent(features_of(), samples=2)
    (draw.z.sum() + draw.kl_groups.square().sum()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in latent.parameters())
    latent.zero_grad()
    p = latent.log_prior(draw.z.detach())
    if name != "gaussian-vamp" and p.requires_grad:
        p.sum().backward()
    for parameter_name, parameter in latent.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert moved is (parameter_name.startswith("prior") and name != "gaussian-vamp")


@every_latent
@torch.no_grad()
def test_a_latent_is_rebuilt_from_its_settings_and_weights(name: str) -> None:
    latent = latent_of(name).eval()
    config = TypeAdapter(LatentConfig).validate_json(latent.config.model_dump_json())
    rebuilt = build_latent(config, FEATURES).double().eval()
    rebuilt.load_state_dict(latent.state_dict())
    assert config == latent.config
    before, after = latent(features_of()), rebuilt(features_of())
    assert torch.equal(before.z, after.z)
    assert torch.equal(before.log_p, after.log_p)
    assert torch.equal(before.kl_groups, after.kl_groups)


@every_exact_kl
def test_kl_gradient_agrees_with_finite_differences(name: str) -> None:
    latent, features = latent_of(name), features_of(documents=2).requires_grad_()
    inputs = (features, *latent.parameters())
    assert torch.autograd.gradcheck(lambda *_: latent.kl_groups(latent.posterior(features)), inputs)
