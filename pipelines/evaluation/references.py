"""Rankings by numbers that a code would have to replace: tf-idf cosine, BM25, LSI cosine, an encoder's cosine.

The database goes by block by block, and each query keeps its best documents so far, so memory does not grow with it.
Shapes: Q queries, n documents of a block, V terms, D dimensions, R places of a ranking.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from pipelines.evaluation.ranking import Ranked, best, rank_keys, ranked
from pipelines.progress import Progress, Silent
from pipelines.tfidf import term_counts, unit_tfidf
from pipelines.vocabulary import Vocabulary

QUERIES_AT_ONCE = 256
DOCUMENTS_AT_ONCE = 1 << 14
K1, B = 1.2, 0.75
"""BM25's usual settings: how soon a repeated term counts no more, and how much long documents are made up for."""
Block: TypeAlias = "csr_matrix | NDArray[np.float32]"


class Reference(NamedTuple):
    """A ranking by the products of the queries' vectors, (Q, V) or (Q, D), with those of the documents."""

    queries: Block
    documents: Callable[[], Iterator[Block]]
    """Reads the documents' vectors block by block, in the order of the database."""


def nearest(reference: Reference, own_Q: NDArray[np.int64], places: int, progress: Progress = Silent()) -> Ranked:
    """The best documents of each query, but not its own row (-1: it has none); ties by row.

    There are at least `places` documents that are not the query's own.
    """
    kept_QR = np.empty((len(own_Q), 0), np.int64)
    first = 0
    for block in _grouped(reference.documents()):
        kept_QR = np.concatenate(
            [
                best(
                    np.concatenate([kept_QR[rows], _keys(reference.queries[rows], block, own_Q[rows], first)], 1),
                    places,
                )
                for rows in _batches(len(own_Q))
            ]
        )
        first += block.shape[0]
        progress.advance(block.shape[0])
    return ranked(kept_QR)


def tfidf_rows(tables: Iterable[pa.RecordBatch], idf_V: NDArray[np.float32]) -> Iterator[csr_matrix]:
    """The documents' unit tf-idf vectors, a block for each table."""
    for table in tables:
        yield unit_tfidf(table, idf_V)


def bm25_rows(tables: Iterable[pa.RecordBatch], vocabulary: Vocabulary, mean_length: float) -> Iterator[csr_matrix]:
    """What a term of each document adds to the score of a query that has it once (Robertson & Zaragoza 2009, 3.15).

    The idf is ln(1 + (N - df + 1/2) / (df + 1/2)), which is positive also for terms in most documents.
    """
    df_V = vocabulary.df.astype(np.float64)
    idf_V = np.log1p(np.maximum(vocabulary.documents - df_V + 0.5, 0) / (df_V + 0.5))
    for table in tables:
        counts = counts_rows(table, len(vocabulary))
        lengths_n = np.asarray(counts.sum(axis=1)).ravel()
        slack_n = K1 * (1 - B + B * lengths_n / max(mean_length, 1e-9))
        slack_P = np.repeat(slack_n, np.diff(counts.indptr))
        counts.data = (idf_V[counts.indices] * counts.data * (K1 + 1) / (counts.data + slack_P)).astype(np.float32)
        yield counts


def counts_rows(table: pa.Table | pa.RecordBatch, terms: int) -> csr_matrix:
    """How often each document has each term, (n, V)."""
    counts = term_counts(table)
    return csr_matrix((counts.weights, counts.ids, counts.offsets), shape=(table.num_rows, terms))


def unit_rows(vectors_nD: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors at length one; one of length zero stays."""
    lengths_n1 = np.linalg.norm(vectors_nD, axis=1, keepdims=True)
    return np.divide(vectors_nD, lengths_n1, out=np.zeros_like(vectors_nD), where=lengths_n1 > 0)


def _keys(queries: Block, block: Block, own_q: NDArray[np.int64], first: int) -> NDArray[np.int64]:
    if isinstance(block, csr_matrix):
        assert isinstance(queries, csr_matrix)
        # Documents from the left: of all orders of this product the one whose inner loop is dense.
        scores_qn = np.ascontiguousarray((block @ queries.T.toarray(order="C")).T)
    else:
        scores_qn = queries @ block.T
    here = np.flatnonzero((own_q >= first) & (own_q < first + block.shape[0]))
    scores_qn[here, own_q[here] - first] = -np.inf
    return rank_keys(scores_qn, first)


def _grouped(blocks: Iterable[Block]) -> Iterator[Block]:
    """Small blocks together, since the queries' vectors are laid out anew for each."""
    waiting: list[Block] = []
    for block in blocks:
        waiting.append(block)
        if sum(one.shape[0] for one in waiting) >= DOCUMENTS_AT_ONCE:
            yield _stacked(waiting)
            waiting = []
    if waiting:
        yield _stacked(waiting)


def _stacked(blocks: list[Block]) -> Block:
    return np.concatenate(blocks) if isinstance(blocks[0], np.ndarray) else vstack(blocks, format="csr")


def _batches(queries: int) -> list[slice]:
    return [slice(start, start + QUERIES_AT_ONCE) for start in range(0, queries, QUERIES_AT_ONCE)]
