"""Decoders: log p(x | z) of documents. A new one is a file here and a line in each list below."""

from typing import Annotated, assert_never

from pydantic import Field

from vae_core.decoders.bag_of_words import BagOfWordsDecoder, BagOfWordsDecoderConfig
from vae_core.decoders.transformer import TransformerDecoder, TransformerDecoderConfig

__all__ = [
    "BagOfWordsDecoder",
    "BagOfWordsDecoderConfig",
    "Decoder",
    "DecoderConfig",
    "TransformerDecoderConfig",
    "build_decoder",
]

DecoderConfig = Annotated[BagOfWordsDecoderConfig | TransformerDecoderConfig, Field(discriminator="kind")]
Decoder = BagOfWordsDecoder | TransformerDecoder


def build_decoder(config: DecoderConfig, latent_width: int, *, terms: int, tokens: int) -> Decoder:
    """The decoder that `config` describes, reading `latent_width` numbers a document."""
    match config:
        case BagOfWordsDecoderConfig():
            return BagOfWordsDecoder(config, latent_width, terms)
        case TransformerDecoderConfig():
            return TransformerDecoder(config, latent_width, tokens)
        case _:
            assert_never(config)
