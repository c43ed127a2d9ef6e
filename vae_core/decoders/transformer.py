"""Autoregressive Transformer decoder that reads z as a memory slot of every layer and as part of every embedding.

The two ways in are those of Optimus (Li et al. 2020). Shapes: S samples, B documents, T positions, M = S * B
sequences, K latent width, D width.
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vae_core.attention import Block, require_heads
from vae_core.batch import Batch
from vae_core.config import Config
from vae_core.decoders.autoregressive import Teacher, embedded, log_likelihood


class TransformerDecoderConfig(Config):
    """Settings of the autoregressive decoder."""

    kind: Literal["transformer"] = "transformer"
    width: int = Field(default=256, ge=8, description="numbers a token is embedded in")
    layers: int = Field(default=2, ge=1, description="blocks")
    heads: int = Field(default=4, ge=1, description="attention heads of a block")
    positions: int = Field(default=128, ge=2, description="tokens of a document that are reconstructed")
    memory_slots: int = Field(default=1, ge=0, description="key-value slots each layer makes of z; 0: none")
    embedding: bool = Field(default=True, description="add a projection of z to every input embedding")
    word_dropout: float = Field(default=0.0, ge=0, le=1, description="share of inputs hidden in training; 1: always")
    window: int | None = Field(default=None, ge=1, description="inputs a layer sees, the last included; null: all")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.memory_slots and not self.embedding:
            raise ValueError("the decoder must read z: set memory_slots above 0, or embedding to true")
        require_heads(self.width, self.heads)
        return self


class TransformerDecoder(nn.Module):
    """p(x | z) = prod_t p(x_t | x_<t, z), the end of the document included."""

    reads_tokens = True

    def __init__(self, config: TransformerDecoderConfig, latent_width: int, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.teacher = Teacher(vocabulary, config.positions, config.word_dropout)
        self.embedding = nn.Embedding(self.teacher.read, config.width)
        self.position = nn.Embedding(config.positions, config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        slots = config.layers * config.memory_slots
        self.to_memory = nn.Linear(latent_width, slots * config.width, bias=False) if slots else None
        self.to_embedding = nn.Linear(latent_width, config.width, bias=False) if config.embedding else None
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, self.teacher.written)

    def forward(self, batch: Batch, tfidf_N: Tensor, z_SBK: Tensor) -> Tensor:
        """log p(x | z) in nats, summed over tokens, (S, B)."""
        del tfidf_N
        lesson = self.teacher.lesson(batch, training=self.training)
        logits_MTV = self.logits(lesson.inputs.repeat(len(z_SBK), 1), z_SBK.flatten(0, 1))
        return log_likelihood(logits_MTV, lesson.targets)

    def logits(self, inputs_MT: Tensor, z_MK: Tensor) -> Tensor:
        """Logits of the next token, or of the end, at every position, (M, T, V + 1); inputs are ids (M, T), or soft."""
        length = inputs_MT.shape[1]
        x_MTD = embedded(self.embedding, inputs_MT) + self.position(torch.arange(length, device=inputs_MT.device))
        if self.to_embedding is not None:
            x_MTD = x_MTD + self.to_embedding(z_MK).unsqueeze(1)
        memories = self._memories(z_MK)
        bias = self._causal_bias(length, x_MTD)
        for block, memory_MJD in zip(self.blocks, memories, strict=True):
            x_MTD = block(x_MTD, bias, memory_MJD)
        return self.output(self.norm(x_MTD))

    def _memories(self, z_MK: Tensor) -> list[Tensor | None]:
        if self.to_memory is None:
            return [None] * self.config.layers
        slots = self.to_memory(z_MK).unflatten(1, (self.config.layers, self.config.memory_slots, -1))
        return list(slots.unbind(dim=1))

    def _causal_bias(self, length: int, like: Tensor) -> Tensor:
        """(T, J + T): 0 where a position may look, -inf where it may not; memory slots are always in sight."""
        unseen = torch.ones(length, length, dtype=torch.bool, device=like.device).triu(diagonal=1)
        if self.config.window is not None:
            unseen = unseen | torch.ones_like(unseen).tril(diagonal=-self.config.window)
        bias = like.new_zeros(length, length).masked_fill(unseen, -torch.inf)
        return torch.cat([like.new_zeros(length, self.config.memory_slots), bias], dim=1)
