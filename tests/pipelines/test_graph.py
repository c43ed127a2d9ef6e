"""Neighbours of documents with planted topics, and each step on the way against dense arithmetic."""

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import Text, planted_shards, planted_texts
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer
from text_encoder_files import write_text_encoder

from pipelines.artifact import UNFINISHED, Artifact
from pipelines.embed import EmbedConfig, embed
from pipelines.embeddings import Embeddings
from pipelines.files.arrow import record_batches
from pipelines.graph import GraphConfig, _make_searcher, _reserve, _write_space, graph
from pipelines.neighbours.diffusion import CONTINUE, SHARPNESS, Reach, neighbours, reach_among, transitions
from pipelines.neighbours.order import order_of_likeness, order_of_meetings
from pipelines.neighbours.similar import PAIRS_AT_ONCE, Similar, Similarity
from pipelines.neighbours.word_matrix import WordMatrix
from pipelines.neighbours.words import NeighbourWords, graph_table, require_shards
from vae_core.errors import Misuse, Stale

DOCUMENTS, TOPICS = 300, 3
TEXTS = [*planted_texts(DOCUMENTS, TOPICS), Text("qqqq", 0)]
CONFIG = GraphConfig(lsi=8, words=1000)


@pytest.fixture(scope="module")
def shards(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    del ray_cluster
    return planted_shards(tmp_path_factory.mktemp("graph"), TEXTS)


@pytest.fixture(scope="module")
def made(shards: Artifact) -> Artifact:
    return graph(shards.path, shards.path.parent / "graph", CONFIG)


def column(artifact: Artifact, name: str) -> list[list[int]]:
    return [
        row for path in artifact.files(".arrow") for batch in record_batches(path) for row in batch[name].to_pylist()
    ]


def dense_words(words: WordMatrix) -> np.ndarray:
    return np.asarray(words.rows(np.arange(len(words))).todense())


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_neighbours_are_of_the_same_topic(made: Artifact) -> None:
    found = column(made, "neighbours")
    assert [len(row) for row in found[:DOCUMENTS]] == [17] * DOCUMENTS  # the root of 301
    topics = np.array([text.topic for text in TEXTS])
    assert all(row not in others for row, others in enumerate(found))
    assert np.mean([(topics[others] == topics[row]).mean() for row, others in enumerate(found[:DOCUMENTS])]) > 0.97


@pytest.mark.slow
def test_embeddings_draw_documents_together_the_more_the_fewer_words_these_have(
    made: Artifact, shards: Artifact, tmp_path: Path
) -> None:
    folder = write_text_encoder(tmp_path / "encoder")
    embeddings = embed(shards.path, tmp_path / "embeddings", EmbedConfig(folder=folder)).path
    vectors = Embeddings.open(embeddings, shards).rows(np.arange(len(TEXTS)))
    config = CONFIG.model_copy(update={"words_weight": 0.1})
    drawn = graph(shards.path, tmp_path / "graph", config, embeddings=embeddings)

    def apart(artifact: Artifact) -> float:
        found = column(artifact, "neighbours")
        return float(np.mean([1 - (vectors[found[row]] @ vectors[row]).mean() for row in range(DOCUMENTS)]))

    assert apart(drawn) < 0.8 * apart(made)
    middle = np.median([len(set(ids)) for ids in column(shards, "term_ids")])
    assert drawn.manifest.statistics["embeddings_weight"] == pytest.approx(32 / middle, abs=1e-3)


def test_a_document_without_a_shared_word_has_no_neighbours_and_is_nobodys(made: Artifact) -> None:
    found = column(made, "neighbours")
    assert found[DOCUMENTS] == column(made, "words")[DOCUMENTS] == []
    assert all(DOCUMENTS not in others for others in found)


def test_candidates_of_a_large_corpus_hold_nearly_all_of_the_most_similar(
    shards: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 candidates among 300 others: chosen blindly they would hold a seventh of the ten."""
    monkeypatch.setattr("pipelines.graph.COMPARED_WITH_ALL", 10)
    monkeypatch.setattr("pipelines.graph.CANDIDATES", 40)
    _write_space(tmp_path, shards, None, CONFIG)
    _make_searcher(tmp_path, CONFIG, 10)((tmp_path / "similar.npz", range(DOCUMENTS)))
    words, topics = dense_words(WordMatrix(tmp_path)), np.load(tmp_path / "dense.npy")
    scores = CONFIG.words_weight * words @ words.T + topics @ topics.T
    np.fill_diagonal(scores, -np.inf)
    order = np.load(tmp_path / "order.npy")[:DOCUMENTS]
    most_similar = np.argsort(-scores, axis=1)[order, :10]
    assert 1 > shared(np.load(tmp_path / "similar.npz")["rows"], most_similar) > 0.9  # 1: all were candidates


def test_a_graph_is_the_same_in_whatever_order_it_is_made(
    made: Artifact, shards: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All documents are candidates, so that nothing but the order differs from a small corpus."""
    monkeypatch.setattr("pipelines.graph.COMPARED_WITH_ALL", 10)
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.graph._write_parts", killed)
        with pytest.raises(KeyboardInterrupt):
            graph(shards.path, tmp_path / "graph", CONFIG)
    for name in ("order.npy", "walk_order.npy"):
        order = np.load(tmp_path / "graph" / UNFINISHED / name)
        assert sorted(order) == list(range(len(TEXTS)))
        assert list(order) != sorted(order)
    ordered = graph(shards.path, tmp_path / "graph", CONFIG)
    neighbours_of = [column(one, "neighbours")[:DOCUMENTS] for one in (ordered, made)]
    assert shared(*neighbours_of) > 0.99
    found, expected = (NeighbourWords(one).of(np.arange(len(TEXTS))) for one in (ordered, made))
    rows = [
        csr_matrix((words.shares, words.terms.values, words.terms.offsets), shape=(len(TEXTS), 2000)).toarray()
        for words in (found, expected)
    ]
    assert np.abs(rows[0] - rows[1]).sum() < 0.01 * np.abs(rows[1]).sum()


def test_like_documents_are_near_in_the_order_of_likeness() -> None:
    topics = np.random.default_rng(0).permutation(np.repeat(np.arange(20), 100))
    vectors = np.eye(20, dtype=np.float32)[topics] + 0.1 * np.random.default_rng(1).random((2000, 20), np.float32)
    order = order_of_likeness(vectors, seed=0)
    assert sorted(order) == list(range(2000))
    assert np.mean(np.diff(topics[order]) == 0) > 0.9  # of 1,999 steps from one to the next; at random 0.05


def test_whom_a_walker_meets_is_near_in_the_order_of_meetings() -> None:
    """Documents are joined to others of their own group alone, of which their vectors say next to nothing."""
    dice = np.random.default_rng(0)
    groups = dice.permutation(np.repeat(np.arange(20), 100))
    members = np.stack([np.flatnonzero(groups == group) for group in range(20)])
    similar = Similar(members[groups[:, None], dice.integers(100, size=(2000, 10))], np.ones((2000, 10), np.float32))
    vectors = 0.3 * np.eye(20, dtype=np.float32)[groups] + dice.standard_normal((2000, 20), np.float32)
    order = order_of_meetings(transitions(similar)[:2000], vectors, seed=0)
    assert sorted(order) == list(range(2000))
    assert np.mean(np.diff(groups[order]) == 0) > 0.9
    assert np.mean(np.diff(groups[order_of_likeness(vectors, seed=0)]) == 0) < 0.2


def test_words_are_the_mean_of_the_neighbours_words(made: Artifact, shards: Artifact, tmp_path: Path) -> None:
    dense = dense_words(WordMatrix.write(shards, tmp_path))
    shares = dense / np.maximum(dense.sum(axis=1, keepdims=True), 1e-12)
    rows = np.array([7, 0, DOCUMENTS, 299])
    near = NeighbourWords(made).of(rows)
    told = torch.zeros(len(rows), dense.shape[1]).index_put((near.terms.rows, near.terms.values), near.shares)
    found = column(made, "neighbours")
    for place, row in enumerate(rows):
        expected = shares[found[row]].mean(axis=0) if found[row] else np.zeros(dense.shape[1])
        np.testing.assert_allclose(told[place], expected, atol=2e-4)


def test_only_the_most_frequent_words_are_kept(shards: Artifact, tmp_path: Path) -> None:
    words = WordMatrix.write(shards, tmp_path)
    whole, cut = (graph_table([np.array([3, 4, 5])], words, kept).to_pydict() for kept in (10_000, 6))
    largest = sorted(zip(whole["shares"][0], whole["words"][0], strict=True), reverse=True)[:6]
    assert sorted(cut["shares"][0], reverse=True) == [share for share, _ in largest]
    assert cut["words"][0] == sorted(cut["words"][0])


def test_the_matrix_on_disk_is_bm25_at_unit_length(shards: Artifact, tmp_path: Path) -> None:
    words = WordMatrix.write(shards, tmp_path)
    counter = CountVectorizer(token_pattern=r"\w\w+", min_df=2, max_df=0.5)
    counts = counter.fit_transform([text.words for text in TEXTS]).toarray().astype(float)
    df = (counts > 0).sum(axis=0)
    idf = np.log(1 + (len(counts) - df + 0.5) / (df + 0.5))
    slack = 1.2 * (0.25 + 0.75 * counts.sum(axis=1, keepdims=True) / counts.sum(axis=1).mean())
    weights = idf * counts * 2.2 / (counts + slack)
    weights /= np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), 1e-12)
    np.testing.assert_allclose(dense_words(words) @ dense_words(words).T, weights @ weights.T, atol=1e-5)
    assert (words.rows(np.array([5, 2])) != words.rows(np.arange(6))[[5, 2]]).nnz == 0
    assert sum(block.shape[0] for block in words.blocks()) == len(words) == len(TEXTS)


@pytest.mark.parametrize(("among_all", "pairs_at_once"), [(True, 1), (False, PAIRS_AT_ONCE), (False, 1)])
def test_the_most_similar_are_those_of_the_dense_products(
    shards: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, among_all: bool, pairs_at_once: int
) -> None:
    monkeypatch.setattr("pipelines.neighbours.similar.PAIRS_AT_ONCE", pairs_at_once)
    words = WordMatrix.write(shards, tmp_path)
    topics = np.random.default_rng(0).standard_normal((len(words), 4)).astype(np.float32) / 4
    everyone = np.arange(len(words))
    candidates = None if among_all else lambda rows: np.tile(everyone[::-1], (len(rows), 1))
    similarity = Similarity(words, topics, 3.0, candidates)
    found = similarity.of(np.array([9, 4]), 5)
    scores = (3 * dense_words(words) @ dense_words(words).T + topics @ topics.T)[[9, 4]]
    scores[[0, 1], [9, 4]] = -np.inf
    np.testing.assert_array_equal(found.rows, np.argsort(-scores, axis=1)[:, :5])
    np.testing.assert_allclose(found.scores, np.maximum(-np.sort(-scores, axis=1)[:, :5], 0), atol=1e-5)


def similar_at_random(documents: int, joined: int) -> Similar:
    dice = np.random.default_rng(1)
    rows = np.stack([dice.choice(np.delete(np.arange(documents), row), joined, False) for row in range(documents)])
    return Similar(rows, dice.random((documents, joined)).astype(np.float32))


def test_the_walk_is_personalised_pagerank_on_the_normalised_graph() -> None:
    similar = similar_at_random(60, 4)
    weights = np.zeros((60, 60))
    weights[np.arange(60)[:, None], similar.rows] = similar.scores.astype(float) ** SHARPNESS
    weights = np.maximum(weights, weights.T)
    scale = weights.sum(axis=1) ** -0.5
    walk = scale[:, None] * weights * scale
    both = np.concatenate([CONTINUE * walk, (1 - CONTINUE) * np.eye(60)])
    np.testing.assert_allclose(transitions(similar).toarray(), both, atol=1e-6)
    met = np.eye(60)
    for _ in range(7):
        met = CONTINUE * met @ walk + (1 - CONTINUE) * np.eye(60)
    np.fill_diagonal(met, -1)
    for row, found in enumerate(neighbours(transitions(similar), np.arange(60), 8, Reach(7, 60))):
        np.testing.assert_allclose(met[row, found], -np.sort(-met[row])[:8], rtol=1e-4)


def test_keeping_the_largest_entries_of_a_row_finds_nearly_the_same_neighbours() -> None:
    dice, topics = np.random.default_rng(2), np.arange(600) % 20
    near = np.where(topics[:, None] == topics, 1000.0, 1.0) * (1 - np.eye(600))
    joined = np.stack([dice.choice(600, 6, False, odds / odds.sum()) for odds in near])
    walk = transitions(Similar(joined, dice.random((600, 6)).astype(np.float32)))
    whole, cut, fewest = (neighbours(walk, np.arange(100), 10, Reach(20, kept)) for kept in (600, 60, 11))
    assert shared(cut, whole) > 0.95 > 0.7 > shared(fewest, whole)


def shared(some: Sequence[Iterable[int]], others: Sequence[Collection[int]]) -> float:
    """The share of each row of `others` that is in the same row of `some`, mean over rows."""
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(some, others, strict=True)]))


@pytest.mark.parametrize(
    ("documents", "count", "expected"),
    [(300, 17, (30, 100)), (3000, 55, (30, 200)), (10_000, 100, (30, 600)), (1_000_000, 200, (20, 400))],
)
def test_a_walk_keeps_the_fewer_the_smaller_the_corpus_is(
    documents: int, count: int, expected: tuple[int, int]
) -> None:
    assert reach_among(documents, count) == expected


def test_a_document_that_nothing_joins_meets_nobody() -> None:
    similar = Similar(np.array([[1], [0], [0]]), np.array([[1.0], [1.0], [0.0]], np.float32))
    assert [found.tolist() for found in neighbours(transitions(similar), np.arange(3), 2)] == [[1], [0], []]
    assert isinstance(transitions(similar), csr_matrix)
    assert transitions(similar).dtype == np.float32  # as a million documents have seventeen million entries


def test_a_killed_graph_is_finished_to_the_same_bytes(
    made: Artifact, shards: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in ("fit_lsi", "transitions", "_write_neighbours", "_write_parts"):
        with monkeypatch.context() as patch:
            patch.setattr(f"pipelines.graph.{step}", killed)
            with pytest.raises(KeyboardInterrupt):
                graph(shards.path, tmp_path / "graph", CONFIG)
        assert (tmp_path / "graph" / UNFINISHED).exists()
    again = graph(shards.path, tmp_path / "graph", CONFIG)
    assert [part.checksum for part in again.manifest.parts] == [part.checksum for part in made.manifest.parts]
    assert not (tmp_path / "graph" / UNFINISHED).exists()


def test_refuses_other_shards_and_a_corpus_without_neighbours(made: Artifact, tmp_path: Path) -> None:
    few = planted_shards(tmp_path, planted_texts(2, 1))
    with pytest.raises(Misuse, match="has 2 documents, and neighbours need at least 3"):
        graph(few.path, tmp_path / "graph")
    with pytest.raises(Stale, match="is the graph of other shards"):
        require_shards(made, few)


def test_a_graph_of_another_reach_is_another_graph(
    made: Artifact, shards: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert graph(shards.path, made.path, CONFIG).fingerprint == made.fingerprint
    monkeypatch.setattr("pipelines.neighbours.diffusion.FAR", Reach(steps=29, kept=600))
    with pytest.raises(Stale, match=r"reach.steps|reach"):
        graph(shards.path, made.path, CONFIG)


def test_a_file_that_is_to_be_mapped_has_its_place_on_the_disk_before_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 1 << 20)
    assert (tmp_path / "hole").stat().st_blocks == 0
    _reserve(tmp_path / "hole")
    assert (tmp_path / "hole").stat().st_blocks * 512 >= 1 << 20
