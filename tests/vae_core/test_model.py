"""The whole model against the list of all its codes, itself after a round trip to disk, and planted topics."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from documents import EMPTY, Document, all_codes, batch_of, counts_matrix, planted_documents, random_documents, shaken
from sklearn.feature_extraction.text import TfidfTransformer
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent

from vae_core.batch import Batch
from vae_core.codes import PackedCodes, hamming
from vae_core.decoders import BagOfWordsDecoderConfig, TransformerDecoderConfig
from vae_core.encoders import BagOfWordsEncoderConfig, TransformerEncoderConfig
from vae_core.errors import Damaged, Misuse
from vae_core.estimators import StraightThrough
from vae_core.latents import BernoulliMixtureConfig
from vae_core.model import CONFIG_FILE, VAE, WEIGHTS_FILE, Terms, VAEConfig

TERMS, TOKENS, BITS = 40, 30, 8
DOCUMENTS = [*random_documents(5, terms=TERMS, tokens=TOKENS), EMPTY]
BAG_IN = BagOfWordsEncoderConfig(width=12, dropout=0, term_dropout=0)
TERMS_IN = TransformerEncoderConfig(width=16, heads=2, hidden=12, segment=8, dropout=0, term_dropout=0)
TOKENS_IN = TERMS_IN.model_copy(update={"reads": "tokens"})
BAG_OUT = BagOfWordsDecoderConfig(weights="counts", length="own")
TOKENS_OUT = TransformerDecoderConfig(width=16, heads=2, layers=1, positions=32)
COMPOSITIONS = [(BAG_IN, BAG_OUT), (TERMS_IN, BAG_OUT), (TOKENS_IN, TOKENS_OUT)]
every_composition = pytest.mark.parametrize("parts", COMPOSITIONS)


def config_of(parts: tuple = (BAG_IN, BAG_OUT), draw: str = "mode") -> VAEConfig:
    latent = BernoulliMixtureConfig(bits=BITS, components=3, estimator=StraightThrough(draw=draw), noise=False)
    return VAEConfig(encoder=parts[0], latent=latent, decoder=parts[1], terms=TERMS, tokens=TOKENS)


def model_of(parts: tuple = (BAG_IN, BAG_OUT), draw: str = "mode") -> VAE:
    torch.manual_seed(0)
    return shaken(VAE(config_of(parts, draw))).eval()


def log_px_of_every_code(model: VAE, batch: Batch) -> Tensor:
    """log p(x | z), (256, B), by the decoder."""
    z = all_codes(BITS).float().unsqueeze(1).expand(-1, len(batch), -1)
    return model.decoder(batch, batch.tfidf(model.idf), z).double()


def log_q_and_p(model: VAE, terms: Terms) -> tuple[Tensor, Tensor]:
    """log q(c, z | x), (B, C, 256), and log p(c, z), (C, 256), by torch.distributions."""
    posterior, latent, codes = terms.posterior, model.latent, all_codes(BITS)
    q_bits = Independent(Bernoulli(logits=posterior.log_odds.double().unsqueeze(1)), 1).log_prob(codes)
    p_bits = Independent(Bernoulli(logits=latent.prior_log_odds.double().unsqueeze(1)), 1).log_prob(codes)
    q_component = Categorical(logits=posterior.component_logits.double()).logits.unsqueeze(2)
    p_component = Categorical(logits=latent.prior_components.double()).logits.unsqueeze(1)
    return q_component + q_bits.unsqueeze(1), p_component + p_bits


@every_composition
@torch.no_grad()
def test_evaluation_reports_the_hard_codes_elbo(parts: tuple) -> None:
    """log p(x | code) is looked up in the table of all codes and the KL summed over every component and code."""
    model, batch = model_of(parts), batch_of(DOCUMENTS)
    terms = model(batch, samples=2)
    log_q, log_p = log_q_and_p(model, terms)
    code = log_q.logsumexp(dim=1).argmax(dim=1)
    expected = log_px_of_every_code(model, batch)[code, torch.arange(len(batch))]
    torch.testing.assert_close(terms.log_px.double(), expected.expand(2, -1), atol=1e-3, rtol=1e-4)
    kl = (log_q.exp() * (log_q - log_p)).sum(dim=(1, 2))
    torch.testing.assert_close(terms.kl_groups.sum(dim=1).double(), kl, atol=1e-4, rtol=1e-4)


@every_composition
@torch.no_grad()
def test_elbo_falls_short_of_the_evidence_by_the_kl_to_the_true_posterior(parts: tuple) -> None:
    """log p(x) - ELBO = KL(q(c, z | x) || p(c, z | x)), all of it by enumeration."""
    model, batch = model_of(parts), batch_of(DOCUMENTS)
    terms, log_px = model(batch), log_px_of_every_code(model, batch)
    log_q, log_p = log_q_and_p(model, terms)
    joint = log_p + log_px.T.unsqueeze(1)
    evidence = joint.logsumexp(dim=(1, 2))
    elbo = (log_q.logsumexp(dim=1).exp() * log_px.T).sum(dim=1) - terms.kl_groups.sum(dim=1)
    gap = (log_q.exp() * (log_q - (joint - evidence[:, None, None]))).sum(dim=(1, 2))
    torch.testing.assert_close(evidence - elbo, gap, atol=1e-4, rtol=1e-4)
    assert (gap[:-1] > 0).all()


@every_composition
@torch.no_grad()
def test_sampled_elbo_is_that_of_all_codes(parts: tuple) -> None:
    """4.9 standard errors of 4,000 samples: a correct model fails once in a million seeds."""
    model, batch = model_of(parts, draw="sample"), batch_of(DOCUMENTS)
    samples = model.train()(batch, samples=4000)
    log_q, _ = log_q_and_p(model, samples)
    exact = (log_q.logsumexp(dim=1).exp() * log_px_of_every_code(model, batch).T).sum(dim=1)
    errors = samples.log_px.double().std(dim=0) / math.sqrt(4000)
    assert (errors < 0.02 * exact.abs()).logical_or(exact == 0).all()
    assert ((samples.log_px.double().mean(dim=0) - exact).abs() <= 4.9 * errors + 1e-3).all()


@every_composition
def test_a_document_has_the_same_code_alone_and_in_any_batch(parts: tuple) -> None:
    model = model_of(parts)
    together = model.encode(batch_of(DOCUMENTS))
    for row, document in enumerate(DOCUMENTS):
        alone = model.encode(batch_of([document]))
        torch.testing.assert_close(alone.log_odds[0], together.log_odds[row], atol=1e-5, rtol=1e-5)
        assert alone.component[0] == together.component[row]


@torch.no_grad()
def test_confidence_and_component_follow_from_the_code() -> None:
    model, batch = model_of(), batch_of(DOCUMENTS)
    encoded = model.encode(batch)
    p = encoded.log_odds.sigmoid()
    torch.testing.assert_close(encoded.confidence**BITS, torch.maximum(p, 1 - p).prod(dim=1))
    _, log_p = log_q_and_p(model, model(batch))
    code = (all_codes(BITS).bool() == (p > 0.5).unsqueeze(1)).all(dim=2).long().argmax(dim=1)
    assert torch.equal(encoded.component, log_p[:, code].argmax(dim=0))


@every_composition
def test_a_saved_model_encodes_bit_for_bit_the_same(parts: tuple, tmp_path: Path) -> None:
    model, batch = model_of(parts), batch_of(DOCUMENTS)
    model.start_from(torch.arange(1, TERMS + 1), documents=50, sample=batch)
    model.save_pretrained(tmp_path / "model")
    loaded = VAE.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    assert not loaded.training
    for before, after in zip(everything_said_of(model, batch), everything_said_of(loaded, batch), strict=True):
        assert torch.equal(before, after)


def everything_said_of(model: VAE, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    encoded = model.encode(batch)
    return encoded.log_odds, encoded.component, encoded.confidence, model(batch).log_px


@pytest.mark.parametrize("missing", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_folder_without_a_model_is_misuse(missing: str, tmp_path: Path) -> None:
    model_of().save_pretrained(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(Misuse, match=f"no {missing}"):
        VAE.from_pretrained(tmp_path)
    with pytest.raises(Misuse, match="nowhere"):
        VAE.from_pretrained(tmp_path / "nowhere")


def altered_config(folder: Path, key: str, value: object) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | {key: value}))


def truncated(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: truncated(folder / WEIGHTS_FILE, 0.0),
        lambda folder: truncated(folder / WEIGHTS_FILE, 0.1),
        lambda folder: truncated(folder / WEIGHTS_FILE, 0.9),
        lambda folder: truncated(folder / CONFIG_FILE, 0.0),
        lambda folder: truncated(folder / CONFIG_FILE, 0.5),
        lambda folder: (folder / CONFIG_FILE).write_bytes(b"\xff\xfe{}"),
        lambda folder: (folder / CONFIG_FILE).write_text("[]"),
        lambda folder: altered_config(folder, "terms", TERMS + 1),
        lambda folder: altered_config(folder, "encoder", {"kind": "bag_of_words", "width": 13}),
        lambda folder: altered_config(folder, "encoder", {"kind": "transformer", "width": 10, "heads": 3}),
        lambda folder: altered_config(folder, "encoder", {"kind": "rnn"}),
        lambda folder: altered_config(folder, "surplus", 1),
    ],
)
def test_a_broken_model_is_damaged_and_named(damage: Callable[[Path], object], tmp_path: Path) -> None:
    model_of().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(Damaged, match=re.escape(str(tmp_path))):
        VAE.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("encoder", "decoder", "expected", "for_codes"),
    [
        (BAG_IN, BAG_OUT, False, False),
        (TERMS_IN, BAG_OUT, False, False),
        (TOKENS_IN, BAG_OUT, True, True),
        (BAG_IN, TOKENS_OUT, True, False),
    ],
)
def test_tokens_are_read_where_a_part_needs_their_order(
    encoder: object, decoder: object, expected: bool, for_codes: bool
) -> None:
    model = model_of((encoder, decoder))
    assert model.reads_tokens is expected
    assert model.posterior_reads_tokens is for_codes


def test_a_first_look_at_the_corpus_sets_idf_biases_and_term_vectors() -> None:
    """The idf is scikit-learn's; the biases give every word its share of all weighted occurrences."""
    documents = [*random_documents(80, terms=TERMS), Document(dict.fromkeys(range(TERMS), 1))]
    counts = counts_matrix(documents, TERMS)
    frequencies = (counts > 0).sum(dim=0)
    model = model_of((TERMS_IN, BAG_OUT))
    before = model.encoder.embedding.weight.detach().clone()
    model.start_from(frequencies, len(documents), batch_of(documents))
    idf = torch.from_numpy(TfidfTransformer(smooth_idf=False).fit(counts.numpy()).idf_)
    torch.testing.assert_close(model.idf.double(), idf, atol=1e-6, rtol=1e-6)
    shares = frequencies * idf / (frequencies * idf).sum()
    torch.testing.assert_close(model.decoder.words.bias.detach().double().exp(), shares, atol=1e-6, rtol=1e-4)
    assert not torch.equal(model.encoder.embedding.weight, before)


@pytest.mark.parametrize("encoder", [BAG_IN, TERMS_IN])
def test_documents_of_a_planted_topic_share_their_code(encoder: object) -> None:
    torch.manual_seed(0)
    latent = BernoulliMixtureConfig(bits=16, components=4)
    model = VAE(VAEConfig(encoder=encoder, latent=latent, decoder=BAG_OUT, terms=50, tokens=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(200):
        documents, _ = planted_documents(32, seed=step)
        optimizer.zero_grad()
        terms = model(batch_of(documents), progress=step / 200)
        (min(1.0, step / 100) * terms.kl_groups.sum(dim=1).mean() - terms.log_px.mean()).backward()
        optimizer.step()
    documents, topics = planted_documents(200, seed=1000)
    codes = PackedCodes.pack(model.eval().encode(batch_of(documents)).log_odds > 0)
    distances, same = hamming(codes, codes).double(), topics[:, None] == topics
    assert distances[same].mean() < 0.25 * distances[~same].mean()
    assert distances[~same].mean() > 3
