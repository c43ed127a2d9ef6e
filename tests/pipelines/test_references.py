"""Float references against scikit-learn and the written-out formula of BM25."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.metrics.pairwise import cosine_similarity

from pipelines.evaluation.code_sets import CodeSet, signs
from pipelines.evaluation.references import K1, B, Reference, bm25_rows, nearest, tfidf_rows, unit_rows
from pipelines.tfidf import inverse_document_frequencies
from tests.pipelines.test_baselines import TERMS, dense_tfidf, documents, table_of, vocabulary_of
from vae_core.codes import PackedCodes, hamming, log_odds_scores


def counted() -> np.ndarray:
    counts = documents(7, 60)
    counts[1] = np.maximum(counts[1], 1)
    return counts


def ordered(scores: np.ndarray, own: np.ndarray, places: int) -> np.ndarray:
    scores = scores.copy()
    scores[own >= 0, own[own >= 0]] = -np.inf
    return np.sort(-scores, axis=1)[:, :places] * -1


@pytest.mark.parametrize("size", [7, 60])
def test_tfidf_neighbours_are_those_of_scikit_learns_cosine(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.evaluation.references.DOCUMENTS_AT_ONCE", 20)
    counts, own = counted(), np.array([3, -1, 5, -1])
    asked = counts[[3, 4, 5, 6]]
    vocabulary = vocabulary_of(counts)
    idf = inverse_document_frequencies(vocabulary)
    table = table_of(counts)
    pieces = [table.slice(start, size).combine_chunks().to_batches()[0] for start in range(0, 60, size)]
    (queries,) = tfidf_rows(table_of(asked).to_batches(), idf)
    found = nearest(Reference(queries, lambda: tfidf_rows(pieces, idf)), own, 20)
    dense = dense_tfidf(counts)
    cosine = cosine_similarity(dense[[3, 4, 5, 6]], dense)
    np.testing.assert_allclose(found.scores, ordered(cosine, own, 20), atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(cosine, found.rows, axis=1), found.scores, atol=1e-5)
    assert 3 not in found.rows[0]
    assert 4 in found.rows[1]


def test_bm25_is_the_written_out_formula() -> None:
    counts = counted()
    vocabulary = vocabulary_of(counts)
    mean = counts.sum() / len(counts)
    (weights,) = bm25_rows(table_of(counts).to_batches(), vocabulary, mean)
    for document in (1, 2, 17):
        for term in range(TERMS):
            tf, df = counts[document, term], (counts[:, term] > 0).sum()
            idf = math.log(1 + (len(counts) - df + 0.5) / (df + 0.5))
            length = counts[document].sum() / mean
            expected = idf * tf * (K1 + 1) / (tf + K1 * (1 - B + B * length))
            assert weights[document, term] == pytest.approx(expected, rel=1e-5)


def test_dense_neighbours_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.evaluation.references.DOCUMENTS_AT_ONCE", 20)
    chance = np.random.default_rng(0)
    vectors = unit_rows(chance.standard_normal((90, 6)).astype(np.float32))
    own = np.array([0, 50])

    def blocks(size: int) -> Iterator[np.ndarray]:
        yield from (vectors[start : start + size] for start in range(0, 90, size))

    for size in (11, 90):
        found = nearest(Reference(vectors[own], lambda size=size: blocks(size)), own, 89)
        np.testing.assert_allclose(found.scores, ordered(vectors[own] @ vectors.T, own, 89), atol=1e-6)
    assert unit_rows(np.zeros((2, 3), np.float32)).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("held", [0, 1 << 20])
def test_code_sets_score_as_the_definitions_do(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.evaluation.code_sets.HELD_NUMBERS", held)
    monkeypatch.setattr("pipelines.evaluation.code_sets.CODES_AT_ONCE", 5)
    chance = np.random.default_rng(0)
    codes = chance.integers(0, 256, (40, 2), dtype=np.uint8)
    codes[20:] = codes[:20]
    log_odds = chance.normal(size=(3, 16)).astype(np.float32)
    asked = np.packbits(log_odds > 0, axis=1, bitorder="little")
    packed = PackedCodes(torch.from_numpy(codes))
    scores = CodeSet(codes).scores(log_odds)
    expected = log_odds_scores(torch.from_numpy(log_odds), packed).numpy()
    np.testing.assert_allclose(scores - scores[:, :1], expected - expected[:, :1], atol=1e-5)
    np.testing.assert_array_equal(scores[:, 20:], scores[:, :20])
    distances = hamming(PackedCodes(torch.from_numpy(asked)), packed).numpy()
    by_signs = CodeSet(codes).scores(signs(asked))
    ones = np.unpackbits(asked, axis=1).sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(ones - by_signs, distances)


def test_a_sparse_query_without_terms_ties_with_everything() -> None:
    rows = csr_matrix(np.eye(4, dtype=np.float32))
    found = nearest(Reference(csr_matrix((1, 4), dtype=np.float32), lambda: iter([rows])), np.array([-1]), 3)
    assert found.rows.tolist() == [[0, 1, 2]]
    assert found.scores.tolist() == [[0.0, 0.0, 0.0]]
