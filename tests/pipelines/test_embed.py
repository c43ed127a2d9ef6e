"""The embed stage, and reading what it writes, against the encoder called on each document's text."""

import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from text_encoder_files import write_text_encoder

from pipelines.artifact import Artifact
from pipelines.corpus import CorpusConfig
from pipelines.embed import EmbedConfig, embed
from pipelines.embeddings import Embeddings
from pipelines.files.arrow import record_batches
from pipelines.scatter import scatter
from pipelines.text_encoder import TextEncoder
from pipelines.tokenize import tokenize
from pipelines.tokenizing import shard_parts, slices
from pipelines.tokenizing.config import TokenizeConfig
from vae_core.errors import Misuse, Stale

DOCUMENTS = 200
module = sys.modules[embed.__module__]


def one_after_another(make_worker: Callable[[], Callable[[Any], Any]], items: Iterable[Any], **_: Any) -> Iterator[Any]:
    """Part after part in this process: what happens in one does not depend on Ray, which takes seconds to start."""
    return map(make_worker(), items)


@pytest.fixture(scope="module", autouse=True)
def _small_slices_in_process() -> Iterator[None]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "SMALLEST", 6000)
        patch.setattr(shard_parts, "BATCH_DOCUMENTS", 7)
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        for stage in (module, sys.modules[tokenize.__module__]):
            patch.setattr(stage, "scatter", one_after_another)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_encoder(tmp_path_factory.mktemp("encoder"))


def texts() -> list[str]:
    dice = random.Random(0)
    words = ["".join(dice.choices("abcdefghijklmnop", k=5)) for _ in range(200)]
    return [" ".join(dice.choices(words, k=dice.randint(1, 60))) for _ in range(DOCUMENTS)]


def tokenized(folder: Path, documents: list[str]) -> Artifact:
    folder.mkdir(exist_ok=True)
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return tokenize(CorpusConfig(files=(str(folder / "a.jsonl"),)), folder / "shards", TokenizeConfig(subwords=400))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tokenized(tmp_path_factory.mktemp("embed"), texts())


@pytest.fixture(scope="module")
def made(shards: Artifact, folder: Path) -> Artifact:
    return embed(shards.path, shards.path.parent / "embeddings", EmbedConfig(folder=folder))


def test_each_row_is_the_embedding_of_the_document_in_that_row_of_the_shards(
    made: Artifact, shards: Artifact, folder: Path
) -> None:
    made.verify()
    parts = shards.files(".arrow")
    assert [path.name for path in made.files()] == [path.name for path in parts]
    assert len(parts) > 2
    for path in parts:
        column = pa.ipc.open_file(str(made.path / path.name)).read_all().column("embedding")
        assert column.type == pa.list_(pa.float16(), 16)
        assert len(column) == pa.ipc.open_file(str(path)).read_all().num_rows
    everything = np.concatenate(list(Embeddings(made).blocks()))
    np.testing.assert_allclose(everything, TextEncoder.load(folder).embed(texts()), atol=2e-3)


def test_rows_are_taken_in_the_order_asked_for(made: Artifact, shards: Artifact, folder: Path) -> None:
    opened = Embeddings.open(made.path, shards)
    everything = np.concatenate(list(opened.blocks()))
    rows = np.random.default_rng(0).integers(0, DOCUMENTS, 500)
    assert (len(opened), opened.dimensions, opened.folder) == (DOCUMENTS, 16, folder.resolve())
    assert opened.rows(rows).dtype == np.float32
    np.testing.assert_array_equal(opened.rows(rows), everything[rows])
    assert opened.rows(np.zeros(0, np.int64)).shape == (0, 16)


def test_a_killed_run_makes_only_what_is_missing(
    made: Artifact, shards: Artifact, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, done = EmbedConfig(folder=folder), list[Any]()

    def killed(make_worker: Callable[[], Callable[[Any], Any]], items: Iterable[Any], **_: Any) -> Iterator[Any]:
        work = make_worker()
        for number, item in enumerate(items):
            if number == 2:
                raise KeyboardInterrupt
            yield work(item)

    def counted(make_worker: Callable[[], Callable[[Any], Any]], items: Iterable[Any], **_: Any) -> Iterator[Any]:
        done.extend(items)
        return map(make_worker(), items)

    with monkeypatch.context() as patch:
        patch.setattr(module, "scatter", killed)
        with pytest.raises(KeyboardInterrupt):
            embed(shards.path, tmp_path / "out", config)
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.setattr(module, "scatter", counted)
    again = embed(shards.path, tmp_path / "out", config)
    pieces = [(path.name, number) for path in shards.files(".arrow") for number, _ in enumerate(record_batches(path))]
    assert [(piece.part, piece.batch) for piece in done] == pieces[2:]
    assert len(pieces) > 2 * len(shards.files(".arrow"))
    assert [part.checksum for part in again.manifest.parts] == [part.checksum for part in made.manifest.parts]
    assert again.fingerprint == made.fingerprint


def test_parts_that_were_put_together_before_a_kill_stay(
    made: Artifact, shards: Artifact, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = module.record_part
    recorded: list[str] = []

    def killed(draft: Path, name: str, rows: int) -> Any:
        if len(recorded) == 2:
            raise KeyboardInterrupt
        recorded.append(name)
        return written(draft, name, rows)

    with monkeypatch.context() as patch:
        patch.setattr(module, "record_part", killed)
        with pytest.raises(KeyboardInterrupt):
            embed(shards.path, tmp_path / "out", EmbedConfig(folder=folder))
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.arrow") if path.name in recorded}
    monkeypatch.setattr(module, "scatter", lambda _, items, **__: iter(()) if not items else pytest.fail("made again"))
    again = embed(shards.path, tmp_path / "out", EmbedConfig(folder=folder))
    assert len(first) == 2
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert [part.checksum for part in again.manifest.parts] == [part.checksum for part in made.manifest.parts]


def test_another_encoder_or_other_shards_make_it_stale(
    made: Artifact, shards: Artifact, folder: Path, tmp_path: Path
) -> None:
    other = write_text_encoder(tmp_path / "other", seed=1)
    with pytest.raises(Stale, match="input encoder has changed"):
        embed(shards.path, made.path, EmbedConfig(folder=other))
    others = tokenized(tmp_path / "others", texts()[:50])
    with pytest.raises(Stale, match="input shards has changed"):
        embed(others.path, made.path, EmbedConfig(folder=folder))
    with pytest.raises(Stale, match="other shards"):
        Embeddings.open(made.path, others)


def test_a_folder_that_is_not_there_is_refused(shards: Artifact, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"set embed\.folder"):
        embed(shards.path, tmp_path / "out", EmbedConfig())
    with pytest.raises(Misuse, match="no folder"):
        embed(shards.path, tmp_path / "out", EmbedConfig(folder=tmp_path / "gone"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_workers_of_a_cluster_write_the_same(
    made: Artifact, shards: Artifact, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "scatter", scatter)
    spread = embed(shards.path, tmp_path / "out", EmbedConfig(folder=folder, workers=2))
    assert [part.checksum for part in spread.manifest.parts] == [part.checksum for part in made.manifest.parts]
