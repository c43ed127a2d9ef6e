"""A warm start: what the old model knows is kept term by term, in any order of the vocabulary."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from documents import batch_of, random_documents, shaken

from vae_core.batch import Batch, Ragged
from vae_core.model import VAE, Composition, VAEConfig
from vae_core.warm_start import term_rows, warm_start

TERMS, TOKENS = 40, 30
ENCODERS: dict[str, dict[str, Any]] = {
    "transformer": {"kind": "transformer", "width": 16, "heads": 2, "hidden": 24, "layers": 1},
    "no layers": {"kind": "transformer", "width": 16, "heads": 2, "hidden": 24, "layers": 0},
    "tokens": {"kind": "transformer", "width": 16, "heads": 2, "hidden": 24, "reads": "tokens"},
    "bag of words": {"kind": "bag_of_words", "width": 24},
}
every_encoder = pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)


def built(
    encoder: dict[str, Any], decoder: dict[str, Any] | None = None, *, seed: int = 0, terms: int = TERMS, **sizes: int
) -> VAE:
    settings = {"encoder": encoder, "latent": {"bits": 16, "components": 3}}
    composition = Composition.model_validate(settings | ({"decoder": decoder} if decoder else {}))
    torch.manual_seed(seed)
    model = VAE(VAEConfig(**composition.model_dump(), terms=terms, tokens=TOKENS, **sizes))
    for buffer in model.encoder.buffers():
        buffer.normal_()
    return shaken(model, seed).eval()


def renamed(batch: Batch, ids_V: torch.Tensor) -> Batch:
    """The same documents where term t is called ids_V[t]."""
    return replace(batch, terms=Ragged(ids_V[batch.terms.values], batch.terms.offsets))


@torch.no_grad()
@every_encoder
def test_codes_and_likelihoods_are_the_old_models_before_any_training(encoder: dict[str, Any]) -> None:
    old, batch = built(encoder), batch_of(random_documents(20, terms=TERMS, tokens=TOKENS))
    old.idf.copy_(torch.linspace(1, 3, TERMS))
    order = torch.randperm(TERMS, generator=torch.Generator().manual_seed(1))
    for ids in (torch.arange(TERMS), order):  # old term t is new term ids[t]
        new = built(encoder, seed=5)
        new.start_from(torch.arange(1, TERMS + 1), 50, renamed(batch, ids))
        new.eval()
        assert (new.encode(renamed(batch, ids)).log_odds - old.encode(batch).log_odds).abs().max() > 0.1
        warm_start(new, old, ids.argsort())
        found, told = new.encode(renamed(batch, ids)), old.encode(batch)
        torch.testing.assert_close(found.log_odds, told.log_odds, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(new(renamed(batch, ids)).log_px, old(batch).log_px, atol=1e-2, rtol=1e-5)


@torch.no_grad()
def test_new_terms_keep_their_start_and_the_decoder_its_own_number_of_words() -> None:
    old = built({"kind": "bag_of_words", "width": 24}, {"kind": "bag_of_words", "terms": 10})
    new = built({"kind": "bag_of_words", "width": 24}, {"kind": "bag_of_words", "terms": 30}, seed=5, terms=60)
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    places = torch.arange(59, -1, -1) - 15  # the last 15 terms and the first 5 are new
    places[places >= TERMS] = -1
    warm_start(new, old, places.clamp(min=-1))
    for name, known in old.state_dict().items():
        tensor = new.state_dict()[name]
        if name not in term_rows(new):
            assert torch.equal(tensor, known), name
            continue
        for row in range(len(tensor)):
            place = int(places[row])
            expected = known[place] if 0 <= place < len(known) else before[name][row]
            assert torch.equal(tensor[row], expected), (name, row)


@torch.no_grad()
@pytest.mark.parametrize("name", ["encoder.embedding.weight", "encoder.coordinates.vectors"])
def test_new_terms_are_turned_to_the_axes_of_the_old_ones(name: str) -> None:
    encoder = ENCODERS["transformer"] | {"lsi": 16}
    truth = torch.randn(TERMS + 20, 16, generator=torch.Generator().manual_seed(2))
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3)))[0]
    old, new = built(encoder), built(encoder, seed=5, terms=TERMS + 20)
    old.state_dict()[name].copy_(truth[:TERMS])
    vectors = new.state_dict()[name]
    vectors.copy_(0.3 * truth @ rotation)
    warm_start(new, old, torch.cat([torch.arange(TERMS), torch.full((20,), -1)]))
    torch.testing.assert_close(vectors, truth, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_without_a_term_in_common_the_start_stays() -> None:
    old, new = built(ENCODERS["transformer"]), built(ENCODERS["transformer"], seed=5)
    vectors = new.get_parameter("encoder.embedding.weight")
    before = vectors.clone()
    warm_start(new, old, torch.full((TERMS,), -1))
    assert torch.equal(vectors, before)


@every_encoder
@pytest.mark.parametrize("decoder", ["bag_of_words", "transformer", "convolutional"])
def test_every_tensor_that_grows_with_the_vocabulary_is_matched_by_the_word(
    encoder: dict[str, Any], decoder: str
) -> None:
    small, large = (built(encoder, {"kind": decoder}, terms=terms).state_dict() for terms in (TERMS, TERMS + 1))
    grown = {name for name in small if small[name].shape != large[name].shape}
    assert grown == term_rows(built(encoder, {"kind": decoder}))
