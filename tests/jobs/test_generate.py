"""What generate prints, compared with the model asked directly, and what it refuses."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_run import Said, Tiny

from pipelines.artifact import Draft, Plan, begin, record_part
from pipelines.corpus import Document
from pipelines.encoder import Encoder
from pipelines.tokenizer import Tokenizer
from vae_core.generation import ANCESTRAL, of_class, sample
from vae_core.model import VAE, VAEConfig

Cli = Callable[..., Said]
WRITER = {"kind": "transformer", "width": 16, "heads": 2, "layers": 1, "positions": 12}
LATENT = {"kind": "bernoulli_mixture", "bits": 16, "components": 4}
CLASSES = {"kind": "class", "classes": ["sea", "space"]}


def random_model(folder: Path, tiny: Tiny, **parts: object) -> Path:
    """A model artifact of random weights, with the tokenizer and vocabulary of the tiny run."""
    draft = begin(folder, Plan(kind="model", config={}, inputs=()))
    assert isinstance(draft, Draft)
    for name in ("tokenizer.json", "vocabulary.parquet"):
        shutil.copyfile(tiny.folder / "model" / name, draft.path / name)
    tokenizer = Tokenizer.load(draft.path)
    settings = {"encoder": {"kind": "bag_of_words", "width": 16}, "latent": LATENT, "decoder": WRITER} | parts
    sizes = {"terms": len(tokenizer.vocabulary), "tokens": tokenizer.subwords}
    torch.manual_seed(0)
    model = VAE(VAEConfig.model_validate(settings | sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    model.save_pretrained(draft.path)
    names = ("config.json", "model.safetensors", "tokenizer.json", "vocabulary.parquet")
    return draft.finish([record_part(draft.path, name, 0) for name in names], {}).path


@pytest.fixture(scope="module")
def writer(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose decoder writes text, and is told classes."""
    return random_model(tmp_path_factory.mktemp("writer") / "model", tiny, condition=CLASSES)


def table_of(tokenizer: Tokenizer, text: str) -> pa.Table:
    return tokenizer.table([Document("0", text, [], {}, "text", 0)])


def asked(latentbits: Cli, *words: object) -> dict:
    """What the command answers programs."""
    said = latentbits("generate", *words, "--json")
    assert said.status == 0, said.err
    return json.loads(said.out)


def test_samples_are_those_of_the_model_under_the_same_seed(latentbits: Cli, writer: Path) -> None:
    model, tokenizer = VAE.from_pretrained(writer), Tokenizer.load(writer)
    for options, count, told in [((), 5, None), (("--count", 3, "--class", "space"), 3, "space")]:
        torch.manual_seed(7)
        expected = sample(model, count, ANCESTRAL, told=None if told is None else of_class(model, told, count))
        found = asked(latentbits, writer, "--seed", 7, *options)
        assert found["samples"] == [tokenizer.decode(tokens) for tokens in expected]
        assert found["sampling"]["temperature"] == 1
    assert asked(latentbits, writer, "--seed", 8, *options) != found


def test_reconstructions_are_greedy_unless_told(latentbits: Cli, writer: Path) -> None:
    words = (writer, "--reconstruct", "ship storm", "--reconstruct", "rocket [moon]")
    greedy, drawn = asked(latentbits, *words), asked(latentbits, *words, "--sampled")
    assert greedy == asked(latentbits, *words, "--seed", 3)
    assert drawn != asked(latentbits, *words, "--sampled", "--seed", 3)
    assert asked(latentbits, *words, "--temperature", 1)["reconstructions"] == drawn["reconstructions"]
    assert [one["of"] for one in greedy["reconstructions"]] == ["ship storm", "rocket [moon]"]
    assert "rocket [moon]" in latentbits("generate", *words).out


def test_a_path_joins_both_reconstructions(latentbits: Cli, writer: Path) -> None:
    ends = asked(latentbits, writer, "--reconstruct", "ship storm", "--reconstruct", "bread oven")["reconstructions"]
    path = asked(latentbits, writer, "--interpolate", "ship storm", "bread oven", "--steps", 4)["path"]
    assert len(path) == 4
    assert [path[0], path[-1]] == [one["text"] for one in ends]
    assert len(asked(latentbits, writer, "--interpolate", "ship storm", "bread oven")["path"]) == 5


def test_a_model_that_is_told_openings_goes_on_from_them(latentbits: Cli, tiny: Tiny, tmp_path: Path) -> None:
    condition = {"kind": "opening", "tokens": 2}
    model = random_model(tmp_path / "model", tiny, condition=condition)
    tokenizer = Tokenizer.load(model)
    text = "ship storm harbour wave"
    opening = tokenizer.decode(table_of(tokenizer, text).column("tokens")[0].as_py()[:2])
    assert opening
    for made in asked(latentbits, model, "--opening", text)["samples"]:
        assert made.startswith(opening)
    (restored,) = asked(latentbits, model, "--reconstruct", text)["reconstructions"]
    assert restored["text"].startswith(opening)


def test_a_bag_of_words_writes_its_top_words_and_says_so(latentbits: Cli, tiny: Tiny) -> None:
    """By numpy: the words of the highest E z, where z is the code of the text."""
    said = latentbits("generate", tiny.folder / "model", "--reconstruct", "ship storm", "--words", 4, "--json")
    assert "writes no text; these are the words it finds most typical" in said.err
    found = json.loads(said.out)
    assert (found["writes_text"], found["sampling"]) == (False, None)
    model, tokenizer = VAE.from_pretrained(tiny.folder / "model"), Tokenizer.load(tiny.folder / "model")
    terms = list(tokenizer.vocabulary.ids)
    (text,) = (one["text"] for one in found["reconstructions"])
    table = table_of(tokenizer, "ship storm")
    code = Encoder.load(tiny.folder / "model").encode(table).log_odds[0] > 0
    lift = model.decoder.words.weight.detach().numpy() @ code.astype(np.float32)
    assert text.split() == [terms[word] for word in np.argsort(-lift)[:4]]


def test_topics_are_the_components_by_their_share_and_bits_have_two_poles(latentbits: Cli, tiny: Tiny) -> None:
    model = VAE.from_pretrained(tiny.folder / "model")
    shares = model.latent.prior_components.softmax(dim=0).tolist()
    topics = asked(latentbits, tiny.folder / "model", "--topics", "--words", 6)["topics"]
    assert [one["share"] for one in topics] == sorted(shares, reverse=True)
    assert all(one["share"] == shares[one["component"]] for one in topics)
    assert {len(one["words"]) for one in topics} == {6}
    bits = asked(latentbits, tiny.folder / "model", "--bits", "--words", 3)["bits"]
    assert [one["bit"] for one in bits] == list(range(16))
    terms = list(Tokenizer.load(tiny.folder / "model").vocabulary.ids)
    columns = model.decoder.words.weight.detach().T
    assert bits[5]["raised"] == [terms[word] for word in columns[5].topk(3).indices]
    assert bits[5]["lowered"] == [terms[word] for word in (-columns[5]).topk(3).indices]
    assert topics[0]["words"][0] in latentbits("generate", tiny.folder / "model", "--topics").out


def test_a_component_is_drawn_from_alone(latentbits: Cli, writer: Path) -> None:
    everything = asked(latentbits, writer, "--greedy", "--count", 50)["samples"]
    alone = asked(latentbits, writer, "--greedy", "--count", 50, "--component", 1)["samples"]
    assert alone != everything


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--component", 4], "there is no component 4; the prior's 4 are 0 to 3"),
        (["--class", "kitchen"], "the model knows no class 'kitchen'; its classes: sea, space"),
        (["--reconstruct", "qqq zzz"], "the model knows no word of 'qqq zzz'"),
        (["--interpolate", "ship", " "], "the model knows no word of ' '"),
        (["--topics"], "words are read off a bag_of_words decoder, and this is a transformer one"),
        (["--opening", "ship"], "this model is not told how a text opens"),
        (["--reconstruct", "ship", "--topics"], "--reconstruct and --topics are two questions"),
        (["--steps", 3], "--steps goes with --interpolate, not with samples"),
        (["--reconstruct", "ship", "--count", 2], "--count goes with samples from the prior, not with --reconstruct"),
        (["--topics", "--greedy"], "--sampled or --greedy goes with samples from the prior or --reconstruct"),
        (["--greedy", "--top-p", 0.9], "--greedy takes the most probable token"),
        (["--interpolate", "ship", "bread", "--steps", 1], "greater than or equal to 2"),
    ],
)
def test_what_cannot_be_done_is_refused(latentbits: Cli, writer: Path, options: list[object], said: str) -> None:
    found = latentbits("generate", writer, *options)
    assert (found.status, found.out) == (2, "")
    assert said in re.sub(r"[\s│]+", " ", found.err)


def test_what_a_bag_of_words_cannot_do_is_refused(latentbits: Cli, tiny: Tiny) -> None:
    for options, words in [
        (["--temperature", 0], "a bag_of_words decoder draws no tokens"),
        (["--class", "sea"], "this model is told no classes"),
    ]:
        found = latentbits("generate", tiny.folder / "model", *options)
        assert (found.status, found.out) == (2, "")
        assert words in found.err


def test_a_folder_that_is_no_model_is_named(latentbits: Cli, tiny: Tiny, tmp_path: Path) -> None:
    for folder, words in [
        (tiny.folder / "shards", "holds shards, and model is needed here"),
        (tmp_path, str(tmp_path)),
    ]:
        found = latentbits("generate", folder)
        assert found.status == 2
        assert words in found.err
