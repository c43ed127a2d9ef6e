"""Ragged lists against Python's own, TF-IDF against scikit-learn's."""

import numpy as np
import torch
from documents import EMPTY, Document, batch_of, counts_matrix, ragged, random_documents
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfTransformer

TERMS = 40
LISTS = st.lists(st.lists(st.integers(0, 99), max_size=5), min_size=1, max_size=6)


@given(LISTS)
def test_every_id_knows_its_document_and_its_place(lists: list[list[int]]) -> None:
    ids = ragged(lists)
    assert ids.lengths.tolist() == [len(one) for one in lists]
    assert ids.rows.tolist() == [row for row, one in enumerate(lists) for _ in one]
    assert ids.positions.tolist() == [place for one in lists for place in range(len(one))]


@given(LISTS, st.integers(0, 99))
def test_keeping_some_ids_keeps_them_in_their_documents(lists: list[list[int]], limit: int) -> None:
    ids = ragged(lists)
    kept = ids.keep(ids.values < limit)
    expected = ragged([[value for value in one if value < limit] for one in lists])
    assert torch.equal(kept.values, expected.values)
    assert torch.equal(kept.offsets, expected.offsets)


def test_keeping_some_terms_keeps_their_counts_and_all_tokens() -> None:
    documents = [*random_documents(5), EMPTY]
    batch = batch_of(documents)
    kept = batch.keep_terms(batch.terms.values % 3 == 0)
    expected = batch_of(
        [
            Document({term: count for term, count in document.counts.items() if term % 3 == 0}, document.tokens)
            for document in documents
        ]
    )
    assert len(kept) == len(documents)
    for name in ("values", "offsets"):
        assert torch.equal(getattr(kept.terms, name), getattr(expected.terms, name))
        assert torch.equal(getattr(kept.tokens, name), getattr(expected.tokens, name))
    assert torch.equal(kept.counts, expected.counts)


def test_tfidf_is_scikit_learns_with_sublinear_counts() -> None:
    documents = [*random_documents(30), Document(dict.fromkeys(range(TERMS), 1))]
    counts = counts_matrix(documents, TERMS).numpy()
    reference = TfidfTransformer(sublinear_tf=True, smooth_idf=False).fit(counts)
    batch = batch_of(documents)
    weights = batch.tfidf(torch.from_numpy(reference.idf_))
    expected = reference.transform(counts).toarray()[batch.terms.rows, batch.terms.values]
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-12)


def test_tfidf_of_a_document_is_the_same_in_any_batch() -> None:
    documents = [EMPTY, *random_documents(4), EMPTY]
    idf = torch.linspace(1, 3, TERMS)
    alone = [batch_of([document]).tfidf(idf) for document in documents]
    torch.testing.assert_close(torch.cat(alone), batch_of(documents).tfidf(idf))


def test_tfidf_of_empty_documents_is_nothing() -> None:
    assert batch_of([EMPTY, EMPTY]).tfidf(torch.ones(TERMS)).shape == (0,)
