"""Losses against numbers worked out by hand, and a model whose rate-distortion curve is known in closed form."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from vae_core.errors import Misuse
from vae_core.latents import BernoulliConfig, BernoulliMixtureConfig, GaussianConfig, GaussianLatent, LatentConfig
from vae_core.latents.bernoulli_mixture import BernoulliMixturePosterior
from vae_core.mmd import mmd_squared
from vae_core.model import Composition, Terms
from vae_core.objectives import (
    UNWEIGHTED,
    Annealing,
    Beta,
    FreeBits,
    ImportanceWeighted,
    MinimumRate,
    Objective,
    RateConfig,
    ascended,
    final_weight,
    loss,
)
from vae_core.objectives.fitting import require_fitting, settled

KL = [[0.5, 2.0, 0.0], [3.0, 0.25, 1.0]]
LOG_PX = [[-10.0, -20.0], [-14.0, -24.0]]
AT_ONCE = Annealing(warmup=0)


def terms_of(kl: Tensor, log_px: list[list[float]] | Tensor = LOG_PX, dispersion: float = 0.0) -> Terms:
    nothing = torch.zeros(len(kl), 1)
    log_px = torch.as_tensor(log_px)
    zeros, spread = torch.zeros_like(log_px), torch.full((len(kl),), dispersion)
    posterior = BernoulliMixturePosterior(nothing, nothing)
    return Terms(log_px, zeros, zeros, kl, spread, nothing, nothing, posterior, torch.zeros(()))


@pytest.mark.parametrize(
    ("annealing", "progress", "expected"),
    [
        (Annealing(beta=2, warmup=0.5), 0.0, 0.0),
        (Annealing(beta=2, warmup=0.5), 0.125, 0.5),
        (Annealing(beta=2, warmup=0.5), 0.25, 1.0),
        (Annealing(beta=2, warmup=0.5), 0.5, 2.0),
        (Annealing(beta=2, warmup=0.5), 1.0, 2.0),
        (Annealing(beta=2, warmup=1), 0.5, 1.0),
        (Annealing(beta=0.3, warmup=0), 0.0, 0.3),
        (Annealing(beta=0), 1.0, 0.0),
        # Fu et al. 2019: four cycles, half of each rising.
        (Annealing(cycles=4), 0.0, 0.0),
        (Annealing(cycles=4), 0.0625, 0.5),
        (Annealing(cycles=4), 0.125, 1.0),
        (Annealing(cycles=4), 0.2499, 1.0),
        (Annealing(cycles=4), 0.25, 0.0),
        (Annealing(cycles=4), 1.0, 1.0),
        # Optimus: ten cycles, half of each at rest, a quarter rising.
        (Annealing(cycles=10, rest=0.5, warmup=0.25), 0.049, 0.0),
        (Annealing(cycles=10, rest=0.5, warmup=0.25), 0.0625, 0.5),
        (Annealing(cycles=10, rest=0.5, warmup=0.25), 0.08, 1.0),
    ],
)
def test_the_weight_rests_rises_and_stays_in_each_cycle(annealing: Annealing, progress: float, expected: float) -> None:
    assert annealing.at(progress) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rate", "latent", "expected"),
    [
        (Beta(), BernoulliMixtureConfig(bits=8), 1.0),
        (Beta(), BernoulliMixtureConfig(bits=128), 1.0),
        (Beta(), BernoulliMixtureConfig(bits=256), 0.5),
        (FreeBits(nats=1), BernoulliMixtureConfig(bits=512), 0.25),
        (Beta(annealing=Annealing(beta=2)), BernoulliMixtureConfig(bits=512), 2.0),
        (Beta(), BernoulliConfig(bits=512), 1.0),
        (Beta(), GaussianConfig(dimensions=512), 1.0),
        (MinimumRate(nats=1), BernoulliMixtureConfig(bits=512), 1.0),
    ],
)
def test_each_of_many_bits_of_a_mixture_costs_less_unless_somebody_says_otherwise(
    rate: RateConfig, latent: LatentConfig, expected: float
) -> None:
    objective = settled(Objective(rate=rate), latent)
    assert final_weight(objective.rate) == pytest.approx(expected)
    assert settled(objective, latent) == objective


def test_a_cycle_longer_than_itself_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"rest 0.7 and warmup 0.5"):
        Annealing(rest=0.7, warmup=0.5)


@pytest.mark.parametrize(
    ("rate", "price"),
    [
        (Beta(annealing=AT_ONCE), (2.5 + 4.25) / 2),
        (Beta(annealing=Annealing(beta=3)), 3 * (2.5 + 4.25) / 2),
        (Beta(groups=(1, 0, 10)), ((0.5 + 0) + (3 + 10)) / 2),
        (FreeBits(nats=1), ((1 + 2 + 1) + (3 + 1 + 1)) / 2),
        (FreeBits(nats=1, annealing=Annealing(beta=2)), (1 + 2 + 1) + (3 + 1 + 1)),
        (FreeBits(nats=3, per="document"), (3 + 4.25) / 2),
        (FreeBits(nats=9, per="document"), 9),
        (FreeBits(nats=1.5, mean=True), 1.75 + 1.5 + 1.5),
        (FreeBits(nats=3, per="document", mean=True), 3.375),
    ],
)
def test_loss_is_the_mean_over_documents_and_reports_the_true_rate(rate: RateConfig, price: float) -> None:
    result = loss(terms_of(torch.tensor(KL)), Objective(rate=rate), progress=1.0)
    assert float(result.distortion) == pytest.approx(17)
    assert float(result.rate) == pytest.approx((2.5 + 4.25) / 2)
    assert float(result.total) == pytest.approx(17 + price)


def test_the_price_follows_the_schedule() -> None:
    rising = Objective(rate=Beta(annealing=Annealing(beta=2, warmup=1)))
    halfway = loss(terms_of(torch.tensor(KL)), rising, progress=0.25)
    assert float(halfway.total) == pytest.approx(17 + 0.5 * (2.5 + 4.25) / 2)
    assert halfway.beta == 0.5


def test_weights_for_another_number_of_groups_are_misuse() -> None:
    with pytest.raises(Misuse, match=r"has 2 weights and this latent's KL 3 groups"):
        loss(terms_of(torch.tensor(KL)), Objective(rate=Beta(groups=(1, 2))), progress=1.0)


def gradient(rate: RateConfig) -> Tensor:
    kl = torch.tensor(KL, requires_grad=True)
    return torch.autograd.grad(loss(terms_of(kl), Objective(rate=rate), progress=1.0).total, kl)[0]


TWICE = Annealing(beta=2, warmup=0)


def test_groups_under_the_threshold_have_no_gradient_and_those_above_have_betas() -> None:
    above = (torch.tensor(KL) > 0.75).float()
    expected = gradient(Beta(annealing=TWICE)) * above
    assert torch.equal(gradient(FreeBits(nats=0.75, annealing=TWICE)), expected)
    assert expected.unique().tolist() == [0.0, 1.0]


def test_documents_under_the_threshold_have_no_gradient_and_those_above_have_betas() -> None:
    assert gradient(FreeBits(nats=3, per="document", annealing=TWICE)).tolist() == [[0.0] * 3, [1.0] * 3]


def test_a_batch_whose_mean_is_above_the_threshold_has_betas_gradient_everywhere() -> None:
    assert gradient(FreeBits(nats=1, mean=True, annealing=TWICE)).tolist() == [[1.0, 1.0, 0.0]] * 2


@pytest.mark.parametrize("per", ["group", "document"])
def test_a_threshold_below_every_group_is_the_plain_objective(per: str) -> None:
    kl = torch.tensor(KL) + 0.1
    plain = loss(terms_of(kl), Objective(rate=Beta(annealing=AT_ONCE)), progress=1.0)
    free = loss(terms_of(kl), Objective(rate=FreeBits(nats=0.05, per=per)), progress=1.0)
    assert torch.equal(plain.total, free.total)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=6), st.floats(0.01, 20))
def test_free_bits_never_price_less_than_the_rate_or_the_thresholds(groups: list[float], nats: float) -> None:
    kl = torch.tensor([groups], dtype=torch.float64)
    total = float(loss(terms_of(kl, [[0.0]]), Objective(rate=FreeBits(nats=nats)), progress=1.0).total)
    assert total >= max(len(groups) * nats, sum(groups)) * (1 - 1e-12)


def test_a_threshold_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        FreeBits(nats=0)


def test_dispersion_is_taken_off_the_price_and_not_off_the_reported_rate() -> None:
    terms = terms_of(torch.tensor(KL), dispersion=0.4)
    plain, dispersed = (loss(terms, Objective(dispersion=share), progress=1.0) for share in (0.0, 0.5))
    assert float(plain.total - dispersed.total) == pytest.approx(0.2, rel=1e-5)
    assert torch.equal(plain.rate, dispersed.rate)


def test_losses_beside_the_vaes_are_added_whatever_the_rate_and_change_nothing_else() -> None:
    for rate in (Beta(annealing=AT_ONCE), FreeBits(nats=1)):
        terms = terms_of(torch.tensor(KL))
        plain, more = (loss(x, Objective(rate=rate), 1.0) for x in (terms, terms._replace(beside=torch.tensor(0.75))))
        assert float(more.total - plain.total) == pytest.approx(0.75, rel=1e-5)
        assert torch.equal(more.distortion, plain.distortion)
        assert torch.equal(more.rate, plain.rate)


def test_component_information_turns_the_mean_kl_into_the_kl_of_the_mean() -> None:
    """E KL(q(c | x) || pi) - I(c; x) = KL(E q(c | x) || pi), here with torch.distributions."""
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    q, prior = Categorical(logits=logits), Categorical(logits=torch.tensor([0.1, -1.0, 0.5, 0.0]))
    kl = kl_divergence(q, Categorical(logits=prior.logits.expand(6, -1))).unsqueeze(1)
    posterior = BernoulliMixturePosterior(torch.zeros(6, 1), logits)
    terms = terms_of(kl, torch.zeros(1, 6))._replace(posterior=posterior)
    informed = loss(terms, Objective(rate=Beta(annealing=AT_ONCE), component_information=1), progress=1.0)
    expected = kl_divergence(Categorical(probs=q.probs.mean(dim=0)), prior)
    torch.testing.assert_close(informed.total, expected)


def test_mmd_moves_a_shifted_posterior_to_the_prior() -> None:
    """InfoVAE with alpha 1 and lambda 1: distortion plus MMD, the rate free of charge."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.full((2,), 2.0, requires_grad=True)
    optimizer = torch.optim.Adam([mean], lr=0.05)
    objective = Objective(rate=Beta(annealing=Annealing(beta=0)), mmd=1.0)
    for _ in range(150):
        noise, prior = torch.randn(2, 256, 2, generator=generator)
        drawn = {"z": (mean + noise).unsqueeze(0), "prior_z": prior}
        terms = terms_of(torch.zeros(256, 1), torch.zeros(1, 256))._replace(**drawn)
        optimizer.zero_grad()
        result = loss(terms, objective, progress=1.0)
        torch.testing.assert_close(result.total, mmd_squared(mean + noise, prior))
        result.total.backward()
        optimizer.step()
    assert mean.detach().abs().max() < 0.2


class LinearGaussian:
    """x ~ N(0, 1), z = a x + b noise, x | z ~ N(w z, s2), everything in closed form: D(R) = exp(-2 R) / (2 s2) + c."""

    def __init__(self, s2: float) -> None:
        self.s2 = s2
        self.a, self.b, self.w = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.7, 0.7, 0.7))

    def terms(self) -> Terms:
        error = (1 - self.w * self.a) ** 2 + self.w**2 * self.b**2
        log_px = -error / (2 * self.s2) - 0.5 * math.log(2 * math.pi * self.s2)
        kl = 0.5 * (self.a**2 + self.b**2 - 1 - (self.b**2).log())
        return terms_of(kl.view(1, 1), log_px.view(1, 1))

    def least_distortion(self, rate: float) -> float:
        return math.exp(-2 * rate) / (2 * self.s2) + 0.5 * math.log(2 * math.pi * self.s2)

    def train(self, rate: RateConfig, steps: int = 4000) -> tuple[float, float, float]:
        """Rate, distortion and the last weight of the rate."""
        optimizer = torch.optim.Adam([self.a, self.b, self.w], lr=5e-3)
        multiplier = UNWEIGHTED
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
            optimizer.zero_grad()
            result = loss(self.terms(), Objective(rate=rate), 1.0, multiplier)
            result.total.backward()
            optimizer.step()
            if isinstance(rate, MinimumRate):
                multiplier = ascended(rate, multiplier, result.rate.item())
        return result.rate.item(), result.distortion.item(), result.beta


@pytest.mark.parametrize("beta", [0.25, 0.5, 1.0, 1.9, 2.5])
def test_beta_lands_on_the_rate_distortion_curve_and_collapses_where_it_must(beta: float) -> None:
    """R*(beta) = max(0, 1/2 log(1 / (beta s2))): posterior collapse exactly when beta s2 >= 1."""
    model = LinearGaussian(s2=0.5)
    rate, distortion, _ = model.train(Beta(annealing=Annealing(beta=beta, warmup=0)))
    assert rate == pytest.approx(max(0.0, 0.5 * math.log(1 / (beta * 0.5))), abs=2e-3)
    assert distortion == pytest.approx(model.least_distortion(rate), abs=1e-3)


def test_free_bits_keep_a_rate_that_the_elbo_would_drop() -> None:
    rate, _, _ = LinearGaussian(s2=1.5).train(FreeBits(nats=1.0))
    assert rate == pytest.approx(1.0, rel=0.05)


def test_a_minimum_rate_is_met_at_the_least_distortion_with_the_multiplier_of_the_optimum() -> None:
    """At the constrained optimum 1 - m = -dD/dR = exp(-2 r) / s2 (the KKT conditions)."""
    model = LinearGaussian(s2=1.5)
    rate, distortion, weight = model.train(MinimumRate(nats=1.0))
    assert rate == pytest.approx(1.0, rel=0.01)
    assert distortion == pytest.approx(model.least_distortion(1.0), abs=1e-2)
    assert weight == pytest.approx(math.exp(-2) / 1.5, abs=0.02)


def test_a_minimum_rate_below_the_optimums_costs_nothing() -> None:
    rate, _, weight = LinearGaussian(s2=0.2).train(MinimumRate(nats=0.3))
    assert rate == pytest.approx(0.5 * math.log(1 / 0.2), abs=0.02)
    assert weight == pytest.approx(1.0, abs=1e-3)


def importance_terms(samples: int, wide: float) -> tuple[Terms, Tensor]:
    """x | z ~ N(z, 1), z ~ N(0, 1), so that log p(x) = log N(x; 0, 2); q too wide by a factor. With log p(x)."""
    torch.manual_seed(0)
    latent = GaussianLatent(GaussianConfig(dimensions=1), features=1).double().train()
    x = torch.tensor([[-1.0], [0.3], [2.0]], dtype=torch.float64)
    with torch.no_grad():
        latent.head.mean.weight.fill_(0.5)
        latent.head.log_variance.weight.zero_()
        latent.head.log_variance.bias.fill_(math.log(0.5 * wide))
    draw = latent(x, samples)
    log_px = torch.distributions.Normal(draw.z, 1.0).log_prob(x).sum(-1)
    kept = (draw.log_q, draw.log_p, draw.kl_groups, draw.dispersion, draw.z, draw.prior_z, draw.posterior)
    terms = Terms(log_px, *kept, torch.zeros(()))
    return terms, torch.distributions.Normal(0.0, math.sqrt(2)).log_prob(x).sum(-1)


def test_the_importance_weighted_bound_is_exact_at_the_true_posterior_and_rises_with_samples_elsewhere() -> None:
    objective = Objective(rate=ImportanceWeighted())
    terms, log_px = importance_terms(samples=3, wide=1.0)
    torch.testing.assert_close(-loss(terms, objective, 1.0).total, log_px.mean(), atol=1e-4, rtol=1e-4)
    bounds = [-float(loss(importance_terms(samples, wide=4.0)[0], objective, 1.0).total) for samples in (1, 10, 10_000)]
    assert bounds[0] < bounds[1] < bounds[2] < float(log_px.mean()) + 0.02
    assert bounds[2] == pytest.approx(float(log_px.mean()), abs=0.02)


def test_importance_weighting_needs_samples_that_carry_a_gradient() -> None:
    with pytest.raises(Misuse, match="take the latent gaussian"):
        loss(terms_of(torch.tensor(KL)), Objective(rate=ImportanceWeighted()), progress=1.0)


@pytest.mark.parametrize("field", ["dispersion", "component_information"])
def test_shares_above_one_are_refused(field: str) -> None:
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        Objective.model_validate({field: 1.5})


UNFIT = [
    ({"kind": "gaussian"}, {"dispersion": 0.5}, "objective.dispersion is about a mixture's components"),
    ({"kind": "gaussian"}, {"decorrelation": 1}, "objective.decorrelation is about bits, and a gaussian latent has"),
    ({"kind": "bernoulli"}, {"component_information": 1}, "objective.component_information is about a mixture's"),
    ({"kind": "bernoulli"}, {"rate": {"kind": "importance_weighted"}}, "those of a bernoulli latent do not"),
    ({"kind": "bernoulli", "estimator": {"kind": "score_function"}}, {}, "set pretrain.samples to 2 or more"),
]


@pytest.mark.parametrize(("latent", "objective", "said"), UNFIT)
def test_an_objective_without_meaning_for_the_latent_is_misuse(latent: dict, objective: dict, said: str) -> None:
    with pytest.raises(Misuse, match=said):
        require_fitting(Composition.model_validate({"latent": latent}), Objective.model_validate(objective), samples=1)


def test_objectives_that_fit_are_let_through() -> None:
    mixture = Composition.model_validate({"latent": {"kind": "gaussian_mixture"}})
    require_fitting(mixture, Objective.model_validate({"dispersion": 1, "component_information": 1, "mmd": 1}), 1)
    require_fitting(mixture, Objective.model_validate({"rate": {"kind": "importance_weighted"}}), 8)


def test_mmd_of_a_set_is_misuse() -> None:
    parts = {"latent": {"kind": "nonparametric"}, "decoder": {"kind": "denoising_attention"}}
    with pytest.raises(Misuse, match=r"objective\.mmd compares vectors"):
        require_fitting(Composition.model_validate(parts), Objective(mmd=1), samples=1)


MISSPELT: list[tuple[dict, str]] = [({"nats": 1}, "nats"), ({"kind": "minimum_rate"}, "nats")]


@pytest.mark.parametrize(("rate", "named"), MISSPELT)
def test_settings_of_another_kind_or_missing_ones_are_refused(rate: dict, named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Objective.model_validate({"rate": rate})
