"""The mixtures' Jensen gap L_d: the identity it comes from, what it does to components, and that components are found.

Shapes: B documents, C components, W numbers of z.
"""

import pytest
import torch
from documents import all_codes
from latent_truths import features_of, kl_by_component, latent_of, true_components, true_q
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from torch.special import entr

from vae_core.estimators import StraightThrough
from vae_core.latents import BernoulliMixtureConfig, GaussianMixtureConfig, Latent, build_latent
from vae_core.latents.gaussian_mixture import GaussianMixturePosterior

every_mixture = pytest.mark.parametrize("name", ["gaussian_mixture", "bernoulli_mixture"])


def kl_to_the_mean_component(latent: Latent, posterior: object) -> Tensor:
    """KL(q(z | x) || p(z | eta_bar)), (B,), eta_bar the mean of the natural parameters, by torch."""
    weights = posterior.component_logits.softmax(dim=1)
    components, q = true_components(latent).base_dist, true_q(posterior).base_dist
    if isinstance(components, Bernoulli):
        return kl_divergence(q, Bernoulli(logits=weights @ components.logits)).sum(dim=1)
    precision = weights @ components.variance.reciprocal()
    mean = weights @ (components.mean / components.variance) / precision
    return kl_divergence(q, Normal(mean, precision.rsqrt())).sum(dim=1)


@every_mixture
@torch.no_grad()
def test_mean_kl_to_the_components_is_the_kl_to_the_mean_component_and_the_dispersion(name: str) -> None:
    latent = latent_of(name)
    posterior = latent.posterior(features_of())
    by_component_CB = kl_by_component(true_q(posterior), true_components(latent)).sum(dim=2)
    mean = (posterior.component_logits.softmax(dim=1).T * by_component_CB).sum(dim=0)
    expected = mean - kl_to_the_mean_component(latent, posterior)
    torch.testing.assert_close(latent.dispersion(posterior), expected)
    torch.testing.assert_close(latent(features_of()).dispersion, expected)
    assert (expected > 1e-3).all()


@every_mixture
@torch.no_grad()
def test_dispersion_vanishes_where_components_or_the_choice_among_them_are_one(name: str) -> None:
    latent = latent_of(name)
    posterior = latent.posterior(features_of())
    certain = torch.full_like(posterior.component_logits, -800.0)
    certain[:, 0] = 0
    assert latent.dispersion(posterior._replace(component_logits=certain)).abs().max() < 1e-9
    for parameter_name, parameter in latent.named_parameters():
        if parameter_name.startswith("prior") and parameter.ndim == 2:
            parameter.copy_(parameter[:1].expand_as(parameter))
    assert latent.dispersion(posterior).abs().max() < 1e-9


@every_mixture
def test_a_full_dispersion_term_leaves_components_only_the_pull_towards_the_mean_component(name: str) -> None:
    """The gradient of KL - L_d by the component parameters is that of the KL to the mean component."""
    latent = latent_of(name)
    posterior = latent.posterior(features_of())
    leaves = [one for key, one in latent.named_parameters() if key.startswith("prior") and one.ndim == 2]
    ours = latent.kl_groups(posterior)[:, :-1].sum() - latent.dispersion(posterior).sum()
    truth = kl_to_the_mean_component(latent, posterior).sum()
    pairs = zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(truth, leaves), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other)


def distance_after_descent(weight: float) -> float:
    """How far two components' means are apart after descent on KL - weight L_d, q(c | x) being a half each.

    The documents' posteriors lie in two clusters, at -2 and 2, so that two components are what they need.
    """
    latent = latent_of("gaussian_mixture", components=2, dimensions=1)
    clusters = torch.tensor([[-2.0], [2.0]]).double().repeat(20, 1) + 0.1 * torch.randn(40, 1).double()
    small, undecided = torch.full((40, 1), -2.0).double(), torch.zeros(40, 2).double()
    posterior = GaussianMixturePosterior(clusters, small, undecided)
    with torch.no_grad():
        latent.prior_means.copy_(torch.tensor([[-2.0], [2.0]]))
        latent.prior_log_variances.zero_()
    optimizer = torch.optim.SGD([latent.prior_means, latent.prior_log_variances], lr=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        (latent.kl_groups(posterior).sum(dim=1) - weight * latent.dispersion(posterior)).mean().backward()
        optimizer.step()
    return float(latent.prior_means.diff(dim=0).abs())


def test_the_elbo_merges_undecided_components_and_dispersion_keeps_them_apart() -> None:
    torch.manual_seed(0)
    assert distance_after_descent(weight=0.0) < 0.05
    assert distance_after_descent(weight=1.0) > 3.5


class Autoencoder(nn.Module):
    """A latent over a hidden layer; log p(x | z) is an independent bit or unit normal for each number of x."""

    def __init__(self, config: BernoulliMixtureConfig | GaussianMixtureConfig, inputs: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(inputs, 64), nn.ReLU())
        self.latent = build_latent(config, 64)
        self.output = nn.Linear(self.latent.width, inputs)

    def loss(self, x: Tensor) -> Tensor:
        draw = self.latent(self.hidden(x))
        log_px = Independent(Bernoulli(logits=self.output(draw.z), validate_args=False), 1).log_prob(x)
        return (draw.kl_groups.sum(dim=1) - log_px.mean(dim=0)).mean()


def clustered_bits(documents: int, seed: int) -> tuple[Tensor, Tensor]:
    """24 bits from a mixture of four Bernoulli components, and each row's component."""
    prototypes = all_codes(2).repeat_interleave(2, dim=1).repeat(1, 6)
    prototypes[:, 12:] = prototypes[:, 12:].roll(1, dims=1)
    generator = torch.Generator().manual_seed(seed)
    component = torch.randint(4, (documents,), generator=generator)
    chance = 0.05 + 0.9 * prototypes[component]
    return torch.bernoulli(chance, generator=generator).float(), component


def components_after_training(config: BernoulliMixtureConfig | GaussianMixtureConfig) -> tuple[float, float, float]:
    """exp(entropy) of the mean q(c | x), mean exp(entropy) of q(c | x), and purity, after 600 steps on the ELBO."""
    torch.manual_seed(0)
    model = Autoencoder(config, inputs=24)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(600):
        optimizer.zero_grad()
        model.loss(clustered_bits(128, seed=step)[0]).backward()
        optimizer.step()
    x, truth = clustered_bits(2000, seed=10_000)
    with torch.no_grad():
        q = model.eval().latent.posterior(model.hidden(x)).component_logits.softmax(dim=1)
    table = torch.zeros(8, 4).index_put((q.argmax(dim=1), truth), torch.ones(len(x)), accumulate=True)
    used, unsure = entr(q.mean(dim=0)).sum().exp(), entr(q).sum(dim=1).exp().mean()
    return float(used), float(unsure), float(table.amax(dim=1).sum()) / len(x)


SAMPLED = StraightThrough(draw="sample")
RECOVERING = [
    BernoulliMixtureConfig(bits=32, components=8, noise=False, estimator=SAMPLED),
    BernoulliMixtureConfig(bits=32, components=8, noise=False, estimator=SAMPLED, assignment="optimal"),
    GaussianMixtureConfig(dimensions=8, components=8),
    GaussianMixtureConfig(dimensions=8, components=8, assignment="optimal"),
]


@pytest.mark.parametrize("config", RECOVERING, ids=lambda one: f"{one.kind}-{one.assignment}")
def test_the_four_components_of_data_are_found_among_eight(config: BernoulliMixtureConfig) -> None:
    used, unsure, purity = components_after_training(config)
    assert used >= 3
    assert unsure <= 1.5
    assert purity >= 0.9


def test_components_die_where_the_decoder_sees_the_mode_whatever_its_probability() -> None:
    """Then doubt costs the reconstruction nothing, the ELBO drives log-odds towards 0, and c tells nothing of x."""
    config = BernoulliMixtureConfig(bits=32, components=8, noise=False, estimator=StraightThrough(draw="mode"))
    used, unsure, _ = components_after_training(config)
    assert unsure > 0.95 * used
