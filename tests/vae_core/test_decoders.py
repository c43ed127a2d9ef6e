"""Decoders against dense loops, and against the list of all documents, whose probabilities must sum to one."""

import math
from itertools import product

import pytest
import torch
from documents import EMPTY, Document, batch_of, counts_matrix, random_documents, shaken
from torch import Tensor

from vae_core.batch import Batch
from vae_core.decoders.bag_of_words import BagOfWordsDecoder, BagOfWordsDecoderConfig
from vae_core.decoders.transformer import TransformerDecoder, TransformerDecoderConfig

TERMS, TOKENS, BITS = 40, 30, 8
DOCUMENTS = [*random_documents(6, terms=TERMS, tokens=TOKENS), EMPTY]


def codes(documents: int, samples: int = 1) -> Tensor:
    return (torch.rand(samples, documents, BITS, generator=torch.Generator().manual_seed(2)) < 0.5).float()


def tfidf(batch: Batch) -> Tensor:
    return batch.tfidf(torch.linspace(1, 3, TERMS))


def bag_of_words(weights: str = "counts", length: float | None = None, terms: int = TERMS) -> BagOfWordsDecoder:
    config = BagOfWordsDecoderConfig(weights=weights, length=length, terms=terms)
    return shaken(BagOfWordsDecoder(config, BITS, TERMS))


@pytest.mark.parametrize("weights", ["counts", "binary", "tfidf"])
@pytest.mark.parametrize("length", [None, 50.0])
@pytest.mark.parametrize("terms", [25, 10_000])
def test_words_cost_what_a_dense_loop_says(weights: str, length: float | None, terms: int) -> None:
    decoder, batch, z = bag_of_words(weights, length, terms), batch_of(DOCUMENTS), codes(len(DOCUMENTS), samples=3)
    table = {"counts": counts_matrix(DOCUMENTS, TERMS), "binary": (counts_matrix(DOCUMENTS, TERMS) > 0).double()}
    table["tfidf"] = torch.zeros(len(DOCUMENTS), TERMS, dtype=torch.float64)
    table["tfidf"][batch.terms.rows, batch.terms.values] = tfidf(batch).double()
    expected = torch.zeros(3, len(DOCUMENTS))
    for sample in range(3):
        for row, words in enumerate(table[weights][:, :terms]):
            scale = length / words.sum() if length and words.any() else 1.0
            logits = decoder.words.weight @ z[sample, row] + decoder.words.bias
            expected[sample, row] = (scale * words * logits.double().log_softmax(dim=0)).sum()
    torch.testing.assert_close(decoder(batch, tfidf(batch), z), expected, rtol=1e-4, atol=1e-4)


def test_probabilities_of_all_words_sum_to_one() -> None:
    batch = batch_of([Document({term: 1}) for term in range(TERMS)])
    log_p = bag_of_words()(batch, tfidf(batch), codes(1, samples=4).expand(-1, TERMS, -1))
    torch.testing.assert_close(log_p.exp().sum(dim=1), torch.ones(4))


@pytest.mark.parametrize("length", [None, 50.0])
def test_a_document_without_a_known_word_costs_nothing(length: float | None) -> None:
    batch = batch_of([EMPTY, Document({30: 2}), Document({3: 1, 30: 2})])
    log_p = bag_of_words(length=length, terms=25)(batch, tfidf(batch), codes(3))[0]
    assert log_p[:2].tolist() == [0.0, 0.0]
    assert log_p[2] < 0


def test_biases_start_at_the_log_shares_of_the_words() -> None:
    decoder = BagOfWordsDecoder(BagOfWordsDecoderConfig(weights="counts", length=None), BITS, TERMS)
    frequencies = torch.arange(TERMS, 0, -1)
    decoder.start_from(frequencies)
    batch = batch_of([Document({term: 1}) for term in range(TERMS)])
    log_p = decoder(batch, tfidf(batch), torch.zeros(1, TERMS, BITS))
    torch.testing.assert_close(log_p[0].exp(), frequencies / frequencies.sum())


CHANNELS = [(1, True), (2, False), (0, True)]


def autoregressive(
    memory_slots: int = 1,
    embedding: bool = True,
    *,
    positions: int = 32,
    vocabulary: int = TOKENS,
    word_dropout: float = 0.0,
) -> TransformerDecoder:
    config = TransformerDecoderConfig(
        width=16,
        layers=2,
        heads=2,
        positions=positions,
        memory_slots=memory_slots,
        embedding=embedding,
        word_dropout=word_dropout,
    )
    torch.manual_seed(3)
    return shaken(TransformerDecoder(config, BITS, vocabulary)).eval()


def log_p_of(decoder: TransformerDecoder, documents: list[Document], z: Tensor) -> Tensor:
    batch = batch_of(documents)
    return decoder(batch, tfidf(batch), z)


@pytest.mark.parametrize("channels", CHANNELS)
def test_a_position_sees_itself_the_past_and_z_but_not_the_future(channels: tuple[int, bool]) -> None:
    decoder, embedded = autoregressive(*channels), []
    decoder.embedding.register_forward_hook(lambda _module, _inputs, output: embedded.append(output))
    z = codes(1)[0].requires_grad_()
    logits = decoder.logits(torch.arange(6).unsqueeze(0), z)
    for position in range(6):
        by_input, by_z = torch.autograd.grad(logits[0, position].square().sum(), [embedded[0], z], retain_graph=True)
        assert ((by_input[0] != 0).any(dim=1) == (torch.arange(6) <= position)).all()
        assert (by_z != 0).all()


def test_without_its_projections_the_decoder_is_independent_of_z() -> None:
    decoder = autoregressive()
    z = codes(len(DOCUMENTS), samples=2)
    assert not torch.equal(*log_p_of(decoder, DOCUMENTS, z))
    for projection in (decoder.to_memory, decoder.to_embedding):
        torch.nn.init.zeros_(projection.weight)
    assert torch.equal(*log_p_of(decoder, DOCUMENTS, z))


@pytest.mark.parametrize(("vocabulary", "positions"), [(1, 6), (2, 2), (2, 5), (3, 4)])
def test_probabilities_of_all_documents_sum_to_one(vocabulary: int, positions: int) -> None:
    """A document that fills every position is cut and stands for all that begin like it; shorter ones have an end."""
    decoder = autoregressive(vocabulary=vocabulary, positions=positions)
    every = [Document({}, one) for length in range(positions + 1) for one in product(range(vocabulary), repeat=length)]
    log_p = log_p_of(decoder, every, codes(1, samples=3).expand(-1, len(every), -1))
    torch.testing.assert_close(log_p.exp().sum(dim=1), torch.ones(3))


def test_a_long_document_is_as_probable_as_its_first_positions() -> None:
    decoder = autoregressive(positions=5)
    long, cut = Document({}, tuple(range(12))), Document({}, tuple(range(5)))
    log_p = log_p_of(decoder, [long, cut], codes(1).expand(-1, 2, -1))[0]
    assert log_p[0] == log_p[1]


@pytest.mark.parametrize("channels", CHANNELS)
def test_a_document_costs_what_a_loop_over_its_tokens_says(channels: tuple[int, bool]) -> None:
    decoder, z = autoregressive(*channels), codes(len(DOCUMENTS), samples=2)
    expected = torch.zeros(2, len(DOCUMENTS))
    for sample, (row, document) in product(range(2), enumerate(DOCUMENTS)):
        read = [decoder.teacher.begin]
        for token in (*document.tokens, decoder.teacher.end):
            next_token = decoder.logits(torch.tensor([read]), z[sample, row].unsqueeze(0))[0, -1].log_softmax(dim=0)
            expected[sample, row] += next_token[token]
            read.append(token)
    torch.testing.assert_close(log_p_of(decoder, DOCUMENTS, z), expected, atol=1e-4, rtol=1e-4)


def test_a_document_costs_the_same_in_any_batch() -> None:
    decoder, z = autoregressive(), codes(len(DOCUMENTS))
    together = log_p_of(decoder, DOCUMENTS, z)
    backwards = log_p_of(decoder, DOCUMENTS[::-1], z.flip(1)).flip(1)
    alone = [log_p_of(decoder, [document], z[:, row : row + 1]) for row, document in enumerate(DOCUMENTS)]
    torch.testing.assert_close(backwards, together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(alone, dim=1), together, atol=1e-5, rtol=1e-5)


def inputs_read(decoder: TransformerDecoder, documents: list[Document]) -> Tensor:
    """What the decoder reads of `documents` in one pass, (B, T)."""
    read: list[Tensor] = []
    handle = decoder.embedding.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0]))
    log_p_of(decoder, documents, codes(len(documents)))
    handle.remove()
    return read[0]


def test_word_dropout_hides_its_share_of_the_words_in_training_and_none_in_evaluation() -> None:
    """5,700 words with share 0.3: 4.9 standard errors of the binomial, a failure in a million seeds."""
    torch.manual_seed(0)
    documents = [Document({}, tuple(range(19)))] * 300
    decoder = autoregressive(word_dropout=0.3)
    seen = inputs_read(decoder, documents)
    trained = inputs_read(decoder.train(), documents)
    hidden = trained == decoder.teacher.hidden
    assert not (seen == decoder.teacher.hidden).any()
    assert not hidden[:, 0].any()
    assert torch.equal(trained[~hidden], seen[~hidden])
    words = hidden[:, 1:].double()
    assert float(words.mean()) == pytest.approx(0.3, abs=4.9 * math.sqrt(0.3 * 0.7 / words.numel()))


def test_with_every_word_hidden_the_targets_are_still_the_document() -> None:
    decoder = autoregressive(word_dropout=1.0).train()
    document, z = Document({}, (4, 7, 1)), codes(1)
    read = torch.tensor(
        [[decoder.teacher.begin, decoder.teacher.hidden, decoder.teacher.hidden, decoder.teacher.hidden]]
    )
    log_p = decoder.logits(read, z[0])[0].log_softmax(dim=1)
    expected = log_p[range(4), [4, 7, 1, decoder.teacher.end]].sum()
    torch.testing.assert_close(log_p_of(decoder, [document], z)[0, 0], expected)


def test_a_decoder_that_cannot_read_z_is_refused() -> None:
    with pytest.raises(ValueError, match="must read z"):
        TransformerDecoderConfig(memory_slots=0, embedding=False)
