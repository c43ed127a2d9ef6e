"""Decoders against dense loops, and against the list of all documents, whose probabilities must sum to one."""

import math
from dataclasses import replace
from itertools import accumulate, product
from typing import Literal

import pytest
import torch
from documents import EMPTY, Document, batch_of, counts_matrix, random_documents, shaken
from torch import Tensor

from vae_core.batch import Batch, Ragged, Words
from vae_core.decoders.autoregressive import token_accuracy
from vae_core.decoders.bag_of_words import BagOfWordsDecoder, BagOfWordsDecoderConfig
from vae_core.decoders.convolutional import ConvolutionalDecoder, ConvolutionalDecoderConfig
from vae_core.decoders.transformer import TransformerDecoder, TransformerDecoderConfig

TERMS, TOKENS, BITS = 40, 30, 8
DOCUMENTS = [*random_documents(6, terms=TERMS, tokens=TOKENS), EMPTY]


def codes(documents: int, samples: int = 1) -> Tensor:
    return (torch.rand(samples, documents, BITS, generator=torch.Generator().manual_seed(2)) < 0.5).float()


def tfidf(batch: Batch) -> Tensor:
    return batch.tfidf(torch.linspace(1, 3, TERMS))


def bag_of_words(
    weights: str = "counts", length: float | Literal["own"] = "own", terms: int = TERMS
) -> BagOfWordsDecoder:
    config = BagOfWordsDecoderConfig(weights=weights, length=length, terms=terms)
    return shaken(BagOfWordsDecoder(config, BITS, TERMS))


@pytest.mark.parametrize("weights", ["counts", "binary", "tfidf"])
@pytest.mark.parametrize("length", ["own", 50.0])
@pytest.mark.parametrize("terms", [25, 10_000])
def test_words_cost_what_a_dense_loop_says(weights: str, length: float | Literal["own"], terms: int) -> None:
    decoder, batch, z = bag_of_words(weights, length, terms), batch_of(DOCUMENTS), codes(len(DOCUMENTS), samples=3)
    table = {"counts": counts_matrix(DOCUMENTS, TERMS), "binary": (counts_matrix(DOCUMENTS, TERMS) > 0).double()}
    table["tfidf"] = torch.zeros(len(DOCUMENTS), TERMS, dtype=torch.float64)
    table["tfidf"][batch.terms.rows, batch.terms.values] = tfidf(batch).double()
    expected = torch.zeros(3, len(DOCUMENTS))
    for sample in range(3):
        for row, words in enumerate(table[weights][:, :terms]):
            scale = length / words.sum() if length != "own" and words.any() else 1.0
            logits = decoder.words.weight @ z[sample, row] + decoder.words.bias
            expected[sample, row] = (scale * words * logits.double().log_softmax(dim=0)).sum()
    torch.testing.assert_close(decoder(batch, tfidf(batch), z), expected, rtol=1e-4, atol=1e-4)


def test_probabilities_of_all_words_sum_to_one() -> None:
    batch = batch_of([Document({term: 1}) for term in range(TERMS)])
    log_p = bag_of_words()(batch, tfidf(batch), codes(1, samples=4).expand(-1, TERMS, -1))
    torch.testing.assert_close(log_p.exp().sum(dim=1), torch.ones(4))


@pytest.mark.parametrize("length", ["own", 50.0])
def test_a_document_without_a_known_word_costs_nothing(length: float | Literal["own"]) -> None:
    batch = batch_of([EMPTY, Document({30: 2}), Document({3: 1, 30: 2})])
    log_p = bag_of_words(length=length, terms=25)(batch, tfidf(batch), codes(3))[0]
    assert log_p[:2].tolist() == [0.0, 0.0]
    assert log_p[2] < 0


def test_biases_start_at_the_log_shares_of_the_words() -> None:
    decoder = BagOfWordsDecoder(BagOfWordsDecoderConfig(weights="counts", length="own"), BITS, TERMS)
    frequencies = torch.arange(TERMS, 0, -1)
    decoder.start_from(frequencies)
    batch = batch_of([Document({term: 1}) for term in range(TERMS)])
    log_p = decoder(batch, tfidf(batch), torch.zeros(1, TERMS, BITS))
    torch.testing.assert_close(log_p[0].exp(), frequencies / frequencies.sum())


def words_of(rows: list[dict[int, float]]) -> Words:
    """Given as a share for each term."""
    offsets = torch.tensor([0, *accumulate(len(row) for row in rows)])
    ids = torch.tensor([term for row in rows for term in row], dtype=torch.long)
    return Words(Ragged(ids, offsets), torch.tensor([share for row in rows for share in row.values()]))


def test_neighbours_words_cost_what_reconstructing_a_drawn_neighbour_costs_on_average() -> None:
    own, first, second = Document({1: 2, 3: 2}), Document({2: 1, 7: 3}), Document({3: 5})
    decoder = BagOfWordsDecoder(
        BagOfWordsDecoderConfig(weights="counts", length=50.0, neighbours=0.6), BITS, TERMS
    ).requires_grad_(False)
    z = codes(1)
    alone = torch.stack([decoder(one := batch_of([each]), tfidf(one), z)[0, 0] for each in (own, first, second)])
    batch = replace(batch_of([own]), neighbours=words_of([{2: 0.125, 3: 0.5, 7: 0.375}]))
    expected = 0.4 * alone[0] + 0.6 * (alone[1] + alone[2]) / 2
    torch.testing.assert_close(decoder(batch, tfidf(batch), z)[0, 0], expected)


def test_a_document_without_neighbours_keeps_its_own_words() -> None:
    decoder = bag_of_words(length=50.0)
    plain = batch_of([Document({1: 2}), Document({4: 1})])
    near = replace(plain, neighbours=words_of([{}, {30: 1.0}]))
    z = codes(2)
    before, after = decoder(plain, tfidf(plain), z)[0], decoder(near, tfidf(near), z)[0]
    assert before[0] == after[0]
    assert before[1] != after[1]


Sequences = TransformerDecoder | ConvolutionalDecoder
WAYS = [
    TransformerDecoderConfig(memory_slots=1, embedding=True),
    TransformerDecoderConfig(memory_slots=2, embedding=False),
    TransformerDecoderConfig(memory_slots=0, embedding=True),
    TransformerDecoderConfig(window=2),
    ConvolutionalDecoderConfig(kernel=2, dilations=(1, 2)),
]
"""Every way in which a decoder reads z and the past."""
NAMES = ["both", "memory", "embedding", "window", "convolutional"]


def written_by(
    config: TransformerDecoderConfig | ConvolutionalDecoderConfig = WAYS[0],
    *,
    positions: int = 32,
    vocabulary: int = TOKENS,
    word_dropout: float = 0.0,
) -> Sequences:
    """A small random decoder of this kind."""
    small: dict[str, object] = {"width": 16, "positions": positions, "word_dropout": word_dropout}
    torch.manual_seed(3)
    match config:
        case TransformerDecoderConfig():
            small |= {"layers": 2, "heads": 2}
            return shaken(TransformerDecoder(config.model_copy(update=small), BITS, vocabulary)).eval()
        case ConvolutionalDecoderConfig():
            return shaken(ConvolutionalDecoder(config.model_copy(update=small), BITS, vocabulary)).eval()


def log_p_of(decoder: Sequences, documents: list[Document], z: Tensor) -> Tensor:
    batch = batch_of(documents)
    return decoder(batch, tfidf(batch), z)


def seen_from(decoder: Sequences, length: int) -> Tensor:
    """Whether the prediction at place t changes with the input embedding at place s, (t, s), by its gradient."""
    embedded: list[Tensor] = []
    handle = decoder.embedding.register_forward_hook(lambda _module, _inputs, output: embedded.append(output))
    logits = decoder.logits(torch.arange(length).unsqueeze(0), codes(1)[0])
    handle.remove()
    gradients = [
        torch.autograd.grad(logits[0, t].square().sum(), embedded, retain_graph=True)[0] for t in range(length)
    ]
    return torch.stack([(gradient[0] != 0).any(dim=1) for gradient in gradients])


@pytest.mark.parametrize("config", WAYS, ids=NAMES)
def test_every_prediction_depends_on_z_and_on_no_later_input(config: TransformerDecoderConfig) -> None:
    decoder, z = written_by(config), codes(1)[0].requires_grad_()
    logits = decoder.logits(torch.arange(6).unsqueeze(0), z)
    for place in range(6):
        (by_z,) = torch.autograd.grad(logits[0, place].square().sum(), z, retain_graph=True)
        assert (by_z != 0).all()
    assert not seen_from(decoder, 6).triu(diagonal=1).any()


def test_a_decoder_without_a_window_sees_all_that_was_written() -> None:
    assert torch.equal(seen_from(written_by(), 6), torch.ones(6, 6).tril().bool())


@pytest.mark.parametrize("window", [1, 2, 3])
def test_two_layers_with_a_window_see_twice_the_window_less_one(window: int) -> None:
    """L layers that each see w inputs see L (w - 1) + 1."""
    seen = seen_from(written_by(TransformerDecoderConfig(window=window)), 8)
    assert torch.equal(seen, torch.ones(8, 8).tril().triu(diagonal=-2 * (window - 1)).bool())


@pytest.mark.parametrize(("kernel", "dilations"), [(2, (1,)), (3, (1, 1)), (2, (1, 2, 4)), (3, (1, 2))])
def test_convolutions_see_what_kernel_and_dilations_say(kernel: int, dilations: tuple[int, ...]) -> None:
    config = ConvolutionalDecoderConfig(kernel=kernel, dilations=dilations)
    field = 1 + (kernel - 1) * sum(dilations)
    assert config.receptive_field == field
    seen = seen_from(written_by(config), 12)
    assert int(seen[11].nonzero()[0]) == 12 - field
    assert not seen.triu(diagonal=1).any()
    assert not seen.tril(diagonal=-field).any()


@pytest.mark.parametrize("config", WAYS, ids=NAMES)
def test_without_its_projections_a_decoder_is_independent_of_z(config: TransformerDecoderConfig) -> None:
    decoder, z = written_by(config), codes(len(DOCUMENTS), samples=2)
    assert not torch.equal(*log_p_of(decoder, DOCUMENTS, z))
    for name, parameter in decoder.named_parameters():
        if name in ("to_memory.weight", "to_embedding.weight", "from_z.weight"):
            torch.nn.init.zeros_(parameter)
    assert torch.equal(*log_p_of(decoder, DOCUMENTS, z))


@pytest.mark.parametrize(("vocabulary", "positions"), [(1, 6), (2, 2), (2, 5), (3, 4)])
@pytest.mark.parametrize("config", [WAYS[0], WAYS[-1]], ids=["transformer", "convolutional"])
@pytest.mark.parametrize("word_dropout", [0.0, 1.0])
def test_probabilities_of_all_documents_sum_to_one(
    config: TransformerDecoderConfig, vocabulary: int, positions: int, word_dropout: float
) -> None:
    """A document that fills every position is cut and stands for all that begin like it; shorter ones have an end."""
    decoder = written_by(config, vocabulary=vocabulary, positions=positions, word_dropout=word_dropout)
    every = [Document({}, one) for length in range(positions + 1) for one in product(range(vocabulary), repeat=length)]
    log_p = log_p_of(decoder, every, codes(1, samples=3).expand(-1, len(every), -1))
    torch.testing.assert_close(log_p.exp().sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("config", [WAYS[0], WAYS[-1]], ids=["transformer", "convolutional"])
def test_a_long_document_is_as_probable_as_its_first_positions(config: TransformerDecoderConfig) -> None:
    decoder = written_by(config, positions=5)
    long, cut = Document({}, tuple(range(12))), Document({}, tuple(range(5)))
    log_p = log_p_of(decoder, [long, cut], codes(1).expand(-1, 2, -1))[0]
    assert log_p[0] == log_p[1]


def next_tokens(decoder: Sequences, document: Document, z_K: Tensor) -> list[Tensor]:
    """log p of every next token, one document and one position at a time."""
    read, steps = [decoder.teacher.begin], []
    for token in (*document.tokens, decoder.teacher.end):
        steps.append(decoder.logits(torch.tensor([read]), z_K.unsqueeze(0))[0, -1].log_softmax(dim=0))
        read.append(token)
    return steps


@pytest.mark.parametrize("config", WAYS, ids=NAMES)
def test_a_document_costs_what_a_loop_over_its_tokens_says(config: TransformerDecoderConfig) -> None:
    decoder, z = written_by(config), codes(len(DOCUMENTS), samples=2)
    expected, right = torch.zeros(2, len(DOCUMENTS)), torch.zeros(2, len(DOCUMENTS))
    for sample, (row, document) in product(range(2), enumerate(DOCUMENTS)):
        targets = (*document.tokens, decoder.teacher.end)
        steps = next_tokens(decoder, document, z[sample, row])
        expected[sample, row] = sum(step[token] for step, token in zip(steps, targets, strict=True))
        hits = [int(step.argmax()) == token for step, token in zip(steps, targets, strict=True)]
        right[sample, row] = sum(hits) / len(hits)
    torch.testing.assert_close(log_p_of(decoder, DOCUMENTS, z), expected, atol=1e-4, rtol=1e-4)
    lesson = decoder.teacher.lesson(batch_of(DOCUMENTS), training=False)
    logits = decoder.logits(lesson.inputs.repeat(2, 1), z.flatten(0, 1))
    torch.testing.assert_close(token_accuracy(logits, lesson.targets), right)


def test_a_decoder_that_always_says_one_word_is_right_where_that_word_is() -> None:
    """Of x x end and y end, the word x is right in 2 of 3 and 0 of 2 places; what follows the end does not count."""
    lesson = written_by().teacher.lesson(batch_of([Document({}, (4, 4)), Document({}, (5,))]), training=False)
    logits = torch.nn.functional.one_hot(torch.full((2, 3), 4), TOKENS + 1).float()
    torch.testing.assert_close(token_accuracy(logits, lesson.targets), torch.tensor([[2 / 3, 0.0]]))


@pytest.mark.parametrize("config", WAYS, ids=NAMES)
def test_a_document_costs_the_same_in_any_batch(config: TransformerDecoderConfig) -> None:
    decoder, z = written_by(config), codes(len(DOCUMENTS))
    together = log_p_of(decoder, DOCUMENTS, z)
    backwards = log_p_of(decoder, DOCUMENTS[::-1], z.flip(1)).flip(1)
    alone = [log_p_of(decoder, [document], z[:, row : row + 1]) for row, document in enumerate(DOCUMENTS)]
    torch.testing.assert_close(backwards, together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(alone, dim=1), together, atol=1e-5, rtol=1e-5)


def inputs_read(decoder: Sequences, documents: list[Document]) -> Tensor:
    """What the decoder reads of `documents` in one pass, (B, T)."""
    read: list[Tensor] = []
    handle = decoder.embedding.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0]))
    log_p_of(decoder, documents, codes(len(documents)))
    handle.remove()
    return read[0]


@pytest.mark.parametrize("config", [WAYS[0], WAYS[-1]], ids=["transformer", "convolutional"])
def test_word_dropout_hides_its_share_of_the_words_in_training_and_none_in_evaluation(
    config: TransformerDecoderConfig,
) -> None:
    """5,700 words with share 0.3: 4.9 standard errors of the binomial, a failure in a million seeds."""
    torch.manual_seed(0)
    documents = [Document({}, tuple(range(19)))] * 300
    decoder = written_by(config, word_dropout=0.3)
    seen = inputs_read(decoder, documents)
    trained = inputs_read(decoder.train(), documents)
    hidden = trained == decoder.teacher.hidden
    assert not (seen == decoder.teacher.hidden).any()
    assert not hidden[:, 0].any()
    assert torch.equal(trained[~hidden], seen[~hidden])
    words = hidden[:, 1:].double()
    assert float(words.mean()) == pytest.approx(0.3, abs=4.9 * math.sqrt(0.3 * 0.7 / words.numel()))


@pytest.mark.parametrize("training", [True, False])
def test_with_every_word_hidden_the_targets_are_still_the_document(training: bool) -> None:
    decoder = written_by(word_dropout=1.0).train(training)
    document, z, teacher = Document({}, (4, 7, 1)), codes(1), decoder.teacher
    read = torch.tensor([[teacher.begin, teacher.hidden, teacher.hidden, teacher.hidden]])
    log_p = decoder.logits(read, z[0])[0].log_softmax(dim=1)
    expected = log_p[range(4), [4, 7, 1, teacher.end]].sum()
    torch.testing.assert_close(log_p_of(decoder, [document], z)[0, 0], expected)


@pytest.mark.parametrize("config", [WAYS[0], WAYS[-1]], ids=["transformer", "convolutional"])
def test_with_every_word_hidden_what_is_read_is_the_same_for_all_documents_of_a_length(
    config: TransformerDecoderConfig,
) -> None:
    same_length = [Document({}, (1, 2, 3)), Document({}, (9, 8, 7))]
    for dropout, same in [(1.0, True), (0.0, False)]:
        read = inputs_read(written_by(config, word_dropout=dropout), same_length)
        assert torch.equal(read[0], read[1]) == same


def test_a_decoder_that_cannot_read_z_is_refused() -> None:
    with pytest.raises(ValueError, match="must read z"):
        TransformerDecoderConfig(memory_slots=0, embedding=False)


@pytest.mark.slow
@pytest.mark.parametrize("config", [WAYS[0], WAYS[-1]], ids=["transformer", "convolutional"])
def test_a_markov_chain_is_learned_to_its_entropy_rate(config: TransformerDecoderConfig) -> None:
    """Chains of 24 words over 5 symbols; no decoder can cost less a word than the chain's own conditional entropy."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    steps_VV = (2 * torch.randn(5, 5, generator=generator, dtype=torch.float64)).softmax(dim=1)
    first_V = torch.full((5,), 0.2, dtype=torch.float64)

    def chains(number: int) -> Tensor:
        words = [torch.multinomial(first_V, number, replacement=True, generator=generator)]
        while len(words) < 24:
            words.append(torch.multinomial(steps_VV[words[-1]], 1, generator=generator).squeeze(1))
        return torch.stack(words, dim=1)

    decoder = written_by(config, vocabulary=5, positions=24).train()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=5e-3)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 400)
        documents = [Document({}, tuple(chain)) for chain in chains(64).tolist()]
        optimizer.zero_grad()
        (-log_p_of(decoder, documents, torch.zeros(1, 64, BITS)).mean()).backward()
        optimizer.step()
    test = chains(1000)
    truth_N = first_V.log()[test[:, 0]] + steps_VV.log()[test[:, :-1], test[:, 1:]].sum(dim=1)
    documents = [Document({}, tuple(chain)) for chain in test.tolist()]
    with torch.no_grad():
        learned_N = log_p_of(decoder.eval(), documents, torch.zeros(1, 1000, BITS))[0].double()
    gap_N = (truth_N - learned_N) / 24
    error = float(gap_N.std()) / math.sqrt(1000)
    assert error < 0.005
    assert -4.9 * error < float(gap_N.mean()) < 0.03
