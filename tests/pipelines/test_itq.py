"""Iterative quantisation against data whose best rotation is known."""

from collections.abc import Iterator

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from pipelines.corpus import CorpusConfig, Document, plan_slices, read_slice
from pipelines.evaluation.itq import fit_itq, quantise
from pipelines.evaluation.references import unit_rows
from pipelines.lsi import fit_lsi
from tests.bench.corpora import corpus_file


def corners(bits: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points at the corners of a cube that was turned and moved, and which corner each is."""
    chance = np.random.default_rng(seed)
    signs = chance.choice([-1.0, 1.0], (4000, bits))
    turn = np.linalg.qr(chance.standard_normal((bits, bits)))[0]
    return (signs @ turn + 3).astype(np.float32), signs


def test_a_turned_cube_is_turned_back() -> None:
    points, signs = corners(3)
    rotation = fit_itq(points, 8)
    values = rotation.values(points)
    # Three dimensions in eight bits: whatever the other bits are, points of one corner have one code, others another.
    codes = rotation.codes(points)[:, 0]
    of_corner = {tuple(row): set(codes[(signs == row).all(axis=1)]) for row in np.unique(signs, axis=0)}
    assert all(len(found) == 1 for found in of_corner.values())
    assert len(set.union(*of_corner.values())) == 8
    np.testing.assert_allclose(rotation.turn_DK @ rotation.turn_DK.T, np.eye(3), atol=1e-5)
    assert np.abs(values.mean(axis=0)).max() < 0.1


def test_a_cube_of_as_many_dimensions_as_bits_loses_next_to_nothing_to_rounding() -> None:
    points, _ = corners(8)
    values = fit_itq(points, 8).values(points)
    loss = np.square(np.sign(values) - values).sum(axis=1).mean()
    unturned = points - points.mean(axis=0)
    assert loss < 0.01 < np.square(np.sign(unturned) - unturned).sum(axis=1).mean()


def test_of_more_dimensions_than_bits_the_principal_ones_are_kept() -> None:
    chance = np.random.default_rng(1)
    points = (chance.standard_normal((500, 12)) * np.array([9.0] * 8 + [0.1] * 4)).astype(np.float32)
    turn = fit_itq(points, 8).turn_DK
    np.testing.assert_allclose(turn.T @ turn, np.eye(8), atol=1e-5)
    assert np.abs(turn[8:]).max() < 0.02


@pytest.mark.parametrize("size", [7, 1000])
def test_blocks_change_no_code(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points, _ = corners(8)
    points = points[:900]
    monkeypatch.setattr("pipelines.evaluation.itq.MOST_FITTED", 300)

    def blocks() -> Iterator[np.ndarray]:
        yield from (points[start : start + size] for start in range(0, 900, size))

    rotation, codes = quantise(blocks, 900, 8)
    whole, expected = quantise(lambda: iter([points]), 900, 8)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(rotation.turn_DK, whole.turn_DK)


def newsgroups(part: str) -> list[Document]:
    path = corpus_file("ng20.parquet")
    if path is None:
        pytest.skip("ng20.parquet is not on this machine; set LATENTBITS_DATA to the folder that has it")
    where = {"split": (part,)}
    corpus = CorpusConfig(files=(str(path),), id="id", labels="labels", cut_header=True, where=where)
    rows = (row for piece in plan_slices(corpus) for row in read_slice(corpus, piece))
    return [row for row in rows if isinstance(row, Document)]


@pytest.mark.slow
def test_newsgroups_by_date_come_out_as_an_independent_implementation_had_them() -> None:
    """64 bits of scikit-learn's tf-idf of 10,000 words: P@100 was .487 by Hamming distance and .511 asymmetric."""
    held, asked = newsgroups("train"), newsgroups("test")
    vectorizer = TfidfVectorizer(max_features=10_000, stop_words="english", sublinear_tf=True, dtype=np.float32)
    rows, queries = vectorizer.fit_transform(one.text for one in held), vectorizer.transform(one.text for one in asked)
    vectors, _ = fit_lsi(lambda: iter([rows]), rows.shape[1], 64)
    rotation = fit_itq(unit_rows(rows @ vectors), 64)
    signs, values = np.sign(rotation.values(unit_rows(rows @ vectors))), rotation.values(unit_rows(queries @ vectors))
    labels, expected = ([one.labels[0] for one in part] for part in (held, asked))
    same = np.array(labels)[None] == np.array(expected)[:, None]
    for weights, figure in ((np.sign(values), 0.487), (values, 0.511)):
        nearest = np.argsort(-(weights @ signs.T), axis=1, kind="stable")[:, :100]
        assert np.take_along_axis(same, nearest, axis=1).mean() == pytest.approx(figure, abs=0.01)
