"""What training minimises: distortion plus a price on the rate, in nats a document. Shapes: S samples, B documents."""

from dataclasses import dataclass
from typing import Annotated, Literal, assert_never

from pydantic import Field
from torch import Tensor

from vae_core.config import Config
from vae_core.model import Terms


class Beta(Config):
    """beta(t) KL: beta rises linearly from 0 over the first `warmup` share of training, then stays."""

    kind: Literal["beta"] = "beta"
    beta: float = Field(default=1.0, ge=0, description="weight of the KL once warm-up is over")
    warmup: float = Field(default=0.5, ge=0, le=1, description="share of training over which beta rises from 0")


class FreeBits(Config):
    """beta(t) sum_i max(nats, KL_i): below `nats` a group (or the whole document's KL) costs no more (Kingma 2016)."""

    kind: Literal["free_bits"] = "free_bits"
    nats: float = Field(gt=0, description="KL that costs nothing")
    per: Literal["group", "document"] = Field(
        default="group", description="threshold for each bit, or for all together"
    )
    beta: float = Field(default=1.0, ge=0, description="weight of the KL once warm-up is over")
    warmup: float = Field(default=0.0, ge=0, le=1, description="share of training over which beta rises from 0")


RateConfig = Annotated[Beta | FreeBits, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True, eq=False)
class Loss:
    """The scalar that is minimised, and what it is made of: all in nats, means over documents."""

    total: Tensor
    distortion: Tensor
    rate: Tensor
    beta: float


def loss(terms: Terms, rate: RateConfig, progress: float) -> Loss:
    """Distortion plus the price of the rate at `progress` (0 at the start of training, 1 at its end).

    The true rate, KL without price or threshold, is reported beside it.
    """
    distortion = -terms.log_px.mean()
    beta = beta_at(rate, progress)
    total = distortion + beta * _priced_groups(terms.kl_groups, rate).sum(dim=1).mean()
    return Loss(total, distortion, terms.kl_groups.sum(dim=1).mean(), beta)


def beta_at(rate: RateConfig, progress: float) -> float:
    """The weight of the KL when the share `progress` of training is done."""
    return rate.beta * (min(1.0, progress / rate.warmup) if rate.warmup else 1.0)


def _priced_groups(kl_groups_BG: Tensor, rate: RateConfig) -> Tensor:
    match rate:
        case Beta():
            return kl_groups_BG
        case FreeBits(per="group"):
            return kl_groups_BG.clamp(min=rate.nats)
        case FreeBits():
            return kl_groups_BG.sum(dim=1, keepdim=True).clamp(min=rate.nats)
        case _:
            assert_never(rate)
