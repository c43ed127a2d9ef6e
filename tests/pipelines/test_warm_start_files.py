"""Warm starts from a model folder: its codes are kept under another corpus's vocabulary, other models are refused."""

import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_files import TINY, write_model
from text_encoder_files import write_text_encoder

from pipelines.artifact import Artifact
from pipelines.corpus import CorpusConfig, Document
from pipelines.embed import EmbedConfig, embed
from pipelines.encoder import Encoder
from pipelines.pretrain import pretrain
from pipelines.shards import Shards
from pipelines.tokenize import tokenize
from pipelines.tokenizer import Tokenizer
from pipelines.tokenizing.config import TokenizeConfig
from pipelines.training.warm_start import require_alike, start_from, term_places
from pipelines.training.worker import PretrainConfig
from pipelines.vocabulary import Vocabulary
from vae_core.errors import Misuse, Stale
from vae_core.model import VAE, Composition, VAEConfig


def one_after_another(make_worker: Callable[[], Callable[[Any], Any]], items: Iterable[Any], **_: Any) -> Iterator[Any]:
    """Part after part in this process: what happens in one does not depend on Ray, which takes seconds to start."""
    return map(make_worker(), items)


def tokenized(folder: Path, seed: int, tokenizer: Path | None = None) -> Artifact:
    """Shards of 120 documents; half of the words occur under any seed, each time in another order of frequency."""
    dice = random.Random(99)
    shared = ["".join(dice.choices("abcdefghijklmnop", k=5)) for _ in range(60)]
    dice = random.Random(seed)
    words = dice.sample(shared, 60) + ["".join(dice.choices("qrstuvwxyz", k=5)) for _ in range(60)]
    folder.mkdir()
    texts = [" ".join(dice.choices(words, weights=range(len(words), 0, -1), k=20)) for _ in range(120)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    how = TokenizeConfig(subwords=300) if tokenizer is None else TokenizeConfig(tokenizer=str(tokenizer))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        patch.setattr(sys.modules[tokenize.__module__], "scatter", one_after_another)
        return tokenize(CorpusConfig(files=(str(folder / "a.jsonl"),)), folder / "shards", how)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tokenized(tmp_path_factory.mktemp("large") / "corpus", seed=0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tokenized(tmp_path_factory.mktemp("small") / "corpus", seed=1)


@pytest.fixture(scope="module")
def old(large: Artifact) -> Artifact:
    return write_model(large.path.parent / "model", large.path)


def sized(shards: Artifact, composition: Composition = TINY) -> VAEConfig:
    tokenizer = Tokenizer.load(shards.path)
    return VAEConfig(**composition.model_dump(), terms=len(tokenizer.vocabulary), tokens=tokenizer.subwords)


def changed(**sections: dict[str, Any]) -> Composition:
    settings = TINY.model_dump(mode="json")
    return Composition.model_validate(settings | {name: settings[name] | more for name, more in sections.items()})


def test_a_text_has_the_old_models_code_under_another_corpus_vocabulary(
    large: Artifact, small: Artifact, old: Artifact
) -> None:
    theirs, ours = Vocabulary.load(large.path), Vocabulary.load(small.path)
    places = term_places(ours, theirs)
    assert [list(theirs.ids)[place] if place >= 0 else None for place in places] == [
        term if term in theirs.ids else None for term in ours.ids
    ]
    shared = [term for term in ours.ids if term in theirs.ids]
    assert 20 < len(shared) < len(ours)
    assert sorted(shared, key=ours.ids.get) != sorted(shared, key=theirs.ids.get)
    torch.manual_seed(3)
    model, shards = VAE(sized(small)), Shards(small)
    model.start_from(torch.from_numpy(ours.df.astype("int64")), 120, shards.batch(np.arange(120), tokens=False))
    start_from(model, old.path, small.path)
    texts = [" ".join(random.Random(n).choices(shared, k=15)) for n in range(20)]
    documents = [Document(text, text, [], {}, "a", 0) for text in texts]
    before, after = Encoder.load(old.path), Encoder(model.eval(), Tokenizer.load(small.path), "new")
    told, found = (one.encode(one.tokenizer.table(documents)).log_odds for one in (before, after))
    np.testing.assert_allclose(found, told, atol=1e-4)
    assert np.std(told, axis=0).max() > 0.01


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"latent": {"bits": 32}}, r"model\.latent\.bits is 16 in .* and 32 here"),
        ({"encoder": {"width": 32}}, r"model\.encoder\.width is 16 in .* and 32 here"),
        ({"encoder": {"reads": "tokens"}}, r"model\.encoder\.reads is 'terms' in .* and 'tokens' here"),
        ({"decoder": {"weights": "counts"}}, r"model\.decoder\.weights is 'tfidf'"),
    ],
)
def test_another_architecture_is_refused_with_its_first_difference(
    small: Artifact, old: Artifact, sections: dict[str, Any], said: str
) -> None:
    with pytest.raises(Misuse, match=said):
        require_alike(sized(small, changed(**sections)), old, small, None)


def test_settings_of_training_may_differ(small: Artifact, old: Artifact) -> None:
    others = changed(
        encoder={"term_dropout": 0.1, "grow_after": 0.0, "word_vectors": "lsi"},
        decoder={"terms": 50},
        corruption={"delete": 0.1},
    )
    require_alike(sized(small, others), old, small, None)
    with pytest.raises(Misuse):  # which shows that the difference is what decides
        require_alike(sized(small, changed(latent={"bits": 32})), old, small, None)


def test_a_model_that_reads_tokens_needs_the_same_ones(large: Artifact, small: Artifact, tmp_path: Path) -> None:
    reads = changed(encoder={"reads": "tokens"})
    old = write_model(tmp_path / "model", large.path, reads)
    with pytest.raises(Misuse, match=r"tokenize with tokenize\.tokenizer=.*tokenizer\.json"):
        require_alike(sized(small, reads), old, small, None)
    alike = tokenized(tmp_path / "alike", 1, old.path / "tokenizer.json")
    require_alike(sized(alike, reads), old, alike, None)


def test_embeddings_of_another_encoder_are_refused(large: Artifact, tmp_path: Path) -> None:
    folder = write_text_encoder(tmp_path / "encoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[embed.__module__], "scatter", one_after_another)
        embeddings = embed(large.path, tmp_path / "embeddings", EmbedConfig(folder=folder))
    joined = changed(encoder={"joined": True})
    old = write_model(tmp_path / "model", large.path, joined, embeddings=embeddings)
    config = VAEConfig.model_validate(sized(large).model_dump() | joined.model_dump() | {"embeddings": 16})
    require_alike(config, old, large, embeddings.input("encoder").fingerprint)
    with pytest.raises(Misuse, match="another sentence encoder"):
        require_alike(config, old, large, "cafe")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_training_begins_with_the_old_model_and_says_so(
    large: Artifact, small: Artifact, old: Artifact, tmp_path: Path
) -> None:
    barely = PretrainConfig(epochs=0.01, batch_size=40, learning_rate=1e-9, block_learning_rate=1e-9)
    config = barely.model_copy(update={"start_from": old.path})
    made = pretrain(large.path, tmp_path / "same", TINY, config)
    assert made.input("start").fingerprint == old.fingerprint
    assert VAE.from_pretrained(made.path).config.encoder.grow_after == 0
    table = Shards(large).batch(np.arange(120), tokens=False)
    found, told = (VAE.from_pretrained(one.path).encode(table).log_odds for one in (made, old))
    torch.testing.assert_close(found, told, atol=1e-4, rtol=1e-4)
    assert pretrain(large.path, tmp_path / "same", TINY, config).fingerprint == made.fingerprint
    with pytest.raises(Stale, match="input start is gone"):
        pretrain(large.path, tmp_path / "same", changed(encoder={"grow_after": 0.0}), barely)
    other = pretrain(small.path, tmp_path / "other", TINY, config)
    assert VAE.from_pretrained(other.path).config.terms == len(Vocabulary.load(small.path))
    with pytest.raises(Misuse, match=r"model\.latent\.bits"):
        pretrain(small.path, tmp_path / "refused", changed(latent={"bits": 32}), config)
    assert not (tmp_path / "refused").exists()
