"""Encoders: a batch of documents to one vector each. A new one is a file here and a line in each list below."""

from typing import Annotated, assert_never

from pydantic import Field

from vae_core.encoders.bag_of_words import BagOfWordsEncoder, BagOfWordsEncoderConfig
from vae_core.encoders.transformer import TransformerEncoder, TransformerEncoderConfig

__all__ = [
    "BagOfWordsEncoderConfig",
    "Encoder",
    "EncoderConfig",
    "TransformerEncoder",
    "TransformerEncoderConfig",
    "build_encoder",
]

EncoderConfig = Annotated[TransformerEncoderConfig | BagOfWordsEncoderConfig, Field(discriminator="kind")]
Encoder = TransformerEncoder | BagOfWordsEncoder


def build_encoder(config: EncoderConfig, *, terms: int, tokens: int) -> Encoder:
    """The encoder that `config` describes, over vocabularies of `terms` words and `tokens` subwords."""
    match config:
        case TransformerEncoderConfig():
            return TransformerEncoder(config, terms if config.reads == "terms" else tokens)
        case BagOfWordsEncoderConfig():
            return BagOfWordsEncoder(config, terms)
        case _:
            assert_never(config)
