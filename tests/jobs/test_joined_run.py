"""A whole run with a sentence encoder beside the words: one line of config more, and the same commands."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from text_encoder_files import write_text_encoder
from tiny_run import Said, Tiny, write_config, write_corpus

from jobs.config import load_config
from jobs.query import Asked, Wanted, answer
from jobs.run import run
from pipelines.artifact import Artifact
from vae_core.errors import Misuse, Stale

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Tiny:
    del ray_cluster
    folder = tmp_path_factory.mktemp("joined")
    write_corpus(folder / "docs.jsonl")
    config = write_config(folder, folder / "docs.jsonl", folder / "run")
    encoder = write_text_encoder(folder / "encoder")
    config.write_text(config.read_text() + f"embed: {{folder: {encoder}}}\n")
    run(load_config(str(config), ["model.encoder.joined=true"]))
    return Tiny(config, folder / "docs.jsonl", folder / "run")


def test_the_stages_hand_the_embeddings_on(joined: Tiny) -> None:
    made = {name: Artifact.open(joined.folder / name) for name in ("shards", "embeddings", "model", "codes", "report")}
    assert made["embeddings"].input("shards").fingerprint == made["shards"].fingerprint
    assert made["model"].input("embeddings").fingerprint == made["embeddings"].fingerprint
    assert made["model"].input("encoder") == made["embeddings"].input("encoder")
    assert made["codes"].manifest.statistics["documents"] == 300
    again = run(load_config(str(joined.config), ["model.encoder.joined=true"]))
    assert [done.stage for done in again.stages] == [
        "tokenize",
        "embed",
        "graph",
        "pretrain",
        "encode",
        "index",
        "evaluate",
    ]
    assert all(done.skipped for done in again.stages)


def test_a_document_asked_for_finds_itself(joined: Tiny, latentbits: Callable[..., Said]) -> None:
    first = json.loads(joined.corpus.read_text().splitlines()[0])
    found = answer(Asked(joined.folder / "index"), [first["text"]], Wanted(k=300))[0]
    assert found["known_words"] is None
    distances = {hit["id"]: hit["distance"] for hit in found["hits"]}
    assert distances[first["id"]] <= np.quantile(list(distances.values()), 0.1)
    said = latentbits("query", joined.folder / "index", first["text"], "-k", 3)
    assert said.status == 0


def test_a_moved_sentence_encoder_is_named_on_the_command_line(
    joined: Tiny, tmp_path: Path, latentbits: Callable[..., Said]
) -> None:
    copied = joined.copy(tmp_path)
    encoder = Path(load_config(str(joined.config)).embed.folder or "")
    for name in ("model", "embeddings"):
        manifest = copied.folder / name / "manifest.json"
        manifest.write_text(manifest.read_text().replace(str(encoder), "/gone/encoder"))
    said = latentbits("query", copied.folder / "index", "ship", "--model", copied.folder / "model")
    assert said.status == 2
    assert "--encoder-folder" in said.err
    moved = shutil.copytree(encoder, tmp_path / "moved")
    told = latentbits(
        "query", copied.folder / "index", "ship", "--model", copied.folder / "model", "--encoder-folder", moved
    )
    assert told.status == 0


def test_without_a_folder_a_joined_model_is_refused(joined: Tiny, tmp_path: Path) -> None:
    settings = [f"out={tmp_path / 'run'}", "embed.folder=null", "model.encoder.joined=true"]
    with pytest.raises(Misuse, match=r"set embed\.folder"):
        run(load_config(str(joined.config), settings))
    assert not (tmp_path / "run").exists()


def test_other_embeddings_make_the_model_stale(joined: Tiny, tmp_path: Path) -> None:
    copied = joined.copy(tmp_path)
    other = write_text_encoder(tmp_path / "other", seed=1)
    settings = [f"out={copied.folder}", f"embed.folder={other}", "model.encoder.joined=true"]
    with pytest.raises(Stale, match="input encoder has changed"):
        run(load_config(str(joined.config), settings))
