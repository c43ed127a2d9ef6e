"""Decoders: log p(x | z) of documents. A new one is a file here and a line in each list below."""

from typing import Annotated, assert_never

from pydantic import Field

from vae_core.decoders.bag_of_words import BagOfWordsDecoder, BagOfWordsDecoderConfig
from vae_core.decoders.convolutional import ConvolutionalDecoder, ConvolutionalDecoderConfig
from vae_core.decoders.denoising_attention import DenoisingAttentionDecoder, DenoisingAttentionDecoderConfig
from vae_core.decoders.transformer import TransformerDecoder, TransformerDecoderConfig

__all__ = [
    "BagOfWordsDecoder",
    "BagOfWordsDecoderConfig",
    "ConvolutionalDecoderConfig",
    "Decoder",
    "DecoderConfig",
    "DenoisingAttentionDecoderConfig",
    "TransformerDecoderConfig",
    "build_decoder",
]

DecoderConfig = Annotated[
    BagOfWordsDecoderConfig | TransformerDecoderConfig | ConvolutionalDecoderConfig | DenoisingAttentionDecoderConfig,
    Field(discriminator="kind"),
]
Decoder = BagOfWordsDecoder | TransformerDecoder | ConvolutionalDecoder | DenoisingAttentionDecoder


def build_decoder(config: DecoderConfig, latent_width: int, *, terms: int, tokens: int) -> Decoder:
    """The decoder that `config` describes, reading `latent_width` numbers a document."""
    match config:
        case BagOfWordsDecoderConfig():
            return BagOfWordsDecoder(config, latent_width, terms)
        case TransformerDecoderConfig():
            return TransformerDecoder(config, latent_width, tokens)
        case ConvolutionalDecoderConfig():
            return ConvolutionalDecoder(config, latent_width, tokens)
        case DenoisingAttentionDecoderConfig():
            return DenoisingAttentionDecoder(config, latent_width, tokens)
        case _:
            assert_never(config)
