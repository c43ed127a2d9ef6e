"""Every model recipe trained for some hundred steps by the real stages, at a size that a test can afford."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertConfig, BertModel

from jobs.config import load_config, recipes
from jobs.run import run
from pipelines.artifact import Artifact
from pipelines.shards import Shards
from pipelines.training.worker import METRICS
from vae_core.errors import Misuse
from vae_core.model import VAE

SMALL_TERMS = ["model.encoder.width=32", "model.encoder.hidden=64", "model.encoder.heads=2"]
SMALL_TOKENS = [*SMALL_TERMS, "model.encoder.layers=1", "model.decoder.width=32", "model.decoder.heads=2"]
SMALL = {
    "gaussian-sentence-vae": [*SMALL_TOKENS, "model.decoder.layers=1", "model.latent.dimensions=8"],
    "hash-mixture": [*SMALL_TERMS, "model.latent.bits=16", "model.latent.components=4"],
    "categorical": [*SMALL_TERMS, "model.latent.variables=4", "model.latent.values=4"],
    "dgm": [*SMALL_TERMS, "model.latent.dimensions=16", "model.latent.components=4"],
    "nvib": [*SMALL_TOKENS, "model.decoder.layers=1", "model.latent.dimensions=32"],
    "optimus-small": ["model.decoder.width=32", "model.decoder.heads=2", "model.latent.dimensions=8"],
}
QUICK = [
    "pretrain.epochs=18",
    "pretrain.batch_size=32",
    "pretrain.held_out=0",  # eight sentences tell nothing of when to stop
    "pretrain.learning_rate=0.01",
    "pretrain.log_every=20",
    "tokenize.subwords=400",
    "tracking.enabled=false",
]
SENTENCES = "gaussian-sentence-vae"
OF_DATA = {"default", "demo", "newsgroups", "reuters", "short-texts", "articles"}
"""Recipes of a corpus, not of a model: the tests of the demo and of runs train them."""


def corpus(folder: Path) -> Path:
    """Sentences of 5 to 12 words from the vocabulary of one of four topics."""
    dice = random.Random(0)
    words = [["".join(dice.choices("abcdefghijklmnop", k=5)) for _ in range(12)] for _ in range(4)]
    lines = [" ".join(dice.choices(words[n % 4], k=dice.randint(5, 12))) for n in range(400)]
    path = folder / "sentences.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_every_recipe_of_a_model_is_trained_here() -> None:
    assert set(recipes()) == set(SMALL) | OF_DATA


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("recipe", ["hash-mixture", "nvib", "categorical", "dgm", SENTENCES])
def test_a_recipe_trains_and_its_distortion_falls(recipe: str, tmp_path: Path) -> None:
    assert_learned(trained(recipe, tmp_path, corpus(tmp_path), []))


def trained(recipe: str, folder: Path, text: Path, more: list[str]) -> Artifact:
    settings = [f"corpus.files=[{json.dumps(str(text))}]", f"out={json.dumps(str(folder / 'run'))}", *QUICK]
    config = load_config(recipe, [*settings, *SMALL[recipe], *more])
    return run(config, last="pretrain").artifact("pretrain")


def assert_learned(model: Artifact) -> None:
    """It took 200 steps or more, which lowered the distortion, and z is used: texts are likelier by their own."""
    lines = [json.loads(line) for line in (model.path / METRICS).read_text().splitlines()]
    assert model.manifest.statistics["steps"] >= 200
    assert lines[-1]["distortion"] < 0.97 * lines[0]["distortion"]
    assert lines[-1]["rate"] > 0.5
    gains = gains_by_own_z(model)
    assert gains.mean() > 5 * gains.std() / len(gains) ** 0.5


@torch.no_grad()
def gains_by_own_z(model: Artifact) -> torch.Tensor:
    """log p(x | z of x) - log p(x | z of the text before it, which is of another topic), (N,)."""
    vae, shards = VAE.from_pretrained(model.path), Shards(Artifact.open(model.path.parent / "shards", "shards"))
    rows = np.arange(len(shards))
    own, other = (shards.batch(some, tokens=True) for some in (rows, np.roll(rows, 1)))
    return vae.log_px(own, vae(own).z)[0] - vae.log_px(own, vae(other).z)[0]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_recipe_with_a_pretrained_encoder_trains_and_its_model_opens_without_the_folder(tmp_path: Path) -> None:
    text, folder = corpus(tmp_path), tmp_path / "bert"
    bpe = Tokenizer(models.BPE(unk_token="[UNK]"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train([str(text)], trainers.BpeTrainer(vocab_size=200, special_tokens=["[UNK]", "[CLS]", "[SEP]"]))
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(BertConfig(vocab_size=bpe.get_vocab_size(), max_position_embeddings=64, **size)).save_pretrained(folder)
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"cls_token": "[CLS]", "sep_token": "[SEP]"}))
    from_folder = [f"model.encoder.folder={folder}", f"tokenize.tokenizer={folder}/tokenizer.json"]
    model = trained("optimus-small", tmp_path, text, from_folder)
    assert_learned(model)
    shutil.rmtree(folder)
    assert VAE.from_pretrained(model.path).encoder.width == 16


def test_a_latent_without_codes_says_so_before_it_is_trained(tmp_path: Path) -> None:
    settings = [f"corpus.files=[{json.dumps(str(corpus(tmp_path)))}]", f"out={json.dumps(str(tmp_path / 'run'))}"]
    with pytest.raises(Misuse, match=r"nonparametric latent has no codes.*--until pretrain"):
        run(load_config("nvib", settings))
    assert not (tmp_path / "run").exists()
