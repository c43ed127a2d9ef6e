"""The nonparametric latent and denoising attention against torch.distributions, quadrature and torch's own attention.

Statistical checks use fixed seeds and 4.9 standard errors: were the seeds drawn anew, any one number of a correct
implementation would fail about once in a million runs.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from documents import EMPTY, Document, batch_of, random_documents, shaken
from pydantic import ValidationError
from scipy.stats import beta
from torch import Tensor
from torch.distributions import Categorical, Dirichlet, Independent, MixtureSameFamily, Normal, kl_divergence

from vae_core.decoders.autoregressive import token_accuracy
from vae_core.decoders.denoising_attention import DenoisingAttentionDecoder
from vae_core.denoising_attention import DenoisingAttention, Mixture, denoise
from vae_core.encoders.states import States
from vae_core.errors import Misuse
from vae_core.generation import generate, reconstruct
from vae_core.latents.nonparametric import (
    PRIOR_LENGTH,
    NonparametricConfig,
    NonparametricLatent,
    NonparametricPosterior,
    interpolate,
    log_dirichlet,
    sparsity,
)
from vae_core.model import VAE, Composition, VAEConfig

TERMS, TOKENS, WIDTH, DIMENSIONS = 40, 30, 16, 6
DOCUMENTS = [*random_documents(5, terms=TERMS, tokens=TOKENS, longest=9), EMPTY]
LENGTHS = torch.tensor([len(document.tokens) for document in DOCUMENTS])
ERRORS = 4.9


def latent_of(draws: int = 1, per_token: float = 0.0, prior: float = 1.0) -> NonparametricLatent:
    config = NonparametricConfig(
        dimensions=DIMENSIONS,
        draws=draws,
        per_token_pseudo_count=per_token,
        prior_pseudo_count=prior,
        evaluation="normals",
    )
    torch.manual_seed(0)
    return shaken(NonparametricLatent(config, WIDTH)).double()


def states_of(lengths: Tensor = LENGTHS) -> States:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    vectors = torch.randn(*mask.shape, WIDTH, generator=generator, dtype=torch.float64)
    return States(vectors * mask.unsqueeze(2), mask)


def posterior_of(counts: list[float], seed: int = 2) -> NonparametricPosterior:
    """One document with these pseudo-counts, the prior's first."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, len(counts), DIMENSIONS)
    centres, log_variances = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    centres[:, 0], log_variances[:, 0] = 0.0, 0.0
    pseudo_counts = torch.tensor([counts], dtype=torch.float64)
    return NonparametricPosterior(pseudo_counts, centres, log_variances, torch.ones_like(pseudo_counts).bool())


def vae_of(draws: int = 1, word_dropout: float = 0.0, seed: int = 4) -> VAE:
    torch.manual_seed(seed)
    encoder = {"kind": "transformer", "reads": "tokens", "width": WIDTH, "heads": 2, "term_dropout": 0, "grow_after": 0}
    decoder = {"kind": "denoising_attention", "width": WIDTH, "heads": 2, "positions": 32, "word_dropout": word_dropout}
    latent = {"kind": "nonparametric", "dimensions": DIMENSIONS, "draws": draws, "evaluation": "normals"}
    return VAE(VAEConfig(encoder=encoder, latent=latent, decoder=decoder, terms=TERMS, tokens=TOKENS))


def assert_mean_is(samples: Tensor, expected: Tensor, power: float) -> None:
    """The means of the columns are as expected within ERRORS standard errors, which are below `power`."""
    standard_error = samples.std(dim=0) / math.sqrt(len(samples))
    assert standard_error.max() < power
    assert ((samples.mean(dim=0) - expected).abs() <= ERRORS * standard_error + 1e-9).all()


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("per_token", [0.0, 0.7])
def test_kl_of_the_pseudo_counts_is_torchs_of_symmetric_dirichlets(draws: int, per_token: float) -> None:
    latent = latent_of(draws, per_token, prior=1.5)
    posterior = latent.posterior(states_of())
    assert (posterior.pseudo_counts[:, 1:][posterior.mask[:, 1:]] == 0).any()
    for row, length in enumerate(LENGTHS.tolist()):
        atoms = draws * (length + 1)
        q = torch.full((atoms,), float(posterior.pseudo_counts[row].sum().detach()) / atoms, dtype=torch.float64)
        p = torch.full((atoms,), (1.5 + per_token * length) / atoms, dtype=torch.float64)
        expected = kl_divergence(Dirichlet(q), Dirichlet(p)) if atoms > 1 else torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(latent.kl_groups(posterior)[row, 1], expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("draws", [1, 3])
def test_kl_of_the_vectors_is_torchs_of_normals_weighted_by_their_pseudo_counts(draws: int) -> None:
    latent = latent_of(draws)
    posterior = latent.posterior(states_of())
    prior = Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
    for row, length in enumerate(LENGTHS.tolist()):
        expected = torch.zeros((), dtype=torch.float64)
        for place in range(length + 1):
            q = Normal(posterior.centres[row, place], (0.5 * posterior.log_variances[row, place]).exp())
            expected += posterior.pseudo_counts[row, place] * kl_divergence(q, prior).sum()
        expected *= draws * (length + 1) / posterior.pseudo_counts[row].sum()
        torch.testing.assert_close(latent.kl_groups(posterior)[row, 0], expected)


def test_kl_of_the_vectors_bounds_that_of_the_mixture_and_is_tight_for_one_component() -> None:
    """KL(mixture || N(0, I)) of one dimension by quadrature: the trapezoid of a smooth function is exact here."""
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    latent, posterior = latent_of(), posterior_of([1.0, 2.0, 0.5])
    one = [x[..., :1] if x.dim() == 3 else x for x in posterior]

    def ratio(posterior: NonparametricPosterior) -> float:
        components = Normal(posterior.centres[0, :, 0], (0.5 * posterior.log_variances[0, :, 0]).exp())
        mixture = MixtureSameFamily(Categorical(posterior.pseudo_counts[0]), components)
        log_q, log_p = mixture.log_prob(grid), Normal(0.0, 1.0).log_prob(grid)
        kl = torch.trapezoid(log_q.exp() * (log_q - log_p), grid)
        return float(kl * posterior.mask.shape[1] / latent.kl_groups(posterior)[0, 0])

    spread = NonparametricPosterior(*one)
    assert ratio(spread) < 0.95
    assert ratio(spread._replace(pseudo_counts=torch.tensor([[0.0, 2.0, 0.0]]))) == pytest.approx(1)


def test_kl_vanishes_where_every_vector_is_dropped() -> None:
    latent, posterior = latent_of(), latent_of().posterior(states_of())
    counts = posterior.pseudo_counts.clone()
    counts[:, 1:] = 0
    dropped = posterior._replace(pseudo_counts=counts)
    assert latent.kl_groups(dropped).abs().max() < 1e-12
    assert latent.kl_groups(posterior)[:-1].min() > 0.1
    assert latent.kl_groups(posterior)[-1].abs().max() < 1e-12


def test_kl_gradient_agrees_with_finite_differences() -> None:
    latent, posterior = latent_of(per_token=0.3), posterior_of([1.0, 2.0, 0.5])
    inputs = tuple(x.requires_grad_() for x in posterior[:3])
    assert torch.autograd.gradcheck(lambda *x: latent.kl_groups(NonparametricPosterior(*x, posterior.mask)), inputs)


COUNTS = torch.tensor([0.02, 0.3, 1.0, 4.0], dtype=torch.float64)


def dirichlet_draws(number: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    counts = COUNTS.repeat(number, 1).requires_grad_()
    return counts, log_dirichlet(counts).exp()


def test_dirichlet_draws_have_the_mean_and_the_variance_of_the_dirichlet() -> None:
    weights, truth = dirichlet_draws(100_000)[1].detach(), Dirichlet(COUNTS)
    assert_mean_is(weights, truth.mean, power=0.002)
    assert_mean_is((weights - truth.mean).square(), truth.variance, power=0.001)


def test_dirichlet_draws_of_tiny_counts_follow_the_beta_law_where_gammas_underflow() -> None:
    torch.manual_seed(0)
    shares = log_dirichlet(torch.tensor([0.02, 0.05]).repeat(20_000, 1)).double().exp()[:, 0]
    for cut in (1e-9, 0.01, 0.5, 0.99):
        expected = float(beta.cdf(cut, 0.02, 0.05))
        error = math.sqrt(expected * (1 - expected) / len(shares))
        assert float((shares < cut).double().mean()) == pytest.approx(expected, abs=ERRORS * error)


def test_dirichlet_gradient_is_that_of_the_mean() -> None:
    """d E[w_0] / d alpha_j = (1{j = 0} A - alpha_0) / A^2."""
    total = COUNTS.sum()
    for place in range(len(COUNTS)):
        counts, weights = dirichlet_draws(50_000)
        (gradients,) = torch.autograd.grad(weights[:, place].sum(), counts)
        expected = ((torch.arange(4) == place) * total - COUNTS[place]) / total**2
        assert_mean_is(gradients, expected, power=0.02)


def test_dirichlet_of_counts_from_0_to_a_million_has_finite_gradients_and_no_weight_for_0() -> None:
    torch.manual_seed(0)
    counts = torch.tensor([0.0, 1.1e-6, 1e-3, 1.0, 1e6, 0.0]).repeat(2000, 1).requires_grad_()
    log_weights = log_dirichlet(counts)
    assert torch.isneginf(log_weights[:, [0, 5]]).all()
    torch.testing.assert_close(log_weights.exp().sum(dim=1), torch.ones(2000))
    log_weights.exp().square().sum().backward()
    assert counts.grad.isfinite().all()
    assert (counts.grad[:, [0, 5]] == 0).all()


def mixture_of(components: int, dimensions: int, *, seed: int = 3, spread: float = 1.0) -> Mixture:
    generator = torch.Generator().manual_seed(seed)
    log_weights = torch.randn(1, components, generator=generator, dtype=torch.float64).log_softmax(dim=1)
    means = 2 * torch.randn(1, components, dimensions, generator=generator, dtype=torch.float64)
    variances = spread * (0.2 + torch.rand(1, components, dimensions, generator=generator, dtype=torch.float64))
    return Mixture(log_weights, means, variances)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_attention_to_normals_is_the_mean_of_the_vector_given_the_query_by_quadrature(noise: float) -> None:
    mixture, queries = mixture_of(3, 1), torch.linspace(-5, 5, 7, dtype=torch.float64).view(1, 7, 1)
    v = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    prior = MixtureSameFamily(
        Categorical(logits=mixture.log_weights[0]),
        Normal(mixture.means[0, :, 0], mixture.variances[0, :, 0].sqrt()),
    )
    joint = (prior.log_prob(v) + Normal(v, math.sqrt(noise)).log_prob(queries[0])).exp()
    expected = torch.trapezoid(joint * v, v) / torch.trapezoid(joint, v)
    torch.testing.assert_close(denoise(queries, mixture, noise)[0, :, 0], expected)


def test_attention_to_normals_of_two_dimensions_is_that_mean_too() -> None:
    mixture, query = mixture_of(3, 2), torch.tensor([[[0.7, -1.3]]], dtype=torch.float64)
    axis = torch.linspace(-15, 15, 601, dtype=torch.float64)
    v = torch.cartesian_prod(axis, axis)
    normals = Independent(Normal(mixture.means[0], mixture.variances[0].sqrt()), 1)
    prior = MixtureSameFamily(Categorical(logits=mixture.log_weights[0]), normals)
    joint = (prior.log_prob(v) + Independent(Normal(v, math.sqrt(1.5)), 1).log_prob(query[0])).exp()
    expected = (joint.unsqueeze(1) * v).sum(dim=0) / joint.sum()
    torch.testing.assert_close(denoise(query, mixture, 1.5)[0, 0], expected)


@pytest.mark.parametrize("variance", [0.0, 1e-13])
def test_attention_to_impulses_weighs_each_by_its_distance_to_the_query(variance: float) -> None:
    mixture = mixture_of(5, DIMENSIONS)
    mixture = mixture._replace(variances=torch.full_like(mixture.means, variance))
    queries = torch.randn(1, 4, DIMENSIONS, dtype=torch.float64)
    squared = torch.cdist(queries[0], mixture.means[0]).square()
    expected = (mixture.log_weights[0] - squared / (2 * 1.7)).softmax(dim=1) @ mixture.means[0]
    torch.testing.assert_close(denoise(queries, mixture, 1.7)[0], expected)


def test_attention_to_normals_in_single_precision_agrees_with_double_for_far_queries() -> None:
    mixture, queries = mixture_of(5, DIMENSIONS), 100 * torch.randn(1, 4, DIMENSIONS, dtype=torch.float64)
    impulses = mixture._replace(variances=torch.zeros_like(mixture.means))
    for one in (mixture, impulses):
        single = denoise(queries.float(), Mixture(*(x.float() for x in one)), 2.0)
        torch.testing.assert_close(single, denoise(queries, one, 2.0).float(), rtol=1e-4, atol=1e-4)


def ordinary(attention: DenoisingAttention, x: Tensor, vectors: Tensor, absent: Tensor) -> Tensor:
    """torch's own multi-head attention with the same matrices, and a bias of the keys, which changes nothing."""
    width, (heads, _, dimensions) = x.shape[-1], attention.keys_HEP.shape
    torchs = torch.nn.MultiheadAttention(width, heads, kdim=dimensions, vdim=dimensions, batch_first=True).double()
    with torch.no_grad():
        torchs.q_proj_weight.copy_(attention.queries.weight)
        torchs.k_proj_weight.copy_(attention.keys_HEP.flatten(0, 1))
        torchs.v_proj_weight.copy_(attention.values_HEP.flatten(0, 1))
        torchs.in_proj_bias.copy_(torch.cat([attention.queries.bias, torch.randn(width), torch.zeros(width)]))
        torchs.out_proj.weight.copy_(attention.output.weight)
        torchs.out_proj.bias.copy_(attention.output.bias)
    return torchs(x, vectors, vectors, key_padding_mask=absent)[0]


@pytest.mark.parametrize("heads", [1, 4])
def test_weights_that_grow_with_the_vectors_lengths_make_it_ordinary_multi_head_attention(heads: int) -> None:
    torch.manual_seed(5)
    attention = shaken(DenoisingAttention(WIDTH, heads, DIMENSIONS)).double()
    x, vectors = torch.randn(3, 7, WIDTH).double(), 2 * torch.randn(3, 5, DIMENSIONS).double()
    absent = torch.arange(5) >= torch.tensor([[5], [3], [1]])
    squared = vectors.square().sum(dim=2) / (2 * math.sqrt(WIDTH // heads))
    log_weights = squared.masked_fill(absent, -torch.inf).log_softmax(dim=1)
    ours = attention(x, Mixture(log_weights, vectors, torch.zeros_like(vectors)))
    torch.testing.assert_close(ours, ordinary(attention, x, vectors, absent))


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_the_order_of_the_components_changes_nothing(spread: float) -> None:
    attention = shaken(DenoisingAttention(WIDTH, 2, DIMENSIONS)).double()
    mixture, x = mixture_of(6, DIMENSIONS, spread=spread), torch.randn(1, 4, WIDTH).double()
    order = torch.tensor([3, 5, 0, 2, 1, 4])
    shuffled = Mixture(*(part[:, order] for part in mixture))
    torch.testing.assert_close(attention(x, shuffled), attention(x, mixture))


@pytest.mark.parametrize("training", [True, False])
def test_a_dropped_vector_has_exactly_no_gradient_and_the_others_have_one(training: bool) -> None:
    attention = shaken(DenoisingAttention(WIDTH, 2, DIMENSIONS)).double()
    posterior = posterior_of([1.0, 0.8, 0.0, 1.2])
    parts = [x.requires_grad_() for x in posterior[:3]]
    latent = latent_of()
    z = latent.sample(posterior, 1) if training else Mixture(*(x.unsqueeze(0) for x in latent.mode(posterior)))
    attention(torch.randn(1, 4, WIDTH).double(), Mixture(*(x[0] for x in z))).square().sum().backward()
    received = [part.grad[0].reshape(4, -1).abs().sum(dim=1) for part in parts]
    assert (received[0] > 1e-12).tolist() == [True, True, False, True]
    for one in received[1:]:
        assert one.isfinite().all()
        assert (one != 0).tolist() == [True, True, False, True]


def test_draws_have_the_weights_of_the_dirichlet_however_many_each_component_gives() -> None:
    """Three weights drawn of every component add up to one Dirichlet(alpha), by its aggregation."""
    torch.manual_seed(0)
    posterior = posterior_of([1.0, 0.4, 0.0, 2.0])
    z = latent_of(draws=3).sample(posterior, 40_000)
    weights = z.log_weights[:, 0].exp().unflatten(1, (3, 4)).sum(dim=1)[:, [0, 1, 3]]
    truth = Dirichlet(posterior.pseudo_counts[0, [0, 1, 3]])
    assert_mean_is(weights, truth.mean, power=0.002)
    assert_mean_is((weights - truth.mean).square(), truth.variance, power=0.001)
    assert z.variances.abs().max() == 0


def test_drawn_vectors_are_normal_about_their_centres() -> None:
    torch.manual_seed(0)
    posterior = posterior_of([1.0, 0.4, 2.0])
    vectors = latent_of(draws=2).sample(posterior, 20_000).means[:, 0].unflatten(1, (2, 3))
    for own in vectors.unbind(dim=1):
        assert_mean_is(own.flatten(1), posterior.centres[0].flatten(), power=0.03)
        spread = (own - posterior.centres[0]).square().flatten(1)
        assert_mean_is(spread, posterior.log_variances[0].exp().flatten(), power=0.1)


@pytest.mark.parametrize(("keep_above", "evaluation"), [(0.0, "normals"), (0.1, "normals"), (0.0, "means")])
def test_the_mode_is_the_base_distribution_less_the_smallest_counts(keep_above: float, evaluation: str) -> None:
    posterior, latent = posterior_of([0.05, 0.4, 0.0, 2.0, 0.09]), latent_of()
    latent.config = NonparametricConfig(dimensions=DIMENSIONS, keep_above=keep_above, evaluation=evaluation)
    mixture = latent.mode(posterior)
    expected = torch.tensor([[0.05, 0.4, 0.0, 2.0, 0.09 if keep_above == 0 else 0.0]]).double()
    expected = expected / expected.sum()
    torch.testing.assert_close(mixture.log_weights.exp(), expected)
    torch.testing.assert_close(mixture.means, posterior.centres)
    torch.testing.assert_close(mixture.variances, posterior.log_variances.exp() * (evaluation == "normals"))


def test_evaluation_reads_the_mode_and_training_reads_impulses() -> None:
    latent, states = latent_of(), states_of()
    drawn, read = latent(states, samples=2), latent.eval()(states, samples=2)
    mode = latent.mode(latent.posterior(states))
    for ours, expected in zip(read.z, mode, strict=True):
        assert torch.equal(ours, expected.expand(2, *expected.shape))
    assert not torch.equal(drawn.z.means[0], drawn.z.means[1])
    assert drawn.z.variances.abs().max() == 0
    assert drawn.log_q.shape == drawn.log_p.shape == (2, len(DOCUMENTS))


def test_no_vector_starts_dropped() -> None:
    torch.manual_seed(0)
    latent = NonparametricLatent(NonparametricConfig(), WIDTH)
    states = States(torch.randn(8, 50, WIDTH), torch.ones(8, 50, dtype=torch.bool))
    counts = latent.posterior(states).pseudo_counts[:, 1:]
    assert counts.min() > 0.3
    assert float(counts.detach().mean()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("draws", "per_token"), [(1, 0.0), (2, 0.5)])
def test_the_prior_draws_as_many_normal_vectors_as_the_posterior_of_the_same_length(
    draws: int, per_token: float
) -> None:
    torch.manual_seed(0)
    latent = latent_of(draws, per_token)
    lengths = torch.tensor([3, 0]).repeat(10_000)
    prior = latent.sample_prior(len(lengths), lengths)
    weights, atoms = prior.log_weights.exp(), 4 * draws
    assert (weights[1::2, :draws].sum(dim=1) - 1).abs().max() < 1e-9
    assert prior.log_weights.shape == (20_000, atoms)
    truth = Dirichlet(torch.full((atoms,), (1 + 3 * per_token) / atoms, dtype=torch.float64))
    assert_mean_is(weights[0::2], truth.mean, power=0.01)
    assert_mean_is((weights[0::2] - truth.mean).square(), truth.variance, power=0.01)
    assert_mean_is(prior.means[0::2].square().flatten(1), torch.ones(atoms * DIMENSIONS), power=0.02)
    assert latent.sample_prior(2).means.shape == (2, draws * (PRIOR_LENGTH + 1), DIMENSIONS)


def test_sparsity_counts_what_is_kept() -> None:
    posterior = posterior_of([1.0, 0.4, 0.0, 2.0, 0.0])
    kept, share, total, effective = (float(x) for x in sparsity(posterior))
    assert (kept, share) == (2, 0.5)
    assert total == pytest.approx(3.4)
    assert effective == pytest.approx(float(Categorical(posterior.pseudo_counts).entropy().exp()))
    assert float(sparsity(posterior, above=0.5).kept) == 1
    assert [float(x) for x in sparsity(posterior_of([1.0]))] == pytest.approx([0, 0, 1, 1])


def test_an_interpolation_begins_at_one_document_and_ends_at_the_other() -> None:
    attention, x = shaken(DenoisingAttention(WIDTH, 2, DIMENSIONS)).double(), torch.randn(1, 4, WIDTH).double()
    one, other = posterior_of([1.0, 0.4, 2.0]), posterior_of([1.0, 3.0], seed=9)

    def found(posterior: NonparametricPosterior) -> Tensor:
        return attention(x, latent_of().mode(posterior))

    torch.testing.assert_close(found(interpolate(one, other, 0.0)), found(one))
    torch.testing.assert_close(found(interpolate(one, other, 1.0)), found(other))
    between = interpolate(one, other, 0.25)
    torch.testing.assert_close(between.pseudo_counts, torch.tensor([[1.0, 0.3, 1.5, 0.75]]).double())
    assert int(between.lengths) == 3


REFUSALS: list[Callable[[NonparametricLatent, NonparametricPosterior], object]] = [
    lambda _, posterior: posterior.log_odds,
    lambda _, posterior: posterior.means,
    lambda latent, posterior: latent.log_q(posterior, posterior.centres),
    lambda latent, posterior: latent.log_prior(posterior.centres),
]


@pytest.mark.parametrize("ask", REFUSALS)
def test_what_a_set_of_vectors_does_not_have_is_refused(
    ask: Callable[[NonparametricLatent, NonparametricPosterior], object],
) -> None:
    with pytest.raises(Misuse, match="set of vectors"):
        ask(latent_of(), posterior_of([1.0, 2.0]))


def test_a_model_of_sets_has_no_codes() -> None:
    with pytest.raises(Misuse, match="has no code"):
        vae_of().eval().encode(batch_of(DOCUMENTS))


SETS: dict[str, object] = {"latent": {"kind": "nonparametric"}, "decoder": {"kind": "denoising_attention"}}


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"latent": {"kind": "nonparametric"}}, "set decoder.kind to denoising_attention"),
        ({"decoder": {"kind": "denoising_attention"}}, "set latent.kind to nonparametric"),
        (SETS | {"encoder": {"kind": "bag_of_words"}}, "set encoder.kind to transformer"),
        (SETS | {"condition": {"kind": "opening"}}, "set condition to null"),
    ],
)
def test_parts_that_do_not_fit_a_set_are_refused_with_what_to_set(settings: dict[str, object], remedy: str) -> None:
    with pytest.raises(ValidationError, match=remedy):
        Composition.model_validate(settings)
    assert Composition.model_validate(SETS).latent.kind == "nonparametric"


def decoder_of(model: VAE) -> DenoisingAttentionDecoder:
    assert isinstance(model.decoder, DenoisingAttentionDecoder)
    return model.decoder


@pytest.mark.parametrize("samples", [1, 3])
def test_a_document_costs_the_same_in_any_batch(samples: int) -> None:
    model = shaken(vae_of()).double().eval()
    together = model(batch_of(DOCUMENTS), samples)
    backwards = model(batch_of(DOCUMENTS[::-1]), samples)
    torch.testing.assert_close(backwards.log_px.flip(1), together.log_px)
    for row, document in enumerate(DOCUMENTS):
        alone = model(batch_of([document]), samples)
        torch.testing.assert_close(alone.log_px[:, 0], together.log_px[:, row])
        torch.testing.assert_close(alone.kl_groups[0], together.kl_groups[row])


def test_a_document_costs_what_a_loop_over_its_tokens_says() -> None:
    model = shaken(vae_of()).double().eval()
    decoder, batch = decoder_of(model), batch_of(DOCUMENTS)
    terms = model(batch)
    for row, document in enumerate(DOCUMENTS):
        z, read, expected = Mixture(*(x[0, row : row + 1] for x in terms.z)), [decoder.teacher.begin], 0.0
        for token in (*document.tokens, decoder.teacher.end):
            expected += float(decoder.logits(torch.tensor([read]), z)[0, -1].log_softmax(dim=0)[token])
            read.append(token)
        assert float(terms.log_px[0, row]) == pytest.approx(expected)


def test_a_position_sees_itself_the_past_and_every_vector_but_not_the_future() -> None:
    model, embedded = shaken(vae_of()).double().eval(), []
    decoder = decoder_of(model)
    decoder.embedding.register_forward_hook(lambda _module, _inputs, output: embedded.append(output))
    z = Mixture(*(x.requires_grad_() for x in mixture_of(4, DIMENSIONS)))
    logits = decoder.logits(torch.arange(6).unsqueeze(0), z)
    for position in range(6):
        wanted = [embedded[0], *z]
        by_input, *by_z = torch.autograd.grad(logits[0, position].square().sum(), wanted, retain_graph=True)
        assert ((by_input[0] != 0).any(dim=1) == (torch.arange(6) <= position)).all()
        assert all((part != 0).all() for part in by_z)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("draws", [1, 2])
def test_every_parameter_gets_a_finite_gradient_with_an_empty_document_beside(draws: int, training: bool) -> None:
    model = shaken(vae_of(draws)).train(training)
    terms = model(batch_of(DOCUMENTS), samples=2)
    (terms.kl_groups.sum(dim=1).mean() - terms.log_px.mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_an_empty_document_is_read_off_the_prior_alone() -> None:
    model = shaken(vae_of()).eval()
    terms = model(batch_of([EMPTY]))
    assert terms.kl_groups.abs().max() < 1e-6
    assert terms.z.log_weights.softmax(dim=-1)[0, 0].tolist() == [1.0, 0.0]
    assert terms.log_px.isfinite().all()


def test_a_saved_model_reads_documents_as_before(tmp_path: Path) -> None:
    model = shaken(vae_of()).eval()
    model.save_pretrained(tmp_path)
    batch = batch_of(DOCUMENTS)
    torch.testing.assert_close(VAE.from_pretrained(tmp_path)(batch).log_px, model(batch).log_px)


def trained(weights: tuple[float, float], *, steps: int, per_token: float = 0.0) -> tuple[VAE, list[Document]]:
    documents = random_documents(16, tokens=TOKENS, longest=6, seed=7)
    model = vae_of()
    model.latent = NonparametricLatent(
        NonparametricConfig(dimensions=DIMENSIONS, per_token_pseudo_count=per_token), WIDTH
    )
    torch.manual_seed(8)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        terms = model(batch_of(documents))
        loss = -terms.log_px.mean() + terms.kl_groups.mean(dim=0) @ torch.tensor(weights)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval(), documents


@pytest.mark.parametrize(("per_token", "prior_total"), [(0.0, 1.0), (2.0, 8.0)])
def test_a_dearer_kl_of_the_pseudo_counts_moves_their_total_to_the_priors(per_token: float, prior_total: float) -> None:
    def distance(weight: float) -> float:
        model, documents = trained((0.0, weight), steps=40, per_token=per_token)
        posterior = model.posterior(batch_of(documents))
        prior = 1 + per_token * posterior.lengths
        assert prior_total == pytest.approx(float(prior.mean()), abs=3)
        return float((sparsity(posterior).total - prior).abs().mean().detach())

    assert distance(10.0) < 0.5 * distance(0.0)


def test_what_is_learned_by_heart_is_written_again_from_its_own_vectors_and_from_no_others() -> None:
    model, documents = trained((0.0, 0.0), steps=150)
    batch, texts = batch_of(documents), [list(document.tokens) for document in documents]
    z = model.latent.mode(model.posterior(batch))
    others = Mixture(*(part.roll(1, dims=0) for part in z))
    assert sum(map(list.__eq__, reconstruct(model, batch), texts)) > 0.7 * len(texts)
    assert sum(map(list.__eq__, generate(decoder_of(model), others), texts)) < 0.3 * len(texts)
    teacher = decoder_of(model).teacher
    lesson = teacher.lesson(batch, training=False)
    assert token_accuracy(decoder_of(model).logits(lesson.inputs, z), lesson.targets).mean() > 0.9
