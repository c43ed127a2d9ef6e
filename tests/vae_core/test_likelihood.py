"""Likelihood against a linear-Gaussian model, the list of every code, and counts by hand; 4.9 standard errors."""

import itertools
import math

import numpy as np
import pytest
import torch
from documents import EMPTY, Document, all_codes, batch_of, counts_matrix, random_documents, shaken
from linear_gaussian import data_batch, linear_gaussian, marginal
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from vae_core.diagnostics.likelihood import (
    bits_per_byte,
    bound_at,
    effective_samples,
    exact_log_marginal,
    importance_sample,
    log_marginal,
    mean_over_documents,
    no_likelihood,
    perplexity,
    perplexity_error,
    predicted,
    values_of,
)
from vae_core.model import VAE, VAEConfig

ERRORS = 4.9
TERMS = 12
COUNTS = {"kind": "bag_of_words", "weights": "counts", "length": "own"}
TRANSFORMER = {"kind": "transformer", "width": 8, "heads": 2, "layers": 1, "positions": 6}
MIXTURE = {"kind": "bernoulli_mixture", "bits": 8, "components": 3}


def model_of(latent: dict[str, object], decoder: dict[str, object] = COUNTS, **more: object) -> VAE:
    parts = {"encoder": {"kind": "bag_of_words", "width": 8}, "latent": latent, "decoder": decoder}
    torch.manual_seed(0)
    return shaken(VAE(VAEConfig.model_validate(parts | more | {"terms": TERMS, "tokens": 30})).double().eval())


def documents(number: int = 6) -> list[Document]:
    return random_documents(number, terms=TERMS, longest=5, seed=3)


def log_px_by_hand(model: VAE, some: list[Document]) -> Tensor:
    """log p(x) of words drawn from one softmax, over a list of all 256 codes, (B,)."""
    codes, latent = all_codes(8), model.latent
    log_words = (codes @ model.decoder.words.weight.T + model.decoder.words.bias).log_softmax(dim=1)
    log_px = counts_matrix(some, TERMS) @ log_words.T
    if model.config.latent.kind == "bernoulli":
        log_p = torch.full((256,), -8 * math.log(2), dtype=torch.float64)
    else:
        bits = Independent(Bernoulli(logits=latent.prior_log_odds), 1)
        log_p = MixtureSameFamily(Categorical(logits=latent.prior_components), bits).log_prob(codes)
    return (log_px + log_p).logsumexp(dim=1).detach()


def test_importance_sampling_finds_the_marginal_of_a_linear_gaussian_model() -> None:
    torch.manual_seed(0)
    x, model = marginal().sample((5,)), linear_gaussian()
    drawn = importance_sample(model, data_batch(x), 4000, 500)
    ratios = (drawn.log_weights - marginal().log_prob(x)).exp()
    errors = ratios.std(dim=0) / math.sqrt(len(ratios))
    assert (errors < 0.02).all()
    assert ((ratios.mean(dim=0) - 1).abs() < ERRORS * errors).all()
    assert torch.allclose(log_marginal(model, data_batch(x), 4000, 500), marginal().log_prob(x), atol=0.1)


def test_the_bound_of_one_sample_is_the_elbo_and_more_samples_never_lower_it() -> None:
    torch.manual_seed(0)
    x, model = marginal().sample((5,)), linear_gaussian()
    drawn = importance_sample(model, data_batch(x), 1000, 1000)
    bounds = [bound_at(drawn.log_weights, count) for count in (1, 10, 100, 1000)]
    for looser, tighter in itertools.pairwise(bounds):
        assert (looser <= tighter + 1e-12).all()
    posterior = model.posterior(data_batch(x))
    q = Normal(posterior.mean, (posterior.log_variance / 2).exp())
    rate = kl_divergence(q, Normal(0.0, 1.0)).sum(dim=1)
    misfit = x - posterior.mean @ model.decoder.weights.T
    spread = (model.decoder.weights.square() @ q.variance.T).sum(dim=0)
    squares = (misfit.square().sum(dim=1) + spread) / model.decoder.noise**2
    elbo = -0.5 * squares - 4 * math.log(model.decoder.noise * math.sqrt(2 * math.pi)) - rate
    errors = drawn.log_weights.std(dim=0) / math.sqrt(1000)
    assert (errors < 0.05).all()
    assert ((bounds[0] - elbo).abs() < ERRORS * errors).all()
    assert (elbo < marginal().log_prob(x)).all()


@pytest.mark.parametrize("latent", [{"kind": "bernoulli", "bits": 8}, MIXTURE], ids=["bernoulli", "mixture"])
def test_listing_every_code_is_exact_and_importance_sampling_agrees(latent: dict[str, object]) -> None:
    model, some = model_of(latent), documents()
    values = values_of(model.latent)
    assert values is not None
    exact = exact_log_marginal(model, batch_of(some), values, 50)
    assert torch.allclose(exact, log_px_by_hand(model, some), atol=1e-10)
    torch.manual_seed(0)
    ratios = (importance_sample(model, batch_of(some), 20_000, 20_000).log_weights - exact).exp()
    errors = ratios.std(dim=0) / math.sqrt(len(ratios))
    assert (errors < 0.05).all()
    assert ((ratios.mean(dim=0) - 1).abs() < ERRORS * errors).all()


def test_only_latents_of_few_values_are_listed() -> None:
    assert values_of(model_of({"kind": "bernoulli", "bits": 13}).latent) is None
    assert values_of(model_of({"kind": "gaussian", "dimensions": 1}).latent) is None
    assert values_of(model_of({"kind": "categorical", "variables": 4, "values": 9}).latent) is None


def test_listing_every_value_of_a_categorical_latent_is_exact() -> None:
    model, some = model_of({"kind": "categorical", "variables": 2, "values": 3, "prior": "learned"}), documents()
    values = values_of(model.latent)
    assert values is not None
    total = torch.zeros(len(some), dtype=torch.float64)
    words, counts = model.decoder.words, counts_matrix(some, TERMS)
    prior = model.latent.prior_logits.softmax(dim=1)
    for first in range(3):
        for second in range(3):
            z = torch.zeros(6, dtype=torch.float64)
            z[first] = z[3 + second] = 1
            log_px = counts @ words(z).log_softmax(dim=0)
            total += prior[0, first] * prior[1, second] * log_px.exp()
    assert torch.allclose(exact_log_marginal(model, batch_of(some), values, 4), total.log(), atol=1e-9)


@pytest.mark.parametrize("decoder", [COUNTS, TRANSFORMER], ids=["bag-of-words", "transformer"])
def test_how_documents_are_batched_padded_and_decoded_changes_nothing(decoder: dict[str, object]) -> None:
    model, some = model_of(MIXTURE, decoder), documents()
    values = values_of(model.latent)
    assert values is not None
    whole = exact_log_marginal(model, batch_of(some), values, 256)
    single = torch.cat([exact_log_marginal(model, batch_of([one]), values, 7) for one in some])
    assert torch.allclose(whole, single, atol=1e-9)
    torch.manual_seed(1)
    at_once = importance_sample(model, batch_of(some), 40, 40)
    torch.manual_seed(1)
    in_chunks = importance_sample(model, batch_of(some), 40, 7)
    assert torch.allclose(at_once.log_weights, in_chunks.log_weights, atol=1e-9)


def test_effective_samples_are_all_where_weights_are_equal_and_one_where_one_decides() -> None:
    equal, one = torch.full((50,), -900.0, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
    one[7] = 200
    some = torch.tensor([1.0, 2.0, 3.0] + 47 * [1e-300], dtype=torch.float64).log()
    assert effective_samples(torch.stack([equal, one, some], dim=1)).tolist() == pytest.approx([50, 1, 36 / 14])


@pytest.mark.parametrize(("decoder", "choices"), [(COUNTS, TERMS), (TRANSFORMER, 31)], ids=["words", "tokens"])
def test_the_perplexity_of_a_decoder_that_knows_nothing_is_how_many_it_chooses_from(
    decoder: dict[str, object], choices: int
) -> None:
    model, some = model_of(MIXTURE, decoder), [*documents(), Document({1: 2}, tuple(range(9))), EMPTY]
    last = model.decoder.words if decoder is COUNTS else model.decoder.output
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.zero_()
    values = values_of(model.latent)
    assert values is not None
    log_px = exact_log_marginal(model, batch_of(some), values, 256)
    assert perplexity(log_px, predicted(model, batch_of(some))) == pytest.approx(choices, rel=1e-6)


def test_what_is_predicted_is_counted_by_hand() -> None:
    some = [Document({1: 2, 11: 4}, (1, 2, 3)), EMPTY, Document({0: 1}, tuple(range(9)))]
    batch = batch_of(some)
    words = model_of(MIXTURE, COUNTS | {"terms": 11})
    assert predicted(words, batch).tolist() == [2, 0, 1]
    assert predicted(model_of(MIXTURE, TRANSFORMER), batch).tolist() == [4, 1, 6]
    told = model_of(MIXTURE, TRANSFORMER, condition={"kind": "opening", "tokens": 2})
    assert predicted(told, batch).tolist() == [2, 1, 6]


def test_perplexity_is_a_ratio_over_the_corpus() -> None:
    log_px = torch.tensor([-2.0, -30.0], dtype=torch.float64)
    assert perplexity(log_px, torch.tensor([1.0, 15.0])) == pytest.approx(math.exp(2))
    assert perplexity(torch.tensor([-10.0, -2.0]), torch.tensor([2.0, 4.0])) == pytest.approx(math.exp(2))
    assert bits_per_byte(torch.tensor([-3 * math.log(256)]), torch.tensor([3.0])) == pytest.approx(8)


def test_the_error_of_perplexity_is_that_of_the_jackknife() -> None:
    dice = np.random.default_rng(0)
    lengths = dice.integers(5, 40, 300).astype(float)
    log_px = -2 * lengths + dice.normal(0, 5, 300)
    left_out = np.exp(-(log_px.sum() - log_px) / (lengths.sum() - lengths))
    jackknife = math.sqrt(299 / 300 * ((left_out - left_out.mean()) ** 2).sum())
    ours = perplexity_error(torch.from_numpy(log_px), torch.from_numpy(lengths))
    assert ours == pytest.approx(jackknife, rel=0.02)
    assert perplexity_error(torch.tensor([-1.0]), torch.tensor([1.0])) is None


def test_a_mean_has_the_standard_error_of_its_documents() -> None:
    assert mean_over_documents(torch.tensor([1.0, 2.0, 3.0, 6.0])) == (3, pytest.approx(math.sqrt(14 / 3 / 4)))
    assert mean_over_documents(torch.tensor([4.0])) == (4, None)


@pytest.mark.parametrize(
    ("decoder", "word"),
    [
        (COUNTS, None),
        (TRANSFORMER, None),
        (COUNTS | {"weights": "tfidf"}, "tfidf"),
        (COUNTS | {"weights": "binary"}, "binary"),
        (COUNTS | {"length": 200}, "200 words"),
    ],
)
def test_only_a_decoder_of_whole_documents_gives_a_likelihood(decoder: dict[str, object], word: str | None) -> None:
    reason = no_likelihood(model_of(MIXTURE, decoder))
    assert reason is None if word is None else word in str(reason)
