"""What a conditional model is told, and that it uses it. Statistics: 4.9 standard errors, fixed seeds."""

import math

import pytest
import torch
from documents import EMPTY, Document, batch_of, random_documents, shaken
from torch import Tensor

from vae_core.batch import Batch
from vae_core.condition import (
    UNKNOWN,
    ClassCondition,
    ClassConditionConfig,
    OpeningCondition,
    OpeningConditionConfig,
    build_condition,
)
from vae_core.decoders import BagOfWordsDecoderConfig, TransformerDecoderConfig
from vae_core.encoders import BagOfWordsEncoderConfig
from vae_core.latents import BernoulliConfig, GaussianConfig
from vae_core.model import VAE, VAEConfig

TERMS, TOKENS = 40, 30
DOCUMENTS = [*random_documents(5, terms=TERMS, tokens=TOKENS), EMPTY]
NAMES = ("sea", "space", "kitchen")
CLASSES = ClassConditionConfig(classes=NAMES, width=4, unseen=0.25)
OPENING = OpeningConditionConfig(tokens=3, width=6)


def told(classes: list[int], documents: list[Document] = DOCUMENTS) -> Batch:
    batch = batch_of(documents)
    return Batch(batch.tokens, batch.terms, batch.counts, torch.tensor(classes))


def model_of(condition: object | None, decoder: object | None = None) -> VAE:
    torch.manual_seed(0)
    config = VAEConfig(
        encoder=BagOfWordsEncoderConfig(width=12, dropout=0, term_dropout=0),
        latent=BernoulliConfig(bits=8),
        decoder=decoder or TransformerDecoderConfig(width=16, heads=2, layers=1, positions=32),
        condition=condition,
        terms=TERMS,
        tokens=TOKENS,
    )
    return shaken(VAE(config)).eval()


def test_every_class_has_its_vector_and_the_unknown_one_its_own() -> None:
    condition = ClassCondition(CLASSES).eval()
    rows = condition.embedding.weight
    expected = torch.stack([rows[2], rows[0], rows[3], rows[1], rows[3], rows[2]])
    assert torch.equal(condition(told([2, 0, UNKNOWN, 1, UNKNOWN, 2])), expected)
    assert torch.equal(condition(batch_of(DOCUMENTS)), rows[3].expand(6, -1))
    assert condition.rest(batch := batch_of(DOCUMENTS)) is batch


def test_a_share_of_classes_is_hidden_in_training_and_none_in_evaluation() -> None:
    torch.manual_seed(0)
    condition = build_condition(CLASSES, tokens=TOKENS)
    batch = told([1] * 10_000, [EMPTY] * 10_000)
    hidden = (condition.train()(batch) == condition.embedding.weight[3]).all(dim=1).double()
    assert float(hidden.mean()) == pytest.approx(0.25, abs=4.9 * math.sqrt(0.25 * 0.75 / 10_000))
    assert (condition.eval()(batch) == condition.embedding.weight[1]).all()


def test_an_opening_is_the_mean_of_its_placed_tokens() -> None:
    """By a loop; places tell the same words in another order apart."""
    torch.manual_seed(0)
    condition = OpeningCondition(OPENING, TOKENS)
    found = condition(batch_of(DOCUMENTS))
    for row, document in enumerate(DOCUMENTS):
        tokens = document.tokens[:3]
        placed = [condition.embedding.weight[t] + condition.place.weight[i] for i, t in enumerate(tokens)]
        expected = torch.stack(placed).tanh().mean(dim=0) if placed else torch.zeros(6)
        torch.testing.assert_close(found[row], expected)
    one, other = condition(batch_of([Document({}, (1, 2, 3)), Document({}, (3, 2, 1))]))
    assert not torch.allclose(one, other)


def test_the_decoder_writes_exactly_what_follows_the_opening() -> None:
    """The targets that it is handed are the tokens after the third; of a shorter document nothing but its end."""
    model, handed = model_of(OPENING), []
    model.decoder.register_forward_pre_hook(lambda _part, given: handed.append(given[0]))
    batch = batch_of([*DOCUMENTS, Document({}, (1, 2))])
    model(batch)
    rest = handed[0].tokens
    written = [rest.values[a:b].tolist() for a, b in zip(rest.offsets[:-1], rest.offsets[1:], strict=True)]
    assert written == [list(document.tokens[3:]) for document in (*DOCUMENTS, Document({}, (1, 2)))]
    assert handed[0].terms is batch.terms


@torch.no_grad()
@pytest.mark.parametrize("decoder", [None, BagOfWordsDecoderConfig(weights="counts", length="own")])
def test_a_condition_of_zeros_is_no_condition(decoder: object) -> None:
    """The unconditional model has the same weights, without the columns that would read the condition."""
    model, plain = model_of(CLASSES, decoder), model_of(None, decoder)
    weights = model.state_dict()
    plain.load_state_dict(
        {
            name: weights[name][:, : like.shape[1]] if like.dim() == 2 else weights[name]
            for name, like in plain.state_dict().items()
        }
    )
    batch = told([0, 1, 2, UNKNOWN, 0, 1])
    expected = plain(batch)
    assert not torch.allclose(model(batch).log_px, expected.log_px)
    torch.nn.init.zeros_(model.condition.embedding.weight)
    found = model(batch)
    torch.testing.assert_close(found.log_px, expected.log_px, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found.kl_groups, expected.kl_groups, atol=1e-5, rtol=1e-5)


def of_class(number: int) -> tuple[list[Document], Tensor]:
    """Documents of 6 tokens; four in five are from their class's ten, the rest from anywhere."""
    classes = torch.arange(number) % 3
    own = 10 * classes.unsqueeze(1) + torch.randint(10, (number, 6))
    tokens = torch.where(torch.rand(number, 6) < 0.8, own, torch.randint(30, (number, 6)))
    return [Document({t: row.count(t) for t in sorted(set(row))}, tuple(row)) for row in tokens.tolist()], classes


def test_told_the_class_of_another_document_a_trained_decoder_finds_the_document_less_likely() -> None:
    torch.manual_seed(0)
    config = VAEConfig(
        encoder=BagOfWordsEncoderConfig(width=16, dropout=0, term_dropout=0),
        latent=GaussianConfig(dimensions=2),
        decoder=BagOfWordsDecoderConfig(weights="counts", length="own"),
        condition=CLASSES,
        terms=30,
        tokens=30,
    )
    model = VAE(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(200):
        documents, classes = of_class(100)
        terms = model(told(classes.tolist(), documents))
        optimizer.zero_grad()
        (-terms.log_px.mean() + terms.kl_groups.sum(dim=1).mean()).backward()
        optimizer.step()
    documents, classes = of_class(300)
    numbers = (classes, torch.full_like(classes, UNKNOWN), (classes + 1) % 3)
    right, unknown, wrong = (told(number.tolist(), documents) for number in numbers)
    model.eval()
    with torch.no_grad():
        # z says nothing of the document here, so that the class alone makes the difference.
        z = torch.zeros(1, 300, 2)
        log_px = [model.log_px(batch, z)[0] for batch in (right, unknown, wrong)]
    for better, worse in [(0, 1), (1, 2), (0, 2)]:
        gain = (log_px[better] - log_px[worse]).double()
        assert float(gain.mean()) > 4.9 * float(gain.std()) / math.sqrt(300)
    # A word is 0.08 + 0.2 / 30 likely in its own class and 0.2 / 30 in another, about 13 to 1; 0.8 more are its own.
    assert float((log_px[0] - log_px[2]).mean()) / 6 == pytest.approx(0.8 * math.log(13), rel=0.3)
