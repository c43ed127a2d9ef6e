"""What a conditional VAE is told beside the document: its class, or its opening words (MODELS 7, conditional VAE).

The condition is one vector a document. It joins the encoder's features and the z that the decoder reads, so that any
encoder, latent and decoder of vectors can be conditional. Shapes: B documents, E width of the condition.
"""

from dataclasses import replace
from typing import Annotated, Literal, assert_never

import torch
from pydantic import Field
from torch import Tensor, nn

from vae_core.batch import Batch, Ragged
from vae_core.config import Config

UNKNOWN = -1


class ClassConditionConfig(Config):
    """A document's class: the first of its labels that is one of `classes`."""

    kind: Literal["class"] = "class"
    classes: tuple[str, ...] = Field(default=(), description="in order; empty: every label of the training documents")
    width: int = Field(default=16, ge=1, description="numbers a class is embedded in")
    unseen: float = Field(default=0.1, ge=0, lt=1, description="share of documents whose class is hidden in training")


class OpeningConditionConfig(Config):
    """A document's first tokens, which are given; the decoder writes the rest."""

    kind: Literal["opening"] = "opening"
    tokens: int = Field(default=8, ge=1, description="of the opening")
    width: int = Field(default=64, ge=1, description="numbers a token is embedded in")


ConditionConfig = Annotated[ClassConditionConfig | OpeningConditionConfig, Field(discriminator="kind")]


class ClassCondition(nn.Module):
    """An embedding of each class, and of the unknown one."""

    def __init__(self, config: ClassConditionConfig) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.embedding = nn.Embedding(len(config.classes) + 1, config.width)

    def forward(self, batch: Batch) -> Tensor:
        """(B, E) of `batch.classes`; UNKNOWN, or no classes at all, is the last row of the embedding."""
        unknown = len(self.config.classes)
        if batch.classes is None:
            classes = batch.terms.offsets.new_full((len(batch),), unknown)
        else:
            classes = batch.classes.masked_fill(batch.classes == UNKNOWN, unknown)
        if self.training and self.config.unseen:
            hidden = torch.rand(len(classes), device=classes.device) < self.config.unseen
            classes = classes.masked_fill(hidden, unknown)
        embedded: Tensor = self.embedding(classes)
        return embedded

    def rest(self, batch: Batch) -> Batch:
        """What the decoder is to write: all of it."""
        return batch


class OpeningCondition(nn.Module):
    """The mean of the opening tokens' embeddings, each with its place added."""

    def __init__(self, config: OpeningConditionConfig, tokens: int) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.embedding = nn.Embedding(tokens, config.width)
        self.place = nn.Embedding(config.tokens, config.width)

    def forward(self, batch: Batch) -> Tensor:
        """(B, E); zeros for a document without tokens."""
        opening = batch.tokens.keep(batch.tokens.positions < self.config.tokens)
        vectors_NE = torch.tanh(self.embedding(opening.values) + self.place(opening.positions))
        summed = vectors_NE.new_zeros(len(batch), self.width).index_add(0, opening.rows, vectors_NE)
        return summed / opening.lengths.clamp(min=1).unsqueeze(1)

    def rest(self, batch: Batch) -> Batch:
        """What the decoder is to write: the tokens after the opening."""
        return replace(batch, tokens=_after(batch.tokens, self.config.tokens))


Condition = ClassCondition | OpeningCondition


def build_condition(config: ConditionConfig, *, tokens: int) -> Condition:
    """The condition that `config` describes, over a vocabulary of `tokens` subwords."""
    match config:
        case ClassConditionConfig():
            return ClassCondition(config)
        case OpeningConditionConfig():
            return OpeningCondition(config, tokens)
        case _:
            assert_never(config)


def _after(tokens: Ragged, opening: int) -> Ragged:
    return tokens.keep(tokens.positions >= opening)
