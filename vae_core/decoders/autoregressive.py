"""Teacher forcing, and what a document costs a decoder that writes it token by token.

Shapes: S samples, B documents, M = S * B sequences, T positions, D width, V tokens of the vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vae_core.batch import Batch

IGNORED = -100
"""The target of a position after the end of its document."""


class Lesson(NamedTuple):
    """Inputs [begin, x_1 ..] and targets [x_1 .. end], each (B, T); targets after the end are IGNORED."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True)
class Teacher:
    """Documents as lessons: at most `positions` tokens of each; a document that is cut has no end.

    `word_dropout` is the share of inputs hidden in training (Bowman et al. 2016). A decoder that has never been shown a
    word is shown none in evaluation: with 1 it reads z and the position alone, p(x | z) = prod_t p(x_t | z, t).
    Only words and the end are ever predicted, so they come first: `begin` and `hidden` have no logit.
    """

    vocabulary: int
    positions: int
    word_dropout: float = 0.0

    @property
    def end(self) -> int:
        return self.vocabulary

    @property
    def begin(self) -> int:
        return self.vocabulary + 1

    @property
    def hidden(self) -> int:
        return self.vocabulary + 2

    @property
    def blind(self) -> bool:
        """Whether every input is hidden, in evaluation too."""
        return self.word_dropout == 1

    @property
    def written(self) -> int:
        """How many ids a decoder predicts: the words and the end."""
        return self.vocabulary + 1

    @property
    def read(self) -> int:
        """How many ids a decoder embeds: those it predicts, the beginning and the hidden word."""
        return self.vocabulary + 3

    def lesson(self, batch: Batch, *, training: bool) -> Lesson:
        """What the decoder reads and what it should write at every position, as long as the longest document."""
        tokens = batch.tokens
        length = min(self.positions, int(tokens.lengths.max()) + 1)
        targets = tokens.values.new_full((len(batch), length + 1), IGNORED)
        fits_N = tokens.positions < length
        targets[tokens.rows[fits_N], tokens.positions[fits_N]] = tokens.values[fits_N]
        ends = tokens.lengths.clamp(max=length)
        targets[torch.arange(len(batch), device=ends.device), ends] = self.end
        targets = targets[:, :length]
        inputs = targets.roll(1, dims=1).masked_fill(targets.roll(1, dims=1) == IGNORED, self.end)
        inputs[:, 0] = self.begin
        hides = self.blind or (training and self.word_dropout > 0)
        return Lesson(self._with_hidden_words(inputs) if hides else inputs, targets)

    def _with_hidden_words(self, inputs: Tensor) -> Tensor:
        unseen = torch.rand_like(inputs, dtype=torch.float) < self.word_dropout
        return torch.cat([inputs[:, :1], inputs[:, 1:].masked_fill(unseen[:, 1:], self.hidden)], dim=1)


def embedded(embedding: nn.Embedding, inputs: Tensor) -> Tensor:
    """Vectors of ids (M, T), or the expected ones of soft inputs: probabilities over all ids, (M, T, ids)."""
    if inputs.is_floating_point():
        return inputs.to(embedding.weight.dtype) @ embedding.weight
    vectors: Tensor = embedding(inputs)
    return vectors


def log_likelihood(logits_MTV: Tensor, targets_BT: Tensor) -> Tensor:
    """log p(x | z) in nats, summed over the tokens of each document, (S, B); the targets are those of every sample."""
    targets_MT = targets_BT.repeat(len(logits_MTV) // len(targets_BT), 1)
    logits_MTV = logits_MTV.to(torch.promote_types(logits_MTV.dtype, torch.float32))
    nll_MT = cross_entropy(logits_MTV.transpose(1, 2), targets_MT, ignore_index=IGNORED, reduction="none")
    return -nll_MT.sum(dim=1).unflatten(0, (-1, len(targets_BT)))


def token_accuracy(logits_MTV: Tensor, targets_BT: Tensor) -> Tensor:
    """The share of each document's tokens, its end included, that are the most probable ones, (S, B)."""
    targets_MT = targets_BT.repeat(len(logits_MTV) // len(targets_BT), 1)
    right_MT = logits_MTV.argmax(dim=-1) == targets_MT
    share_M = right_MT.sum(dim=1) / (targets_MT != IGNORED).sum(dim=1)
    return share_M.unflatten(0, (-1, len(targets_BT)))
