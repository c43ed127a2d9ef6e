"""The variational auto-encoder: encoder -> latent -> decoder. Shapes: S samples, B documents, K bits, V words."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import softplus

from vae_core.attributes import AttributeControl, AttributesConfig, Parts
from vae_core.batch import Batch
from vae_core.bit_start import start_bits
from vae_core.condition import ConditionConfig, build_condition
from vae_core.config import Config, of_default_kind
from vae_core.corruption import CorruptionConfig, corrupted
from vae_core.decoders import BagOfWordsDecoder, BagOfWordsDecoderConfig, DecoderConfig, build_decoder
from vae_core.encoders import (
    EncoderConfig,
    PretrainedEncoder,
    TransformerEncoder,
    TransformerEncoderConfig,
    build_encoder,
)
from vae_core.errors import Damaged, Misuse
from vae_core.latents import BernoulliMixtureConfig, LatentConfig, build_latent, reads_states
from vae_core.query_head import QueryHead

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


class Composition(Config):
    """Which encoder, latent and decoder: what a person chooses."""

    encoder: EncoderConfig = TransformerEncoderConfig()
    latent: LatentConfig = BernoulliMixtureConfig()
    decoder: DecoderConfig = BagOfWordsDecoderConfig()
    condition: ConditionConfig | None = Field(default=None, description="what else the model is told; null: nothing")
    corruption: CorruptionConfig = CorruptionConfig()
    attributes: AttributesConfig | None = Field(
        default=None, description="make generated texts show their class (Hu et al. 2017); null: no"
    )

    @field_validator("encoder", "latent", "decoder", mode="before")
    @classmethod
    def _of_default_kind(cls, settings: Any, field: ValidationInfo) -> Any:
        """Settings that name no kind are the default kind's."""
        return of_default_kind(settings, cls.model_fields[str(field.field_name)].default)

    @model_validator(mode="after")
    def _sets_fit(self) -> Self:
        """A set of vectors has an encoder that makes one and a decoder that reads one."""
        sets, attends = reads_states(self.latent), self.decoder.kind == "denoising_attention"
        if sets and not attends:
            raise ValueError(
                f"a {self.decoder.kind} decoder reads one vector, and the z of the latent {self.latent.kind} is a set; "
                f"set decoder.kind to denoising_attention"
            )
        if attends and not sets:
            raise ValueError(
                f"a denoising_attention decoder reads a set of vectors, and the z of the latent {self.latent.kind} is "
                f"one vector; set latent.kind to nonparametric, or decoder.kind to transformer"
            )
        if sets and self.encoder.kind == "bag_of_words":
            raise ValueError("a bag_of_words encoder has no vector of each token; set encoder.kind to transformer")
        if sets and self.condition is not None:
            raise ValueError("a set of vectors has no room for a condition; set condition to null")
        return self

    @property
    def joined(self) -> bool:
        """Whether the encoder reads documents' embeddings beside their words."""
        return self.encoder.kind != "pretrained" and self.encoder.joined

    @model_validator(mode="after")
    def _joined_fits(self) -> Self:
        """An embedding is one vector of a whole document that was written by somebody else."""
        if self.joined and reads_states(self.latent):
            raise ValueError("a set of vectors has no one vector to join; set encoder.joined to false")
        if self.joined and self.attributes is not None:
            raise ValueError(
                "attributes read texts that the model writes, which have no embedding; set joined to false"
            )
        return self

    @model_validator(mode="after")
    def _attributes_fit(self) -> Self:
        """Attributes are classes, of texts that one part writes and another reads token by token."""
        if self.attributes is None:
            return self
        if self.condition is None or self.condition.kind != "class":
            raise ValueError("attributes are the classes of a class-conditional model; set condition.kind to class")
        if self.encoder.kind != "transformer" or self.encoder.weights == "tfidf":
            raise ValueError(
                "attributes need an encoder that reads soft tokens; set encoder.kind to transformer, "
                "encoder.reads to tokens and encoder.weights to even"
            )
        if self.decoder.kind not in ("transformer", "convolutional"):
            raise ValueError(
                f"a {self.decoder.kind} decoder writes no soft tokens, and attributes need them; "
                f"set decoder.kind to transformer"
            )
        return self


class VAEConfig(Composition):
    """A composition and what follows from the corpus: sizes of vocabularies, and the width of its embeddings."""

    terms: int = Field(ge=1)
    tokens: int = Field(ge=1)
    embeddings: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _joined_width(self) -> Self:
        """Embeddings have a width where they are read."""
        if self.joined and not self.embeddings:
            raise ValueError("encoder.joined needs documents' embeddings, and there are none")
        return self

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The classes that a class-conditional model is told of, in the order of `Batch.classes`; else None."""
        condition = self.condition
        return condition.classes if condition is not None and condition.kind == "class" else None


class Terms(NamedTuple):
    """The parts of every objective, in nats.

    log p(x | z), log q(z | x) and log p(z) of the samples, each (S, B); the KL by group (B, G); the mixture's
    dispersion (B,); samples z, as many draws from the prior, and the posterior; and `beside`, a scalar, the losses of
    attributes, 0 without them and in evaluation.
    """

    log_px: Tensor
    log_q: Tensor
    log_p: Tensor
    kl_groups: Tensor
    dispersion: Tensor
    z: Any
    prior_z: Any
    posterior: Any
    beside: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Codes and what is known of them: log-odds (B, K), component (B,), confidence (B,) between 0.5 and 1.

    Of a document that holds nothing the encoder reads nothing is known: log-odds are 0 and the confidence is 0.5.

    The component is the most probable one given the code, argmax p(c | z); the confidence is the geometric mean of
    the probabilities that the posterior gives the code's bits.
    """

    log_odds: Tensor
    component: Tensor
    confidence: Tensor


class VAE(nn.Module):
    """A text VAE composed of three parts that know nothing of one another."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        states = reads_states(config.latent)
        self.encoder = build_encoder(
            config.encoder, terms=config.terms, tokens=config.tokens, states=states, embeddings=config.embeddings
        )
        self.condition = build_condition(config.condition, tokens=config.tokens) if config.condition else None
        told = self.condition.width if self.condition else 0
        self.latent = build_latent(config.latent, self.encoder.width + told)
        self.decoder = build_decoder(config.decoder, self.latent.width + told, terms=config.terms, tokens=config.tokens)
        self.attributes = _attribute_control(config)
        self.query_head: QueryHead | None = None
        self.idf: Tensor
        self.register_buffer("idf", torch.ones(config.terms))

    def forward(self, batch: Batch, samples: int = 1, progress: float = 1.0) -> Terms:
        """The objective's terms; in training with samples that carry gradients, in evaluation at the hard code.

        `progress` is the share of training that is done: a part that joins late reads it.
        """
        told = self.told(batch)
        draw = self.latent(self._features(batch, told, progress), samples)
        log_px = self.latent.expectation(self._log_px(batch, draw.z, told), draw.log_q)
        kept = (draw.log_q, draw.log_p, draw.kl_groups, draw.dispersion)
        beside = self._beside(batch, progress) if self.training else log_px.new_zeros(())
        return Terms(log_px, *kept, draw.z, draw.prior_z, draw.posterior, beside)

    def told(self, batch: Batch) -> Tensor | None:
        """What the model is told beside the documents, (B, E); where attributes are learned an unknown class is the
        discriminator's guess."""
        if self.condition is None:
            return None
        told: Tensor = self.condition(self.attributes.classified(batch) if self.attributes else batch)
        return told

    def posterior(self, batch: Batch) -> Any:
        """q(z | x) of documents. Call in evaluation mode."""
        return self.latent.posterior(self._features(batch, self.told(batch), 1.0))

    def log_px(self, batch: Batch, z: Any) -> Tensor:
        """log p(x | z) in nats of z (S, B, W), (S, B)."""
        return self._log_px(batch, z, self.told(batch))

    def decoder_input(self, batch: Batch, z: Any) -> Any:
        """z (S, B, W) with what the decoder is told of these documents beside it."""
        told = self.told(batch)
        return z if told is None else _joined(z, told)

    @torch.inference_mode()
    def encode(self, batch: Batch) -> Encoded:
        """Codes of documents, the same in any batch. Call in evaluation mode."""
        posterior = self.posterior(batch)
        log_odds = posterior.log_odds.masked_fill(self._unread(batch).unsqueeze(1), 0.0)
        code = log_odds > 0
        confidence = -softplus(-log_odds.abs()).mean(dim=1)
        return Encoded(log_odds, self.latent.components_of(code).argmax(dim=-1), confidence.exp())

    @torch.inference_mode()
    def asked(self, log_odds_BK: Tensor) -> Tensor:
        """What documents of these log-odds rank others by, (B, K): the same without a query head."""
        return log_odds_BK if self.query_head is None else self.query_head(log_odds_BK)

    def _unread(self, batch: Batch) -> Tensor:
        """Which documents have nothing that the encoder reads, (B,)."""
        read = batch.tokens if self.encoder.reads_tokens else batch.terms
        return (read.lengths == 0) & (batch.embeddings is None)

    def _features(self, batch: Batch, told: Tensor | None, progress: float) -> Any:
        if self.training and self.config.corruption.active:
            batch = corrupted(batch, self.config.corruption)
        features = self.encoder(batch, batch.tfidf(self.idf), progress)
        return features if told is None else torch.cat([features, told], dim=-1)

    def _log_px(self, batch: Batch, z: Any, told: Tensor | None) -> Tensor:
        if self.condition is not None and told is not None:
            batch, z = self.condition.rest(batch), _joined(z, told)
        log_px: Tensor = self.decoder(batch, batch.tfidf(self.idf), z)
        return log_px

    def _beside(self, batch: Batch, progress: float) -> Tensor:
        if self.attributes is None:
            return self.idf.new_zeros(())
        # Of these kinds, since the settings passed `_attributes_fit`.
        parts: Any = (self.encoder, self.condition, self.latent, self.decoder)
        beside: Tensor = self.attributes(batch, Parts(*parts), progress)
        return beside

    @property
    def reads_tokens(self) -> bool:
        """Whether any part reads the tokens in order, not only the terms."""
        return self.posterior_reads_tokens or self.decoder.reads_tokens

    @property
    def starts_from_tokens(self) -> bool:
        """Whether `start_from` looks at the sample's tokens, not only its terms."""
        return isinstance(self.encoder, TransformerEncoder) and self.encoder.token_weights is not None

    @property
    def posterior_reads_tokens(self) -> bool:
        """Whether `posterior` and `encode` read the tokens in order, not only the terms."""
        opening = self.config.condition is not None and self.config.condition.kind == "opening"
        return self.encoder.reads_tokens or opening

    def start_from(self, document_frequencies_V: Tensor, documents: int, sample: Batch | None = None) -> None:
        """Set what a first look at the corpus tells, before training.

        idf = ln(documents / df) + 1; the decoder's biases, from the words' shares; and the encoder's vectors of terms
        or tokens, from a truncated SVD of the `sample`'s TF-IDF: on small corpora this start is worth more than
        attention. Bits start as LSI + ITQ has them (`start_bits`), and a pretrained encoder at its folder's weights.
        """
        frequencies = document_frequencies_V.double().clamp(min=1)
        self.idf.copy_((documents / frequencies).clamp(min=1).log() + 1)
        if isinstance(self.decoder, BagOfWordsDecoder):
            self.decoder.start_from(document_frequencies_V.double() * self.idf)
        if sample is not None and not isinstance(self.encoder, PretrainedEncoder) and self.encoder.joined is not None:
            self.encoder.joined.start_from(sample)
        if sample is not None and isinstance(self.encoder, TransformerEncoder) and self.encoder.starts_from_lsi:
            self.encoder.start_from(sample, self.idf)
            start_bits(self.encoder, self.latent, sample, sample.tfidf(self.idf))
        if isinstance(self.encoder, PretrainedEncoder):
            self.encoder.start_from_folder()

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and model.safetensors into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(self.config.model_dump_json(indent=1))
        tensors = {name: tensor.detach().cpu().float().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS_FILE)

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """The model in `folder`, in evaluation mode. Raises Misuse where there is none, Damaged where it is broken."""
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise Misuse(f"{folder} has no {name}: it is not a model; give the folder that `pretrain` wrote")
        try:
            model = cls(VAEConfig.model_validate(json.loads((folder / CONFIG_FILE).read_text())))
            weights = load_file(folder / WEIGHTS_FILE)
            if any(name.startswith("query_head.") for name in weights):
                model.query_head = QueryHead(model.latent.code_bits)
            model.load_state_dict(weights)
        except (ValidationError, ValueError, RuntimeError, SafetensorError) as error:
            raise Damaged(f"the model in {folder} cannot be loaded: {error}") from error
        return model.eval()


def _attribute_control(config: VAEConfig) -> AttributeControl | None:
    if config.attributes is None:
        return None
    return AttributeControl(config.attributes, classes=len(config.classes or ()), tokens=config.tokens)


def _joined(z_SBW: Tensor, told_BE: Tensor) -> Tensor:
    return torch.cat([z_SBW, told_BE.expand(len(z_SBW), -1, -1)], dim=-1)
