"""Bits begin as LSI + ITQ has them: against scikit-learn's SVD and the properties of a rotation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from documents import EMPTY, batch_of, planted_documents
from sklearn.decomposition import TruncatedSVD

from vae_core.batch import Batch
from vae_core.bit_start import LOG_ODDS
from vae_core.encoders import BagOfWordsEncoderConfig, EncoderConfig, TransformerEncoderConfig
from vae_core.latents import BernoulliConfig, BernoulliMixtureConfig, GaussianConfig, LatentConfig
from vae_core.model import VAE, VAEConfig

TERMS, LSI = 50, 8
DOCUMENTS = planted_documents(400, seed=1)[0]
FREQUENCIES = torch.tensor([sum(term in document.counts for document in DOCUMENTS) for term in range(TERMS)])
ENCODER = TransformerEncoderConfig(width=TERMS, heads=2, hidden=12, lsi=LSI, term_dropout=0, dropout=0)


def started(latent: LatentConfig, encoder: EncoderConfig = ENCODER) -> VAE:
    torch.manual_seed(0)
    model = VAE(VAEConfig(encoder=encoder, latent=latent, terms=TERMS, tokens=1))
    model.start_from(FREQUENCIES, len(DOCUMENTS), batch_of(DOCUMENTS))
    return model.eval()


def own_log_odds(model: VAE, documents: Batch) -> np.ndarray:
    """What the coordinates alone say, (B, K)."""
    with torch.no_grad():
        model.latent.log_odds.weight[:, : ENCODER.hidden] = 0
    return model.posterior(documents).log_odds.detach().double().numpy()


def coordinates_by_sklearn() -> np.ndarray:
    rows = np.zeros((len(DOCUMENTS), TERMS))
    for row, document in enumerate(DOCUMENTS):
        rows[row, list(document.counts)] = 1 + np.log(list(document.counts.values()))
    rows *= np.log(len(DOCUMENTS) / FREQUENCIES.numpy()) + 1
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = TruncatedSVD(LSI, algorithm="arpack", random_state=0).fit_transform(rows)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("latent", "spread"),
    [
        (BernoulliConfig(bits=LSI), LOG_ODDS),
        (BernoulliMixtureConfig(bits=LSI, components=3), LOG_ODDS * LSI / 64),  # few bits begin less settled
    ],
)
def test_log_odds_begin_at_a_rotation_of_the_centred_lsi_coordinates(latent: LatentConfig, spread: float) -> None:
    log_odds = own_log_odds(started(latent), batch_of(DOCUMENTS))
    lies = coordinates_by_sklearn()
    lies -= lies.mean(axis=0)
    assert log_odds.std() == pytest.approx(spread, rel=1e-2)
    size = np.linalg.norm(log_odds) / np.linalg.norm(lies)
    np.testing.assert_allclose(log_odds @ log_odds.T / size**2, lies @ lies.T, atol=5e-3)


def test_the_signs_say_more_of_the_coordinates_than_without_the_rotation() -> None:
    log_odds = own_log_odds(started(BernoulliConfig(bits=LSI)), batch_of(DOCUMENTS))
    lies = coordinates_by_sklearn()
    principal = np.linalg.svd(lies - lies.mean(axis=0), full_matrices=False)
    unturned = principal[0] * principal[1]

    def lost(values: np.ndarray) -> float:
        values = values / values.std()
        return float(np.square(np.sign(values) - values).mean())

    assert lost(log_odds) < 0.8 * lost(unturned)


def test_more_bits_than_coordinates_are_several_rotations_of_all_of_them() -> None:
    model = started(BernoulliMixtureConfig(bits=3 * LSI, components=3))
    turns = model.latent.log_odds.weight[:, ENCODER.hidden :].detach().view(3, LSI, LSI)
    for turn in turns:
        gram = turn @ turn.T
        torch.testing.assert_close(gram, gram[0, 0] * torch.eye(LSI), atol=1e-3, rtol=0)
    assert float((turns[0] - turns[1]).abs().max()) > 0.1


def test_fewer_bits_than_coordinates_read_the_principal_ones() -> None:
    log_odds = own_log_odds(started(BernoulliMixtureConfig(bits=8, components=3), ENCODER), batch_of(DOCUMENTS))
    few = started(BernoulliMixtureConfig(bits=8, components=3), ENCODER.model_copy(update={"lsi": 16}))
    turn = few.latent.log_odds.weight[:, ENCODER.hidden :].detach()
    assert turn.shape == (8, 16)
    gram = turn @ turn.T
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(8), atol=1e-2 * float(gram[0, 0]), rtol=0)
    assert log_odds.shape == (400, 8)


def test_coordinates_have_unit_length_and_do_not_learn() -> None:
    model = started(BernoulliMixtureConfig(bits=LSI, components=3))
    batch = batch_of([*DOCUMENTS[:3], EMPTY])
    features = model.encoder(batch, batch.tfidf(model.idf))
    lengths = features[:, ENCODER.hidden :].norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 1, 1, 0]))
    assert not [name for name, _ in model.named_parameters() if "coordinates" in name]
    assert "encoder.coordinates.vectors" in model.state_dict()


def test_with_a_joined_encoder_bits_begin_at_a_rotation_of_both_coordinates() -> None:
    torch.manual_seed(2)
    vectors = torch.nn.functional.normalize(torch.randn(len(DOCUMENTS), 5) + 1, dim=1)
    documents = replace(batch_of(DOCUMENTS), embeddings=vectors)
    config = VAEConfig(
        encoder=ENCODER.model_copy(update={"joined": True}),
        latent=BernoulliConfig(bits=LSI + 5),
        terms=TERMS,
        tokens=1,
        embeddings=5,
    )
    model = VAE(config)
    model.start_from(FREQUENCIES, len(DOCUMENTS), documents)
    log_odds = own_log_odds(model.eval(), documents)
    centred = vectors.double().numpy() - vectors.double().numpy().mean(axis=0)
    centred /= np.sqrt(np.square(centred).sum(axis=1).mean())
    lies = np.hstack([coordinates_by_sklearn(), centred])
    lies -= lies.mean(axis=0)
    size = np.linalg.norm(log_odds) / np.linalg.norm(lies)
    np.testing.assert_allclose(log_odds @ log_odds.T / size**2, lies @ lies.T, atol=1e-2)


@pytest.mark.parametrize(
    ("encoder", "latent"),
    [
        (ENCODER.model_copy(update={"lsi": 0}), BernoulliConfig(bits=8)),
        (ENCODER.model_copy(update={"joined": True, "lsi": 0}), BernoulliConfig(bits=8)),
        (BagOfWordsEncoderConfig(width=12), BernoulliConfig(bits=8)),
        (ENCODER, GaussianConfig(dimensions=4)),
    ],
)
def test_other_parts_begin_as_they_did(encoder: EncoderConfig, latent: LatentConfig) -> None:
    embeddings = 3 if encoder.joined else 0
    torch.manual_seed(0)
    model = VAE(VAEConfig(encoder=encoder, latent=latent, terms=TERMS, tokens=1, embeddings=embeddings))
    before = {name: tensor.clone() for name, tensor in model.latent.state_dict().items()}
    sample = batch_of(DOCUMENTS)
    if embeddings:
        sample = replace(sample, embeddings=torch.nn.functional.normalize(torch.randn(len(DOCUMENTS), 3), dim=1))
    model.start_from(FREQUENCIES, len(DOCUMENTS), sample)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.latent.state_dict().items())
