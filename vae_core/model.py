"""The variational auto-encoder: encoder -> latent -> decoder. Shapes: S samples, B documents, K bits, V words."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vae_core.batch import Batch
from vae_core.config import Config, of_default_kind
from vae_core.decoders import BagOfWordsDecoder, BagOfWordsDecoderConfig, DecoderConfig, build_decoder
from vae_core.encoders import EncoderConfig, TransformerEncoder, TransformerEncoderConfig, build_encoder
from vae_core.errors import Damaged, Misuse
from vae_core.latents import BernoulliMixtureConfig, LatentConfig, build_latent
from vae_core.latents.bernoulli_mixture import BernoulliMixturePosterior

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


class Composition(Config):
    """Which encoder, latent and decoder: what a person chooses."""

    encoder: EncoderConfig = TransformerEncoderConfig()
    latent: LatentConfig = BernoulliMixtureConfig()
    decoder: DecoderConfig = BagOfWordsDecoderConfig()

    @field_validator("encoder", "decoder", mode="before")
    @classmethod
    def _of_default_kind(cls, settings: Any, field: ValidationInfo) -> Any:
        """Settings that name no kind are the default kind's."""
        return of_default_kind(settings, cls.model_fields[str(field.field_name)].default)


class VAEConfig(Composition):
    """A composition and the sizes of the vocabularies it reads, which follow from the corpus."""

    terms: int = Field(ge=1)
    tokens: int = Field(ge=1)


class Terms(NamedTuple):
    """The parts of the ELBO: log p(x | z) (S, B), the KL by group (B, G), both in nats; samples and posterior."""

    log_px: Tensor
    kl_groups: Tensor
    z: Tensor
    posterior: BernoulliMixturePosterior


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Codes and what is known of them: log-odds (B, K), component (B,), confidence (B,) between 0.5 and 1.

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
        self.encoder = build_encoder(config.encoder, terms=config.terms, tokens=config.tokens)
        self.latent = build_latent(config.latent, self.encoder.width)
        self.decoder = build_decoder(config.decoder, self.latent.width, terms=config.terms, tokens=config.tokens)
        self.idf: Tensor
        self.register_buffer("idf", torch.ones(config.terms))

    def forward(self, batch: Batch, samples: int = 1, progress: float = 1.0) -> Terms:
        """The ELBO's terms; in training with straight-through samples, in evaluation at the hard code.

        `progress` is the share of training that is done: a part that joins late reads it.
        """
        tfidf_N = batch.tfidf(self.idf)
        draw = self.latent(self.encoder(batch, tfidf_N, progress), samples)
        return Terms(self.decoder(batch, tfidf_N, draw.z), draw.kl_groups, draw.z, draw.posterior)

    @torch.inference_mode()
    def encode(self, batch: Batch) -> Encoded:
        """Codes of documents, the same in any batch. Call in evaluation mode."""
        posterior = self.latent(self.encoder(batch, batch.tfidf(self.idf))).posterior
        code = posterior.mode()
        log_probability = posterior.bits().log_prob(code.to(posterior.log_odds.dtype))
        confidence = (log_probability / code.shape[1]).exp()
        return Encoded(posterior.log_odds, self.latent.components_of(code).argmax(dim=-1), confidence)

    @property
    def reads_tokens(self) -> bool:
        """Whether any part reads the tokens in order, not only the terms."""
        encoder, decoder = self.config.encoder, self.config.decoder
        return getattr(encoder, "reads", "terms") == "tokens" or decoder.kind == "transformer"

    def start_from(self, document_frequencies_V: Tensor, documents: int, sample: Batch | None = None) -> None:
        """Set what a first look at the corpus tells, before training.

        idf = ln(documents / df) + 1; the decoder's biases, from the words' shares; and the encoder's term vectors,
        from a truncated SVD of the `sample`'s TF-IDF: on small corpora this start is worth more than attention.
        """
        frequencies = document_frequencies_V.double().clamp(min=1)
        self.idf.copy_((documents / frequencies).clamp(min=1).log() + 1)
        if isinstance(self.decoder, BagOfWordsDecoder):
            self.decoder.start_from(document_frequencies_V.double() * self.idf)
        if sample is not None and isinstance(self.encoder, TransformerEncoder) and self.encoder.position is None:
            self.encoder.start_from(sample, self.idf)

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
            model.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (ValidationError, ValueError, RuntimeError, SafetensorError) as error:
            raise Damaged(f"the model in {folder} cannot be loaded: {error}") from error
        return model.eval()
