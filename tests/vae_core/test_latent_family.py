"""What every latent of one vector a document promises, checked on each kind, mostly against torch.distributions.

Statistical checks use fixed seeds and 4.9 standard errors, or p > 1e-6: a correct implementation would fail one of them
about once in a million seeds. Shapes: B documents, S samples, W numbers of z, C components.
"""

import math
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch
from documents import all_codes, shaken
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import TypeAdapter
from scipy.stats import chisquare, kstest, norm
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    OneHotCategorical,
    ReshapeTransform,
    TransformedDistribution,
    kl_divergence,
)
from torch.nn.functional import one_hot

from vae_core.latents import (
    BernoulliConfig,
    BernoulliMixtureConfig,
    CategoricalConfig,
    GaussianConfig,
    GaussianMixtureConfig,
    Latent,
    LatentConfig,
    build_latent,
)
from vae_core.latents.bernoulli import BernoulliPosterior
from vae_core.latents.bernoulli_mixture import BernoulliMixturePosterior
from vae_core.latents.categorical import CategoricalPosterior
from vae_core.latents.gaussian import GaussianPosterior
from vae_core.latents.gaussian_mixture import GaussianMixturePosterior

FEATURES, DOCUMENTS, COMPONENTS, BITS, DIMENSIONS = 5, 6, 3, 8, 3
ERRORS, UNLIKELY = 4.9, 1e-6
EXAMPLES = {
    "gaussian": GaussianConfig(dimensions=DIMENSIONS),
    "gaussian-learned": GaussianConfig(dimensions=DIMENSIONS, prior="learned"),
    "gaussian-vamp": GaussianConfig(dimensions=DIMENSIONS, prior="vamp", pseudo_inputs=COMPONENTS),
    "gaussian_mixture": GaussianMixtureConfig(dimensions=DIMENSIONS, components=COMPONENTS),
    "gaussian_mixture-optimal": GaussianMixtureConfig(
        dimensions=DIMENSIONS, components=COMPONENTS, assignment="optimal"
    ),
    "bernoulli": BernoulliConfig(bits=BITS),
    "bernoulli-learned": BernoulliConfig(bits=BITS, prior="learned"),
    "bernoulli_mixture": BernoulliMixtureConfig(bits=BITS, components=COMPONENTS, noise=False),
    "bernoulli_mixture-optimal": BernoulliMixtureConfig(
        bits=BITS, components=COMPONENTS, noise=False, assignment="optimal"
    ),
    "categorical": CategoricalConfig(variables=3, values=4),
    "categorical-learned": CategoricalConfig(variables=3, values=4, prior="learned"),
}
ELSEWHERE = {"nonparametric": "its z is a set of vectors, and it reads a vector for every token"}
REAL = [name for name in EXAMPLES if name.startswith("gaussian")]
DISCRETE = [name for name in EXAMPLES if name not in REAL]
EXACT = [name for name in EXAMPLES if name != "gaussian-vamp"]
MIXTURES = [name for name in EXAMPLES if "mixture" in name]

every_latent = pytest.mark.parametrize("name", EXAMPLES)
every_exact_kl = pytest.mark.parametrize("name", EXACT)
every_discrete = pytest.mark.parametrize("name", DISCRETE)


def latent_of(name: str, **changed: object) -> Latent:
    """The example in double precision, no parameter of which is still where it started."""
    torch.manual_seed(0)
    return shaken(build_latent(EXAMPLES[name].model_copy(update=changed), FEATURES).double(), size=0.8)


def features_of(documents: int = DOCUMENTS, size: float = 1.0) -> Tensor:
    return size * torch.randn(documents, FEATURES, generator=torch.Generator().manual_seed(1)).double()


def flat_one_hot(logits: Tensor) -> Distribution:
    """M one-hot vectors side by side."""
    joined = ReshapeTransform(logits.shape[-2:], (logits.shape[-2] * logits.shape[-1],))
    values = Independent(OneHotCategorical(logits=logits, validate_args=False), 1, validate_args=False)
    return TransformedDistribution(values, joined, validate_args=False)


def normal(mean: Tensor, log_variance: Tensor) -> Distribution:
    return Independent(Normal(mean, (log_variance / 2).exp()), 1)


def bits(log_odds: Tensor) -> Distribution:
    return Independent(Bernoulli(logits=log_odds), 1)


def true_q(posterior: object) -> Distribution:
    """q(z | x) as torch has it."""
    match posterior:
        case GaussianPosterior() | GaussianMixturePosterior():
            return normal(posterior.mean, posterior.log_variance)
        case BernoulliPosterior() | BernoulliMixturePosterior():
            return bits(posterior.log_odds)
        case CategoricalPosterior():
            return flat_one_hot(posterior.logits)
    raise TypeError(type(posterior))


def bounded(log_variances: Tensor) -> Tensor:
    return 6 * torch.tanh(log_variances / 6)


def true_components(latent: Latent) -> Distribution:
    """p(z | c), or p(z) where the prior is no mixture."""
    config, nothing = latent.config, torch.zeros(latent.width).double()
    match config:
        case GaussianConfig(prior="standard"):
            return normal(nothing, nothing)
        case GaussianConfig(prior="learned"):
            return normal(latent.prior_mean, latent.prior_log_variance)
        case GaussianConfig():
            return true_q(latent.posterior(latent.prior_inputs))
        case GaussianMixtureConfig():
            return normal(latent.prior_means, bounded(latent.prior_log_variances))
        case BernoulliConfig():
            return bits(latent.prior_log_odds if config.prior == "learned" else nothing)
        case BernoulliMixtureConfig():
            return bits(latent.prior_log_odds)
        case CategoricalConfig():
            uniform = torch.zeros(config.variables, config.values).double()
            return flat_one_hot(latent.prior_logits if config.prior == "learned" else uniform)
    raise TypeError(type(config))


def true_weights(latent: Latent) -> Categorical:
    """p(c)."""
    if isinstance(latent.config, GaussianConfig):
        return Categorical(logits=torch.zeros(latent.config.pseudo_inputs).double())
    return Categorical(logits=latent.prior_components)


def true_prior(latent: Latent) -> Distribution:
    """p(z) as torch has it."""
    components = true_components(latent)
    return components if components.batch_shape == () else MixtureSameFamily(true_weights(latent), components)


def support(latent: Latent) -> Tensor:
    """Every value of a discrete z, (values, W)."""
    if not isinstance(latent.config, CategoricalConfig):
        return all_codes(latent.width)
    rows = product(range(latent.config.values), repeat=latent.config.variables)
    return one_hot(torch.tensor(list(rows)), latent.config.values).double().flatten(1)


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


def true_kl_groups(latent: Latent, posterior: object) -> Tensor:
    """Each group by torch's KL of one number, averaged over q(c | x), and of the component."""
    q, p = true_q(posterior), true_components(latent)
    if isinstance(posterior, CategoricalPosterior):
        return kl_divergence(q.base_dist.base_dist, p.base_dist.base_dist)
    if isinstance(posterior, (GaussianPosterior, BernoulliPosterior)):
        return kl_divergence(q.base_dist, p.base_dist.expand(q.base_dist.batch_shape))
    q_c = Categorical(logits=posterior.component_logits)
    by_unit = (q_c.probs.T.unsqueeze(2) * kl_by_component(q, p)).sum(dim=0)
    return torch.cat([by_unit, kl_divergence(q_c, true_weights(latent)).unsqueeze(1)], dim=1)


def kl_by_component(q: Distribution, components: Distribution) -> Tensor:
    """KL(q(z_i | x) || p(z_i | c)) by torch, (C, B, W)."""
    shape = (COMPONENTS, *q.base_dist.batch_shape)
    base = components.base_dist
    if isinstance(base, Normal):
        p = Normal(base.loc.unsqueeze(1).expand(shape), base.scale.unsqueeze(1).expand(shape))
    else:
        p = Bernoulli(logits=base.logits.unsqueeze(1).expand(shape))
    return kl_divergence(q.base_dist.expand(shape), p)


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


@pytest.mark.parametrize("plain", ["gaussian", "bernoulli", "categorical"])
@torch.no_grad()
def test_a_learned_prior_starts_as_the_plain_one(plain: str) -> None:
    fixed, learned = (build_latent(EXAMPLES[name], FEATURES).double() for name in (plain, f"{plain}-learned"))
    posterior = fixed.posterior(features_of(size=5.0))
    torch.testing.assert_close(learned.kl_groups(posterior), fixed.kl_groups(posterior))
    z = fixed.sample(posterior, 4)
    torch.testing.assert_close(learned.log_prior(z), fixed.log_prior(z))


@torch.no_grad()
def test_a_vamp_prior_of_one_pseudo_input_has_the_exact_gaussian_kl() -> None:
    latent = latent_of("gaussian-vamp", pseudo_inputs=1)
    draw = latent(features_of(), samples=20_000)
    exact = kl_divergence(true_q(draw.posterior), true_q(latent.posterior(latent.prior_inputs)))
    error = (draw.log_q - draw.log_p).std(dim=0) / math.sqrt(20_000)
    assert error.max() < 0.05
    assert ((draw.kl_groups.squeeze(1) - exact).abs() <= ERRORS * error).all()


@torch.no_grad()
def test_a_gaussian_mixture_of_one_component_is_a_gaussian_with_a_learned_prior() -> None:
    mixture, plain = latent_of("gaussian_mixture", components=1), latent_of("gaussian-learned")
    plain.prior_mean.copy_(mixture.prior_means[0])
    plain.prior_log_variance.copy_(bounded(mixture.prior_log_variances[0]))
    posterior = mixture.posterior(features_of())
    groups = mixture.kl_groups(posterior)
    torch.testing.assert_close(groups[:, :-1], plain.kl_groups(posterior.of_z))
    assert groups[:, -1].abs().max() < 1e-12
    z = mixture.sample(posterior, 4)
    torch.testing.assert_close(mixture.log_prior(z), plain.log_prior(z))


@torch.no_grad()
def test_a_bernoulli_mixture_of_one_component_is_a_bernoulli_with_a_learned_prior() -> None:
    mixture, plain = latent_of("bernoulli_mixture", components=1), latent_of("bernoulli-learned")
    plain.prior_log_odds.copy_(mixture.prior_log_odds[0])
    posterior = mixture.posterior(features_of())
    groups = mixture.kl_groups(posterior)
    torch.testing.assert_close(groups[:, :-1], plain.kl_groups(BernoulliPosterior(posterior.log_odds)))
    assert groups[:, -1].abs().max() < 1e-12
    torch.testing.assert_close(mixture.log_prior(all_codes(BITS)), plain.log_prior(all_codes(BITS)))


@torch.no_grad()
def test_a_categorical_of_two_values_is_a_bernoulli_with_the_difference_of_logits() -> None:
    pairs, plain = latent_of("categorical-learned", variables=BITS, values=2), latent_of("bernoulli-learned")
    plain.prior_log_odds.copy_(pairs.prior_logits.diff().squeeze(1))
    posterior = pairs.posterior(features_of())
    same = BernoulliPosterior(posterior.logits.diff().squeeze(2))
    torch.testing.assert_close(pairs.kl_groups(posterior), plain.kl_groups(same))
    codes = all_codes(BITS).unsqueeze(1)
    doubled = one_hot(codes.long(), 2).double().flatten(2)
    torch.testing.assert_close(pairs.log_q(posterior, doubled), plain.log_q(same, codes))
    torch.testing.assert_close(pairs.log_prior(doubled), plain.log_prior(codes))
    torch.testing.assert_close(posterior.log_odds.unflatten(1, (BITS, 2))[:, :, 1], same.log_odds)


def test_a_value_that_cannot_be_is_as_if_it_were_not_there() -> None:
    latent = latent_of("categorical")
    logits = torch.randn(DOCUMENTS, 3, 4).double()
    logits[:, :, 2] = -torch.inf
    logits.requires_grad_()
    posterior = CategoricalPosterior(logits)
    kl = latent.kl_groups(posterior)
    left = Categorical(logits=logits[:, :, [0, 1, 3]])
    torch.testing.assert_close(kl, math.log(4) - left.entropy())
    z = latent.sample(posterior, 100)
    assert not z.unflatten(2, (3, 4))[:, :, :, 2].any()
    (gradient,) = torch.autograd.grad(kl.sum() + latent.log_q(posterior, z).sum(), logits)
    assert gradient.isfinite().all()
    assert not gradient[:, :, 2].any()


def test_values_that_tie_still_make_a_one_hot_code() -> None:
    posterior = CategoricalPosterior(torch.zeros(2, 3, 4))
    code = posterior.log_odds > 0
    assert torch.equal(code.float(), latent_of("categorical").mode(posterior))
    assert (code.unflatten(1, (3, 4)).sum(dim=2) == 1).all()


@torch.no_grad()
def test_components_of_the_signs_of_z_follow_bayes_rule() -> None:
    latent = latent_of("gaussian_mixture")
    positive = norm.sf(0, latent.prior_means.numpy(), np.exp(bounded(latent.prior_log_variances).numpy() / 2))
    codes = all_codes(DIMENSIONS).numpy()[:, None]
    joint = true_weights(latent).probs.numpy() * np.where(codes == 1, positive, 1 - positive).prod(axis=2)
    expected = torch.from_numpy(joint / joint.sum(axis=1, keepdims=True))
    torch.testing.assert_close(latent.components_of(all_codes(DIMENSIONS).bool()).exp(), expected)


@pytest.mark.parametrize("name", MIXTURES)
@torch.no_grad()
def test_the_optimal_component_posterior_has_the_smallest_kl(name: str) -> None:
    """It is -logsumexp_c(log pi_c - KL(q(z | x) || p(z | c))); any other q(c | x) costs more."""
    latent = latent_of(name, assignment="optimal")
    posterior = latent.posterior(features_of())
    kl = latent.kl_groups(posterior).sum(dim=1)
    q, p = true_q(posterior), true_components(latent)
    weights = true_weights(latent).logits.unsqueeze(1) - kl_by_component(q, p).sum(dim=2)
    torch.testing.assert_close(kl, -weights.logsumexp(dim=0))
    moved = posterior.component_logits + 0.1 * torch.randn(20, *posterior.component_logits.shape).double()
    others = torch.stack([latent.kl_groups(posterior._replace(component_logits=one)).sum(dim=1) for one in moved])
    assert (others >= kl - 1e-12).all()
    assert others.mean() > kl.mean() + 1e-6


def linear_gaussian() -> tuple[Tensor, Tensor, float, Tensor, GaussianPosterior]:
    """x ~ N(W z, s^2 I) with orthogonal columns in W: data, W, s, log p(x) by torch, and the true posterior."""
    torch.manual_seed(3)
    W, s = torch.linalg.qr(torch.randn(5, DIMENSIONS).double()).Q * torch.tensor([0.5, 1.0, 2.0]).double(), 0.7
    x = torch.randn(DOCUMENTS, 5).double() * 1.5
    evidence = torch.distributions.MultivariateNormal(torch.zeros(5).double(), W @ W.T + s**2 * torch.eye(5))
    variance = 1 / (1 + W.square().sum(dim=0) / s**2)
    mean = x @ W / s**2 * variance
    return x, W, s, evidence.log_prob(x), GaussianPosterior(mean, variance.log().expand_as(mean))


@torch.no_grad()
def test_elbo_at_the_true_posterior_is_the_evidence_and_below_it_elsewhere() -> None:
    x, W, s, log_px, truth = linear_gaussian()
    latent = latent_of("gaussian")

    def elbo(q: GaussianPosterior) -> Tensor:
        spread = (W.square().sum(dim=0) * q.log_variance.exp()).sum(dim=1) / (2 * s**2)
        fit = Independent(Normal(q.mean @ W.T, s), 1).log_prob(x) - spread
        return fit - latent.kl_groups(q).sum(dim=1)

    torch.testing.assert_close(elbo(truth), log_px)
    assert (elbo(truth._replace(mean=truth.mean + 0.1)) < log_px).all()
    assert (elbo(truth._replace(log_variance=truth.log_variance - 0.1)) < log_px).all()


@torch.no_grad()
def test_importance_weights_average_to_the_evidence_and_are_constant_at_the_true_posterior() -> None:
    x, W, s, log_px, truth = linear_gaussian()
    latent = latent_of("gaussian")

    def log_weights(q: GaussianPosterior, samples: int) -> Tensor:
        z = latent.sample(q, samples)
        return Independent(Normal(z @ W.T, s), 1).log_prob(x) + latent.log_prior(z) - latent.log_q(q, z)

    torch.testing.assert_close(log_weights(truth, 5), log_px.expand(5, -1))
    wide = GaussianPosterior(truth.mean + 0.1, truth.log_variance + 0.3)
    weights = (log_weights(wide, 20_000) - log_px).exp()
    error = weights.std(dim=0) / math.sqrt(20_000)
    assert error.max() < 0.02
    assert ((weights.mean(dim=0) - 1).abs() <= ERRORS * error).all()
