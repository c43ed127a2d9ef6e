"""Controlled generation: what each loss teaches, soft texts against hard ones, and a toy language of a known rule."""

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from documents import Document, batch_of, random_documents, shaken
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import one_hot

from vae_core.attributes import Discriminator, Parts
from vae_core.batch import Batch, Ragged
from vae_core.errors import Misuse
from vae_core.generation import GREEDY, generate, of_class, prior_z, sample
from vae_core.model import VAE, Composition, VAEConfig
from vae_core.objectives import Objective, loss
from vae_core.schedule import part_of
from vae_core.soft_text import SoftText, places, write_softly

TOKENS = 9
NOTHING = {"code": 0, "latent": 0, "labelled": 0, "generated": 0}
DOCUMENTS = random_documents(8, terms=5, tokens=TOKENS, longest=5)
CLASSES = torch.tensor([0, 1, 2, 0, 1, 2, 0, -1])
PARTS: dict[str, Any] = {
    "encoder": {
        "reads": "tokens",
        "weights": "even",
        "width": 8,
        "heads": 2,
        "hidden": 12,
        "segment": 8,
        "grow_after": 0,
    },
    "latent": {"kind": "gaussian", "dimensions": 3},
    "decoder": {"kind": "transformer", "width": 8, "heads": 2, "layers": 1, "positions": 6},
    "condition": {"kind": "class", "classes": ["a", "b", "c"], "width": 4},
    "attributes": {"length": 4, "texts": 16, "width": 8},
}
SOFT = ["transformer", "convolutional"]
CONVOLUTIONAL = {"kind": "convolutional", "width": 8, "positions": 6}


def model_of(**others: Any) -> VAE:
    torch.manual_seed(0)
    return shaken(VAE(VAEConfig.model_validate(PARTS | others | {"terms": 5, "tokens": TOKENS}))).double()


def with_decoder(kind: str) -> VAE:
    return model_of(decoder=PARTS["decoder"] if kind == "transformer" else CONVOLUTIONAL)


def labelled_batch(classes: Tensor = CLASSES) -> Batch:
    return replace(batch_of(DOCUMENTS), classes=classes)


def taught(model: VAE, batch: Batch) -> set[str]:
    """The parts that the losses beside the VAE's have a gradient for, which is not 0."""
    model.zero_grad()
    torch.manual_seed(1)
    model.train()(batch).beside.backward()
    return {part_of(name) for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.mark.parametrize(
    ("weight", "part"),
    [("code", "decoder"), ("latent", "decoder"), ("labelled", "attributes"), ("generated", "attributes")],
)
@pytest.mark.parametrize("prior", ["standard", "learned", "vamp"])
def test_each_loss_teaches_one_part_alone(weight: str, part: str, prior: str) -> None:
    latent = {"kind": "gaussian", "dimensions": 3, "prior": prior}
    model = model_of(latent=latent, attributes=PARTS["attributes"] | NOTHING | {weight: 1})
    assert taught(model, labelled_batch()) == {part}


@pytest.mark.parametrize("decoder", SOFT)
def test_generated_texts_teach_every_parameter_of_the_decoder_that_writes(decoder: str) -> None:
    model = with_decoder(decoder)
    torch.manual_seed(1)
    model.train()(labelled_batch()).beside.backward()
    silent = {name for name, p in model.decoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert silent == set()


@pytest.mark.parametrize("latent", ["bernoulli_mixture", "categorical", "gaussian_mixture"])
def test_any_latent_of_vectors_can_be_the_unstructured_part(latent: str) -> None:
    model = model_of(latent={"kind": latent}, attributes=PARTS["attributes"] | NOTHING | {"latent": 1})
    assert taught(model, labelled_batch()) == {"decoder"}


def test_without_weights_training_is_that_of_the_vae() -> None:
    classes = CLASSES.clamp(min=0)
    plain, weightless = model_of(attributes=None), model_of(attributes=PARTS["attributes"] | NOTHING)
    weightless.load_state_dict(plain.state_dict(), strict=False)
    found = []
    for model in (plain, weightless):
        torch.manual_seed(3)
        total = loss(model.train()(labelled_batch(classes), samples=2), Objective(), progress=0.7).total
        total.backward()
        found.append((total, [p.grad for name, p in model.named_parameters() if part_of(name) != "attributes"]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(one, other) for one, other in zip(found[0][1], found[1][1], strict=True))


def test_the_losses_are_those_of_the_paper_term_by_term() -> None:
    """At a temperature of nearly 0 texts are the greedy ones, which the model itself can be asked about."""
    cold = {"length": 4, "texts": 32, "width": 8, "temperature": 1e-9, "entropy": 0.7}
    for weight in ("code", "latent", "labelled", "generated"):
        model = model_of(attributes=cold | NOTHING | {weight: 2.0})
        torch.manual_seed(5)
        z = model.latent.sample_prior(32)
        classes = torch.randint(3, (32,))
        model.train()
        torch.manual_seed(5)
        parts = Parts(model.encoder, model.condition, model.latent, model.decoder)
        beside = model.attributes(labelled_batch(), parts, 1.0)
        model.eval()
        written = generate(model.decoder, torch.cat([z, model.condition.embedding.weight[classes]], dim=1), GREEDY)
        texts = replace(batch_of([Document({}, tuple(tokens[:4])) for tokens in written]), classes=classes)
        log_q = model.attributes.discriminator(texts.tokens).log_softmax(1)
        rows = torch.arange(32)
        on_known = model.attributes.discriminator(labelled_batch().tokens).log_softmax(1)
        expected = {
            "code": -log_q[rows, classes].mean(),
            "latent": -model.latent.log_q(model.posterior(texts), z.unsqueeze(0)).mean(),
            "labelled": -on_known[torch.arange(7), CLASSES[:7]].mean(),
            "generated": -log_q[rows, classes].mean() - 0.7 * (log_q.exp() * log_q).sum(1).mean(),
        }
        torch.testing.assert_close(beside, 2 * expected[weight], rtol=1e-9, atol=1e-9)


def test_the_temperature_falls_from_one_to_its_end() -> None:
    model = model_of(attributes=PARTS["attributes"] | NOTHING | {"code": 1, "temperature": 0.01})
    constant = model_of(attributes=PARTS["attributes"] | NOTHING | {"code": 1, "temperature": 0.1})
    found = []
    for one, progress in ((model, 0.5), (constant, 1.0), (model, 0.0), (constant, 0.0)):
        torch.manual_seed(2)
        found.append(float(one.train()(labelled_batch(), progress=progress).beside.detach()))
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    assert found[2] == found[3] != found[0]


@torch.no_grad()
@pytest.mark.parametrize("decoder", SOFT)
def test_as_the_temperature_falls_soft_texts_become_the_greedy_ones(decoder: str) -> None:
    model = with_decoder(decoder).eval()
    model.decoder.output.bias[TOKENS] += 1.5
    z = 4 * torch.randn(40, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    text = write_softly(model.decoder, z, 1e-9, 5)
    written = [tokens[:5] for tokens in generate(model.decoder, z, GREEDY)]
    found = [text.tokens[row, : int(text.goes_on[row].sum())].argmax(dim=1).tolist() for row in range(40)]
    assert found == written
    assert len({len(tokens) for tokens in written}) > 2
    assert set(text.goes_on.unique().tolist()) == {0.0, 1.0}
    assert places(text).numbers.lengths.tolist() == [len(tokens) for tokens in written]
    warm = write_softly(model.decoder, z, 1.0, 5)
    assert 0 < float(warm.tokens.amax(dim=2)[warm.goes_on > 0.1].min()) < 0.9


@torch.no_grad()
def test_a_text_goes_on_with_the_probability_that_nothing_before_was_the_end() -> None:
    """A decoder that reads neither words nor z, so that p(x_t) is known from its logits alone."""
    model = model_of(decoder=PARTS["decoder"] | {"word_dropout": 1.0}).eval()
    z = torch.zeros(2, 7, dtype=torch.float64)
    text = write_softly(model.decoder, z, 0.5, 4)
    teacher = model.decoder.teacher
    shown = torch.tensor([[teacher.begin, teacher.hidden, teacher.hidden, teacher.hidden]]).expand(2, -1)
    p = (2 * model.decoder.logits(shown, z)).softmax(dim=-1)
    words = p[..., :-1]
    torch.testing.assert_close(text.tokens, words / words.sum(-1, keepdim=True))
    for t in range(4):
        expected = math.prod(1 - float(p[0, s, -1]) for s in range(t + 1))
        assert float(text.goes_on[0, t]) == pytest.approx(expected, rel=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("decoder", SOFT)
def test_a_decoder_reads_certain_inputs_as_ids_and_mixed_ones_as_mixed_embeddings(decoder: str) -> None:
    decoder_of = with_decoder(decoder).eval().decoder
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(decoder_of.teacher.read, (5, 6), generator=generator)
    z = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    soft = one_hot(ids, decoder_of.teacher.read).double()
    torch.testing.assert_close(decoder_of.logits(soft, z), decoder_of.logits(ids, z), rtol=1e-12, atol=1e-12)
    half = one_hot(ids.flip(0), decoder_of.teacher.read).double()
    mixed = decoder_of.logits((soft + half) / 2, z)
    mean = (decoder_of.embedding(ids) + decoder_of.embedding(ids.flip(0))) / 2
    decoder_of.embedding = torch.nn.Embedding.from_pretrained(mean.flatten(0, 1))
    torch.testing.assert_close(mixed, decoder_of.logits(torch.arange(30).view(5, 6), z), rtol=1e-12, atol=1e-12)


def certain(tokens: Ragged, *, longest: int) -> SoftText:
    """The tokens as a soft text, with any nonsense after their end."""
    ids = torch.full((len(tokens.lengths), longest), 3)
    ids[tokens.rows, tokens.positions] = tokens.values
    return SoftText(one_hot(ids, TOKENS).double(), (torch.arange(longest) < tokens.lengths.unsqueeze(1)).double())


@torch.no_grad()
@pytest.mark.parametrize("layers", [0, 2])
def test_encoder_and_discriminator_read_certain_texts_as_tokens(layers: int) -> None:
    model = model_of(encoder=PARTS["encoder"] | {"layers": layers}).eval()
    batch = batch_of([*DOCUMENTS, Document()])
    soft = places(certain(batch.tokens, longest=9))
    for progress in (0.0, 1.0):
        hard = model.encoder(batch, batch.tfidf(model.idf), progress)
        found = model.encoder.of_soft(soft.numbers, soft.tokens, soft.weights, progress)
        torch.testing.assert_close(found, hard, rtol=1e-10, atol=1e-10)
    read = model.attributes.discriminator(certain(batch.tokens, longest=9))
    torch.testing.assert_close(read, model.attributes.discriminator(batch.tokens), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_place_that_hardly_goes_on_weighs_hardly_anything() -> None:
    model = model_of().eval()
    batch = batch_of(DOCUMENTS)
    text = certain(batch.tokens, longest=6)
    faint = text._replace(goes_on=text.goes_on.clamp(min=1e-5))
    one, other = places(text), places(faint)
    hard = model.encoder.of_soft(one.numbers, one.tokens, one.weights)
    torch.testing.assert_close(
        model.encoder.of_soft(other.numbers, other.tokens, other.weights), hard, atol=1e-3, rtol=1e-3
    )
    read = model.attributes.discriminator(faint), model.attributes.discriminator(text)
    torch.testing.assert_close(*read, atol=1e-3, rtol=1e-3)


def test_gradients_through_soft_texts_are_those_of_finite_differences() -> None:
    model = model_of(attributes=PARTS["attributes"] | {"generated": 0, "labelled": 0, "texts": 3})
    parameter = model.decoder.output.weight
    step = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def beside() -> Tensor:
        torch.manual_seed(4)
        return model.train()(labelled_batch(), progress=0.5).beside

    slope = float((torch.autograd.grad(beside(), parameter)[0] * step).sum())
    ends = []
    for side in (1e-5, -2e-5):
        parameter.data += side * step
        ends.append(float(beside().detach()))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)
    assert abs(slope) > 1e-3


def test_unknown_classes_are_the_discriminators_and_known_ones_and_empty_documents_are_not_touched() -> None:
    model = model_of().eval()
    batch = batch_of([*DOCUMENTS[:4], Document()])
    read = model.attributes.discriminator(batch.tokens).argmax(1).tolist()
    assert len(set(read)) > 1
    other = (read[1] + 1) % 3
    classes = torch.tensor([-1, other, -1, -1, -1])
    expected = [read[0], other, read[2], read[3], 3]
    told = model.told(replace(batch, classes=classes))
    assert torch.equal(told, model.condition.embedding.weight[torch.tensor(expected)])
    assert torch.equal(model.told(batch)[1], model.condition.embedding.weight[read[1]])
    alone = model_of(attributes=None).eval()
    assert torch.equal(alone.told(batch), alone.condition.embedding.weight[3].expand(5, -1))


def test_a_batch_without_known_classes_gives_the_discriminator_a_gradient_of_zero() -> None:
    """Workers that reduce gradients together need one of every parameter, whatever their documents."""
    model = model_of(attributes=PARTS["attributes"] | NOTHING | {"labelled": 1})
    terms = model.train()(labelled_batch(torch.full((8,), -1)))
    assert float(terms.beside.detach()) == 0
    terms.beside.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.attributes.parameters())


def test_evaluation_has_nothing_beside() -> None:
    assert float(model_of().eval()(labelled_batch()).beside) == 0


def test_samples_are_told_a_class_with_attributes_and_without(tmp_path: Any) -> None:
    for attributes in (None, PARTS["attributes"]):
        model = model_of(attributes=attributes).float().eval()
        z = prior_z(model, 5, told=of_class(model, "b", 5))
        assert torch.equal(z[:, 3:], model.condition.embedding.weight[1].expand(5, -1))
        assert torch.equal(prior_z(model, 5)[:, 3:], model.condition.embedding.weight[3].expand(5, -1))
        assert len(sample(model, 4, told=of_class(model, "c", 4))) == 4
        model.save_pretrained(tmp_path)
        opened = VAE.from_pretrained(tmp_path)
        assert torch.equal(opened(labelled_batch()).log_px, model(labelled_batch()).log_px)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"condition": None}, "set condition.kind to class"),
    ({"condition": {"kind": "opening"}}, "set condition.kind to class"),
    ({"encoder": {"reads": "terms"}}, "encoder.reads to tokens"),
    ({"encoder": {"reads": "tokens"}}, "encoder.weights to even"),
    ({"encoder": {"kind": "bag_of_words"}}, "set encoder.kind to transformer"),
    ({"decoder": {"kind": "bag_of_words"}}, "set decoder.kind to transformer"),
]


@pytest.mark.parametrize(("wrong", "remedy"), WRONG)
def test_parts_that_attributes_cannot_use_are_refused_with_the_remedy(wrong: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValidationError, match=remedy):
        Composition.model_validate(PARTS | wrong)
    Composition.model_validate(PARTS | wrong | {"attributes": None})


def test_one_class_is_no_attribute() -> None:
    with pytest.raises(Misuse, match="the model has 1"):
        model_of(condition={"kind": "class", "classes": ["a"]})


def test_the_discriminator_looks_at_neighbours_in_order() -> None:
    torch.manual_seed(0)
    discriminator = shaken(Discriminator(8, classes=2, tokens=TOKENS)).double()
    texts = batch_of([Document({}, (1, 2, 3, 4)), Document({}, (1, 2, 3, 4)), Document({}, (3, 4, 1, 2))]).tokens
    first, same, moved = discriminator(texts)
    assert torch.equal(first, same)
    assert not torch.allclose(first, moved)


def toy_language(documents: int, *, seed: int) -> tuple[list[Document], Tensor]:
    """Two tokens: the first is the class, 0 or 1, and the second, 2 to 5, is anything."""
    dice = random.Random(seed)
    classes = [dice.randrange(2) for _ in range(documents)]
    return [Document({}, (kind, 2 + dice.randrange(4))) for kind in classes], torch.tensor(classes)


def toy_model() -> VAE:
    encoder = PARTS["encoder"] | {"width": 16, "hidden": 16, "dropout": 0, "term_dropout": 0}
    parts = {
        "encoder": encoder,
        "latent": {"kind": "gaussian", "dimensions": 2},
        "decoder": {"kind": "transformer", "width": 16, "heads": 2, "layers": 1, "positions": 4},
        "condition": {"kind": "class", "classes": ["a", "b"], "width": 8},
        "attributes": {"length": 3, "texts": 32, "latent": 0.1, "temperature": 0.3},
    }
    return VAE(VAEConfig.model_validate({**parts, "terms": 5, "tokens": 6}))


def trained(model: VAE, documents: list[Document], known: Tensor, steps: int) -> VAE:
    """By the plain objective, with as many nats of z as the second token needs free of charge."""
    objective = Objective.model_validate({"rate": {"kind": "free_bits", "nats": 1.6, "per": "document", "mean": True}})
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    curve = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rows = torch.randint(len(documents), (32,))
        batch = replace(batch_of([documents[row] for row in rows.tolist()]), classes=known[rows])
        optimizer.zero_grad()
        loss(model(batch, progress=step / steps), objective, 1.0).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        curve.step()
    return model.eval()


@pytest.mark.slow
def test_texts_show_the_class_they_are_told_and_swapping_it_leaves_the_rest_to_z() -> None:
    """Three documents in ten have a known class; whether a text shows one is a rule on its first token."""
    documents, classes = toy_language(400, seed=1)
    torch.manual_seed(1)
    known = classes.masked_fill(torch.arange(400) >= 120, -1)
    model = trained(toy_model(), documents, known, steps=600)
    found = model.attributes.classified(replace(batch_of(documents), classes=known)).classes
    assert float((found == classes).double().mean()) > 0.99
    for number, name in enumerate("ab"):
        texts = sample(model, 500, told=of_class(model, name, 500))
        assert sum(tokens[:1] == [number] for tokens in texts) / 500 > 0.95
    z = model.latent.sample_prior(500).unsqueeze(0)
    pairs = [generate(model.decoder, model.decoder_input(of_class(model, name, 500), z)[0]) for name in "ab"]
    together = list(zip(*pairs, strict=True))
    assert sum(one[:1] == [0] and other[:1] == [1] for one, other in together) / 500 > 0.95
    same = sum(one[1:] == other[1:] for one, other in together) / 500
    shares = [[sum(tokens[1:] == [token] for tokens in texts) / 500 for token in range(2, 6)] for texts in pairs]
    by_chance = sum(one * other for one, other in zip(*shares, strict=True))
    assert by_chance < 0.5
    assert same > by_chance + 0.25
