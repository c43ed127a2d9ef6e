"""A document's neighbours and the mean of their words: as a graph artifact keeps them, and as training reads them.

Shapes: n documents of a block, V terms.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pipelines.artifact import Artifact
from pipelines.files.arrow import record_batches
from pipelines.neighbours.word_matrix import WordMatrix
from pipelines.shards import Lists, gather, places_of
from vae_core.batch import Ragged, Words
from vae_core.errors import Stale

LISTS = {"neighbours": pa.uint32(), "words": pa.uint32(), "shares": pa.float16()}


class GraphRows:
    """Rows of a graph, memory-mapped, of which any can be read."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        parts = list(batches)
        self._columns = {name: [Lists.of(part.column(name)) for part in parts] for name in LISTS}
        self._starts = np.concatenate([[0], np.cumsum([part.num_rows for part in parts])])

    def columns(self, rows: NDArray[np.int64], names: Sequence[str]) -> list[tuple[NDArray[Any], NDArray[np.int64]]]:
        """The lists of these columns at `rows`, one after the other, and where each begins and the last ends."""
        places = places_of(rows, self._starts)
        return [gather(self._columns[name], places) for name in names]

    def table(self, rows: NDArray[np.int64]) -> pa.Table:
        """The rows at `rows`, in that order."""
        return _table(self.columns(rows, list(LISTS)))


class NeighbourWords:
    """The mean of the words of each document's neighbours, of a graph artifact, under the rows of its shards."""

    def __init__(self, graph: Artifact) -> None:
        self._rows = GraphRows(batch for path in graph.files(".arrow") for batch in record_batches(path))

    def of(self, rows: NDArray[np.int64]) -> Words:
        """Those of the documents at `rows`, in that order."""
        (terms, offsets), (shares, _) = self._rows.columns(rows, ["words", "shares"])
        ragged = Ragged(torch.from_numpy(terms.astype(np.int64)), torch.from_numpy(offsets))
        return Words(ragged, torch.from_numpy(shares.astype(np.float32)))

    def nearest(self, rows: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The at most `count` nearest neighbours of each of `rows`, one after the other, and where each begins."""
        ((neighbours, offsets),) = self._rows.columns(rows, ["neighbours"])
        lengths = np.diff(offsets)
        kept = np.arange(len(neighbours)) - np.repeat(offsets[:-1], lengths) < count
        return neighbours[kept].astype(np.int64), np.concatenate([[0], np.cumsum(np.minimum(lengths, count))])


def require_shards(graph: Artifact, shards: Artifact) -> None:
    """Raise Stale unless `graph` was made from `shards`."""
    if graph.input("shards").fingerprint != shards.fingerprint:
        raise Stale(
            f"{graph.path} is the graph of other shards than {shards.path}; "
            f"run `latentbits graph {shards.path} --out {graph.path} --overwrite`"
        )


def graph_schema() -> pa.Schema:
    """A row for each document, in the order of the shards."""
    return pa.schema([(name, pa.list_(kind)) for name, kind in LISTS.items()])


def graph_table(found: list[NDArray[np.int64]], words: WordMatrix, kept: int) -> pa.Table:
    """The graph's rows of documents whose neighbours are given; `kept` words of their mean, the most frequent."""
    counts_n = np.array([len(one) for one in found], np.int64)
    joined = np.concatenate(found) if found else np.empty(0, np.int64)
    ids, shares, lengths = _most_frequent(_mean_words(joined, counts_n, words), kept)
    sizes = ((joined, counts_n), (ids, lengths), (shares, lengths))
    return _table([(values, np.concatenate([[0], np.cumsum(size)])) for values, size in sizes])


def _table(columns: Sequence[tuple[NDArray[Any], NDArray[np.int64]]]) -> pa.Table:
    """The columns from their lists' values, one after the other, and offsets."""
    lists = [
        pa.ListArray.from_arrays(offsets.astype(np.int32), pa.array(values, kind))
        for (values, offsets), kind in zip(columns, LISTS.values(), strict=True)
    ]
    return pa.Table.from_arrays(lists, schema=graph_schema())


def _mean_words(neighbours: NDArray[np.int64], counts_n: NDArray[np.int64], words: WordMatrix) -> csr_matrix:
    """The mean over a document's neighbours of their words' shares, (n, V): each neighbour's own sum to one."""
    distinct, places = np.unique(neighbours, return_inverse=True)
    theirs = words.rows(distinct)
    sums = np.asarray(theirs.sum(axis=1)).ravel()
    theirs.data = theirs.data / np.repeat(np.maximum(sums, 1e-12), np.diff(theirs.indptr))
    weights = np.repeat(1 / np.maximum(counts_n, 1), counts_n).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(counts_n)])
    return csr_matrix((weights, places, offsets), shape=(len(counts_n), len(distinct))) @ theirs


def _most_frequent(means: csr_matrix, kept: int) -> tuple[NDArray[np.int32], NDArray[np.float16], NDArray[np.int64]]:
    """The `kept` largest entries of each row: term ids that ascend, shares, and how many there are in each row."""
    ids, shares = [np.empty(0, np.int32)], [np.empty(0, np.float32)]
    for start, stop in zip(means.indptr[:-1], means.indptr[1:], strict=True):
        terms, weights = means.indices[start:stop], means.data[start:stop]
        if len(terms) > kept:
            largest = np.argpartition(-weights, kept)[:kept]
            terms, weights = terms[largest], weights[largest]
        order = np.argsort(terms)
        ids.append(terms[order].astype(np.int32))
        shares.append(weights[order])
    lengths = np.array([len(one) for one in ids[1:]], np.int64)
    return np.concatenate(ids), np.concatenate(shares).astype(np.float16), lengths
