"""A batch of documents as the models read it. Shapes: B documents, N values of all of them, T longest, V vocabulary."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """B lists of ids of different lengths, one after the other: document b is values[offsets[b]:offsets[b + 1]]."""

    values: Tensor
    offsets: Tensor

    @property
    def lengths(self) -> Tensor:
        """How many ids each document has, (B,)."""
        return self.offsets.diff()

    @property
    def rows(self) -> Tensor:
        """Which document each id belongs to, (N,)."""
        return torch.repeat_interleave(self.lengths)

    @property
    def positions(self) -> Tensor:
        """Each id's place in its own document, (N,)."""
        return torch.arange(len(self.values), device=self.values.device) - self.offsets[self.rows]

    def keep(self, kept_N: Tensor) -> "Ragged":
        """The same documents with only the ids where `kept_N` is true."""
        before = torch.cat([kept_N.new_zeros(1, dtype=torch.long), kept_N.cumsum(0)])
        return Ragged(self.values[kept_N], before[self.offsets])

    def to(self, device: torch.device) -> "Ragged":
        return Ragged(self.values.to(device), self.offsets.to(device))


class Words(NamedTuple):
    """For each of B documents a distribution over terms: its ids, and a share (N,) for each of them."""

    terms: Ragged
    shares: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Documents twice: their tokens in order, and their terms with how often each occurs (`counts`, (N,)).

    `classes` (B,), where a conditional model reads them: each document's class by number, -1 if unknown.
    `embeddings` (B, E), where an encoder joins them to the words: each document's vector from another model.
    `neighbours`, where a graph is known: the mean of the words of each document's neighbours.
    """

    tokens: Ragged
    terms: Ragged
    counts: Tensor
    classes: Tensor | None = None
    embeddings: Tensor | None = None
    neighbours: Words | None = None

    def __len__(self) -> int:
        return len(self.terms.offsets) - 1

    def keep_terms(self, kept_N: Tensor) -> "Batch":
        """The same documents with only the terms where `kept_N` is true."""
        return replace(self, terms=self.terms.keep(kept_N), counts=self.counts[kept_N])

    def tfidf(self, idf_V: Tensor) -> Tensor:
        """(1 + ln count) idf of each term, of unit length over its document, (N,). Empty documents have none."""
        weights = (1 + self.counts.to(idf_V.dtype).log()) * idf_V[self.terms.values]
        squares = weights.new_zeros(len(self)).index_add(0, self.terms.rows, weights.square())
        return weights / squares.sqrt().clamp(min=1e-12)[self.terms.rows]

    def to(self, device: torch.device) -> "Batch":
        """The same documents on another device."""
        classes, embeddings = (None if x is None else x.to(device) for x in (self.classes, self.embeddings))
        near = self.neighbours
        near = None if near is None else Words(near.terms.to(device), near.shares.to(device))
        return Batch(self.tokens.to(device), self.terms.to(device), self.counts.to(device), classes, embeddings, near)
