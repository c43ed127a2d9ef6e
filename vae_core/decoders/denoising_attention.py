"""Autoregressive Transformer decoder whose every layer attends to a mixture by denoising (Henderson and Fehr 2023).

Shapes: S samples, B documents, T positions, M = S * B sequences, N components of P dimensions, D width, V tokens.
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import gelu

from vae_core.attention import Attention, require_heads
from vae_core.batch import Batch
from vae_core.config import Config
from vae_core.decoders.autoregressive import Teacher, log_likelihood
from vae_core.denoising_attention import DenoisingAttention, Mixture


class DenoisingAttentionDecoderConfig(Config):
    """Settings of the decoder of the nonparametric latent."""

    kind: Literal["denoising_attention"] = "denoising_attention"
    width: int = Field(default=256, ge=8, description="numbers a token is embedded in")
    layers: int = Field(default=2, ge=1, description="blocks, each with attention to the words so far and to z")
    heads: int = Field(default=4, ge=1, description="attention heads of a block")
    positions: int = Field(default=128, ge=2, description="tokens of a document that are reconstructed")
    word_dropout: float = Field(default=0.0, ge=0, le=1, description="share of inputs hidden in training; 1: always")

    @model_validator(mode="after")
    def _heads_are_as_wide(self) -> Self:
        require_heads(self.width, self.heads)
        return self


class DenoisingAttentionDecoder(nn.Module):
    """p(x | z) = prod_t p(x_t | x_<t, z) of a mixture z, the end of the document included."""

    reads_tokens = True

    def __init__(self, config: DenoisingAttentionDecoderConfig, dimensions: int, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.teacher = Teacher(vocabulary, config.positions, config.word_dropout)
        self.embedding = nn.Embedding(self.teacher.read, config.width)
        self.position = nn.Embedding(config.positions, config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        self.blocks = nn.ModuleList(
            DenoisingBlock(config.width, config.heads, dimensions) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, self.teacher.written)

    def forward(self, batch: Batch, tfidf_N: Tensor, z: Mixture) -> Tensor:
        """log p(x | z) in nats, summed over tokens, (S, B), of mixtures (S, B, N)."""
        del tfidf_N
        lesson = self.teacher.lesson(batch, training=self.training)
        inputs_MT = lesson.inputs.repeat(len(z.log_weights), 1)
        logits_MTV = self.logits(inputs_MT, Mixture(*(x.flatten(0, 1) for x in z)))
        return log_likelihood(logits_MTV, lesson.targets)

    def logits(self, inputs_MT: Tensor, z: Mixture) -> Tensor:
        """Logits of the next token, or of the end, at every position, (M, T, V + 1), of mixtures (M, N)."""
        length = inputs_MT.shape[1]
        x_MTD = self.embedding(inputs_MT) + self.position(torch.arange(length, device=inputs_MT.device))
        causal_TT = x_MTD.new_full((length, length), -torch.inf).triu(diagonal=1)
        for block in self.blocks:
            x_MTD = block(x_MTD, causal_TT, z)
        return self.output(self.norm(x_MTD))


class DenoisingBlock(nn.Module):
    """Attention to the sequence, attention to the mixture, and a GELU layer, each added to its input.

    The first and the last start at zero; the mixture is read from the start, or else its price would empty it first.
    """

    def __init__(self, width: int, heads: int, dimensions: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mixture_norm = nn.LayerNorm(width)
        self.mixture_attention = DenoisingAttention(width, heads, dimensions)
        self.wide_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        for projection in (self.attention.output, self.narrow):
            nn.init.zeros_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, x_MTD: Tensor, bias: Tensor, z: Mixture) -> Tensor:
        x_MTD = x_MTD + self.attention(self.attention_norm(x_MTD), bias)
        x_MTD = x_MTD + self.mixture_attention(self.mixture_norm(x_MTD), z)
        return x_MTD + self.narrow(gelu(self.widen(self.wide_norm(x_MTD))))
