"""Bag-of-words decoder: every word of a document drawn from one softmax over the vocabulary (Miao et al. 2016).

In training a document's neighbours lend it words: the target is a mixture of its own words and the mean of theirs,
which is what reconstructing a neighbour drawn at random comes to, without the noise (Chaidaroon et al. 2018, NbrReg;
the log likelihood is linear in its target).
Shapes: S samples, B documents, N terms of all of them, V words that are reconstructed, K latent width.
"""

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from vae_core.batch import Batch, Ragged
from vae_core.config import Config

WORDS_A_BIT, LONGEST = 6.25, 200.0
"""What a document counts for where it is not set. Few bits cannot pay for many words: the price of the rate would be
nothing beside them, and the bits would never settle."""


class BagOfWordsDecoderConfig(Config):
    """Settings of the bag-of-words decoder."""

    kind: Literal["bag_of_words"] = "bag_of_words"
    terms: int = Field(default=10_000, ge=1, description="how many of the most frequent words are reconstructed")
    weights: Literal["counts", "binary", "tfidf"] = Field(
        default="tfidf", description="what a word weighs; log p(x | z) is a likelihood only with counts"
    )
    length: Annotated[float, Field(gt=0)] | Literal["own"] | None = Field(
        default=None,
        description="every document counts as this many words; own: as many as it has; null: 6.25 a bit, at most 200",
    )
    neighbours: float = Field(
        default=0.7, ge=0, le=1, description="share of what is reconstructed that is the neighbours' words; 0: no graph"
    )


class Target(NamedTuple):
    """Words to be explained: of which document, which word, and how often, (N,) each."""

    rows: Tensor
    terms: Tensor
    amounts: Tensor

    def times(self, factors_B: Tensor) -> "Target":
        """The same, each document's words so many times as often."""
        return self._replace(amounts=self.amounts * factors_B[self.rows])


class BagOfWordsDecoder(nn.Module):
    """log p(x | z) = sum_v t_v(x) log softmax(E z + e)_v."""

    reads_tokens = False

    def __init__(self, config: BagOfWordsDecoderConfig, latent_width: int, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.terms = min(config.terms, vocabulary)
        self.length = config.length or min(LONGEST, WORDS_A_BIT * latent_width)
        self.words = nn.Linear(latent_width, self.terms)
        nn.init.normal_(self.words.weight, std=0.05)
        nn.init.zeros_(self.words.bias)

    def forward(self, batch: Batch, tfidf_N: Tensor, z_SBK: Tensor) -> Tensor:
        """log p(x | z) in nats, (S, B); 0 for a document without a known word."""
        rows_N, terms_N, amounts_N = self.target(batch, tfidf_N)
        logits_SBV = self.words(z_SBK).float()
        explained_SN = logits_SBV.flatten(1).index_select(1, rows_N * self.terms + terms_N) * amounts_N
        documents = z_SBK.shape[1]
        mass_B = _sums(amounts_N, rows_N, documents)
        return _sums(explained_SN, rows_N, documents) - mass_B * logits_SBV.logsumexp(dim=-1)

    def target(self, batch: Batch, tfidf_N: Tensor) -> Target:
        """How often each word is to be explained: a document's own words, and those of its neighbours."""
        weights_N = {"counts": batch.counts.float(), "binary": torch.ones_like(tfidf_N), "tfidf": tfidf_N.float()}
        own, mass_B = self._shares(batch.terms, weights_N[self.config.weights])
        length_B = mass_B if self.length == "own" else self.length * (mass_B > 0)
        if batch.neighbours is None or self.config.neighbours == 0:
            return own.times(length_B)
        near, known_B = self._shares(batch.neighbours.terms, batch.neighbours.shares.float())
        lent_B = self.config.neighbours * (known_B > 0) * length_B
        both = zip(own.times(length_B - lent_B), near.times(lent_B), strict=True)
        return Target(*(torch.cat(parts) for parts in both))

    def start_from(self, frequencies_V: Tensor) -> None:
        """Start the biases at the log share of each word, so that z need not learn it."""
        frequencies_V = frequencies_V[: self.terms].double()
        shares = (frequencies_V / frequencies_V.sum().clamp(min=1)).clamp(min=1e-6)
        with torch.no_grad():
            self.words.bias.copy_(shares.log())

    def _shares(self, terms: Ragged, weights_N: Tensor) -> tuple[Target, Tensor]:
        """The words that are reconstructed, each with its share of its document's weight; and that weight, (B,)."""
        known_N = terms.values < self.terms
        rows_N, weights_N = terms.rows[known_N], weights_N[known_N]
        mass_B = _sums(weights_N, rows_N, len(terms.lengths))
        return Target(rows_N, terms.values[known_N], weights_N / mass_B.clamp(min=1e-12)[rows_N]), mass_B


def _sums(values_N: Tensor, rows_N: Tensor, documents: int) -> Tensor:
    """The sum of each document's values (..., N), (..., B)."""
    return values_N.new_zeros(*values_N.shape[:-1], documents).index_add(-1, rows_N, values_N)
