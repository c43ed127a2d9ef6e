"""TF-IDF of tokens in order. Shapes: B documents, N tokens of all of them, M different ones of each, V vocabulary."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from vae_core.batch import Batch, Ragged

AT_ONCE = 1000
"""Documents whose tokens are counted at a time, so that a large sample takes little memory beside itself."""


class TokenWeights(nn.Module):
    """What each token of a document counts: its TF-IDF there, shared among the places where it occurs."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.idf: Tensor
        self.register_buffer("idf", torch.ones(vocabulary))

    def forward(self, tokens: Ragged) -> Tensor:
        """(1 + ln count) idf / count, (N,)."""
        return torch.cat([self._weights(some) for some in _some_at_a_time(tokens)])

    def start_from(self, documents: Batch) -> Batch:
        """Take idf = ln(B / df) + 1 from the tokens of these documents; returns these with tokens as their terms."""
        terms, counts_M = counted(documents.tokens, len(self.idf))
        frequencies_V = torch.bincount(terms.values, minlength=len(self.idf)).clamp(min=1)
        self.idf.copy_((len(documents) / frequencies_V).log() + 1)
        return replace(documents, terms=terms, counts=counts_M)

    def _weights(self, tokens: Ragged) -> Tensor:
        _, place_N, counts_M = _different(tokens, len(self.idf))
        counts_N = counts_M[place_N].to(self.idf.dtype)
        return (1 + counts_N.log()) / counts_N * self.idf[tokens.values]


def counted(tokens: Ragged, vocabulary: int) -> tuple[Ragged, Tensor]:
    """Each document's different tokens, by their ids, and how often each occurs there, (M,)."""
    values, counts, lengths = [], [], [tokens.offsets.new_zeros(1)]
    for some in _some_at_a_time(tokens):
        key_M, _, counts_M = _different(some, vocabulary)
        row_M = torch.div(key_M, vocabulary, rounding_mode="floor")
        values.append(key_M % vocabulary)
        counts.append(counts_M)
        lengths.append(torch.bincount(row_M, minlength=len(some.lengths)))
    return Ragged(torch.cat(values), torch.cat(lengths).cumsum(0)), torch.cat(counts)


def _some_at_a_time(tokens: Ragged) -> Iterator[Ragged]:
    for start in range(0, max(1, len(tokens.lengths)), AT_ONCE):
        offsets = tokens.offsets[start : start + AT_ONCE + 1]
        yield Ragged(tokens.values[offsets[0] : offsets[-1]], offsets - offsets[0])


def _different(tokens: Ragged, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """A key of document and token, sorted, (M,); which of these each token has, (N,); and how many have it, (M,)."""
    key_N = tokens.rows * vocabulary + tokens.values
    key_M, place_N, counts_M = key_N.unique(return_inverse=True, return_counts=True)
    return key_M, place_N, counts_M
