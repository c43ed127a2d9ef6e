"""The query head of a trained model: what it is fitted to, that queries rank by it, and who has none."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from planted import planted_shards, planted_texts

from pipelines.artifact import Artifact
from pipelines.encode import encode
from pipelines.encoder import Encoder
from pipelines.files.arrow import record_batches
from pipelines.graph import GraphConfig, graph
from pipelines.index import IndexConfig, index
from pipelines.neighbours.words import NeighbourWords
from pipelines.pretrain import pretrain
from pipelines.search import Index
from pipelines.training.engine import PretrainConfig
from pipelines.training.query_head import NEAREST, likely_bits, sampled
from vae_core.model import Composition

pytestmark = pytest.mark.usefixtures("ray_cluster")
DOCUMENTS, BITS = 300, 16
MODEL = Composition.model_validate(
    {"encoder": {"width": 16, "hidden": 32, "layers": 0}, "latent": {"bits": BITS, "components": 4}}
)
CONFIG = PretrainConfig(epochs=10, batch_size=32)


@pytest.fixture(scope="module")
def shards(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    del ray_cluster
    return planted_shards(tmp_path_factory.mktemp("query-head"), planted_texts(DOCUMENTS, 3))


@pytest.fixture(scope="module")
def made(shards: Artifact) -> Artifact:
    return graph(shards.path, shards.path.parent / "graph", GraphConfig(lsi=8, neighbours=50))


@pytest.fixture(scope="module")
def trained(shards: Artifact, made: Artifact) -> Artifact:
    return pretrain(shards.path, shards.path.parent / "model", MODEL, CONFIG, graph=made.path)


def neighbours_of(made: Artifact) -> list[list[int]]:
    return [
        row for path in made.files(".arrow") for part in record_batches(path) for row in part["neighbours"].to_pylist()
    ]


def documents_of(shards: Artifact) -> pa.Table:
    return pa.Table.from_batches([part for path in shards.files(".arrow") for part in record_batches(path)])


def test_likely_bits_are_those_of_a_document_and_its_nearest(made: Artifact) -> None:
    own = np.random.default_rng(0).integers(0, 2, (DOCUMENTS, BITS)).astype(np.float32)
    found = likely_bits(NeighbourWords(made), np.arange(DOCUMENTS), own, 0.7)
    nearest = [near[:NEAREST] for near in neighbours_of(made)]
    assert {len(near) for near in nearest} == {NEAREST}
    expected = [0.3 * own[row] + 0.7 * own[near].mean(axis=0) for row, near in enumerate(nearest)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_neighbours_outside_a_sample_do_not_count(made: Artifact) -> None:
    own = np.random.default_rng(0).integers(0, 2, (DOCUMENTS, BITS)).astype(np.float32)
    first = neighbours_of(made)[7][0]
    rows = np.array(sorted([7, first]))
    found = likely_bits(NeighbourWords(made), rows, own[rows], 0.7)[list(rows).index(7)]
    np.testing.assert_allclose(found, 0.3 * own[7] + 0.7 * own[first], atol=1e-6)
    alone = likely_bits(NeighbourWords(made), np.array([7]), own[[7]], 0.7)
    np.testing.assert_array_equal(alone[0], own[7])


def test_a_large_corpus_is_sampled_with_its_neighbours(made: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    near = NeighbourWords(made)
    assert list(sampled(near, DOCUMENTS, 0)) == list(range(DOCUMENTS))
    monkeypatch.setattr("pipelines.training.query_head.SAMPLE", 100)
    rows = sampled(near, DOCUMENTS, 0)
    assert list(rows) == sorted(set(rows))
    assert NEAREST < len(rows) <= 100
    nearest = neighbours_of(made)
    whole = [row for row in rows if set(nearest[row][:NEAREST]) <= set(rows)]
    assert len(whole) >= 100 // (NEAREST + 1)


def test_a_query_ranks_by_what_its_neighbours_are_likely_to_have(shards: Artifact, trained: Artifact) -> None:
    """The head tells neighbours' bits better than the posterior does, and a document's code is still its own."""
    encoder, table = Encoder.load(trained.path), documents_of(shards)
    own, asked = encoder.encode(table).log_odds, encoder.ask(table)
    np.testing.assert_array_equal(asked > 0, own > 0)
    near = NeighbourWords(Artifact.open(shards.path.parent / "graph", "graph"))
    theirs = likely_bits(near, np.arange(DOCUMENTS), (own > 0).astype(np.float32), 1.0)

    def cross_entropy(log_odds: np.ndarray) -> float:
        clamped = torch.from_numpy(log_odds).clamp(-10, 10)
        return float(torch.nn.functional.binary_cross_entropy_with_logits(clamped, torch.from_numpy(theirs)))

    assert cross_entropy(asked) < 0.95 * cross_entropy(own)
    codes = encode(trained.path, shards.path, shards.path.parent / "codes")
    found = Index.open(index(codes.path, shards.path.parent / "index", IndexConfig()).path)
    np.testing.assert_allclose(found.text_log_odds(table["text"].to_pylist()[:5]), asked[:5], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("lent", [False, True])
def test_without_a_graph_or_a_wish_documents_rank_by_their_own_log_odds(
    shards: Artifact, made: Artifact, tmp_path: Path, lent: bool
) -> None:
    near, config = (made.path, CONFIG.model_copy(update={"query_head": False})) if lent else (None, CONFIG)
    encoder = Encoder.load(pretrain(shards.path, tmp_path / "model", MODEL, config, graph=near).path)
    assert encoder.model.query_head is None
    table = documents_of(shards)
    np.testing.assert_array_equal(encoder.ask(table), encoder.encode(table).log_odds)
