"""Dilated causal convolutions: a decoder of short memory, which leaves z something to say (Yang et al. 2017).

Shapes: S samples, B documents, T positions, M = S * B sequences, K latent width, D width, V tokens.
"""

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from vae_core.batch import Batch
from vae_core.config import Config
from vae_core.decoders.autoregressive import Teacher, embedded, log_likelihood


class ConvolutionalDecoderConfig(Config):
    """Settings of the dilated-convolution decoder."""

    kind: Literal["convolutional"] = "convolutional"
    width: int = Field(default=256, ge=1, description="numbers a token is embedded in")
    kernel: int = Field(default=3, ge=2, description="inputs that a convolution reads")
    dilations: tuple[PositiveInt, ...] = Field(default=(1, 2, 4), min_length=1, description="of each block's inputs")
    positions: int = Field(default=128, ge=2, description="tokens of a document that are reconstructed")
    word_dropout: float = Field(default=0.0, ge=0, le=1, description="share of inputs hidden in training; 1: always")

    @property
    def receptive_field(self) -> int:
        """How many of the last inputs a prediction depends on."""
        return 1 + (self.kernel - 1) * sum(self.dilations)


class ConvolutionalDecoder(nn.Module):
    """p(x | z) = prod_t p(x_t | the last inputs, t, z), the end of the document included.

    z is added by a projection to every input embedding, which is the same as beside it under one matrix, and to every
    block. The places are embedded, unlike in the paper, so that a decoder without words still knows where it is.
    """

    reads_tokens = True

    def __init__(self, config: ConvolutionalDecoderConfig, latent_width: int, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.teacher = Teacher(vocabulary, config.positions, config.word_dropout)
        self.embedding = nn.Embedding(self.teacher.read, config.width)
        self.position = nn.Embedding(config.positions, config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        self.from_z = nn.Linear(latent_width, (1 + len(config.dilations)) * config.width, bias=False)
        self.blocks = nn.ModuleList(ConvolutionBlock(config.width, config.kernel, step) for step in config.dilations)
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
        first_MD, *others = self.from_z(z_MK).chunk(1 + len(self.blocks), dim=1)
        places = torch.arange(inputs_MT.shape[1], device=inputs_MT.device)
        x_MTD = embedded(self.embedding, inputs_MT) + self.position(places) + first_MD.unsqueeze(1)
        for block, z_MD in zip(self.blocks, others, strict=True):
            x_MTD = block(x_MTD, z_MD)
        return self.output(self.norm(x_MTD))


class ConvolutionBlock(nn.Module):
    """A causal convolution and a GELU layer, added to their input; z is added to what the convolution reads off.

    The last layer starts at zero, so that a new block changes nothing until it has learned something.
    """

    def __init__(self, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv1d(width, width, kernel, dilation=dilation)
        self.out = nn.Linear(width, width)
        self.before = (kernel - 1) * dilation
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x_MTD: Tensor, z_MD: Tensor) -> Tensor:
        earlier_MDT = pad(self.norm(x_MTD).transpose(1, 2), (self.before, 0))
        mixed_MTD = self.convolution(earlier_MDT).transpose(1, 2) + z_MD.unsqueeze(1)
        return x_MTD + self.out(gelu(mixed_MTD))
