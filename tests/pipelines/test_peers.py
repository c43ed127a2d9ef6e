"""The published methods that the benchmarks compare with: their objectives by enumeration, and that they learn."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from tests.bench.peers import ammi, bmsh, lsi_itq, nash, vdsh
from tests.bench.peers.network import Bags, Encoder, WordDecoder
from tests.bench.peers.protocol import Task, expected_precision, precision
from tests.pipelines.planted import planted_texts

BITS = 6
CODES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=BITS)), dtype=torch.float64)
"""All 64, the first bit the highest."""


def chances(log_odds_BK: Tensor) -> Tensor:
    """q(z | x) of every code, (B, 64)."""
    return Bernoulli(logits=log_odds_BK.unsqueeze(1)).log_prob(CODES).sum(dim=2).exp()


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("order", [0, 2, 3])
def test_ammi_bounds_the_entropy_by_the_cross_entropy_that_enumeration_finds(order: int) -> None:
    log_odds, prior = numbers(4, BITS), numbers(BITS, 2**order, seed=1)
    log_q = torch.zeros(len(CODES), dtype=torch.float64)
    for row, code in enumerate(CODES.int().tolist()):
        padded = [0] * order + code
        for k in range(BITS):
            context = int("0" + "".join(map(str, padded[k : k + order])), 2)
            log_q[row] += Bernoulli(logits=prior[k, context]).log_prob(CODES[row, k])
    average = chances(log_odds).mean(dim=0)
    bound = ammi.cross_entropy(log_odds.sigmoid(), prior)
    torch.testing.assert_close(bound, -(average * log_q).sum())
    assert bound > -(average * average.log()).sum()


def test_ammi_reaches_the_entropy_where_the_prior_knows_all_bits_before() -> None:
    log_odds = numbers(3, BITS)
    average = chances(log_odds).mean(dim=0)
    logits = torch.zeros(BITS, 2 ** (BITS - 1), dtype=torch.float64)
    for k in range(BITS):
        for context in itertools.product([0.0, 1.0], repeat=k):
            begins = (CODES[:, :k] == torch.tensor(context, dtype=torch.float64)).all(dim=1)
            one = average[begins & (CODES[:, k] == 1)].sum() / average[begins].sum()
            logits[k, int("0" + "".join(str(int(bit)) for bit in context), 2)] = torch.logit(one)
    bound = ammi.cross_entropy(log_odds.sigmoid(), logits)
    torch.testing.assert_close(bound, -(average * average.log()).sum())


def test_ammi_conditional_entropy_is_that_of_all_codes() -> None:
    chance = chances(numbers(4, BITS))
    torch.testing.assert_close(ammi.entropy(numbers(4, BITS)), -(chance * chance.log()).sum(dim=1))


def test_ammi_prior_comes_nearer_to_the_bits_it_is_fitted_to() -> None:
    torch.manual_seed(0)
    chance = torch.rand(32, 8).round()
    prior = ammi.Prior(8, ammi.Settings(prior_steps=20))
    before = ammi.cross_entropy(chance, prior()).item()
    prior.fit(chance)
    assert ammi.cross_entropy(chance, prior()).item() < before


def test_the_kl_to_a_mixture_is_that_of_all_components_and_codes() -> None:
    log_odds, component, u, v = numbers(4, BITS), numbers(4, 3, seed=1), numbers(3, BITS, seed=2), numbers(3, seed=3)
    q = component.softmax(dim=1).unsqueeze(2) * chances(log_odds).unsqueeze(1)
    p = v.softmax(dim=0).unsqueeze(1) * chances(u)
    expected = (q * (q.log() - p.log())).sum(dim=(1, 2))
    torch.testing.assert_close(bmsh.kl(log_odds, component, u, v), expected)


def test_the_kl_to_fair_bits_and_to_a_normal_are_torchs() -> None:
    log_odds, log_variance = numbers(4, BITS), numbers(4, BITS, seed=1)
    fair = kl_divergence(Bernoulli(logits=log_odds), Bernoulli(torch.tensor(0.5, dtype=torch.float64)))
    torch.testing.assert_close(nash.kl(log_odds), fair.sum(dim=1))
    normal = kl_divergence(Normal(log_odds, (log_variance / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(vdsh.kl(log_odds, log_variance), normal.sum(dim=1))


@pytest.mark.parametrize("rounding", ["stochastic", "deterministic"])
def test_gradients_pass_the_rounding_as_those_of_the_chances(rounding: str) -> None:
    torch.manual_seed(0)
    log_odds = torch.tensor([[0.5, -1.0, 2.0]], requires_grad=True)
    bits = nash.straight_through(log_odds, rounding)
    assert set(bits.detach().flatten().tolist()) <= {0.0, 1.0}
    bits.sum().backward()
    chance = log_odds.detach().sigmoid()
    torch.testing.assert_close(log_odds.grad, chance * (1 - chance))


def test_a_document_is_as_likely_as_its_distinct_words_together() -> None:
    rows = TfidfVectorizer(dtype=np.float32).fit_transform(["a long tale of two", "of two two", "long"])
    words, z = WordDecoder(4, rows), torch.randn(3, 4)
    by_word = Categorical(logits=words.logits(z))
    there = torch.from_numpy(rows.toarray() > 0)
    expected = torch.where(there, by_word.logits, 0).sum(dim=1)
    torch.testing.assert_close(words(z, Bags.of(rows)), expected)


def test_precision_is_the_mean_over_all_orders_of_tied_documents() -> None:
    chance = np.random.default_rng(0)
    signs = chance.choice([-1.0, 1.0], (6, 2)).astype(np.float32)
    weights = chance.choice([-1.0, 1.0], (5, 2)).astype(np.float32)
    shared = chance.random((5, 6)) < 0.5
    found = []
    for order in itertools.permutations(range(6)):
        nearest = np.argsort(-(weights @ signs[list(order)].T), axis=1, kind="stable")[:, :3]
        found.append(np.take_along_axis(shared[:, list(order)], nearest, axis=1).mean())
    assert expected_precision(weights, signs, shared, 3) == pytest.approx(np.mean(found))


@pytest.fixture(scope="module")
def easy() -> Task:
    """Six topics of a hundred documents, nine words of ten from the topic's own."""
    texts = planted_texts(660, 6, purity=0.9)
    rows = TfidfVectorizer(dtype=np.float32).fit_transform(text.words for text in texts)
    topics = np.array([text.topic for text in texts])
    return Task(rows[:600], rows[600:], topics[600:, None] == topics[None, :600])


SMALL = {"batch": 50, "epochs": 20, "hidden": 50, "layers": 1, "learning_rate": 1e-2, "dropout": 0.1, "warmup": 10}


@pytest.mark.parametrize("method", [vdsh, nash, bmsh], ids=["vdsh", "nash", "bmsh"])
def test_a_vae_tells_planted_topics_apart(method: Any, easy: Task) -> None:
    assert_topics_found(method.fit(easy.database, 16, 0, method.Settings(**SMALL)), easy)


def test_ammi_and_lsi_tell_planted_topics_apart(easy: Task) -> None:
    assert_topics_found(ammi.fit(easy.database, 16, 0, ammi.Settings(batch=50, epochs=10)), easy)
    assert_topics_found(lsi_itq.fit(easy.database, 16), easy)


def assert_topics_found(encode: Encoder, of: Task) -> None:
    found = precision(encode, of, places=10)
    assert found.hamming > 0.95
    assert found.log_odds > 0.95
