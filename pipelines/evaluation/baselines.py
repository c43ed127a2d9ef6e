"""Codes without training, to measure a model's against at equal bits: signs of projected tf-idf vectors.

Shapes: N documents, V terms, K bits. For both methods the chance that a bit
differs between two documents is the angle between their tf-idf vectors over pi (for SimHash nearly so).
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from pipelines.tfidf import inverse_document_frequencies, tfidf
from pipelines.vocabulary import Vocabulary
from vae_core.codes import PackedCodes

ROWS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """Bit i of a document is 1 where the sum of its terms' tf-idf weights times their vectors is positive at i."""

    vectors_VK: Tensor
    idf_V: NDArray[np.float32]

    def encode(self, tables: Iterable[pa.Table | pa.RecordBatch]) -> PackedCodes:
        """The codes of all documents of `tables` (in the shard schema), in order; a document without terms gets 0."""
        codes = [torch.empty(0, self.vectors_VK.shape[1] // 8, dtype=torch.uint8)]
        for table in tables:
            for start in range(0, table.num_rows, ROWS_AT_ONCE):
                codes.append(self._encode(table.slice(start, ROWS_AT_ONCE)).bytes_NC)
        return PackedCodes(torch.cat(codes))

    def _encode(self, table: pa.Table | pa.RecordBatch) -> PackedCodes:
        terms = tfidf(table, self.idf_V)
        sums_NK = embedding_bag(
            torch.from_numpy(terms.ids),
            self.vectors_VK,
            torch.from_numpy(terms.offsets),
            mode="sum",
            per_sample_weights=torch.from_numpy(terms.weights),
            include_last_offset=True,
        )
        return PackedCodes.pack(sums_NK > 0)


def simhash(vocabulary: Vocabulary, bits: int) -> Projection:
    """Charikar (2002): each term votes for its hash's bits, +1 or -1, with its tf-idf weight."""
    hashes = b"".join(hashlib.shake_256(term.encode()).digest(bits // 8) for term in vocabulary.ids)
    packed = np.frombuffer(hashes, np.uint8).reshape(len(vocabulary), bits // 8)
    ones = np.unpackbits(packed, axis=1, bitorder="little").astype(np.float32)
    return Projection(torch.from_numpy(2 * ones - 1), inverse_document_frequencies(vocabulary))


def sign_random_projection(vocabulary: Vocabulary, bits: int, seed: int = 0) -> Projection:
    """Signs of Gaussian projections of the tf-idf vector; dividing it by its length would change no sign."""
    gaussian = np.random.default_rng(seed).standard_normal((len(vocabulary), bits), np.float32)
    return Projection(torch.from_numpy(gaussian), inverse_document_frequencies(vocabulary))
