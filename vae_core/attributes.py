"""Controlled generation: a class that texts show, and a z that holds the rest (Hu et al. 2017, arXiv 1703.00955).

The paper's generator G is the decoder, its encoder E the encoder with the posterior's head, and its structured code c
the class that the model is told. The discriminator D, q_D(c | x), is what is new here. Shapes: B documents, M generated
texts, T places, C classes, D width, V tokens.
"""

from dataclasses import replace
from itertools import chain
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, relu

from vae_core.batch import Batch, Ragged
from vae_core.condition import UNKNOWN, ClassCondition
from vae_core.config import Config
from vae_core.encoders import TransformerEncoder
from vae_core.encoders.states import States, states_of
from vae_core.errors import Misuse
from vae_core.latents.latent import Latent
from vae_core.soft_text import Places, SoftDecoder, SoftText, places, write_softly

KERNEL = 3
"""Tokens that the discriminator sees side by side."""


class AttributesConfig(Config):
    """Weights of the losses beside the VAE's, and what they are computed on; with every weight 0 nothing is added."""

    kind: Literal["discriminator"] = "discriminator"
    code: float = Field(default=1.0, ge=0, description="weight of generated texts showing their class (lambda_c)")
    latent: float = Field(default=0.1, ge=0, description="weight of z being found in generated texts (lambda_z)")
    labelled: float = Field(default=1.0, ge=0, description="weight of the discriminator's loss on documents' classes")
    generated: float = Field(default=0.1, ge=0, description="weight of its loss on generated texts (lambda_u)")
    entropy: float = Field(default=0.1, ge=0, description="weight in the latter of how unsure it is (beta)")
    temperature: float = Field(
        default=0.3, gt=0, description="of generated tokens at the end of training, which begins at 1"
    )
    length: int = Field(default=16, ge=1, le=32, description="tokens of a generated text")
    texts: int = Field(default=64, ge=1, description="generated in a step")
    width: int = Field(default=64, ge=1, description="numbers the discriminator embeds a token in")


class Parts(NamedTuple):
    """What generates texts and reads them."""

    encoder: TransformerEncoder
    condition: ClassCondition
    latent: Latent
    decoder: SoftDecoder


class AttributeControl(nn.Module):
    """The discriminator, and the losses by which it, and the decoder, learn what a class looks like.

    Generated texts are soft, so that gradients reach the decoder through them, and the discriminator learns from the
    same. The parts' parameters are used outside their own `forward`: not for ZeRO 3.
    """

    def __init__(self, config: AttributesConfig, *, classes: int, tokens: int) -> None:
        super().__init__()
        if classes < 2:
            raise Misuse(f"attributes tell classes apart, and the model has {classes}; set condition.classes to two")
        self.config = config
        self.classes = classes
        self.discriminator = Discriminator(config.width, classes=classes, tokens=tokens)

    def forward(self, batch: Batch, parts: Parts, progress: float = 1.0) -> Tensor:
        """The weighted sum of the losses in nats, a scalar."""
        total = parts.condition.embedding.weight.new_zeros(())
        if self.config.labelled:
            total = total + self.config.labelled * self._on_known(batch)
        if self.config.code or self.config.latent or self.config.generated:
            total = total + self._on_generated(parts, progress)
        return total

    @torch.no_grad()
    def classified(self, batch: Batch) -> Batch:
        """The documents with the discriminator's class where theirs is unknown; those without tokens stay unknown."""
        classes_B = self._known(batch)
        unclear_B = (classes_B == UNKNOWN) & (batch.tokens.lengths > 0)
        found_B = self.discriminator(batch.tokens).argmax(dim=1)
        return replace(batch, classes=torch.where(unclear_B, found_B, classes_B))

    def _known(self, batch: Batch) -> Tensor:
        return batch.tokens.offsets.new_full((len(batch),), UNKNOWN) if batch.classes is None else batch.classes

    def _on_known(self, batch: Batch) -> Tensor:
        """L_s: -log q_D(c | x), the mean over documents whose class is known; 0 where none is."""
        classes_B = self._known(batch)
        summed = cross_entropy(self.discriminator(batch.tokens), classes_B, ignore_index=UNKNOWN, reduction="sum")
        return summed / (classes_B != UNKNOWN).sum().clamp(min=1)

    def _on_generated(self, parts: Parts, progress: float) -> Tensor:
        """L_attr,c and L_attr,z, whose gradients reach the decoder alone, and L_u, whose the discriminator alone."""
        config = self.config
        z_MW, classes_M, told_ME = _drawn(parts, config.texts, self.classes)
        with torch.set_grad_enabled(bool(config.code or config.latent) and torch.is_grad_enabled()):
            text = write_softly(
                parts.decoder, torch.cat([z_MW, told_ME], dim=1), config.temperature**progress, config.length
            )
        total = z_MW.new_zeros(())
        if config.code:
            total = total + config.code * cross_entropy(_fixed(self.discriminator, text), classes_M)
        if config.latent:
            read = _fixed(_Recognition(parts), places(text), told_ME, z_MW, progress)
            total = total - config.latent * read.mean()
        if config.generated:
            total = total + config.generated * self._on_own(SoftText(*(x.detach() for x in text)), classes_M)
        return total

    def _on_own(self, text: SoftText, classes_M: Tensor) -> Tensor:
        """L_u: -log q_D(c | x) of generated texts, and the entropy of q_D, which is to be small."""
        log_q_MC = self.discriminator(text).log_softmax(dim=1)
        entropy_M = -(log_q_MC.exp() * log_q_MC).sum(dim=1)
        return cross_entropy(log_q_MC, classes_M) + self.config.entropy * entropy_M.mean()


class Discriminator(nn.Module):
    """q_D(c | x): one convolution over the tokens and its largest response over the text (Kim 2014)."""

    def __init__(self, width: int, *, classes: int, tokens: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.convolution = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2)
        self.output = nn.Linear(width, classes)

    def forward(self, text: Ragged | SoftText) -> Tensor:
        """Logits of the classes, (B, C), of tokens or of their probabilities."""
        vectors_BTD, there_BT = self._embedded(text)
        found_BTD = relu(self.convolution(vectors_BTD.transpose(1, 2)).transpose(1, 2))
        logits: Tensor = self.output((found_BTD * there_BT.unsqueeze(2)).amax(dim=1))
        return logits

    def _embedded(self, text: Ragged | SoftText) -> States:
        """Vectors, 0 where the text has ended, and how probably it goes on."""
        if isinstance(text, Ragged):
            return states_of(self.embedding(text.values), text)
        goes_on = text.goes_on.to(self.embedding.weight.dtype)
        return States((text.tokens.to(goes_on.dtype) @ self.embedding.weight) * goes_on.unsqueeze(2), goes_on)


class _Recognition(nn.Module):
    """log q(z | x, c) of soft texts, a module of its own so that its parameters can be given from outside."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.encoder, self.latent = parts.encoder, parts.latent

    def forward(self, text: Places, told_ME: Tensor, z_MW: Tensor, progress: float) -> Tensor:
        features = self.encoder.of_soft(text.numbers, text.tokens, text.weights, progress)
        posterior = self.latent.posterior(torch.cat([features, told_ME], dim=1))
        return self.latent.log_q(posterior, z_MW.unsqueeze(0))[0]


@torch.no_grad()
def _drawn(parts: Parts, count: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """z of the prior, classes alike in probability, and the classes as the decoder is told them."""
    z_MW = parts.latent.sample_prior(count)
    classes_M = torch.randint(classes, (count,), device=z_MW.device)
    return z_MW, classes_M, parts.condition.embedding.weight[classes_M]


def _fixed(module: nn.Module, *inputs: Any) -> Any:
    """The module's result, from which no gradient reaches its parameters."""
    values = {name: value.detach() for name, value in chain(module.named_parameters(), module.named_buffers())}
    return functional_call(module, values, inputs)
