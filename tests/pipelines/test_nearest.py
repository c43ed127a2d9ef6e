"""The nearest of many vectors, against all products."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.neighbours.nearest import Nearest

RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((3000, 16)).astype(np.float32)
QUERIES = RNG.standard_normal((40, 16)).astype(np.float32)


def test_finds_the_largest_products() -> None:
    found = Nearest.build(VECTORS).search(QUERIES, 12)
    assert np.array_equal(found, np.argsort(-(QUERIES @ VECTORS.T), axis=1)[:, :12])


def test_inverted_lists_find_nearly_all_of_them() -> None:
    exact = Nearest.build(VECTORS).search(VECTORS[:200], 10)
    lists = Nearest.build(VECTORS, exact=1000).search(VECTORS[:200], 10)
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, lists, strict=True)])
    assert shared > 0.9
    assert np.array_equal(lists[:, 0], exact[:, 0])


@pytest.mark.parametrize("exact", [10_000, 1000])
def test_is_the_same_from_disk(tmp_path: Path, exact: int) -> None:
    index = Nearest.build(VECTORS, exact=exact)
    index.save(tmp_path / "x.faiss")
    assert np.array_equal(Nearest.load(tmp_path / "x.faiss").search(QUERIES, 7), index.search(QUERIES, 7))


def test_says_where_there_are_fewer() -> None:
    found = Nearest.build(VECTORS[:3]).search(QUERIES[:1], 5)
    assert found[0, 3:].tolist() == [-1, -1]
