"""Baseline codes against dense NumPy and scikit-learn."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.preprocessing import normalize

from pipelines.evaluation.baselines import sign_random_projection, simhash
from pipelines.tfidf import inverse_document_frequencies, tfidf, unit_tfidf
from pipelines.vocabulary import Vocabulary

TERMS = 40


def documents(seed: int, number: int = 30) -> np.ndarray:
    """Term counts (N, V); the first document is empty."""
    counts = np.random.default_rng(seed).poisson(0.4, (number, TERMS))
    counts[0] = 0
    return counts


def table_of(counts: np.ndarray) -> pa.Table:
    ids = [np.flatnonzero(row) for row in counts]
    return pa.table(
        {
            "term_ids": pa.array([row.tolist() for row in ids], pa.list_(pa.uint32())),
            "term_counts": pa.array([c[i].tolist() for c, i in zip(counts, ids, strict=True)], pa.list_(pa.uint16())),
        }
    )


def vocabulary_of(counts: np.ndarray) -> Vocabulary:
    df = (counts > 0).sum(axis=0).astype(np.uint32)
    return Vocabulary({f"term{term}": term for term in range(TERMS)}, df, len(counts))


def dense_tfidf(counts: np.ndarray) -> np.ndarray:
    """scikit-learn adds 1 to ln(N / df): its product with the tf part is taken off again."""
    transformer = TfidfTransformer(norm=None, sublinear_tf=True, smooth_idf=False).fit(counts)
    logarithmic = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0)
    return transformer.transform(counts).toarray() - logarithmic


def unpacked(codes: np.ndarray) -> np.ndarray:
    return np.unpackbits(codes, axis=1, bitorder="little").astype(bool)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_tfidf_is_scikit_learns_without_its_one(seed: int) -> None:
    counts = documents(seed)
    counts[1] = np.maximum(counts[1], 1)  # scikit-learn divides by the df, so every term has to occur
    terms = tfidf(table_of(counts), inverse_document_frequencies(vocabulary_of(counts)))
    dense = np.zeros(counts.shape)
    dense[np.repeat(np.arange(len(counts)), np.diff(terms.offsets)), terms.ids] = terms.weights
    np.testing.assert_allclose(dense, dense_tfidf(counts), rtol=1e-5, atol=1e-5)
    unit = normalize(dense_tfidf(counts))
    rows = unit_tfidf(table_of(counts), inverse_document_frequencies(vocabulary_of(counts)))
    np.testing.assert_allclose(rows.toarray(), unit, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [simhash, sign_random_projection])
def test_bits_are_the_signs_of_the_dense_product(method: type) -> None:
    counts = documents(3)
    counts[1] = np.maximum(counts[1], 1)
    projection = method(vocabulary_of(counts), 64)
    sums = dense_tfidf(counts) @ projection.vectors_VK.numpy().astype(np.float64)
    bits = unpacked(projection.encode([table_of(counts)]).bytes_NC.numpy())
    decided = np.abs(sums) > 1e-3
    assert decided[1:].mean() > 0.99
    np.testing.assert_array_equal(bits[decided], (sums > 0)[decided])
    assert not bits[0].any()


@pytest.mark.parametrize("method", [simhash, sign_random_projection])
def test_codes_do_not_depend_on_how_documents_are_cut_into_tables(method: type) -> None:
    counts = documents(4)
    projection = method(vocabulary_of(counts), 32)
    table = table_of(counts)
    whole = projection.encode([table]).bytes_NC.numpy()
    (batch,) = table.to_batches()
    pieces = [batch.slice(0, 7), table.slice(7, 0), table.slice(7, 12), pa.concat_tables([table.slice(19)])]
    np.testing.assert_array_equal(projection.encode(pieces).bytes_NC.numpy(), whole)


@pytest.mark.parametrize("method", [simhash, sign_random_projection])
def test_a_bit_differs_with_the_chance_of_the_angle_over_pi(method: type) -> None:
    """512 bits: the share of differing ones is within five standard errors of the closed form, for 45 pairs."""
    counts = documents(5, 200)[1:11] + np.array([[3] * 20 + [0] * 20])
    counts = np.concatenate([counts, documents(6, 100)])
    dense = dense_tfidf(np.maximum(counts, np.eye(len(counts), TERMS, dtype=int)))[:10]
    counts = np.maximum(counts, np.eye(len(counts), TERMS, dtype=int))
    bits = unpacked(method(vocabulary_of(counts), 512).encode([table_of(counts[:10])]).bytes_NC.numpy())
    norms = np.linalg.norm(dense, axis=1)
    for first in range(10):
        for second in range(first):
            cosine = dense[first] @ dense[second] / norms[first] / norms[second]
            chance = math.acos(np.clip(cosine, -1, 1)) / math.pi
            error = math.sqrt(chance * (1 - chance) / 512)
            assert abs((bits[first] != bits[second]).mean() - chance) < 5 * error + 1e-9


def test_terms_hash_alike_wherever_they_stand_in_a_vocabulary() -> None:
    """A term's vector is its hash, so it is the same in every vocabulary, process and version of Python."""
    one, other = ({"b": 0, "a": 1}, {"a": 0, "c": 1, "b": 2})
    vectors = [
        simhash(Vocabulary(ids, np.ones(len(ids), np.uint32), 2), 16).vectors_VK[ids["a"]].tolist()
        for ids in (one, other)
    ]
    # printf a | openssl shake256 -xoflen 2
    assert vectors[0] == vectors[1] == [2.0 * (b"\x86\x7e"[bit // 8] >> bit % 8 & 1) - 1 for bit in range(16)]
