"""Bag-of-words decoder: every word of a document drawn from one softmax over the vocabulary (Miao et al. 2016).

In training a document's neighbours lend it words: the target is a mixture of its own words and the mean of theirs,
which is what reconstructing a neighbour drawn at random comes to, without the noise (Chaidaroon et al. 2018, NbrReg;
the log likelihood is linear in its target).
Shapes: S samples, B documents, N terms of all of them, V words that are reconstructed, K latent width.
"""

from typing import Annotated, Literal

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
        target_BV = self.target(batch, tfidf_N)
        logits_SBV = self.words(z_SBK).float()
        return (logits_SBV * target_BV).sum(dim=-1) - target_BV.sum(dim=-1) * logits_SBV.logsumexp(dim=-1)

    def target(self, batch: Batch, tfidf_N: Tensor) -> Tensor:
        """How often each word is to be explained, (B, V): the document's own words and those of its neighbours."""
        weights_N = {"counts": batch.counts.float(), "binary": torch.ones_like(tfidf_N), "tfidf": tfidf_N.float()}
        own_BV = self._dense(batch.terms, weights_N[self.config.weights])
        mass_B1 = own_BV.sum(dim=1, keepdim=True)
        length_B1 = mass_B1 if self.length == "own" else self.length * (mass_B1 > 0)
        target_BV = own_BV / mass_B1.clamp(min=1e-12)
        if batch.neighbours is not None and self.config.neighbours > 0:
            near_BV = self._dense(batch.neighbours.terms, batch.neighbours.shares.float())
            known_B1 = near_BV.sum(dim=1, keepdim=True)
            share_B1 = self.config.neighbours * (known_B1 > 0)
            target_BV = (1 - share_B1) * target_BV + share_B1 * near_BV / known_B1.clamp(min=1e-12)
        return target_BV * length_B1

    def start_from(self, frequencies_V: Tensor) -> None:
        """Start the biases at the log share of each word, so that z need not learn it."""
        frequencies_V = frequencies_V[: self.terms].double()
        shares = (frequencies_V / frequencies_V.sum().clamp(min=1)).clamp(min=1e-6)
        with torch.no_grad():
            self.words.bias.copy_(shares.log())

    def _dense(self, terms: Ragged, weights_N: Tensor) -> Tensor:
        known_N = terms.values < self.terms
        places_N = terms.rows[known_N] * self.terms + terms.values[known_N]
        documents = len(terms.offsets) - 1
        flat = weights_N.new_zeros(documents * self.terms).index_add(0, places_N, weights_N[known_N])
        return flat.view(documents, self.terms)
