"""What single kinds of latents promise beside the family: which one becomes which, and models whose evidence is known.

Statistical checks use fixed seeds and 4.9 standard errors.
"""

import math

import numpy as np
import pytest
import torch
from documents import all_codes
from latent_truths import (
    BITS,
    DIMENSIONS,
    DOCUMENTS,
    EXAMPLES,
    FEATURES,
    MIXTURES,
    bounded,
    features_of,
    kl_by_component,
    latent_of,
    support,
    true_components,
    true_prior,
    true_q,
    true_weights,
)
from scipy.stats import norm
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal, kl_divergence
from torch.nn.functional import one_hot

from vae_core.estimators import GumbelSoftmax
from vae_core.latents import build_latent
from vae_core.latents.bernoulli import BernoulliPosterior
from vae_core.latents.categorical import CategoricalPosterior
from vae_core.latents.gaussian import GaussianPosterior

ERRORS = 4.9


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


@pytest.mark.parametrize("name", ["bernoulli", "bernoulli_mixture", "categorical"])
def test_softened_values_are_scored_as_the_hard_values_they_are_nearest_to(name: str) -> None:
    """log q and log p are of values of z, not of points between them, whose density is another."""
    draw = latent_of(name, estimator=GumbelSoftmax(temperature=2.0, hard=False))(features_of(), samples=50)
    values = support(latent_of(name))
    assert torch.cdist(draw.z.detach(), values).amin(dim=-1).max() > 0.1
    nearest = values[torch.cdist(draw.z.detach(), values).argmin(dim=-1)]
    torch.testing.assert_close(draw.log_q, true_q(draw.posterior).log_prob(nearest))
    torch.testing.assert_close(draw.log_p, true_prior(latent_of(name)).log_prob(nearest))


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
