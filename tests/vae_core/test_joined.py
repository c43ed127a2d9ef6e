"""Embeddings joined to the words: the closed form, the start from a sample, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from documents import EMPTY, batch_of, planted_documents, random_documents
from pydantic import ValidationError
from torch import Tensor

from vae_core.batch import Batch
from vae_core.encoders import BagOfWordsEncoderConfig, EncoderConfig, TransformerEncoderConfig, build_encoder
from vae_core.errors import Misuse
from vae_core.model import VAE, Composition, VAEConfig

TERMS, TOKENS, WIDTH, HIDDEN = 40, 30, 6, 400
SMALL: dict[str, Any] = {"width": 16, "heads": 2, "hidden": HIDDEN, "joined": True}
DOCUMENTS = [*random_documents(63, terms=TERMS, tokens=TOKENS), EMPTY]
IDF = torch.linspace(1, 3, TERMS)
every_encoder = pytest.mark.parametrize(
    "config",
    [
        TransformerEncoderConfig(**SMALL, layers=1),
        TransformerEncoderConfig(**SMALL, layers=0),
        TransformerEncoderConfig(**SMALL, reads="tokens"),
        BagOfWordsEncoderConfig(width=HIDDEN, joined=True),
    ],
    ids=["transformer", "no layers", "tokens", "bag of words"],
)


def batch(embeddings_BE: Tensor | None) -> Batch:
    return replace(batch_of(DOCUMENTS), embeddings=embeddings_BE)


def cone(seed: int = 0) -> Tensor:
    """Unit vectors around one direction, as sentence encoders give."""
    around = torch.randn(len(DOCUMENTS), WIDTH, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(around + torch.tensor([3.0, 0, 0, 0, 0, 0]), dim=1)


def built(config: EncoderConfig) -> Any:
    torch.manual_seed(0)
    return build_encoder(config, terms=TERMS, tokens=TOKENS, embeddings=WIDTH).eval()


@torch.no_grad()
@every_encoder
def test_the_embedding_is_added_to_the_words_before_the_relu(config: EncoderConfig) -> None:
    encoder, embeddings = built(config), cone()
    encoder.joined.start_from(batch(cone(seed=1)))
    hidden = encoder.hidden.bias if isinstance(config, TransformerEncoderConfig) else encoder.bias.values
    hidden += 10  # far from the kink, where the ReLU is the identity
    both = encoder(batch(embeddings), batch(None).tfidf(IDF))[:, :HIDDEN]
    words = encoder(batch(encoder.joined.centre.expand(len(DOCUMENTS), -1)), batch(None).tfidf(IDF))[:, :HIDDEN]
    sample = cone(seed=1).double().numpy()
    centred = embeddings.double().numpy() - sample.mean(axis=0)
    spread = np.sqrt(((sample - sample.mean(axis=0)) ** 2).sum(axis=1).mean())
    expected = centred / spread @ encoder.joined.linear.weight.double().numpy().T
    np.testing.assert_allclose((both - words).numpy(), expected, atol=1e-4)


@torch.no_grad()
def test_beside_the_hidden_layer_the_centred_embedding_stands_for_itself_after_the_lsi_coordinates() -> None:
    config = TransformerEncoderConfig(**SMALL, lsi=5)
    encoder, embeddings = built(config), cone()
    encoder.joined.start_from(batch(embeddings))
    encoder.start_from(batch(embeddings), IDF)
    read = encoder(batch(embeddings), batch(None).tfidf(IDF))
    assert read.shape == (len(DOCUMENTS), HIDDEN + 5 + WIDTH)
    centred = embeddings - embeddings.mean(dim=0)
    size = centred.double().square().sum(dim=1).mean().sqrt().float()
    torch.testing.assert_close(read[:, -WIDTH:], centred / size)
    torch.testing.assert_close(read[:-1, HIDDEN:-WIDTH].norm(dim=1), torch.ones(len(DOCUMENTS) - 1))


@torch.no_grad()
@every_encoder
def test_words_and_embedding_begin_with_like_weight(config: EncoderConfig) -> None:
    encoder, embeddings = built(config), cone()
    encoder.joined.start_from(batch(embeddings))
    joined = encoder.joined(batch(embeddings))
    hidden = encoder.hidden.bias if isinstance(config, TransformerEncoderConfig) else encoder.bias.values
    hidden += 10
    neutral = batch(encoder.joined.centre.expand(len(DOCUMENTS), -1))
    words = encoder(neutral, batch(None).tfidf(IDF))[:, :HIDDEN] - hidden
    ratio = float(joined.square().mean().sqrt() / words[:-1].square().mean().sqrt())
    assert 0.4 < ratio < 2.5


@torch.no_grad()
@every_encoder
def test_after_the_start_the_sample_is_centred_and_of_unit_size(config: EncoderConfig) -> None:
    joined, embeddings = built(config).joined, cone()
    joined.start_from(batch(embeddings))
    read = (embeddings - joined.centre) * joined.scale
    torch.testing.assert_close(read.mean(dim=0), torch.zeros(WIDTH), atol=1e-5, rtol=0)
    assert float(read.square().sum(dim=1).mean()) == pytest.approx(1, abs=1e-4)


@every_encoder
def test_documents_without_embeddings_are_refused(config: EncoderConfig) -> None:
    with pytest.raises(Misuse, match="these have none"):
        built(config)(batch(None), batch(None).tfidf(IDF))


def model_of(config: EncoderConfig, terms: int = TERMS, tokens: int = TOKENS) -> VAE:
    latent = {"bits": 16, "components": 2}
    composition = Composition.model_validate({"encoder": config.model_dump(), "latent": latent})
    return VAE(VAEConfig(**composition.model_dump(), terms=terms, tokens=tokens, embeddings=WIDTH))


@every_encoder
def test_a_model_learns_from_embeddings_and_keeps_their_centre_on_disk(config: EncoderConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, documents = model_of(config), batch(cone())
    model.start_from(torch.ones(TERMS, dtype=torch.long), len(DOCUMENTS), documents)
    model.train()(documents).log_px.sum().backward()
    assert model.encoder.joined is not None
    assert float(model.encoder.joined.linear.weight.grad.abs().max()) > 0
    model.save_pretrained(tmp_path)
    opened = VAE.from_pretrained(tmp_path)
    assert opened.config.joined
    assert torch.equal(documents.to(torch.device("cpu")).embeddings, documents.embeddings)
    torch.testing.assert_close(opened.encode(documents).log_odds, model.eval().encode(documents).log_odds)
    moved = replace(documents, embeddings=cone(seed=2))
    assert (opened.encode(moved).log_odds - opened.encode(documents).log_odds).abs().max() > 1e-3


@every_encoder
def test_a_document_without_a_known_word_is_found_by_its_embedding(config: EncoderConfig) -> None:
    """Topics of words come with topics of embeddings; what is left without words has the code of its topic."""
    planted, topics = planted_documents(400, seed=0)
    directions = torch.nn.functional.normalize(torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0)), dim=1)
    noise = 0.2 * torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(1))
    embeddings = torch.nn.functional.normalize(directions[topics] + noise + 1, dim=1)
    known = replace(batch_of(planted[:300]), embeddings=embeddings[:300])
    torch.manual_seed(0)
    model = model_of(config, terms=50, tokens=50)
    model.start_from(torch.ones(50, dtype=torch.long), 300, known)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(60):
        optimiser.zero_grad()
        terms = model.train()(known, progress=step / 60)
        (terms.kl_groups.sum(dim=1) - terms.log_px.mean(dim=0)).mean().backward()
        optimiser.step()
    model.eval()
    database = model.encode(known).log_odds > 0
    wordless = replace(batch_of([EMPTY] * 100), embeddings=embeddings[300:])
    asked = model.encode(wordless).log_odds > 0
    nearest = (asked.unsqueeze(1) != database).sum(dim=2).argmin(dim=1)
    assert (topics[:300][nearest] == topics[300:]).float().mean() > 0.9


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"latent": {"kind": "nonparametric"}, "decoder": {"kind": "denoising_attention"}}, "no one vector to join"),
        (
            {
                "encoder": {"kind": "transformer", "reads": "tokens", "joined": True},
                "latent": {"kind": "gaussian"},
                "decoder": {"kind": "transformer"},
                "condition": {"kind": "class"},
                "attributes": {},
            },
            "have no embedding",
        ),
    ],
)
def test_what_has_no_embedding_to_join_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Composition.model_validate({"encoder": {"kind": "transformer", "joined": True}} | settings)


def test_a_model_that_joins_needs_the_width_of_the_embeddings() -> None:
    composition = Composition.model_validate({"encoder": {"kind": "bag_of_words", "joined": True}})
    with pytest.raises(ValidationError, match="there are none"):
        VAEConfig(**composition.model_dump(), terms=TERMS, tokens=TOKENS)
