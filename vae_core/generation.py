"""Text from a model: drawn from the prior, restored from its z, or on the way between two documents.

Shapes: M documents, T positions, V tokens, K what the decoder reads, U units of a discrete z.
"""

from copy import deepcopy
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor

from vae_core.batch import Batch, Ragged
from vae_core.condition import UNKNOWN
from vae_core.config import Config
from vae_core.decoders.autoregressive import Teacher
from vae_core.denoising_attention import Mixture
from vae_core.errors import Misuse
from vae_core.latents.bernoulli import BernoulliLatent
from vae_core.latents.bernoulli_mixture import BernoulliMixtureLatent
from vae_core.latents.categorical import CategoricalLatent
from vae_core.latents.gaussian import GaussianLatent
from vae_core.latents.gaussian_mixture import GaussianMixtureLatent
from vae_core.latents.latent import Latent
from vae_core.latents.nonparametric import NonparametricLatent
from vae_core.latents.nonparametric import interpolate as union
from vae_core.model import VAE

MixtureLatent = BernoulliMixtureLatent | GaussianMixtureLatent
"""Latents whose prior has components."""


class Sampling(Config):
    """How the next token is chosen; what is left of top_k and top_p is drawn from in proportion."""

    temperature: float = Field(default=1.0, ge=0, description="logits are divided by it; 0: the most probable token")
    top_k: int | None = Field(default=None, ge=1, description="draw among this many tokens; null: all")
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="draw among the fewest tokens that have this much probability; null: all"
    )


GREEDY, ANCESTRAL = Sampling(temperature=0.0), Sampling()


class SequenceDecoder(Protocol):
    """What writes a document token by token."""

    teacher: Teacher

    def logits(self, inputs_MT: Tensor, z_MK: Any) -> Tensor:
        """Logits of the next token, or of the end, at every position, (M, T, V + 1)."""


@torch.no_grad()
def generate(decoder: SequenceDecoder, z_MK: Any, sampling: Sampling = GREEDY) -> list[list[int]]:
    """The tokens of one document for each z, up to its end or the decoder's last position.

    z is what the decoder reads: a tensor (M, K), or a tuple of tensors (M, ...). Call in evaluation mode.
    """
    teacher = decoder.teacher
    sizes = z_MK if isinstance(z_MK, Tensor) else z_MK[0]
    read_MT = torch.full((len(sizes), 1), teacher.begin, device=sizes.device)
    written_MT = read_MT[:, :0]
    ended_M = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)
    while written_MT.shape[1] < teacher.positions and not ended_M.all():
        chosen_M = next_tokens(decoder.logits(read_MT, z_MK)[:, -1], sampling).masked_fill(ended_M, teacher.end)
        ended_M = ended_M | (chosen_M == teacher.end)
        shown_M = torch.full_like(chosen_M, teacher.hidden) if teacher.blind else chosen_M
        written_MT = torch.cat([written_MT, chosen_M.unsqueeze(1)], dim=1)
        read_MT = torch.cat([read_MT, shown_M.unsqueeze(1)], dim=1)
    return [_until(teacher.end, tokens) for tokens in written_MT.tolist()]


def next_tokens(logits_MV: Tensor, sampling: Sampling) -> Tensor:
    """One token for each row of logits, (M,). Holtzman et al. 2020 has top_p."""
    if sampling.temperature == 0:
        return logits_MV.argmax(dim=-1)
    # The largest is 0 first: a small temperature then makes the others -inf, and not the largest inf.
    logits_MV = (logits_MV - logits_MV.amax(dim=-1, keepdim=True)) / sampling.temperature
    ranked_MV, order_MV = logits_MV.sort(dim=-1, descending=True)
    ranked_MV = ranked_MV[:, : sampling.top_k]
    if sampling.top_p is not None:
        share_MV = ranked_MV.softmax(dim=-1)
        before_MV = share_MV.cumsum(dim=-1) - share_MV
        ranked_MV = ranked_MV.masked_fill(before_MV >= sampling.top_p, -torch.inf)
    rank_M = torch.multinomial(ranked_MV.softmax(dim=-1), 1)
    return order_MV.gather(1, rank_M).squeeze(1)


def reconstruct(model: VAE, batch: Batch, sampling: Sampling = GREEDY) -> list[list[int]]:
    """What the decoder writes of each document's code."""
    return generate(sequence_decoder(model), mode_z(model, batch), sampling)


def sample(
    model: VAE,
    count: int,
    sampling: Sampling = ANCESTRAL,
    *,
    component: int | None = None,
    told: Batch | None = None,
) -> list[list[int]]:
    """`count` documents of z drawn from the prior, or from one component of it.

    `told` are documents whose class or opening a conditional model is told, one for each; without, it is told nothing.
    """
    return generate(sequence_decoder(model), prior_z(model, count, component=component, told=told), sampling)


def interpolate(model: VAE, first: Batch, second: Batch, steps: int, sampling: Sampling = GREEDY) -> list[list[int]]:
    """`steps` documents on the way from one document to another, both ends included."""
    return generate(sequence_decoder(model), path_z(model, first, second, steps), sampling)


def sequence_decoder(model: VAE) -> SequenceDecoder:
    """The model's decoder. Raises Misuse where it does not write token by token."""
    decoder: Any = model.decoder
    if not isinstance(getattr(decoder, "teacher", None), Teacher):
        raise Misuse(
            f"a {model.config.decoder.kind} decoder writes no text, only how probable each word is: take its top words"
        )
    return decoder


@torch.no_grad()
def mode_z(model: VAE, batch: Batch) -> Any:
    """What the decoder reads of each document's code, (M, K)."""
    return _told(model, model.latent.mode(model.posterior(batch)), batch)


@torch.no_grad()
def prior_z(model: VAE, count: int, *, component: int | None = None, told: Batch | None = None) -> Any:
    """What the decoder reads of `count` draws from the prior, or from one component of it, (M, K)."""
    latent = model.latent if component is None else _only(mixture(model), component)
    return _told(model, latent.sample_prior(count), told or unknown(model, count))


@torch.no_grad()
def path_z(model: VAE, first: Batch, second: Batch, steps: int) -> Any:
    """What the decoder reads at `steps` places on the way from one document to another, (steps, K), ends included.

    Real z move on a straight line (Bowman et al. 2016). Discrete z take a shortest path: the units that differ change
    one after the other, those that both documents are least sure of first. Of sets of vectors it is the union.
    """
    if steps < 2:
        raise Misuse(f"an interpolation has two ends; {steps} steps are too few, ask for at least 2")
    shares_T1 = torch.linspace(0, 1, steps, device=model.idf.device).unsqueeze(1)
    path = _path(model.latent, model.posterior(first), model.posterior(second), shares_T1)
    told, other = model.told(first), model.told(second)
    return path if told is None or other is None else torch.cat([path, torch.lerp(told, other, shares_T1)], dim=1)


def mixture(model: VAE) -> MixtureLatent:
    """The latent, which has components. Raises Misuse where it has none."""
    if isinstance(model.latent, MixtureLatent):
        return model.latent
    raise Misuse(f"the {model.config.latent.kind} latent of this model has no components; leave the component out")


def of_class(model: VAE, name: str, count: int) -> Batch:
    """What a class-conditional model is told of `count` documents of this class. Raises Misuse where it knows none."""
    if model.config.classes is None:
        raise Misuse(f"this model is told no classes, so it cannot write {name!r}; leave the class out")
    if name not in model.config.classes:
        raise Misuse(f"the model knows no class {name!r}; its classes: {', '.join(model.config.classes)}")
    return _blank(model, count, model.config.classes.index(name))


def unknown(model: VAE, count: int) -> Batch:
    """Documents of which nothing is known."""
    return _blank(model, count, UNKNOWN)


def _path(latent: Latent, one: Any, other: Any, shares_T1: Tensor) -> Any:
    match latent:
        case GaussianLatent() | GaussianMixtureLatent():
            return torch.lerp(latent.mode(one), latent.mode(other), shares_T1)
        case BernoulliLatent() | BernoulliMixtureLatent():
            sureness_U = (one.log_odds.abs() + other.log_odds.abs())[0]
            return _flips(latent.mode(one)[0], latent.mode(other)[0], sureness_U, len(shares_T1))
        case CategoricalLatent():
            leads_UV = [posterior.log_odds[0].view_as(posterior.logits[0]) for posterior in (one, other)]
            sureness_U = leads_UV[0].amax(dim=1) + leads_UV[1].amax(dim=1)
            return _flips(latent.mode(one)[0], latent.mode(other)[0], sureness_U, len(shares_T1))
        case NonparametricLatent():
            modes = [latent.mode(union(one, other, share)) for share in shares_T1.flatten().tolist()]
            return Mixture(*(torch.cat(parts) for parts in zip(*modes, strict=True)))
        case _:
            raise Misuse(f"between two documents of a {type(latent).__name__} no path is defined; reconstruct them")


def _flips(one_K: Tensor, other_K: Tensor, sureness_U: Tensor, steps: int) -> Tensor:
    one_UV, other_UV = (z_K.unflatten(0, (len(sureness_U), -1)) for z_K in (one_K, other_K))
    differs_U = (one_UV != other_UV).any(dim=1)
    order_U = sureness_U.masked_fill(~differs_U, torch.inf).argsort().argsort()
    moved = [round(step * int(differs_U.sum()) / (steps - 1)) for step in range(steps)]
    return torch.stack([torch.where((order_U < many).unsqueeze(1), other_UV, one_UV) for many in moved]).flatten(1)


def _only(latent: MixtureLatent, component: int) -> MixtureLatent:
    """The latent with a prior of this component alone."""
    components = len(latent.prior_components)
    if not 0 <= component < components:
        raise Misuse(f"there is no component {component}; the prior's {components} are 0 to {components - 1}")
    alone = deepcopy(latent)
    alone.prior_components.fill_(-torch.inf)[component] = 0.0
    return alone


def _told(model: VAE, z: Any, told: Batch) -> Any:
    return z if model.condition is None else model.decoder_input(told, z.unsqueeze(0))[0]


def _blank(model: VAE, count: int, kind: int) -> Batch:
    device = model.idf.device
    nothing = torch.zeros(0, dtype=torch.long, device=device)
    empty = Ragged(nothing, nothing.new_zeros(count + 1))
    return Batch(empty, empty, nothing, nothing.new_full((count,), kind))


def _until(end: int, tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens
