"""Gradient estimators against the derivative of the sum over every value of z, and whole models trained by each.

Statistical checks use fixed seeds and 4.9 standard errors, or p > 1e-6.
"""

import math
from collections.abc import Callable

import pytest
import torch
from documents import all_codes, batch_of, random_documents, shaken
from scipy.stats import chisquare
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent
from torch.nn.functional import one_hot

from vae_core.decoders import BagOfWordsDecoderConfig
from vae_core.encoders import BagOfWordsEncoderConfig
from vae_core.errors import Misuse
from vae_core.estimators import (
    Enumeration,
    EstimatorConfig,
    GumbelSoftmax,
    ScoreFunction,
    StraightThrough,
    every_value,
    expected_log_px,
    sample_bits,
    sample_values,
)
from vae_core.latents import BernoulliConfig, BernoulliMixtureConfig, CategoricalConfig, LatentConfig
from vae_core.model import VAE, VAEConfig

ERRORS, UNLIKELY = 4.9, 1e-6
BITS, VARIABLES, VALUES = 6, 2, 3
LOG_ODDS = torch.tensor([-2.0, -1.0, -0.3, 0.2, 0.7, 1.5]).double()
LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.3, 0.5, -0.2]]).double()
CODES = all_codes(BITS)
PAIRS = torch.cartesian_prod(torch.arange(VALUES), torch.arange(VALUES))
ONE_HOTS = one_hot(PAIRS, VALUES).double().flatten(1)
ALL = [
    StraightThrough(),
    StraightThrough(draw="sample"),
    GumbelSoftmax(),
    GumbelSoftmax(hard=False),
    ScoreFunction(),
    Enumeration(),
]
every_estimator = pytest.mark.parametrize(
    "estimator", ALL, ids=lambda one: "-".join(map(str, one.model_dump().values()))
)


def network(inputs: int) -> Callable[[Tensor], Tensor]:
    """A decoder's log p(x | z): a small network, which is far from multilinear."""
    generator = torch.Generator().manual_seed(4)
    first = torch.randn(inputs, 8, generator=generator).double()
    second = torch.randn(8, generator=generator).double()
    return lambda z: (z @ first).tanh() @ second - (z @ first[:, 0]).square()


def multilinear(z: Tensor) -> Tensor:
    """w.z + sum_{i<j} M_ij z_i z_j."""
    generator = torch.Generator().manual_seed(5)
    linear = torch.randn(BITS, generator=generator).double()
    pairs = torch.randn(BITS, BITS, generator=generator).triu(diagonal=1).double()
    return z @ linear + (z @ pairs * z).sum(dim=-1)


def sum_of_squares(z: Tensor) -> Tensor:
    return z.square().sum(dim=-1)


def log_q_of_bits(log_odds: Tensor, z: Tensor) -> Tensor:
    return Independent(Bernoulli(logits=log_odds), 1).log_prob(z.detach().round())


def log_q_of_values(logits: Tensor, z: Tensor) -> Tensor:
    chosen = z.detach().unflatten(-1, (VARIABLES, VALUES)).argmax(dim=-1)
    return Categorical(logits=logits).log_prob(chosen).sum(dim=-1)


def exact(
    function: Callable[[Tensor], Tensor], values: Tensor, log_q: Callable, logits: Tensor
) -> tuple[float, Tensor]:
    """E_q f(z) and its gradient by the logits."""
    leaf = logits.clone().requires_grad_()
    mean = (log_q(leaf, values).exp() * function(values)).sum()
    return float(mean), torch.autograd.grad(mean, leaf)[0].flatten()


def estimates(
    function: Callable[[Tensor], Tensor], logits: Tensor, estimator: EstimatorConfig, samples: int, draws: int
) -> tuple[Tensor, Tensor]:
    """The estimator's values (draws,) and gradients (draws, logits), `samples` samples each."""
    torch.manual_seed(0)
    leaf = logits.expand(draws, *logits.shape).clone().requires_grad_()
    if logits.ndim == 1:
        z_SBW, log_q = sample_bits(leaf, samples, estimator), log_q_of_bits
    else:
        z_SBW, log_q = sample_values(leaf, samples, estimator).flatten(2), log_q_of_values
    log_px_B = expected_log_px(function(z_SBW), log_q(leaf, z_SBW), estimator).mean(dim=0)
    return log_px_B.detach(), torch.autograd.grad(log_px_B.sum(), leaf)[0].flatten(1)


def assert_mean_is(samples: Tensor, expected: Tensor | float, power: float) -> None:
    """The means over the first axis are as expected within ERRORS standard errors, which are below `power`."""
    error = samples.std(dim=0) / math.sqrt(len(samples))
    assert error.max() < power
    assert ((samples.mean(dim=0) - expected).abs() <= ERRORS * error + 1e-6).all()


def test_straight_through_is_unbiased_for_a_multilinear_function() -> None:
    mean, gradient = exact(multilinear, CODES, log_q_of_bits, LOG_ODDS)
    values, gradients = estimates(multilinear, LOG_ODDS, StraightThrough(draw="sample"), samples=1, draws=50_000)
    assert_mean_is(values, mean, power=0.01)
    assert_mean_is(gradients, gradient, power=0.005)


def test_straight_through_gradient_of_a_square_is_2p_where_the_truth_is_1() -> None:
    """By the probability of the bit: d E z^2 / dp = 1, and the estimator's mean is E 2z = 2p."""
    p = LOG_ODDS.sigmoid()
    _, gradients = estimates(sum_of_squares, LOG_ODDS, StraightThrough(draw="sample"), samples=1, draws=50_000)
    assert_mean_is(gradients / (p * (1 - p)), 2 * p, power=0.01)
    torch.testing.assert_close(
        exact(sum_of_squares, CODES, log_q_of_bits, LOG_ODDS)[1] / (p * (1 - p)), torch.ones(BITS).double()
    )


def test_straight_through_at_the_mode_has_the_gradient_of_the_probabilities_there() -> None:
    """Of the network for bits, and of a linear function, whose gradient is exact, for values."""
    p = LOG_ODDS.clone().requires_grad_()
    at_mode = (LOG_ODDS > 0).double().requires_grad_()
    (by_z,) = torch.autograd.grad(network(BITS)(at_mode), at_mode)
    (expected,) = torch.autograd.grad((p.sigmoid() * by_z).sum(), p)
    values, gradients = estimates(network(BITS), LOG_ODDS, StraightThrough(), samples=1, draws=1)
    torch.testing.assert_close(gradients[0], expected)
    torch.testing.assert_close(values[0], network(BITS)(at_mode).detach())
    weights = torch.randn(VARIABLES * VALUES).double()
    _, truth = exact(lambda z: z @ weights, ONE_HOTS, log_q_of_values, LOGITS)
    torch.testing.assert_close(estimates(lambda z: z @ weights, LOGITS, StraightThrough(), 1, 1)[1][0], truth)


@pytest.mark.parametrize("samples", [2, 5])
@pytest.mark.parametrize("logits", [LOG_ODDS, LOGITS], ids=["bits", "values"])
def test_score_function_is_unbiased_through_a_network(logits: Tensor, samples: int) -> None:
    mean, gradient = through_network(logits)
    values, gradients = estimates(network(logits.numel()), logits, ScoreFunction(), samples, draws=60_000)
    assert_mean_is(values, mean, power=0.03)
    assert_mean_is(gradients, gradient, power=0.03)


@pytest.mark.parametrize("logits", [LOG_ODDS, LOGITS], ids=["bits", "values"])
def test_enumeration_is_exact_through_a_network(logits: Tensor) -> None:
    mean, gradient = through_network(logits)
    values, gradients = estimates(network(logits.numel()), logits, Enumeration(), samples=1, draws=2)
    torch.testing.assert_close(values, torch.full((2,), mean).double())
    torch.testing.assert_close(gradients, gradient.expand(2, -1))


def through_network(logits: Tensor) -> tuple[float, Tensor]:
    if logits.ndim == 1:
        return exact(network(BITS), CODES, log_q_of_bits, logits)
    return exact(network(VARIABLES * VALUES), ONE_HOTS, log_q_of_values, logits)


@pytest.mark.parametrize("logits", [LOG_ODDS, LOGITS], ids=["bits", "values"])
def test_biased_estimators_are_biased_through_a_network(logits: Tensor) -> None:
    """So that the tests of unbiasedness have power to tell."""
    _, gradient = through_network(logits)
    for estimator in (StraightThrough(draw="sample"), GumbelSoftmax(), GumbelSoftmax(hard=False)):
        _, gradients = estimates(network(logits.numel()), logits, estimator, samples=1, draws=20_000)
        error = gradients.std(dim=0) / math.sqrt(20_000)
        assert ((gradients.mean(dim=0) - gradient).abs() > 2 * ERRORS * error).any()


SAMPLING = [StraightThrough(draw="sample"), ScoreFunction(), *(GumbelSoftmax(temperature=t) for t in (1e-3, 0.9, 1e6))]


@pytest.mark.parametrize("estimator", SAMPLING, ids=str)
def test_hard_draws_are_exact_draws_from_q_at_any_temperature(estimator: EstimatorConfig) -> None:
    """In single precision, where a high temperature rounds the softened values equal."""
    torch.manual_seed(0)
    samples = 100_000
    bits = sample_bits(LOG_ODDS.float().unsqueeze(0), samples, estimator)[:, 0]
    values = sample_values(LOGITS.float().unsqueeze(0), samples, estimator)[:, 0]
    joint = bits[:, :3].round().long() @ torch.tensor([4, 2, 1])
    assert_counts(joint, log_q_of_first_three())
    assert_counts(values.argmax(dim=2) @ torch.tensor([VALUES, 1]), log_q_of_values(LOGITS, ONE_HOTS))
    torch.testing.assert_close(values.sum(dim=2), torch.ones(samples, VARIABLES))


def log_q_of_first_three() -> Tensor:
    return Independent(Bernoulli(logits=LOG_ODDS[:3]), 1).log_prob(all_codes(3))


def assert_counts(values_N: Tensor, log_probabilities: Tensor) -> None:
    observed = values_N.bincount(minlength=len(log_probabilities)).double()
    expected = len(values_N) * log_probabilities.exp()
    assert expected.min() > 5
    assert chisquare(observed.numpy(), (expected * observed.sum() / expected.sum()).numpy()).pvalue > UNLIKELY


def test_softened_draws_harden_as_the_temperature_falls_and_level_as_it_rises() -> None:
    torch.manual_seed(0)

    def softened(temperature: float) -> tuple[Tensor, Tensor]:
        estimator = GumbelSoftmax(temperature=temperature, hard=False)
        bits = sample_bits(LOG_ODDS.unsqueeze(0), 5000, estimator)
        return bits, sample_values(LOGITS.unsqueeze(0), 5000, estimator)

    bits, values = softened(1e-3)
    assert ((bits - bits.round()).abs() < 1e-3).double().mean() > 0.99
    assert (values.amax(dim=-1) > 1 - 1e-3).double().mean() > 0.99
    bits, values = softened(1e6)
    assert (bits - 0.5).abs().max() < 1e-3
    assert (values - 1 / VALUES).abs().max() < 1e-3


def test_softened_draws_have_the_mean_of_the_relaxed_distribution() -> None:
    """At temperature 1 a relaxed bit is sigmoid(a + logistic noise); the mean is an integral, here by quadrature."""
    torch.manual_seed(0)
    bits = sample_bits(LOG_ODDS.unsqueeze(0), 50_000, GumbelSoftmax(temperature=1.0, hard=False))[:, 0]
    uniform = (torch.arange(100_000).double() + 0.5) / 100_000
    expected = (LOG_ODDS + uniform.logit().unsqueeze(1)).sigmoid().mean(dim=0)
    assert_mean_is(bits, expected, power=0.005)


def test_one_sample_leaves_the_score_function_without_a_baseline() -> None:
    with pytest.raises(Misuse, match=r"pretrain\.samples"):
        expected_log_px(torch.zeros(1, 4), torch.zeros(1, 4), ScoreFunction())


def test_values_are_listed_in_order_and_no_more_than_can_be() -> None:
    assert torch.equal(every_value(BITS, 2).double(), CODES)
    assert torch.equal(every_value(VARIABLES, VALUES), PAIRS)
    assert len(every_value(12, 2)) == 4096
    for sample in (
        lambda: sample_bits(torch.zeros(1, 512), 1, Enumeration()),
        lambda: sample_values(torch.zeros(1, 8, 16), 1, Enumeration()),
    ):
        with pytest.raises(Misuse, match=r"(2 \*\* 512|16 \*\* 8), and at most 4096 are; take fewer"):
            sample()


LATENTS = [
    BernoulliConfig(bits=8, prior="learned"),
    BernoulliMixtureConfig(bits=8, components=3, noise=False),
    CategoricalConfig(variables=3, values=4, prior="learned"),
]
every_discrete_latent = pytest.mark.parametrize("latent", LATENTS, ids=lambda one: one.kind)


def model_of(latent: LatentConfig, estimator: EstimatorConfig) -> VAE:
    torch.manual_seed(0)
    encoder = BagOfWordsEncoderConfig(width=12, dropout=0, term_dropout=0)
    decoder = BagOfWordsDecoderConfig(weights="counts", length="own")
    latent = latent.model_copy(update={"estimator": estimator})
    return shaken(VAE(VAEConfig(encoder=encoder, latent=latent, decoder=decoder, terms=40, tokens=30)))


@every_discrete_latent
@every_estimator
def test_every_estimator_trains_a_whole_model(latent: LatentConfig, estimator: EstimatorConfig) -> None:
    """The reconstruction alone moves the encoder, and descent on the loss lowers it."""
    model, batch = model_of(latent, estimator), batch_of(random_documents(8))
    terms = model(batch, samples=4)
    assert terms.log_px.shape == ((1, 8) if estimator.kind == "enumeration" else (4, 8))
    weights = list(model.encoder.parameters())
    gradients = torch.autograd.grad(terms.log_px.mean(), weights)
    assert all(one.isfinite().all() for one in gradients)
    assert sum(float(one.abs().sum()) for one in gradients) > 0
    before, after = descent(model, batch)
    assert after < before - 1


def descent(model: nn.Module, batch: object) -> tuple[float, float]:
    """The loss at the mode, before and after 60 steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = [evaluated(model, batch)]
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(model.train()(batch, samples=4)).backward()
        optimizer.step()
    return losses[0], evaluated(model, batch)


def loss_of(terms: object) -> Tensor:
    return terms.kl_groups.sum(dim=1).mean() - terms.log_px.mean()


@torch.no_grad()
def evaluated(model: nn.Module, batch: object) -> float:
    return float(loss_of(model.eval()(batch)))


@every_discrete_latent
def test_enumeration_gives_the_models_exact_elbo_and_gradient(latent: LatentConfig) -> None:
    """The truth sums q(z | x) log p(x | z) over a list of every z that the test makes itself."""
    model, batch = model_of(latent, Enumeration()).double().train(), batch_of(random_documents(5))
    posterior = model.posterior(batch)
    if isinstance(latent, CategoricalConfig):
        rows = torch.cartesian_prod(*[torch.arange(4)] * 3)
        z_SW = one_hot(rows, 4).double().flatten(1)
        log_q = Categorical(logits=posterior.logits).log_prob(rows.unsqueeze(1)).sum(dim=2)
    else:
        z_SW = all_codes(8)
        log_q = Independent(Bernoulli(logits=posterior.log_odds), 1).log_prob(z_SW.unsqueeze(1))
    log_px = model.decoder(batch, batch.tfidf(model.idf), z_SW.unsqueeze(1).expand(-1, len(batch), -1))
    truth = (log_q.exp() * log_px).sum(dim=0)
    ours = model(batch).log_px
    torch.testing.assert_close(ours, truth.unsqueeze(0).to(ours.dtype), atol=1e-3, rtol=1e-5)
    weights = list(model.encoder.parameters())
    for one, other in zip(
        torch.autograd.grad(ours.sum(), weights), torch.autograd.grad(truth.sum(), weights), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@every_discrete_latent
def test_sampled_elbo_of_a_whole_model_is_the_enumerated_one(latent: LatentConfig) -> None:
    model, batch = model_of(latent, Enumeration()), batch_of(random_documents(5))
    with torch.no_grad():
        truth = model.train()(batch).log_px.mean(dim=0)
        log_px = model.log_px(batch, model.latent.sample(model.posterior(batch), 4000))
    assert_mean_is(log_px.double(), truth.double(), power=0.5)


def test_estimators_are_told_apart_by_their_kind() -> None:
    config = BernoulliConfig.model_validate({"estimator": {"kind": "gumbel_softmax", "temperature": 0.5}})
    assert config.estimator == GumbelSoftmax(temperature=0.5)
    assert BernoulliMixtureConfig().estimator == StraightThrough(draw="mode")
    assert CategoricalConfig().estimator == GumbelSoftmax(temperature=0.9, hard=True)
