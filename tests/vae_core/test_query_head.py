"""The query head against codes whose neighbours' bits are known: some are shared, the others drawn anew."""

from pathlib import Path

import pytest
import torch
from documents import batch_of, random_documents

from vae_core.encoders import BagOfWordsEncoderConfig
from vae_core.latents import BernoulliMixtureConfig
from vae_core.model import VAE, VAEConfig
from vae_core.query_head import NOISE, SHARE, QueryHead

BITS, SHARED, OWN, SIZE = 16, 8, 0.3, 3.0


@pytest.fixture(scope="module")
def codes() -> torch.Tensor:
    return torch.randint(0, 2, (4000, BITS), generator=torch.Generator().manual_seed(0)).float()


@pytest.fixture(scope="module")
def head(codes: torch.Tensor) -> QueryHead:
    """Log-odds are of the codes, and as far off; neighbours share the first bits, and every other one by chance."""
    theirs = torch.where(torch.arange(BITS) < SHARED, codes, 0.5)
    off = torch.randn(codes.shape, generator=torch.Generator().manual_seed(2))
    return QueryHead.fitted(SIZE * (2 * codes - 1 + off), OWN * codes + (1 - OWN) * theirs)


def test_a_bit_counts_its_log_odds_among_the_neighbours(head: QueryHead, codes: torch.Tensor) -> None:
    """What is off by normal noise of variance v around -SIZE and SIZE has log-odds of 2 SIZE x / v at x (Bayes).

    The head adds NOISE of its own. A shared bit has these, and a drawn one, which counts by OWN alone,
    logit(OWN p + (1 - OWN) / 2).
    """
    variance = SIZE**2 + NOISE**2 * 2 * SIZE**2
    sizes = (head(SIZE * (2 * codes - 1)).abs().mean(dim=0) - (1 - SHARE) * SIZE) / SHARE
    certain = torch.tensor(2 * SIZE * SIZE / variance)
    drawn = (OWN * certain.sigmoid() + (1 - OWN) / 2).logit()
    torch.testing.assert_close(sizes[:SHARED], certain.expand(SHARED), rtol=0.3, atol=0)
    torch.testing.assert_close(sizes[SHARED:], drawn.expand(BITS - SHARED), rtol=0, atol=0.2)


def test_signs_stay_and_what_is_not_known_counts_nothing(head: QueryHead) -> None:
    log_odds = 20 * torch.randn(500, BITS, generator=torch.Generator().manual_seed(1))
    log_odds[0] = 0
    assert torch.equal(head(log_odds).sign(), log_odds.sign())


def test_a_bit_that_the_others_speak_against_counts_what_the_document_alone_says() -> None:
    """All bits of a code are the same here, so that one that differs is noise."""
    codes = torch.randint(0, 2, (2000, 1), generator=torch.Generator().manual_seed(0)).float().expand(-1, BITS)
    head = QueryHead.fitted(6 * (2 * codes - 1), codes)
    odd = torch.full((1, BITS), 6.0)
    odd[0, 3] = -6.0
    found = head(odd)[0]
    torch.testing.assert_close(found[3], torch.tensor((1 - SHARE) * -6))
    assert (found[torch.arange(BITS) != 3] > (1 - SHARE) * 6 + 1).all()


def test_the_same_seed_gives_the_same_head_and_leaves_other_chance_alone(codes: torch.Tensor) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two, other = (QueryHead.fitted(codes, codes, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one(codes), two(codes))
    assert not torch.equal(one(codes), other(codes))


def test_a_model_keeps_its_query_head(head: QueryHead, tmp_path: Path) -> None:
    latent = BernoulliMixtureConfig(bits=BITS, components=3)
    model = VAE(VAEConfig(encoder=BagOfWordsEncoderConfig(width=12), latent=latent, terms=40, tokens=30)).eval()
    documents = batch_of(random_documents(5))
    log_odds = model.encode(documents).log_odds
    assert torch.equal(model.asked(log_odds), log_odds)
    model.query_head = head
    model.save_pretrained(tmp_path)
    loaded = VAE.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(documents).log_odds, log_odds)
    assert torch.equal(loaded.asked(log_odds), head(log_odds))
