"""Encoders against one document at a time, attention written out, and the SVDs of NumPy and scikit-learn."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from documents import EMPTY, Document, batch_of, counts_matrix, random_documents, shaken
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer
from torch import Tensor
from torch.nn.functional import gelu, relu

from vae_core.attention import Block
from vae_core.encoders import (
    BagOfWordsEncoderConfig,
    Encoder,
    EncoderConfig,
    TransformerEncoderConfig,
    build_encoder,
    token_weights,
)
from vae_core.encoders.lsi import lsi_vectors
from vae_core.encoders.transformer import TransformerEncoder

TERMS, TOKENS = 40, 30
SMALL = {"width": 16, "layers": 2, "heads": 2, "hidden": 12, "segment": 8, "positions": 16}
READS_TERMS = TransformerEncoderConfig(**SMALL, reads="terms")
READS_TOKENS = TransformerEncoderConfig(**SMALL, reads="tokens")
READS_EVENLY = TransformerEncoderConfig(**SMALL, reads="tokens", weights="even")
BAG_OF_WORDS = BagOfWordsEncoderConfig(width=12)
every_encoder = pytest.mark.parametrize("config", [READS_TERMS, READS_TOKENS, READS_EVENLY, BAG_OF_WORDS])

SHORT = random_documents(6, terms=TERMS, tokens=TOKENS, longest=8)
LONG = random_documents(6, terms=TERMS, tokens=TOKENS, longest=35, seed=3)
IDF = torch.linspace(1, 3, TERMS)


def encoder_of(config: EncoderConfig) -> Encoder:
    torch.manual_seed(4)
    encoder = shaken(build_encoder(config, terms=TERMS, tokens=TOKENS), size=0.1).eval()
    for name, buffer in encoder.named_buffers():
        buffer.uniform_(1, 3) if name.endswith("idf") else buffer.normal_()
    return encoder


def encode(encoder: Encoder, documents: list[Document], progress: float = 1.0) -> Tensor:
    batch = batch_of(documents)
    return encoder(batch, batch.tfidf(IDF), progress)


@every_encoder
def test_a_document_is_the_same_alone_and_in_any_batch(config: EncoderConfig) -> None:
    encoder, documents = encoder_of(config), [EMPTY, *SHORT, EMPTY, *LONG, EMPTY]
    together = encode(encoder, documents)
    alone = torch.cat([encode(encoder, [document]) for document in documents])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encode(encoder, documents[::-1]).flip(0), together, atol=1e-5, rtol=1e-5)
    assert together[1:7].std(dim=0).max() > 0.01


@every_encoder
def test_empty_documents_are_finite_and_all_the_same(config: EncoderConfig) -> None:
    features = encode(encoder_of(config), [EMPTY, SHORT[0], EMPTY])
    assert features.isfinite().all()
    assert torch.equal(features[0], features[2])


def backwards(document: Document) -> Document:
    return Document(dict(reversed(document.counts.items())), document.tokens[::-1])


@pytest.mark.parametrize("config", [READS_TERMS, BAG_OF_WORDS])
def test_the_order_of_terms_does_not_matter(config: EncoderConfig) -> None:
    encoder = encoder_of(config)
    reordered = encode(encoder, [backwards(document) for document in SHORT])
    torch.testing.assert_close(reordered, encode(encoder, SHORT), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [READS_TOKENS, READS_EVENLY])
@pytest.mark.parametrize("layers", [0, 2])
def test_the_order_of_tokens_matters_to_blocks_alone(config: TransformerEncoderConfig, layers: int) -> None:
    encoder, document = encoder_of(config.model_copy(update={"layers": layers})), Document({}, (1, 2, 3, 4))
    moved = (encode(encoder, [backwards(document)]) - encode(encoder, [document])).abs().max()
    assert moved > 1e-3 if layers else moved < 1e-5


@every_encoder
def test_gradient_reaches_every_parameter(config: EncoderConfig) -> None:
    encoder = encoder_of(config)
    encode(encoder, [*SHORT, *LONG]).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("memory", [None, torch.randn(3, 2, 16)])
def test_a_fresh_block_is_the_identity(memory: Tensor | None) -> None:
    x = torch.randn(3, 5, 16)
    slots = 0 if memory is None else 2
    assert torch.equal(Block(16, heads=2)(x, torch.zeros(5, slots + 5), memory), x)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="width 16 cannot be divided among 3 heads"):
        Block(16, heads=3)


def block_written_out(block: Block, x_TD: Tensor, weights_T: Tensor) -> Tensor:
    """The block over one sequence, head by head and with the softmax spelled out."""
    query, key, value = block.attention.queries_keys_values(block.attention_norm(x_TD)).chunk(3, dim=1)
    size, heads = query.shape[1] // block.attention.heads, []
    for start in range(0, query.shape[1], size):
        head = slice(start, start + size)
        attention_TT = weights_T * (query[:, head] @ key[:, head].T / size**0.5).exp()
        heads.append(attention_TT / attention_TT.sum(dim=1, keepdim=True) @ value[:, head])
    x_TD = x_TD + block.attention.output(torch.cat(heads, dim=1))
    return x_TD + block.narrow(gelu(block.widen(block.wide_norm(x_TD))))


def token_weight(encoder: TransformerEncoder, document: Document, token: int) -> float:
    if encoder.token_weights is None:
        return 1.0
    count = document.tokens.count(token)
    return (1 + math.log(count)) / count * float(encoder.token_weights.idf[token])


def document_written_out(encoder: TransformerEncoder, document: Document) -> Tensor:
    """The encoder over one document, segment by segment."""
    if encoder.position is None:
        ids = torch.tensor(list(document.counts))
        weights = batch_of([document]).tfidf(IDF)
    else:
        ids = torch.tensor(document.tokens)
        weights = torch.tensor([token_weight(encoder, document, token) for token in document.tokens])
        weights = weights / weights.norm()
    x = 10 * encoder.embedding(ids)
    if encoder.position is not None:
        x = x + torch.stack([encoder.position.weight[place % 16] for place in range(len(ids))])
    segments = []
    for segment, segment_weights in zip(x.split(8), weights.split(8), strict=True):
        for block in encoder.segments.blocks:
            segment = block_written_out(block, segment, segment_weights)
        segments.append(segment)
    pooled = (weights.unsqueeze(1) * torch.cat(segments)).sum(dim=0)
    hidden = relu(encoder.hidden(0.1 * encoder.norm(pooled)))
    if encoder.coordinates is None:
        return hidden
    lies = weights @ encoder.coordinates.vectors[ids]
    return torch.cat([hidden, lies / lies.norm()])


@pytest.mark.parametrize("config", [READS_TERMS, READS_TOKENS, READS_EVENLY])
def test_long_documents_are_attended_to_in_segments(config: TransformerEncoderConfig) -> None:
    encoder = encoder_of(config)
    assert max(len(document.counts) for document in LONG) > 3 * config.segment
    assert max(len(document.tokens) for document in LONG) > config.positions
    expected = torch.stack([document_written_out(encoder, document) for document in LONG])
    torch.testing.assert_close(encode(encoder, LONG), expected, atol=1e-5, rtol=1e-4)


def test_bag_of_words_is_a_layer_over_the_tfidf_row() -> None:
    encoder = encoder_of(BAG_OF_WORDS)
    batch = batch_of(LONG)
    rows = torch.zeros(len(LONG), TERMS).index_put((batch.terms.rows, batch.terms.values), batch.tfidf(IDF))
    expected = relu(rows @ encoder.weights.weight + encoder.bias.values)
    torch.testing.assert_close(encode(encoder, LONG), expected)


@every_encoder
def test_dropout_of_the_hidden_layer_happens_in_training_only(config: EncoderConfig) -> None:
    encoder = encoder_of(config.model_copy(update={"term_dropout": 0.0}))
    assert torch.equal(encode(encoder, LONG), encode(encoder, LONG))
    encoder.train()
    assert not torch.equal(encode(encoder, LONG), encode(encoder, LONG))


@every_encoder
@pytest.mark.parametrize("length", [1, 2])
def test_each_word_is_unseen_in_its_share_of_trainings_steps_alone(config: EncoderConfig, length: int) -> None:
    """Nothing is seen of 0.3 ** length of the documents, within 4.9 standard errors: a failure in a million seeds."""
    encoder = encoder_of(config.model_copy(update={"dropout": 0.0, "term_dropout": 0.3}))
    ids = (3, 5)[:length]
    documents = [EMPTY, *[Document(dict.fromkeys(ids, 1), ids)] * 4000]

    def unseen() -> float:
        features = encode(encoder, documents)
        return float(((features[1:] - features[0]).abs().amax(dim=1) < 1e-5).double().mean())

    assert unseen() == 0
    encoder.train()
    share = 0.3**length
    assert unseen() == pytest.approx(share, abs=4.9 * math.sqrt(share * (1 - share) / 4000))


@pytest.mark.parametrize("config", [READS_TERMS, READS_TOKENS, READS_EVENLY])
def test_blocks_join_when_their_share_of_training_is_done(config: TransformerEncoderConfig) -> None:
    encoder = encoder_of(config.model_copy(update={"grow_after": 0.5}))
    early, late = encode(encoder, LONG, progress=0.49), encode(encoder, LONG, progress=0.5)
    assert torch.equal(late, encode(encoder, LONG))
    encoder.segments.blocks, encoder.position = torch.nn.ModuleList(), None
    assert torch.equal(early, encode(encoder, LONG))
    assert (early - late).abs().max() > 0.01


def sklearn_tfidf(documents: list[Document]) -> tuple[np.ndarray, Tensor]:
    """The TF-IDF matrix and the idf, where a term that does not occur counts as one that occurs once."""
    counts = counts_matrix(documents, TERMS).numpy()
    transformer = TfidfTransformer(sublinear_tf=True, smooth_idf=False).fit(np.vstack([counts, counts.sum(0) == 0]))
    return transformer.transform(counts).toarray(), torch.from_numpy(transformer.idf_)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 1e-9, lengths, 1)


def up_to_sign(vectors: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return vectors * np.sign((vectors * reference).sum(axis=0))


@pytest.mark.parametrize("number", [20, 90])
def test_all_lsi_vectors_are_those_of_numpys_svd(number: int) -> None:
    documents = random_documents(number, terms=TERMS, seed=7)
    matrix, idf = sklearn_tfidf(documents)
    kept = min(number, TERMS)
    vectors = lsi_vectors(batch_of(documents), idf, kept).numpy()
    _, singular, right = np.linalg.svd(matrix, full_matrices=False)
    expected = unit_rows(right.T * singular)
    np.testing.assert_allclose(up_to_sign(vectors, expected), expected, atol=1e-7)


def test_leading_lsi_vectors_are_those_of_scikit_learns_truncated_svd() -> None:
    """Four documents, each repeated a number of times: the matrix has rank four and its singular values differ."""
    documents = [
        document
        for document, times in zip(random_documents(4, longest=TERMS, seed=8), (9, 6, 4, 2), strict=True)
        for _ in range(times)
    ]
    matrix, idf = sklearn_tfidf(documents)
    vectors = lsi_vectors(batch_of(documents), idf, 4).numpy()
    reference = TruncatedSVD(4, algorithm="arpack", random_state=0).fit(matrix)
    expected = unit_rows(reference.components_.T * reference.singular_values_)
    np.testing.assert_allclose(up_to_sign(vectors, expected), expected, atol=1e-7)


@pytest.mark.parametrize("number", [10, 500])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_lsi_vectors_have_unit_length_and_terms_that_do_not_occur_have_none(
    number: int, precision: torch.dtype
) -> None:
    documents = random_documents(number, terms=15, longest=5)
    occurring = counts_matrix(documents, TERMS).any(dim=0)
    torch.manual_seed(0)
    vectors = lsi_vectors(batch_of(documents), torch.ones(TERMS, dtype=precision), 32)
    expected = occurring.to(precision)
    torch.testing.assert_close(vectors.norm(dim=1), expected, atol=1e-5, rtol=0)


def test_dimensions_that_the_matrix_lacks_are_zero() -> None:
    vectors = lsi_vectors(batch_of(random_documents(5)), torch.ones(TERMS), 16)
    assert vectors.shape == (TERMS, 16)
    assert not vectors[:, 5:].any()
    assert vectors[:, :5].any(dim=0).all()


def test_term_vectors_start_at_the_directions_of_lsi() -> None:
    documents = random_documents(90, seed=9)
    config = READS_TERMS.model_copy(update={"width": TERMS})
    encoder = encoder_of(config)
    matrix, idf = sklearn_tfidf(documents)
    encoder.start_from(batch_of(documents), idf)
    _, singular, right = np.linalg.svd(matrix, full_matrices=False)
    directions, vectors = unit_rows(right.T * singular), encoder.embedding.weight.detach().numpy()
    np.testing.assert_allclose(unit_rows(vectors) @ unit_rows(vectors).T, directions @ directions.T, atol=1e-5)
    assert float(10 * encoder.embedding.weight.detach().std()) == pytest.approx(1, rel=1e-5)


def test_word_vectors_that_are_to_stay_lsis_do_and_all_else_learns() -> None:
    documents = batch_of(random_documents(90, seed=9))
    encoder = TransformerEncoder(READS_TERMS.model_copy(update={"word_vectors": "lsi"}), TERMS)
    encoder.start_from(documents, IDF)
    before = {name: parameter.clone() for name, parameter in encoder.named_parameters()}
    adam = torch.optim.Adam(parameter for parameter in encoder.parameters() if parameter.requires_grad)
    for _ in range(2):  # a fresh block's first layers have no gradient before its last ones have moved
        adam.zero_grad()
        encoder(documents, documents.tfidf(IDF)).square().sum().backward()
        adam.step()
    same = {name for name, parameter in encoder.named_parameters() if torch.equal(parameter, before[name])}
    assert same == {"embedding.weight"}


def test_terms_are_always_weighted() -> None:
    with pytest.raises(ValueError, match="terms are weighted by TF-IDF"):
        TransformerEncoderConfig(weights="even")


def test_tokens_of_even_weights_have_no_lsi_to_stay_at() -> None:
    with pytest.raises(ValueError, match=r"set encoder\.weights to tfidf"):
        TransformerEncoderConfig(reads="tokens", weights="even", word_vectors="lsi")


def with_tokens_as_terms(documents: list[Document]) -> list[Document]:
    return [Document(dict(sorted(Counter(document.tokens).items())), document.tokens) for document in documents]


def test_tokens_start_as_the_same_words_would_as_terms() -> None:
    """Without blocks a text read in order is its set of words: LSI, coordinates and the hidden vector are the same."""
    documents = with_tokens_as_terms(random_documents(90, tokens=TERMS, longest=30, seed=9))
    documents += [EMPTY, documents[0]]
    idf = torch.tensor([idf_of(token, documents) for token in range(TERMS)])
    ordered = TransformerEncoder(READS_TOKENS.model_copy(update={"layers": 0}), TERMS).eval()
    as_set = TransformerEncoder(READS_TERMS.model_copy(update={"layers": 0}), TERMS).eval()
    batch = batch_of(documents)
    for encoder in (ordered, as_set):
        torch.manual_seed(2)  # of the randomised SVD
        encoder.start_from(batch, idf)
    as_set.load_state_dict(ordered.state_dict(), strict=False)
    torch.testing.assert_close(ordered.token_weights.idf, idf)
    in_order, in_sets = (encoder(batch, batch.tfidf(idf)) for encoder in (ordered, as_set))
    torch.testing.assert_close(in_order, in_sets, atol=1e-5, rtol=1e-4)


def idf_of(token: int, documents: list[Document]) -> float:
    return 1 + math.log(len(documents) / sum(token in document.tokens for document in documents))


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_tokens_are_counted_a_few_documents_at_a_time(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_weights, "AT_ONCE", at_once)
    documents = with_tokens_as_terms([EMPTY, *random_documents(20, longest=30), EMPTY])
    expected, (terms, counts) = batch_of(documents), token_weights.counted(batch_of(documents).tokens, TOKENS)
    assert torch.equal(terms.values, expected.terms.values)
    assert torch.equal(terms.offsets, expected.terms.offsets)
    assert torch.equal(counts, expected.counts)
    weights = token_weights.TokenWeights(TOKENS)(expected.tokens)
    summed = torch.zeros(len(documents)).index_add(0, expected.tokens.rows, weights)
    by_hand = [sum(1 + math.log(count) for count in document.counts.values()) for document in documents]
    torch.testing.assert_close(summed, torch.tensor(by_hand))
