"""Codes of a model that reads embeddings, against the model given the sentence encoder's vector of each text."""

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from model_files import write_model
from text_encoder_files import write_text_encoder

from pipelines import text_encoder
from pipelines.artifact import Artifact
from pipelines.corpus import CorpusConfig, Document
from pipelines.diagnose import diagnose
from pipelines.diagnosis.examination import DiagnoseConfig
from pipelines.embed import EmbedConfig, embed
from pipelines.embeddings import Embeddings
from pipelines.encode import encode
from pipelines.encoder import Encoder
from pipelines.generator import Generator
from pipelines.shards import Shards, batch_of
from pipelines.text_encoder import TextEncoder
from pipelines.tokenize import tokenize
from pipelines.tokenizing import slices
from pipelines.tokenizing.config import TokenizeConfig
from vae_core.errors import Misuse, Stale
from vae_core.generation import Sampling
from vae_core.model import VAE, Composition

COMPOSITION = Composition.model_validate(
    {
        "encoder": {"kind": "bag_of_words", "width": 32, "joined": True},
        "latent": {"bits": 16, "components": 4},
    }
)
STAGES = (tokenize, embed, encode)


class Made(NamedTuple):
    corpus: CorpusConfig
    texts: list[str]
    encoder: Path
    shards: Artifact
    embeddings: Artifact
    model: Artifact


def one_after_another(make_worker: Callable[[], Callable[[Any], Any]], items: Iterable[Any], **_: Any) -> Iterator[Any]:
    """Part after part in this process: what happens in one does not depend on Ray, which takes seconds to start."""
    return map(make_worker(), items)


@pytest.fixture(scope="module", autouse=True)
def _small_slices_in_process() -> Iterator[None]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "SMALLEST", 8000)
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        for stage in STAGES:
            patch.setattr(sys.modules[stage.__module__], "scatter", one_after_another)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder, dice = tmp_path_factory.mktemp("joined"), random.Random(0)
    words = ["".join(dice.choices("abcdefghijklmnop", k=5)) for _ in range(200)]
    texts = [" ".join(dice.choices(words, k=dice.randint(1, 40))) for _ in range(200)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"id": text, "text": text}) + "\n" for text in texts))
    corpus = CorpusConfig(files=(str(folder / "a.jsonl"),), id="id")
    encoder = write_text_encoder(folder / "encoder")
    shards = tokenize(corpus, folder / "shards", TokenizeConfig(subwords=400))
    embeddings = embed(shards.path, folder / "embeddings", EmbedConfig(folder=encoder))
    model = write_model(folder / "model", shards.path, COMPOSITION, embeddings=embeddings)
    return Made(corpus, texts, encoder, shards, embeddings, model)


def read(artifact: Artifact) -> dict[str, bytes]:
    table = pa.concat_tables([pq.read_table(path) for path in artifact.files(".parquet")])
    return dict(zip(table["id"].to_pylist(), table["code"].to_pylist(), strict=True))


def log_odds_of(made: Made) -> np.ndarray:
    """The bare model on each text's words and its vector."""
    model = VAE.from_pretrained(made.model.path)
    vectors = TextEncoder.load(made.encoder).embed(made.texts).astype(np.float16).astype(np.float32)
    table = Encoder.load(made.model.path).tokenizer.table([Document(t, t, [], {}, "a", 0) for t in made.texts])
    return model.encode(batch_of(table, tokens=False, embeddings=vectors)).log_odds.numpy()


def test_codes_are_the_models_own_whether_embeddings_are_read_or_made(made: Made, tmp_path: Path) -> None:
    expected = log_odds_of(made)
    packed = np.packbits(expected > 0, axis=1, bitorder="little")
    clear = np.abs(expected).min(axis=1) > 1e-3  # float16 may move a vector by a thousandth
    assert clear.mean() > 0.9
    from_artifact = read(encode(made.model.path, made.shards.path, tmp_path / "a", embeddings=made.embeddings.path))
    assert len(from_artifact) == len(made.texts)
    for codes in (
        from_artifact,
        read(encode(made.model.path, made.shards.path, tmp_path / "b")),
        read(encode(made.model.path, made.corpus, tmp_path / "c")),
    ):
        assert [codes[text] for text, ok in zip(made.texts, clear, strict=True) if ok] == [
            code.tobytes() for code in packed[clear]
        ]
    words_alone = VAE.from_pretrained(made.model.path)
    assert words_alone.encoder.joined is not None
    torch.nn.init.zeros_(words_alone.encoder.joined.linear.weight)
    blind = Encoder(words_alone, Encoder.load(made.model.path).tokenizer, "", TextEncoder.load(made.encoder))
    table = blind.tokenizer.table([Document(text, text, [], {}, "a", 0) for text in made.texts])
    assert np.abs(blind.encode(table).log_odds - expected).max() > 0.01, "the embedding must matter"


def test_with_the_embeddings_there_no_sentence_encoder_is_opened(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(text_encoder.TextEncoder, "load", refused)
    encode(made.model.path, made.shards.path, tmp_path / "a", embeddings=made.embeddings.path)
    with pytest.raises(AssertionError, match="opened"):
        encode(made.model.path, made.shards.path, tmp_path / "b")


def test_batches_have_the_embeddings_of_their_rows(made: Made) -> None:
    opened, rows = Embeddings(made.embeddings), np.array([150, 3, 3, 77])
    batch = Shards(made.shards, embeddings=opened).batch(rows, tokens=False)
    assert batch.embeddings is not None
    expected = TextEncoder.load(made.encoder).embed([made.texts[row] for row in rows])
    np.testing.assert_allclose(batch.embeddings.numpy(), expected, atol=2e-3)
    assert Shards(made.shards).batch(rows, tokens=False).embeddings is None


def test_a_sentence_encoder_that_was_moved_is_named_and_another_one_refused(made: Made, tmp_path: Path) -> None:
    model = Path(shutil.copytree(made.model.path, tmp_path / "deep" / "model"))
    manifest = model / "manifest.json"
    manifest.write_text(manifest.read_text().replace(str(made.encoder), str(tmp_path / "gone")))
    with pytest.raises(Misuse, match=r"gone, which is not there; name its folder with --encoder-folder"):
        Encoder.load(model)
    table = Encoder.load(made.model.path).tokenizer.table([Document("a", made.texts[0], [], {}, "a", 0)])
    moved = Path(shutil.copytree(made.encoder, tmp_path / "moved"))
    found = Encoder.load(model, moved).encode(table).log_odds
    np.testing.assert_array_equal(found, Encoder.load(made.model.path).encode(table).log_odds)
    with pytest.raises(Stale, match="another sentence encoder"):
        Encoder.load(model, write_text_encoder(tmp_path / "other", seed=1))


def test_embeddings_that_do_not_belong_to_shards_and_model_are_refused(made: Made, tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in made.texts[:50]))
    others = tokenize(
        CorpusConfig(files=(str(tmp_path / "b.jsonl"),)), tmp_path / "shards", TokenizeConfig(subwords=400)
    )
    with pytest.raises(Stale, match="other shards"):
        encode(made.model.path, others.path, tmp_path / "codes", embeddings=made.embeddings.path)
    other = EmbedConfig(folder=write_text_encoder(tmp_path / "other", seed=1))
    embeddings = embed(made.shards.path, tmp_path / "embeddings", other)
    with pytest.raises(Stale, match="another sentence encoder"):
        encode(made.model.path, made.shards.path, tmp_path / "codes", embeddings=embeddings.path)
    assert not (tmp_path / "codes").exists()


def test_texts_are_reconstructed_and_diagnosed_with_their_embeddings(made: Made, tmp_path: Path) -> None:
    generator = Generator.load(made.model.path)
    assert len(generator.reconstruct(made.texts[:2], Sampling())) == 2
    settings = DiagnoseConfig(documents=40, samples=2, permutations=10)
    page = diagnose(made.model.path, made.shards.path, tmp_path / "diagnosis", settings)
    assert page.manifest.statistics["documents"] == 40
