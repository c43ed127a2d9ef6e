"""The streaming truncated SVD against numpy's full one."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy.sparse import csr_matrix, random, vstack

from pipelines.lsi import fit_lsi

TERMS = 120


def corpus(rows: int = 300) -> csr_matrix:
    """Sparse rows around five topics, so that the spectrum falls as that of a corpus does."""
    chance = np.random.default_rng(0)
    topics = chance.gamma(0.2, size=(5, TERMS))
    counts = chance.poisson(6 * topics[chance.integers(0, 5, rows)] / topics.mean())
    noise = random(rows, TERMS, 0.05, random_state=1)
    return csr_matrix(np.log1p(counts) + noise.toarray()).astype(np.float32)


def in_blocks(rows: csr_matrix, size: int) -> Callable[[], Iterator[csr_matrix]]:
    def blocks() -> Iterator[csr_matrix]:
        for start in range(0, rows.shape[0], size):
            yield rows[start : start + size]

    return blocks


def test_singular_vectors_and_values_are_those_of_the_full_decomposition() -> None:
    rows = corpus()
    vectors, values = fit_lsi(in_blocks(rows, 64), TERMS, 5)
    _, expected, right = np.linalg.svd(rows.toarray().astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(values, expected[:5], rtol=1e-5)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(5), atol=1e-5)
    np.testing.assert_allclose(np.abs((vectors * right[:5].T).sum(axis=0)), 1, atol=1e-5)
    assert (vectors[np.abs(vectors).argmax(axis=0), np.arange(5)] > 0).all()


def test_where_singular_values_hardly_differ_next_to_nothing_of_the_best_subspace_is_lost() -> None:
    rows = corpus()
    vectors, values = fit_lsi(in_blocks(rows, 64), TERMS, 30)
    best = np.linalg.svd(rows.toarray(), compute_uv=False)[:30]
    assert values[5:] @ values[5:] > 0.99 * (best[5:] @ best[5:])
    np.testing.assert_allclose(np.linalg.norm(rows @ vectors) ** 2, values @ values, rtol=1e-5)


def test_blocks_change_only_the_rounding() -> None:
    rows = corpus()
    whole, values = fit_lsi(in_blocks(rows, 1000), TERMS, 6, seed=3)
    pieces, same_values = fit_lsi(in_blocks(rows, 17), TERMS, 6, seed=3)
    np.testing.assert_allclose(values, same_values, rtol=1e-6)
    np.testing.assert_allclose(whole, pieces, atol=1e-4)


def test_a_corpus_of_few_dimensions_gives_no_more() -> None:
    few = csr_matrix(np.outer(np.arange(1.0, 11), np.ones(TERMS)) + np.eye(10, TERMS)).astype(np.float32)
    rows = vstack([few[:3], few[:3]]).tocsr()
    vectors, values = fit_lsi(in_blocks(rows, 4), TERMS, 20)
    assert vectors.shape == (TERMS, 3)
    np.testing.assert_allclose(values, np.linalg.svd(rows.toarray(), compute_uv=False)[:3], rtol=1e-4)
    np.testing.assert_allclose(rows.toarray(), rows @ vectors @ vectors.T, atol=1e-3)


@pytest.mark.parametrize("rows", [0, 3])
def test_rows_without_terms_have_no_dimension(rows: int) -> None:
    vectors, values = fit_lsi(in_blocks(csr_matrix((rows, TERMS), dtype=np.float32), 2), TERMS, 4)
    assert vectors.shape == (TERMS, 0)
    assert values.shape == (0,)
