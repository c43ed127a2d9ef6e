"""Every model recipe trained for some hundred steps by the real stages, at a size that a test can afford."""

import json
import random
from pathlib import Path

import pytest

from jobs.config import load_config, recipes
from jobs.run import run
from pipelines.training import METRICS
from vae_core.errors import Misuse

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
OF_DATA = {"default", "demo", "newsgroups"}
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


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("recipe", sorted(set(SMALL) - {"optimus-small"}))
def test_a_recipe_trains_and_its_distortion_falls(recipe: str, tmp_path: Path) -> None:
    settings = [f"corpus.files=[{json.dumps(str(corpus(tmp_path)))}]", f"out={json.dumps(str(tmp_path / 'run'))}"]
    quick = ["pretrain.epochs=24", "pretrain.batch_size=32", "pretrain.learning_rate=0.01", "pretrain.log_every=20"]
    config = load_config(recipe, [*settings, *quick, "tokenize.subwords=400", "tracking.enabled=false", *SMALL[recipe]])
    model = run(config, last="pretrain").artifact("pretrain")
    lines = [json.loads(line) for line in (model.path / METRICS).read_text().splitlines()]
    assert model.manifest.statistics["steps"] >= 200
    assert lines[-1]["distortion"] < 0.97 * lines[0]["distortion"]
    assert lines[-1]["rate"] > 0.5


def test_a_latent_without_codes_says_so_before_it_is_trained(tmp_path: Path) -> None:
    settings = [f"corpus.files=[{json.dumps(str(corpus(tmp_path)))}]", f"out={json.dumps(str(tmp_path / 'run'))}"]
    with pytest.raises(Misuse, match=r"nonparametric latent has no codes.*--until pretrain"):
        run(load_config("nvib", settings))
    assert not (tmp_path / "run").exists()
