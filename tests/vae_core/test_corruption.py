"""What noise on the encoder's input does, counted, and what it must leave alone. Statistics: 4.9 standard errors."""

import math
from functools import partial

import pytest
import torch
from documents import EMPTY, Document, batch_of, ragged
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vae_core.batch import Batch
from vae_core.corruption import CorruptionConfig, corrupted
from vae_core.decoders import BagOfWordsDecoderConfig, TransformerDecoderConfig
from vae_core.encoders import BagOfWordsEncoderConfig, TransformerEncoderConfig
from vae_core.latents import GaussianConfig
from vae_core.model import VAE, VAEConfig

MANY = 20_000


def numbered(documents: int, length: int) -> Batch:
    """Documents whose every token and term occurs nowhere else, so that each can be followed."""
    starts = range(0, documents * length, length)
    return batch_of(
        [Document({n: 1 + n % 3 for n in range(s, s + length)}, tuple(range(s, s + length))) for s in starts]
    )


def near(seen: Tensor, share: float) -> bool:
    return abs(float(seen.double().mean()) - share) <= 4.9 * math.sqrt(share * (1 - share) / len(seen))


def test_no_noise_leaves_the_very_same_batch() -> None:
    batch = numbered(5, 7)
    same = corrupted(batch, CorruptionConfig())
    assert not CorruptionConfig().active
    for one, other in [(same.tokens, batch.tokens), (same.terms, batch.terms)]:
        assert torch.equal(one.values, other.values)
        assert torch.equal(one.offsets, other.offsets)
    assert torch.equal(same.counts, batch.counts)


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_deletion_takes_its_share_of_tokens_and_terms_and_keeps_the_rest_in_order(share: float) -> None:
    torch.manual_seed(0)
    batch = numbered(MANY // 20, 20)
    noisy = corrupted(batch, CorruptionConfig(delete=share))
    for ids in (noisy.tokens, noisy.terms):
        kept = torch.isin(torch.arange(MANY), ids.values)
        assert near(~kept, share)
        assert (ids.values.diff() > 0).all()
        assert torch.equal(ids.values // 20, ids.rows)
    assert torch.equal(noisy.counts, 1 + noisy.terms.values % 3)
    # Tokens and terms are left out independently of one another.
    both = torch.isin(noisy.tokens.values, noisy.terms.values)
    assert near(both, 1 - share)


def test_swapped_tokens_are_their_share_and_come_from_the_batch() -> None:
    torch.manual_seed(0)
    batch = numbered(MANY // 20, 20)
    noisy = corrupted(batch, CorruptionConfig(swap=0.3))
    assert torch.equal(noisy.tokens.offsets, batch.tokens.offsets)
    # One in 20,000 is replaced by itself, far less than the interval.
    changed = noisy.tokens.values != batch.tokens.values
    assert near(changed, 0.3)
    new = noisy.tokens.values[changed]
    assert ((new >= 0) & (new < MANY)).all()
    # From anywhere: as often from each quarter of the batch.
    for quarter in range(4):
        assert near(new * 4 // MANY == quarter, 0.25)
    assert torch.equal(noisy.terms.values, batch.terms.values)


@pytest.mark.parametrize("places", [1.5, 3.0, 4.0])
def test_shuffled_tokens_move_by_fewer_places_and_stay_in_their_documents(places: float) -> None:
    torch.manual_seed(0)
    batch = numbered(500, 40)
    noisy = corrupted(batch, CorruptionConfig(shuffle=places)).tokens
    assert torch.equal(noisy.offsets, batch.tokens.offsets)
    assert torch.equal(noisy.values // 40, batch.tokens.rows)
    assert torch.equal(noisy.values.sort().values, batch.tokens.values)
    moved = (noisy.values % 40 - batch.tokens.positions).abs()
    assert moved.max() < places
    assert moved.max() == math.ceil(places) - 1
    assert (moved > 0).double().mean() > 0.08


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    delete=st.sampled_from([0.0, 0.5, 0.99]),
    swap=st.sampled_from([0.0, 0.5, 1.0]),
    shuffle=st.sampled_from([0.0, 1.0, 20.0]),
    seed=st.integers(0, 1000),
)
def test_noise_makes_documents_of_tokens_that_were_there(
    lengths: list[int], delete: float, swap: float, shuffle: float, seed: int
) -> None:
    torch.manual_seed(seed)
    tokens = ragged([[10 * row + place for place in range(length)] for row, length in enumerate(lengths)])
    batch = Batch(tokens, tokens, torch.ones(len(tokens.values)))
    noisy = corrupted(batch, CorruptionConfig(delete=delete, swap=swap, shuffle=shuffle))
    assert len(noisy) == len(lengths)
    assert (noisy.tokens.lengths <= tokens.lengths).all()
    assert torch.isin(noisy.tokens.values, tokens.values).all()
    if not swap:
        assert torch.equal(noisy.tokens.values // 10, noisy.tokens.rows)
        assert len(noisy.tokens.values.unique()) == len(noisy.tokens.values)


def record(read: dict[str, Batch], part: str, _module: nn.Module, given: tuple[Batch, ...]) -> None:
    read[part] = given[0]


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        (TransformerEncoderConfig(reads="tokens", width=16, heads=2, hidden=8, segment=8), "transformer"),
        (BagOfWordsEncoderConfig(width=8, dropout=0, term_dropout=0), "bag_of_words"),
    ],
)
def test_the_encoder_reads_noise_in_training_alone_and_the_decoder_never(encoder: object, decoder: str) -> None:
    """What each part is handed is recorded; with no noise both are handed the batch itself."""
    writers = {
        "transformer": TransformerDecoderConfig(width=16, heads=2, layers=1, positions=32),
        "bag_of_words": BagOfWordsDecoderConfig(),
    }
    batch = batch_of([Document({3: 2, 5: 1, 7: 1}, (3, 3, 5, 7, 1, 2)), Document({1: 1, 2: 4}, (1, 2, 2)), EMPTY])
    for delete in (0.0, 0.9):
        noise = CorruptionConfig(delete=delete, swap=delete)
        parts = {"encoder": encoder, "latent": GaussianConfig(dimensions=4), "decoder": writers[decoder]}
        model = VAE(VAEConfig(**parts, corruption=noise, terms=10, tokens=10))
        read: dict[str, Batch] = {}
        for part in ("encoder", "decoder"):
            getattr(model, part).register_forward_pre_hook(partial(record, read, part))
        for training in (True, False):
            torch.manual_seed(0)
            model.train(training)(batch)
            assert read["decoder"] is batch
            assert (read["encoder"] is batch) == (not training or not delete)
