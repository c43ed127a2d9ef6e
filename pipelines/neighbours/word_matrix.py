"""A corpus as a sparse matrix on disk, read by rows in any order: BM25 vectors of length one.

Shapes: N documents, V terms, P pairs of a document and a term.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pipelines.artifact import Artifact, replacing
from pipelines.evaluation.references import bm25_rows
from pipelines.files.arrow import record_batches
from pipelines.tfidf import of_unit_length
from pipelines.vocabulary import Vocabulary

OFFSETS, TERMS, WEIGHTS = "words.npz", "terms.bin", "weights.bin"
ROWS_AT_ONCE = 4096


class WordMatrix:
    """The rows that `write` left in a folder, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        sizes = np.load(folder / OFFSETS)
        self.terms, self._offsets = int(sizes["terms"]), sizes["offsets"]
        pairs = int(self._offsets[-1])
        self._terms, self._weights = (
            np.memmap(folder / name, kind, "r", shape=(pairs,)) if pairs else np.empty(0, kind)
            for name, kind in ((TERMS, np.int32), (WEIGHTS, np.float32))
        )

    @classmethod
    def write(cls, shards: Artifact, folder: Path) -> Self:
        """Weigh the words of all documents, leave them in `folder`, and open them; what is there whole, stays."""
        if not (folder / OFFSETS).exists():
            vocabulary = Vocabulary.load(shards.path)
            lengths = [np.zeros(1, np.int64)]
            with (
                replacing(folder / TERMS) as terms_path,
                replacing(folder / WEIGHTS) as weights_path,
                terms_path.open("wb") as terms,
                weights_path.open("wb") as weights,
            ):
                for rows in _bm25(shards, vocabulary):
                    lengths.append(np.diff(rows.indptr).astype(np.int64))
                    rows.indices.astype(np.int32).tofile(terms)
                    rows.data.astype(np.float32).tofile(weights)
            with replacing(folder / OFFSETS) as sizes, sizes.open("wb") as file:
                np.savez(file, offsets=np.cumsum(np.concatenate(lengths)), terms=len(vocabulary))
        return cls(folder)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def median_terms(self) -> float:
        """How many different terms the middle document has."""
        return float(np.median(np.diff(self._offsets)))

    def pairs(self, rows: NDArray[np.int64]) -> int:
        """How many terms the documents at `rows` have together."""
        return int((self._offsets[rows + 1] - self._offsets[rows]).sum())

    def rows(self, rows: NDArray[np.int64]) -> csr_matrix:
        """The documents at `rows`, in that order, (n, V)."""
        starts = self._offsets[rows]
        offsets = np.concatenate([[0], np.cumsum(self._offsets[rows + 1] - starts)])
        places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], np.diff(offsets))
        return csr_matrix((self._weights[places], self._terms[places], offsets), shape=(len(rows), self.terms))

    def blocks(self) -> Iterator[csr_matrix]:
        """All documents in order, some thousand at a time."""
        for start in range(0, len(self), ROWS_AT_ONCE):
            yield self.rows(np.arange(start, min(start + ROWS_AT_ONCE, len(self))))


def _bm25(shards: Artifact, vocabulary: Vocabulary) -> Iterator[csr_matrix]:
    tables = (batch for path in shards.files(".arrow") for batch in record_batches(path))
    words, documents = (shards.manifest.statistics[name] for name in ("terms", "documents"))
    for rows in bm25_rows(tables, vocabulary, words / max(documents, 1)):
        yield of_unit_length(rows)
