"""Noise on what the encoder reads, in training: the decoder must restore the clean document (denoising; MODELS 7.6)."""

from dataclasses import replace

import torch
from pydantic import Field

from vae_core.batch import Batch, Ragged
from vae_core.config import Config


class CorruptionConfig(Config):
    """How the encoder's input is corrupted in training; the decoder's targets never are."""

    delete: float = Field(default=0.0, ge=0, lt=1, description="share of tokens, and of terms, that are left out")
    swap: float = Field(
        default=0.0, ge=0, le=1, description="share of tokens replaced by one from anywhere in the batch"
    )
    shuffle: float = Field(default=0.0, ge=0, description="tokens move by fewer places than this")

    @property
    def active(self) -> bool:
        return bool(self.delete or self.swap or self.shuffle)


def corrupted(batch: Batch, config: CorruptionConfig) -> Batch:
    """The documents with some tokens and terms missing, some tokens swapped and some moved."""
    tokens = batch.tokens
    if config.delete:
        tokens = tokens.keep(torch.rand(len(tokens.values), device=tokens.values.device) >= config.delete)
        batch = batch.keep_terms(torch.rand(len(batch.terms.values), device=tokens.values.device) >= config.delete)
    return replace(batch, tokens=_shuffled(_swapped(tokens, config.swap), config.shuffle))


def _swapped(tokens: Ragged, share: float) -> Ragged:
    count = len(tokens.values)
    if not share or not count:
        return tokens
    others = tokens.values[torch.randint(count, (count,), device=tokens.values.device)]
    swapped = torch.rand(count, device=tokens.values.device) < share
    return Ragged(torch.where(swapped, others, tokens.values), tokens.offsets)


def _shuffled(tokens: Ragged, places: float) -> Ragged:
    if not places or not len(tokens.values):
        return tokens
    moved = tokens.positions + places * torch.rand(len(tokens.values), device=tokens.values.device)
    # Rows are sorted with the places, by a key that is larger for every later document.
    order = (tokens.rows * (float(tokens.lengths.max()) + places + 1) + moved.double()).argsort()
    return Ragged(tokens.values[order], tokens.offsets)
