"""Transformer encoder, over a document's weighted terms or over its tokens in order.

Shapes: B documents, N ids of all of them, D width.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import dropout, relu

from vae_core.attention import require_heads
from vae_core.batch import Batch, Ragged
from vae_core.config import Config
from vae_core.encoders.coordinates import Coordinates
from vae_core.encoders.joined import JoinedEmbedding
from vae_core.encoders.lsi import truncated_svd, unit_rows
from vae_core.encoders.segments import SegmentBlocks
from vae_core.encoders.states import States, states_of
from vae_core.encoders.token_weights import TokenWeights
from vae_core.errors import Misuse

EMBEDDING_SCALE = 10.0
"""Vectors are stored at a tenth of their size, so that one optimiser step moves them ten times as far."""


class TransformerEncoderConfig(Config):
    """Settings of the Transformer encoder."""

    kind: Literal["transformer"] = "transformer"
    reads: Literal["terms", "tokens"] = Field(
        default="terms", description="terms: the set of words, weighted by TF-IDF; tokens: the subwords in order"
    )
    weights: Literal["tfidf", "even"] = Field(
        default="tfidf",
        description="tokens in order: tfidf, and their vectors start from LSI; even: alike, and learned from nothing, "
        "for models that write texts",
    )
    width: int = Field(default=256, ge=8, description="numbers a term or token is embedded in")
    word_vectors: Literal["learned", "lsi"] = Field(
        default="learned",
        description="they begin as LSI has them; lsi: and stay so, for news, where later documents bring other names",
    )
    layers: int = Field(default=1, ge=0, description="blocks; 0: no attention, many times as fast to encode")
    heads: int = Field(default=4, ge=1, description="attention heads of a block")
    hidden: int = Field(default=1000, ge=1, description="width of the layer between pooling and the latent's heads")
    segment: int = Field(default=128, ge=8, description="longer documents are attended to in pieces of this many ids")
    lsi: int = Field(
        default=64,
        ge=0,
        description="coordinates of the weighted ids that the latent reads too, with a joined embedding beside them; "
        "its bits begin as ITQ has these; 0: none",
    )
    positions: int = Field(default=512, ge=1, description="tokens in order: how many positions are told apart")
    dropout: float = Field(default=0.2, ge=0, lt=1, description="of the hidden layer")
    term_dropout: float = Field(default=0.6, ge=0, lt=1, description="share of a document's ids unseen in a step")
    grow_after: float = Field(
        default=0.67, ge=0, le=1, description="share of training after which the blocks join; they start as identity"
    )
    joined: bool = Field(
        default=False, description="read each document's embedding beside its words; the stage embed makes them"
    )

    @model_validator(mode="after")
    def _fits(self) -> "TransformerEncoderConfig":
        if self.weights == "even" and self.reads == "terms":
            raise ValueError("terms are weighted by TF-IDF; set encoder.weights to tfidf, or encoder.reads to tokens")
        if self.word_vectors == "lsi" and self.weights == "even":
            raise ValueError("tokens of even weights have no vectors from LSI; set encoder.weights to tfidf")
        if self.layers:
            require_heads(self.width, self.heads)
        return self


class TransformerEncoder(nn.Module):
    """Blocks over segments of a document, a weighted mean over all of it, and one hidden layer."""

    def __init__(
        self, config: TransformerEncoderConfig, vocabulary: int, *, states: bool = False, embeddings: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        self.reads_tokens = config.reads == "tokens"
        self.starts_from_lsi = config.weights == "tfidf"
        placed = bool(config.lsi) and self.starts_from_lsi and not states
        self.coordinates = Coordinates(vocabulary, config.lsi) if placed else None
        self.placed_width = config.lsi + (embeddings if config.joined else 0) if placed else 0
        self.width = config.width if states else config.hidden + self.placed_width
        self.embedding = nn.Embedding(vocabulary, config.width)
        nn.init.normal_(self.embedding.weight, std=0.01)
        self.embedding.weight.requires_grad_(config.word_vectors == "learned")
        self.token_weights = TokenWeights(vocabulary) if self.reads_tokens and self.starts_from_lsi else None
        self.position = nn.Embedding(config.positions, config.width) if self.reads_tokens and config.layers else None
        if self.position is not None and self.starts_from_lsi:
            nn.init.zeros_(self.position.weight)
        self.segments = SegmentBlocks(config.layers, config.width, config.heads, longest=config.segment)
        self.norm = nn.LayerNorm(config.width)
        self.hidden = None if states else nn.Linear(config.width, config.hidden)
        if self.hidden is not None:
            nn.init.normal_(self.hidden.weight, std=config.width**-0.5)
        self.joined = JoinedEmbedding(embeddings, config.hidden) if config.joined else None

    def forward(self, batch: Batch, tfidf_N: Tensor, progress: float = 1.0) -> Tensor | States:
        """Hidden vectors, (B, width). An empty document has the same vector whatever else is in the batch.

        With `states`, the ids' own vectors instead, neither pooled nor hidden.
        """
        ids, weights_N = self._seen(*self.read(batch, tfidf_N))
        x_ND = self._mixed(self.embedding(ids.values), ids, weights_N, progress)
        if self.hidden is None:
            return states_of(self.norm(x_ND), ids)
        beside = 0.0 if self.joined is None else self.joined(batch)
        hidden_BH = self._pooled(self.hidden, x_ND, ids, weights_N, beside)
        hidden_BH = dropout(hidden_BH, self.config.dropout, self.training)
        return torch.cat([hidden_BH, self.placed(batch, ids, weights_N)], dim=1) if self.placed_width else hidden_BH

    def placed(self, batch: Batch, ids: Ragged, weights_N: Tensor) -> Tensor:
        """Where documents lie by themselves, (B, placed_width): in LSI, and beside it in the joined encoder's space."""
        if self.coordinates is None:
            raise Misuse("this encoder has no coordinates; set encoder.lsi, and encoder.weights to tfidf")
        in_lsi_BD = self.coordinates(ids, weights_N)
        return in_lsi_BD if self.joined is None else torch.cat([in_lsi_BD, self.joined.centred(batch)], dim=1)

    def of_soft(self, ids: Ragged, tokens_NV: Tensor, weights_N: Tensor, progress: float = 1.0) -> Tensor:
        """Hidden vectors, (B, width), of texts whose tokens are probabilities, each place with a weight in (0, 1].

        `ids` only says which place belongs to which text. Nothing is dropped, in training neither. A certain text has
        the vector of its tokens.
        """
        if self.hidden is None or self.starts_from_lsi:
            raise Misuse(
                "soft texts are read in order, uncounted and as one vector; set encoder.reads to tokens and "
                "encoder.weights to even"
            )
        vectors_ND = tokens_NV.to(self.embedding.weight.dtype) @ self.embedding.weight
        weights_N = _of_unit_length(weights_N, ids)
        return self._pooled(self.hidden, self._mixed(vectors_ND, ids, weights_N, progress), ids, weights_N)

    def start_from(self, sample: Batch, idf_V: Tensor) -> None:
        """Start the vectors at V S of a truncated SVD of the sample's TF-IDF rows, each of unit length.

        Tokens in order have an idf of their own, which is taken from the sample first.
        """
        if self.token_weights is not None:
            sample, idf_V = self.token_weights.start_from(sample), self.token_weights.idf
        width = self.config.width
        lsi = 0 if self.coordinates is None else self.config.lsi
        right_VD, singular_D = truncated_svd(sample, idf_V, max(width, lsi))
        vectors_VD = unit_rows(right_VD[:, :width], singular_D[:width])
        if self.coordinates is not None:
            self.coordinates.start_from(right_VD)
        with torch.no_grad():
            self.embedding.weight.copy_(vectors_VD * (0.1 / vectors_VD.std().clamp(min=1e-12)))

    def read(self, batch: Batch, tfidf_N: Tensor) -> tuple[Ragged, Tensor]:
        """The ids that are read and what each counts, (N,)."""
        if not self.reads_tokens:
            return batch.terms, tfidf_N
        if self.token_weights is None:
            return batch.tokens, torch.ones_like(batch.tokens.values, dtype=self.norm.weight.dtype)
        return batch.tokens, self.token_weights(batch.tokens)

    def _seen(self, ids: Ragged, weights_N: Tensor) -> tuple[Ragged, Tensor]:
        """The ids seen in this pass and their weights, which have unit length over each document."""
        if self.training and self.config.term_dropout:
            kept_N = torch.rand(len(ids.values), device=ids.values.device) >= self.config.term_dropout
            ids, weights_N = ids.keep(kept_N), weights_N[kept_N]
        return ids, _of_unit_length(weights_N, ids)

    def _mixed(self, vectors_ND: Tensor, ids: Ragged, weights_N: Tensor, progress: float) -> Tensor:
        """The ids' vectors, (N, D), after the blocks, once these have joined."""
        x_ND = EMBEDDING_SCALE * vectors_ND
        if progress < self.config.grow_after:
            return x_ND
        if self.position is not None:
            x_ND = x_ND + self.position(ids.positions % self.config.positions)
        return self.segments(x_ND, ids, weights_N)

    def _pooled(
        self, hidden: nn.Linear, x_ND: Tensor, ids: Ragged, weights_N: Tensor, beside: Tensor | float = 0.0
    ) -> Tensor:
        documents = len(ids.lengths)
        pooled_BD = x_ND.new_zeros(documents, x_ND.shape[1]).index_add(0, ids.rows, weights_N.unsqueeze(1) * x_ND)
        return relu(hidden(0.1 * self.norm(pooled_BD)) + beside)


def _of_unit_length(weights_N: Tensor, ids: Ragged) -> Tensor:
    squares = weights_N.new_zeros(len(ids.lengths)).index_add(0, ids.rows, weights_N.square())
    return weights_N / squares.sqrt().clamp(min=1e-12)[ids.rows]
