"""Bag-of-words encoder: one hidden layer over a document's weighted terms, in no order."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import dropout, relu

from vae_core.batch import Batch
from vae_core.config import Config
from vae_core.encoders.joined import JoinedEmbedding


class BagOfWordsEncoderConfig(Config):
    """Settings of the bag-of-words encoder."""

    kind: Literal["bag_of_words"] = "bag_of_words"
    weights: Literal["tfidf", "counts", "binary"] = Field(
        default="tfidf", description="what a word weighs: TF-IDF, how often it occurs, or 1; rows have unit length"
    )
    width: int = Field(default=1000, ge=1, description="of the hidden layer")
    dropout: float = Field(default=0.2, ge=0, lt=1, description="of the hidden layer")
    term_dropout: float = Field(default=0.6, ge=0, lt=1, description="share of a document's words unseen in a step")
    joined: bool = Field(
        default=False, description="read each document's embedding beside its words; the stage embed makes them"
    )


class BagOfWordsEncoder(nn.Module):
    """relu(W x + b) of the document's row x of term weights, of unit length; an empty document gives relu(b)."""

    reads_tokens = False

    def __init__(self, config: BagOfWordsEncoderConfig, vocabulary: int, *, embeddings: int = 0) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.weights = nn.EmbeddingBag(vocabulary, config.width, mode="sum")
        self.bias = _Bias(config.width)
        nn.init.normal_(self.weights.weight, std=0.095)
        self.joined = JoinedEmbedding(embeddings, config.width) if config.joined else None

    def forward(self, batch: Batch, tfidf_N: Tensor, progress: float = 1.0) -> Tensor:
        """Hidden vectors, (B, width)."""
        del progress
        seen_N = dropout(self._weights(batch, tfidf_N), self.config.term_dropout, self.training)
        summed = self.weights(batch.terms.values, batch.terms.offsets[:-1], per_sample_weights=seen_N)
        beside = 0.0 if self.joined is None else self.joined(batch)
        return dropout(relu(self.bias(summed) + beside), self.config.dropout, self.training)

    def _weights(self, batch: Batch, tfidf_N: Tensor) -> Tensor:
        if self.config.weights == "tfidf":
            return tfidf_N
        counts_N = batch.counts.to(tfidf_N.dtype)
        weights_N = counts_N if self.config.weights == "counts" else torch.ones_like(counts_N)
        squares = weights_N.new_zeros(len(batch)).index_add(0, batch.terms.rows, weights_N.square())
        return weights_N / squares.sqrt().clamp(min=1e-12)[batch.terms.rows]


class _Bias(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.values
