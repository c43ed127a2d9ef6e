"""Bag-of-words encoder: one hidden layer over a document's weighted terms, in no order."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import dropout, relu

from vae_core.batch import Batch
from vae_core.config import Config


class BagOfWordsEncoderConfig(Config):
    """Settings of the bag-of-words encoder."""

    kind: Literal["bag_of_words"] = "bag_of_words"
    width: int = Field(default=1000, ge=1, description="of the hidden layer")
    dropout: float = Field(default=0.2, ge=0, lt=1, description="of the hidden layer")
    term_dropout: float = Field(default=0.6, ge=0, lt=1, description="share of a document's words unseen in a step")


class BagOfWordsEncoder(nn.Module):
    """relu(W x + b) of the TF-IDF row x; an empty document gives relu(b)."""

    def __init__(self, config: BagOfWordsEncoderConfig, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.weights = nn.EmbeddingBag(vocabulary, config.width, mode="sum")
        self.bias = _Bias(config.width)
        nn.init.normal_(self.weights.weight, std=0.095)

    def forward(self, batch: Batch, tfidf_N: Tensor, progress: float = 1.0) -> Tensor:
        """Hidden vectors, (B, width)."""
        del progress
        seen_N = dropout(tfidf_N, self.config.term_dropout, self.training)
        summed = self.weights(batch.terms.values, batch.terms.offsets[:-1], per_sample_weights=seen_N)
        return dropout(relu(self.bias(summed)), self.config.dropout, self.training)


class _Bias(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.values
