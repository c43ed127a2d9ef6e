"""Documents as tf-idf vectors. Shapes: N documents, V terms, P pairs of a document and a term."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pipelines.vocabulary import Vocabulary


class WeightedTerms(NamedTuple):
    """Document n has the terms `ids[offsets[n]:offsets[n + 1]]` with these weights."""

    ids: NDArray[np.int64]
    """(P,)"""
    weights: NDArray[np.float32]
    """(P,)"""
    offsets: NDArray[np.int64]
    """(N + 1,)"""


def tfidf(table: pa.Table | pa.RecordBatch, idf_V: NDArray[np.float32]) -> WeightedTerms:
    """The weights (1 + ln tf) ln(N / df) of each document's terms; `table` is in the shard schema."""
    counts = term_counts(table)
    return counts._replace(weights=(1 + np.log(counts.weights)) * idf_V[counts.ids])


def unit_tfidf(table: pa.Table | pa.RecordBatch, idf_V: NDArray[np.float32]) -> csr_matrix:
    """The same as a sparse matrix (N, V) float32 of rows of length one; a document without terms is a row of zeros."""
    terms = tfidf(table, idf_V)
    return of_unit_length(
        csr_matrix((terms.weights, terms.ids, terms.offsets), shape=(len(terms.offsets) - 1, len(idf_V)))
    )


def of_unit_length(rows: csr_matrix) -> csr_matrix:
    """`rows` with each row divided by its length, in float32; a row of zeros stays one."""
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    scale = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    weights = (rows.data * np.repeat(scale, np.diff(rows.indptr))).astype(np.float32)
    return csr_matrix((weights, rows.indices, rows.indptr), shape=rows.shape)


def term_counts(table: pa.Table | pa.RecordBatch) -> WeightedTerms:
    """How often each document has each of its terms."""
    ids = _flat(table, "term_ids").astype(np.int64)
    counts = _flat(table, "term_counts").astype(np.float32)
    lengths = pc.list_value_length(table.column("term_ids")).to_numpy(zero_copy_only=False)
    return WeightedTerms(ids, counts, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def inverse_document_frequencies(vocabulary: Vocabulary) -> NDArray[np.float32]:
    """ln(N / df) of each term, (V,)."""
    frequencies = np.maximum(vocabulary.df, 1)
    return np.log(max(vocabulary.documents, 1) / frequencies).astype(np.float32)


def _flat(table: pa.Table | pa.RecordBatch, name: str) -> NDArray[np.unsignedinteger]:
    column = table.column(name)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
    return np.concatenate(values) if values else np.empty(0, np.uint32)
