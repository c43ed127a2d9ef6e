"""Generation against plain softmax tables, loops and enumerated paths. Statistics: fixed seeds, 4.9 standard errors."""

import math

import pytest
import torch
from documents import EMPTY, Document, batch_of, planted_documents, random_documents, shaken
from scipy.stats import chisquare
from torch import Tensor

from vae_core.condition import ClassConditionConfig, OpeningConditionConfig
from vae_core.decoders import BagOfWordsDecoderConfig, TransformerDecoderConfig
from vae_core.decoders.autoregressive import Teacher
from vae_core.decoders.convolutional import ConvolutionalDecoderConfig
from vae_core.decoders.denoising_attention import DenoisingAttentionDecoderConfig
from vae_core.decoders.transformer import TransformerDecoder
from vae_core.encoders import BagOfWordsEncoderConfig, TransformerEncoderConfig
from vae_core.errors import Misuse
from vae_core.generation import (
    ANCESTRAL,
    GREEDY,
    Sampling,
    generate,
    interpolate,
    mode_z,
    next_tokens,
    of_class,
    path_z,
    prior_z,
    reconstruct,
    sample,
)
from vae_core.latents import (
    BernoulliConfig,
    BernoulliMixtureConfig,
    CategoricalConfig,
    GaussianConfig,
    GaussianMixtureConfig,
)
from vae_core.latents.nonparametric import NonparametricConfig
from vae_core.model import VAE, VAEConfig
from vae_core.topics import bit_words, component_words, top_words

TERMS, TOKENS = 40, 12
DOCUMENTS = random_documents(5, terms=TERMS, tokens=TOKENS, longest=8)
BAG_IN = BagOfWordsEncoderConfig(width=12, dropout=0, term_dropout=0)
BAG_OUT = BagOfWordsDecoderConfig(weights="counts", length="own")
TOKENS_OUT = TransformerDecoderConfig(width=16, heads=2, layers=1, positions=10)
DISCRETE = [
    BernoulliConfig(bits=12),
    BernoulliMixtureConfig(bits=16, components=3, noise=False),
    CategoricalConfig(variables=6, values=3),
]
REAL = [GaussianConfig(dimensions=5), GaussianConfig(dimensions=5, prior="vamp"), GaussianMixtureConfig(dimensions=5)]
every_vector = pytest.mark.parametrize("latent", [*DISCRETE, *REAL], ids=lambda latent: latent.kind)


def model_of(latent: object, decoder: object = TOKENS_OUT, **others: object) -> VAE:
    torch.manual_seed(0)
    settings = {"encoder": BAG_IN, "latent": latent, "decoder": decoder, "terms": TERMS, "tokens": TOKENS}
    return shaken(VAE(VAEConfig.model_validate(settings | others)), size=1.0).eval()


def set_model() -> VAE:
    encoder = TransformerEncoderConfig(reads="tokens", width=16, heads=2, hidden=12, segment=8)
    decoder = DenoisingAttentionDecoderConfig(width=16, heads=2, layers=1, positions=10)
    return model_of(NonparametricConfig(dimensions=8), decoder, encoder=encoder)


class Table:
    """A decoder whose next token depends on the place alone: row t of a table of logits."""

    def __init__(self, logits_TV: Tensor) -> None:
        self.logits_TV = logits_TV
        self.teacher = Teacher(vocabulary=logits_TV.shape[1] - 1, positions=len(logits_TV))

    def logits(self, inputs_MT: Tensor, z_MK: Tensor) -> Tensor:
        del z_MK
        return self.logits_TV[: inputs_MT.shape[1]].expand(len(inputs_MT), -1, -1)


def written_by_hand(decoder: TransformerDecoder, z_K: Tensor) -> list[int]:
    """The most probable next token, one document and one token at a time."""
    read = [decoder.teacher.begin]
    while len(read) <= decoder.teacher.positions:
        best = int(decoder.logits(torch.tensor([read]), z_K.unsqueeze(0))[0, -1].argmax())
        if best == decoder.teacher.end:
            break
        read.append(best)
    return read[1:]


@torch.no_grad()
@pytest.mark.parametrize("decoder", [TOKENS_OUT, ConvolutionalDecoderConfig(width=16, positions=10)])
def test_greedy_takes_the_best_next_token_of_each_document(decoder: object) -> None:
    model = model_of(GaussianConfig(dimensions=5), decoder)
    model.decoder.output.bias[TOKENS] += 15.0
    z = 3 * torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    written = generate(model.decoder, z)
    assert written == [written_by_hand(model.decoder, z_K) for z_K in z]
    assert len({len(tokens) for tokens in written}) > 2


def test_a_document_ends_at_its_end_or_at_the_last_position() -> None:
    ends = torch.zeros(4, 6)
    ends[:2, 3], ends[2:, 5] = 9.0, 9.0
    assert generate(Table(ends), torch.zeros(2, 1)) == [[3, 3]] * 2
    endless = torch.zeros(4, 6)
    endless[:, 2] = 9.0
    assert generate(Table(endless), torch.zeros(1, 1)) == [[2, 2, 2, 2]]
    immediately = torch.zeros(4, 6)
    immediately[:, 5] = 9.0
    assert generate(Table(immediately), torch.zeros(1, 1)) == [[]]


def test_a_temperature_near_zero_is_greedy() -> None:
    model = model_of(GaussianConfig(dimensions=5))
    z = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    for temperature in (1e-5, 1e-40):
        assert generate(model.decoder, z, Sampling(temperature=temperature)) == generate(model.decoder, z, GREEDY)
    assert generate(model.decoder, z, ANCESTRAL) != generate(model.decoder, z, GREEDY)


LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0])


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), LOGITS.softmax(0)),
        (Sampling(temperature=0.5), (2 * LOGITS).softmax(0)),
        (Sampling(top_k=2), torch.tensor([math.e / (1 + math.e), 1 / (1 + math.e), 0, 0, 0, 0])),
        # .559 + .206 < .8 <= .559 + .206 + .125: the third is the one that reaches .8.
        (Sampling(top_p=0.8), torch.cat([LOGITS[:3].softmax(0), torch.zeros(3)])),
        (Sampling(top_p=0.5), torch.tensor([1.0, 0, 0, 0, 0, 0])),
        # Heated to 4 they are nearly alike, and three of four are needed for a share of 0.7.
        (Sampling(temperature=4, top_k=4, top_p=0.7), torch.cat([(LOGITS[:3] / 4).softmax(0), torch.zeros(3)])),
    ],
)
def test_tokens_are_drawn_with_the_probabilities_that_are_left(sampling: Sampling, expected: Tensor) -> None:
    """Chi-squared of 100,000 draws against the table, in shuffled order so that ranks are not ids."""
    torch.manual_seed(0)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    drawn = next_tokens(LOGITS[order].expand(100_000, -1), sampling)
    seen = drawn.bincount(minlength=6)[order.argsort()].double().numpy()
    possible = expected.numpy() > 0
    assert not seen[~possible].any()
    if possible.sum() > 1:
        wanted = expected.double().numpy()[possible]
        assert chisquare(seen[possible], 100_000 * wanted / wanted.sum()).pvalue > 1e-6


def test_first_tokens_of_a_decoder_follow_its_softmax() -> None:
    model, z = model_of(GaussianConfig(dimensions=5)), torch.ones(1, 5)
    teacher = model.decoder.teacher
    with torch.no_grad():
        expected = model.decoder.logits(torch.tensor([[teacher.begin]]), z)[0, 0].double().softmax(0).numpy()
    torch.manual_seed(0)
    written = generate(model.decoder, z.expand(5_000, -1), ANCESTRAL)
    first = torch.tensor([tokens[0] if tokens else teacher.end for tokens in written])
    assert chisquare(first.bincount(minlength=TOKENS + 1).numpy(), 5_000 * expected).pvalue > 1e-6


def test_a_decoder_that_is_shown_no_word_writes_each_place_by_itself() -> None:
    model = model_of(GaussianConfig(dimensions=5), TOKENS_OUT.model_copy(update={"word_dropout": 1.0}))
    teacher, z = model.decoder.teacher, torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    read = torch.tensor([[teacher.begin] + [teacher.hidden] * 9]).expand(20, -1)
    best = model.decoder.logits(read, z).argmax(dim=-1).tolist()
    expected = [row[: row.index(teacher.end)] if teacher.end in row else row for row in best]
    assert generate(model.decoder, z) == expected


@every_vector
def test_a_reconstruction_is_written_of_the_mode(latent: object) -> None:
    model, batch = model_of(latent), batch_of([*DOCUMENTS, EMPTY])
    z = model.latent.mode(model.posterior(batch))
    assert reconstruct(model, batch) == [written_by_hand(model.decoder, z_K) for z_K in z]


@every_vector
def test_a_path_begins_and_ends_at_its_documents(latent: object) -> None:
    model = model_of(latent)
    first, second = batch_of(DOCUMENTS[:1]), batch_of(DOCUMENTS[1:2])
    path = path_z(model, first, second, 7)
    assert torch.equal(path[0], mode_z(model, first)[0])
    assert torch.equal(path[-1], mode_z(model, second)[0])
    written = interpolate(model, first, second, 7)
    assert [written[0], written[-1]] == reconstruct(model, batch_of(DOCUMENTS[:2]))


@pytest.mark.parametrize("latent", REAL, ids=lambda latent: latent.kind)
def test_a_path_of_real_numbers_is_a_straight_line(latent: object) -> None:
    model = model_of(latent)
    first, second = batch_of(DOCUMENTS[:1]), batch_of(DOCUMENTS[1:2])
    one, other = mode_z(model, first), mode_z(model, second)
    expected = torch.cat([(1 - share) * one + share * other for share in (0, 0.25, 0.5, 0.75, 1)])
    torch.testing.assert_close(path_z(model, first, second, 5), expected)


@torch.no_grad()
@pytest.mark.parametrize("latent", DISCRETE, ids=lambda latent: latent.kind)
def test_a_path_of_values_changes_one_at_a_time_and_the_least_sure_first(latent: object) -> None:
    """By a plain loop: the sureness of a value is how far its logit leads the next one."""
    model = model_of(latent)
    first, second = batch_of(DOCUMENTS[:1]), batch_of(DOCUMENTS[1:2])
    values = getattr(latent, "values", 1)
    one, other = (mode_z(model, batch)[0].unflatten(0, (-1, values)) for batch in (first, second))
    differing = [unit for unit in range(len(one)) if not torch.equal(one[unit], other[unit])]
    assert len(differing) >= 2

    def lead(unit: int) -> float:
        total = 0.0
        for batch in (first, second):
            posterior = model.posterior(batch)
            if values == 1:
                total += abs(posterior.log_odds[0, unit].item())
            else:
                best = sorted(posterior.logits[0, unit].tolist())
                total += best[-1] - best[-2]
        return total

    expected, now = [one.clone()], one.clone()
    for unit in sorted(differing, key=lead):
        now[unit] = other[unit]
        expected.append(now.clone())
    path = path_z(model, first, second, len(differing) + 1)
    assert torch.equal(path, torch.stack(expected).flatten(1))
    coarse = path_z(model, first, second, 2)
    assert torch.equal(coarse, path[[0, -1]])


def test_sets_of_vectors_are_reconstructed_sampled_and_joined() -> None:
    model, batch = set_model(), batch_of(DOCUMENTS)
    alone = [reconstruct(model, batch_of([document]))[0] for document in DOCUMENTS]
    assert reconstruct(model, batch) == alone
    path = interpolate(model, batch_of(DOCUMENTS[:1]), batch_of(DOCUMENTS[1:2]), 3)
    assert [path[0], path[-1]] == alone[:2]
    torch.manual_seed(0)
    assert len(sample(model, 3)) == 3


def test_a_component_alone_is_drawn_from() -> None:
    """Bits have the component's means; numbers have its mean and variance; the model keeps its own prior."""
    torch.manual_seed(0)
    bits = model_of(DISCRETE[1])
    before = bits.latent.prior_components.clone()
    drawn = prior_z(bits, 20_000, component=2)
    means = bits.latent.prior_log_odds[2].sigmoid()
    assert ((drawn.mean(dim=0) - means).abs() < 4.9 * (means * (1 - means) / 20_000).sqrt() + 1e-6).all()
    assert torch.equal(bits.latent.prior_components, before)
    numbers = model_of(GaussianMixtureConfig(dimensions=5, components=4))
    drawn = prior_z(numbers, 20_000, component=1)
    error = drawn.std(dim=0) / math.sqrt(20_000)
    assert error.max() < 0.05
    assert ((drawn.mean(dim=0) - numbers.latent.prior_means[1]).abs() < 4.9 * error).all()


def test_a_component_that_is_not_there_is_refused() -> None:
    with pytest.raises(Misuse, match="there is no component 3; the prior's 3 are 0 to 2"):
        prior_z(model_of(DISCRETE[1]), 1, component=3)
    with pytest.raises(Misuse, match="there is no component -1"):
        prior_z(model_of(DISCRETE[1]), 1, component=-1)
    with pytest.raises(Misuse, match="the bernoulli latent of this model has no components"):
        prior_z(model_of(DISCRETE[0]), 1, component=0)


def test_what_a_model_cannot_do_is_refused() -> None:
    model, one = model_of(DISCRETE[0]), batch_of(DOCUMENTS[:1])
    with pytest.raises(Misuse, match="1 steps are too few"):
        interpolate(model, one, one, 1)
    with pytest.raises(Misuse, match="told no classes"):
        of_class(model, "sea", 1)
    with pytest.raises(Misuse, match="a bag_of_words decoder writes no text"):
        sample(model_of(DISCRETE[0], BAG_OUT), 1)
    with pytest.raises(Misuse, match="this is a transformer one; sample"):
        bit_words(model, 3)


def test_a_class_is_told_to_the_decoder() -> None:
    model = model_of(DISCRETE[0], condition=ClassConditionConfig(classes=("sea", "space"), width=4))
    with pytest.raises(Misuse, match=r"knows no class 'kitchen'; its classes: sea, space"):
        of_class(model, "kitchen", 1)
    for number, name in enumerate(("sea", "space")):
        z = prior_z(model, 6, told=of_class(model, name, 6))
        assert torch.equal(z[:, 12:], model.condition.embedding.weight[number].expand(6, -1))
    assert torch.equal(prior_z(model, 6)[:, 12:], model.condition.embedding.weight[2].expand(6, -1))


def test_an_opening_is_told_to_the_decoder() -> None:
    model = model_of(DISCRETE[0], condition=OpeningConditionConfig(tokens=2, width=4))
    told = batch_of([Document({}, (3, 4, 5))])
    assert torch.equal(prior_z(model, 1, told=told)[:, 12:], model.condition(told))
    path = path_z(model, told, batch_of([Document({}, (5, 6))]), 3)
    assert torch.equal(path[0, 12:], model.condition(told)[0])


def test_words_rank_by_what_z_adds_to_their_biases() -> None:
    model = model_of(DISCRETE[0], BAG_OUT)
    z = mode_z(model, batch_of(DOCUMENTS))
    words = top_words(model.decoder, z, 4)
    lift = z @ model.decoder.words.weight.T
    for row in range(len(z)):
        order = lift[row].argsort(descending=True).tolist()
        assert words.ids[row].tolist() == order[:4]
    torch.testing.assert_close(words.lift, lift.gather(1, words.ids), atol=1e-5, rtol=1e-5)


def test_bits_raise_and_lower_words() -> None:
    model = model_of(DISCRETE[0], BAG_OUT)
    raised, lowered = bit_words(model, 3)
    for bit in range(12):
        column = model.decoder.words.weight[:, bit].tolist()
        order = sorted(range(TERMS), key=column.__getitem__)
        assert raised.ids[bit].tolist() == order[:-4:-1]
        assert lowered.ids[bit].tolist() == order[:3]
        assert lowered.lift[bit].tolist() == [column[word] for word in order[:3]]


@torch.no_grad()
@pytest.mark.parametrize("latent", [DISCRETE[1], GaussianMixtureConfig(dimensions=5, components=4)])
def test_components_are_read_by_their_share_of_each_word(latent: object) -> None:
    """log p(v | c) - log p(v), by a loop over components in double precision."""
    model = model_of(latent, BAG_OUT)
    prior, words = model.latent, model.decoder.words
    means = prior.prior_log_odds.sigmoid() if hasattr(prior, "prior_log_odds") else prior.prior_means
    shares = prior.prior_components.double().softmax(dim=0)
    p = torch.stack([(words.weight.double() @ mean.double() + words.bias.double()).softmax(0) for mean in means])
    expected = p.log() - (shares.unsqueeze(1) * p).sum(dim=0).log()
    found = component_words(model, TERMS)
    torch.testing.assert_close(found.lift.double(), expected.gather(1, found.ids), atol=1e-4, rtol=1e-4)
    assert (found.lift.diff(dim=1) <= 0).all()


def test_a_conditional_bag_of_words_reads_its_words_off_z_alone() -> None:
    model = model_of(DISCRETE[1], BAG_OUT, condition=ClassConditionConfig(classes=("sea",), width=4))
    assert bit_words(model, 3)[0].ids.shape == (16, 3)
    assert component_words(model, 3).ids.shape == (3, 3)


@pytest.mark.slow
def test_components_of_planted_topics_are_read_as_those_topics() -> None:
    """Four topics of 12 words; at least eight of the ten best words of each used component are of one topic."""
    documents, _ = planted_documents(600, seed=0)
    torch.manual_seed(1)
    latent = BernoulliMixtureConfig(bits=16, components=8, noise=False)
    encoder = BagOfWordsEncoderConfig(width=32, dropout=0, term_dropout=0)
    model = VAE(VAEConfig(encoder=encoder, latent=latent, decoder=BAG_OUT, terms=50, tokens=TOKENS))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(600):
        rows = torch.randint(600, (64,)).tolist()
        terms = model(batch_of([documents[row] for row in rows]))
        optimizer.zero_grad()
        (-terms.log_px.mean() + min(1.0, step / 300) * terms.kl_groups.sum(dim=1).mean()).backward()
        optimizer.step()
    model.eval()
    used = model.encode(batch_of(documents)).component.bincount(minlength=8) > 30
    best = component_words(model, 10).ids[used]
    topics = [[int(word) // 12 for word in row] for row in best]
    precision = [max(row.count(topic) for topic in range(4)) / 10 for row in topics]
    assert len({max(set(row), key=row.count) for row in topics}) == 4
    assert min(precision) >= 0.8
