"""Which model another may begin with, and its weights matched word by word. Shapes: V terms."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.artifact import Artifact, flat
from pipelines.tokenizer import TOKENIZER, read_bpe
from pipelines.vocabulary import Vocabulary
from vae_core.errors import Misuse
from vae_core.model import VAE, VAEConfig
from vae_core.warm_start import warm_start

SIZES = ("terms", "tokens")
"""They follow from the corpus, or are matched word by word."""
OF_TRAINING = (
    "dropout",
    "term_dropout",
    "word_dropout",
    "neighbours",
    "grow_after",
    "unseen",
    "freeze",
    "folder",
    "word_vectors",
)
"""Settings that say how weights are learned, not what they mean."""


def start_from(model: VAE, folder: Path, shards: Path) -> None:
    """Give `model` the weights of the model in `folder`; a term that it does not know keeps its start."""
    places = torch.from_numpy(term_places(Vocabulary.load(shards), Vocabulary.load(folder)))
    warm_start(model, VAE.from_pretrained(folder), places)


def term_places(ours: Vocabulary, theirs: Vocabulary) -> NDArray[np.int64]:
    """For each of our terms its row in the other vocabulary, -1 where it has none, (V,)."""
    return np.fromiter((theirs.ids.get(term, -1) for term in ours.ids), np.int64, len(ours))


def require_alike(model: VAEConfig, start: Artifact, shards: Artifact, encoder: str | None) -> None:
    """Raise Misuse unless `model` may begin with the weights in `start`, naming the first thing that differs.

    `encoder` is the fingerprint of the sentence encoder whose embeddings the model joins to the words, if it does.
    """
    old = VAE.from_pretrained(start.path)
    ours, theirs = (_meaning(config) for config in (model, old.config))
    for key in [*ours, *theirs]:
        if ours.get(key) != theirs.get(key):
            raise Misuse(
                f"pretrain.start_from: model.{key} is {theirs.get(key)!r} in {start.path} and {ours.get(key)!r} here; "
                f"a warm start needs the same architecture: set model.{key} to what it is there"
            )
    if encoder is not None and start.input("encoder").fingerprint != encoder:
        raise Misuse(
            f"pretrain.start_from: {start.path} joins embeddings of another sentence encoder, "
            f"{start.input('encoder').uri}; set embed.folder to that one"
        )
    if old.reads_tokens and _subwords(start.path) != _subwords(shards.path):
        raise Misuse(
            f"pretrain.start_from: the model in {start.path} reads tokens, and {shards.path} has others; "
            f"tokenize with tokenize.tokenizer={start.path / TOKENIZER}"
        )


def _meaning(config: VAEConfig) -> dict[str, object]:
    settings = flat(config.model_dump(mode="json", exclude={*SIZES, "corruption"}))
    return {
        key: value
        for key, value in settings.items()
        if key.rsplit(".", 1)[-1] not in OF_TRAINING and "estimator" not in key and key != "decoder.terms"
    }


def _subwords(folder: Path) -> dict[str, int]:
    vocabulary: dict[str, int] = read_bpe(folder / TOKENIZER).get_vocab(with_added_tokens=True)
    return vocabulary
