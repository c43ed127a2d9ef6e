"""A trained model that writes: samples, reconstructions, paths between two texts, and topics as words."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pipelines.artifact import Artifact
from pipelines.corpus import Document
from pipelines.shards import batch_of
from pipelines.text_encoder import TextEncoder
from pipelines.tokenizer import Tokenizer
from vae_core.batch import Batch
from vae_core.condition import OpeningConditionConfig
from vae_core.decoders import BagOfWordsDecoder
from vae_core.errors import Misuse
from vae_core.generation import (
    Sampling,
    generate,
    mixture,
    mode_z,
    of_class,
    path_z,
    prior_z,
    sequence_decoder,
    unknown,
)
from vae_core.model import VAE
from vae_core.topics import Words, bit_words, component_words, top_words


@dataclass(frozen=True, slots=True)
class Topic:
    """A component of the prior, its share in [0, 1], and the words that it raises most."""

    component: int
    share: float
    words: list[str]


@dataclass(frozen=True, slots=True)
class Poles:
    """A bit, and the words that it raises and lowers most where it is one."""

    bit: int
    raised: list[str]
    lowered: list[str]


class Generator:
    """A model and its tokenizer, loaded once. A bag-of-words decoder writes its `words` top words for a text."""

    def __init__(
        self,
        model: VAE,
        tokenizer: Tokenizer,
        words: int = 10,
        artifact: Artifact | None = None,
        encoder_folder: Path | None = None,
    ) -> None:
        self.artifact = artifact
        self.encoder_folder = encoder_folder
        self.model = model
        self.tokenizer = tokenizer
        self.words = words
        self._terms = list(tokenizer.vocabulary.ids)

    @classmethod
    def load(cls, folder: Path, words: int = 10, encoder_folder: Path | None = None) -> Self:
        """The model artifact in `folder`. Raises Misuse, Unfinished or Damaged where it cannot be used.

        `encoder_folder` is where the sentence encoder lies now whose embeddings the model reads, if it reads any.
        """
        artifact = Artifact.open(folder, "model")
        return cls(VAE.from_pretrained(folder), Tokenizer.load(folder), words, artifact, encoder_folder)

    @property
    def writes_text(self) -> bool:
        """Whether the decoder writes text, or only knows how probable each word is."""
        return not isinstance(self.model.decoder, BagOfWordsDecoder)

    def sample(
        self,
        count: int,
        sampling: Sampling,
        *,
        component: int | None = None,
        of: str | None = None,
        opening: str | None = None,
    ) -> list[str]:
        """Texts of draws from the prior or from one component of it; of a class, or after an opening, if given.

        Raises Misuse for a component, class or opening that the model does not have.
        """
        told = unknown(self.model, count) if of is None else of_class(self.model, of, count)
        if opening is not None:
            told = replace(told, tokens=self._opening([opening] * count).tokens)
        return self._written(prior_z(self.model, count, component=component, told=told), sampling, told)

    def reconstruct(self, texts: list[str], sampling: Sampling, *, of: str | None = None) -> list[str]:
        """What the model writes of each text's code. Raises Misuse for a text without a token that it knows."""
        batch = self._batch(texts, of)
        return self._written(mode_z(self.model, batch), sampling, batch)

    def interpolate(
        self, first: str, second: str, steps: int, sampling: Sampling, *, of: str | None = None
    ) -> list[str]:
        """Texts on the way from one to the other, both reconstructions included."""
        one, other = self._batch([first], of), self._batch([second], of)
        begun = self._batch([first] * steps, of)
        return self._written(path_z(self.model, one, other, steps), sampling, begun)

    def topics(self) -> list[Topic]:
        """The components, the one with the largest share first. Raises Misuse where there are none, or no words."""
        words = self._spelled(component_words(self.model, self.words))
        shares = mixture(self.model).prior_components.softmax(dim=0).tolist()
        topics = [Topic(number, shares[number], words[number]) for number in range(len(words))]
        return sorted(topics, key=lambda topic: -topic.share)

    def poles(self) -> list[Poles]:
        """What each bit says. Raises Misuse where the decoder has no words."""
        raised, lowered = (self._spelled(words) for words in bit_words(self.model, self.words))
        return [Poles(bit, up, down) for bit, (up, down) in enumerate(zip(raised, lowered, strict=True))]

    def _written(self, z: Any, sampling: Sampling, told: Batch) -> list[str]:
        if isinstance(self.model.decoder, BagOfWordsDecoder):
            return [" ".join(words) for words in self._spelled(top_words(self.model.decoder, z, self.words))]
        written = generate(sequence_decoder(self.model), z, sampling)
        given = _openings(told, self._opening_length)
        return [self.tokenizer.decode(before + after) for before, after in zip(given, written, strict=True)]

    @property
    def _opening_length(self) -> int:
        condition = self.model.config.condition
        return condition.tokens if isinstance(condition, OpeningConditionConfig) else 0

    def _opening(self, texts: list[str]) -> Batch:
        if not self._opening_length:
            raise Misuse("this model is not told how a text opens; leave the opening out")
        return self._tokenized(texts)

    def _batch(self, texts: list[str], of: str | None) -> Batch:
        batch = self._tokenized(texts)
        known = batch.tokens if self.model.encoder.reads_tokens else batch.terms
        for text, length in zip(texts, known.lengths.tolist(), strict=True):
            if not length:
                raise Misuse(f"the model knows no word of {text!r}; give a text like those it was trained on")
        classes = unknown(self.model, len(texts)) if of is None else of_class(self.model, of, len(texts))
        return replace(batch, classes=classes.classes)

    def _tokenized(self, texts: list[str]) -> Batch:
        documents = [Document(str(number), text, [], {}, "text", number) for number, text in enumerate(texts)]
        table = self.tokenizer.table(documents)
        encoder = self._text_encoder
        beside = None if encoder is None else encoder.embed_documents(self.tokenizer, table).astype(np.float32)
        return batch_of(table, tokens=True, embeddings=beside)

    @cached_property
    def _text_encoder(self) -> TextEncoder | None:
        """Opened where a text is read: samples and topics need none."""
        if not self.model.config.joined or self.artifact is None:
            return None
        return TextEncoder.of_model(self.artifact, self.encoder_folder)

    def _spelled(self, words: Words) -> list[list[str]]:
        return [[self._terms[word] for word in row] for row in words.ids.tolist()]


def _openings(told: Batch, length: int) -> list[list[int]]:
    """The first `length` tokens of each document."""
    ends: Tensor = told.tokens.offsets[1:]
    starts = told.tokens.offsets[:-1]
    stops = torch.minimum(ends, starts + length)
    spans = zip(starts.tolist(), stops.tolist(), strict=True)
    return [told.tokens.values[start:stop].tolist() for start, stop in spans]
