"""Encoders: a batch of documents to one vector each. A new one is a file here and a line in each list below."""

from typing import Annotated, assert_never

from pydantic import Field

from vae_core.encoders.bag_of_words import BagOfWordsEncoder, BagOfWordsEncoderConfig
from vae_core.encoders.pretrained import PretrainedEncoder, PretrainedEncoderConfig
from vae_core.encoders.states import States
from vae_core.encoders.transformer import TransformerEncoder, TransformerEncoderConfig
from vae_core.errors import Misuse

__all__ = [
    "BagOfWordsEncoder",
    "BagOfWordsEncoderConfig",
    "Encoder",
    "EncoderConfig",
    "PretrainedEncoder",
    "PretrainedEncoderConfig",
    "States",
    "TransformerEncoder",
    "TransformerEncoderConfig",
    "build_encoder",
]

EncoderConfig = Annotated[
    TransformerEncoderConfig | BagOfWordsEncoderConfig | PretrainedEncoderConfig,
    Field(discriminator="kind"),
]
Encoder = TransformerEncoder | BagOfWordsEncoder | PretrainedEncoder


def build_encoder(
    config: EncoderConfig, *, terms: int, tokens: int, states: bool = False, embeddings: int = 0
) -> Encoder:
    """The encoder that `config` describes, over vocabularies of `terms` words and `tokens` subwords.

    `embeddings` is the width of the vectors that it joins to the words, where it does. With `states` its `forward`
    returns a vector for every id (`States`), otherwise one for each document.
    Raises Misuse where the encoder has no vectors of single ids.
    """
    match config:
        case TransformerEncoderConfig():
            vocabulary = terms if config.reads == "terms" else tokens
            return TransformerEncoder(config, vocabulary, states=states, embeddings=embeddings)
        case BagOfWordsEncoderConfig() if states:
            raise Misuse("a bag_of_words encoder has no vector of each token; take the encoder kind transformer")
        case BagOfWordsEncoderConfig():
            return BagOfWordsEncoder(config, terms, embeddings=embeddings)
        case PretrainedEncoderConfig():
            return PretrainedEncoder(config, tokens, states=states)
        case _:
            assert_never(config)
