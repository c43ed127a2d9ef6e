"""Bag-of-words decoder: every word of a document drawn from one softmax over the vocabulary (MODELS 4.1; NVDM).

Shapes: S samples, B documents, N terms of all of them, V words that are reconstructed, K latent width.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vae_core.batch import Batch
from vae_core.config import Config


class BagOfWordsDecoderConfig(Config):
    """Settings of the bag-of-words decoder."""

    kind: Literal["bag_of_words"] = "bag_of_words"
    terms: int = Field(default=10_000, ge=1, description="how many of the most frequent words are reconstructed")
    weights: Literal["counts", "binary", "tfidf"] = Field(
        default="tfidf", description="what a word weighs; log p(x | z) is a likelihood only with counts"
    )
    length: float | None = Field(
        default=200.0, gt=0, description="every document counts as this many words; null: as many as it has"
    )


class BagOfWordsDecoder(nn.Module):
    """log p(x | z) = sum_v w_v(x) log softmax(E z + e)_v."""

    reads_tokens = False

    def __init__(self, config: BagOfWordsDecoderConfig, latent_width: int, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.terms = min(config.terms, vocabulary)
        self.words = nn.Linear(latent_width, self.terms)
        nn.init.normal_(self.words.weight, std=0.05)
        nn.init.zeros_(self.words.bias)

    def forward(self, batch: Batch, tfidf_N: Tensor, z_SBK: Tensor) -> Tensor:
        """log p(x | z) in nats, (S, B); 0 for a document without a known word."""
        rows_N, ids_N, weights_N = self._target(batch, tfidf_N)
        logits_SBV = self.words(z_SBK).float()
        known_SN = logits_SBV[:, rows_N, ids_N] * weights_N
        agreement_SB = known_SN.new_zeros(z_SBK.shape[:2]).index_add(1, rows_N, known_SN)
        mass_B = weights_N.new_zeros(len(batch)).index_add(0, rows_N, weights_N)
        return agreement_SB - mass_B * logits_SBV.logsumexp(dim=-1)

    def start_from(self, frequencies_V: Tensor) -> None:
        """Start the biases at the log share of each word, so that z need not learn it."""
        frequencies_V = frequencies_V[: self.terms].double()
        shares = (frequencies_V / frequencies_V.sum().clamp(min=1)).clamp(min=1e-6)
        with torch.no_grad():
            self.words.bias.copy_(shares.log())

    def _target(self, batch: Batch, tfidf_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ids_N = batch.terms.values
        weights_N = {"counts": batch.counts.float(), "binary": torch.ones_like(tfidf_N), "tfidf": tfidf_N}
        known_N = ids_N < self.terms
        rows, ids, weights = batch.terms.rows[known_N], ids_N[known_N], weights_N[self.config.weights][known_N].float()
        if self.config.length is not None:
            mass_B = weights.new_zeros(len(batch)).index_add(0, rows, weights)
            weights = weights * self.config.length / mass_B.clamp(min=1e-12)[rows]
        return rows, ids, weights
