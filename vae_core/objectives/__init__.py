"""What training minimises: distortion plus a price on the rate, in nats a document. A new kind of rate is a file here
and a line in each list below. Shapes: S samples, B documents, C components.
"""

from typing import Annotated, assert_never

import torch
from pydantic import Field, field_validator
from torch import Tensor

from vae_core.config import Config, of_default_kind
from vae_core.mmd import mmd_squared
from vae_core.model import Terms
from vae_core.objectives.annealing import Annealing
from vae_core.objectives.beta import Beta, weighted
from vae_core.objectives.decorrelation import decorrelation
from vae_core.objectives.free_bits import FreeBits, floored
from vae_core.objectives.importance_weighted import ImportanceWeighted, importance_weighted
from vae_core.objectives.loss import Loss
from vae_core.objectives.minimum_rate import MinimumRate, Multiplier, ascended, weight

__all__ = [
    "UNWEIGHTED",
    "Annealing",
    "Beta",
    "FreeBits",
    "ImportanceWeighted",
    "Loss",
    "MinimumRate",
    "Multiplier",
    "Objective",
    "RateConfig",
    "ascended",
    "final_weight",
    "loss",
]

RateConfig = Annotated[Beta | FreeBits | MinimumRate | ImportanceWeighted, Field(discriminator="kind")]


UNWEIGHTED = Multiplier()
"""The state that a minimum rate begins in."""


class Objective(Config):
    """The price of the rate, and terms beside it; with any of those the loss is no bound on log p(x)."""

    rate: RateConfig = Beta()
    dispersion: float = Field(
        default=0.0, ge=0, le=1, description="share of the pull on mixture components that is cancelled (DEM-VAE)"
    )
    component_information: float = Field(
        default=0.0, ge=0, le=1, description="share of I(c; x) that the component's KL does not cost"
    )
    decorrelation: float | None = Field(
        default=None,
        ge=0,
        description="weight of unbalanced and of correlated bits; null: 160 / bits for a bernoulli_mixture of "
        "under 64, else 0",
    )
    mmd: float = Field(default=0.0, ge=0, description="weight of the squared MMD between q(z) and p(z) (InfoVAE, WAE)")

    @field_validator("rate", mode="before")
    @classmethod
    def _of_default_kind(cls, settings: object) -> object:
        return of_default_kind(settings, Beta())


def loss(terms: Terms, objective: Objective, progress: float, multiplier: Multiplier = UNWEIGHTED) -> Loss:
    """Distortion plus the price of the rate at `progress` (0 at the start of a phase, 1 at its end).

    `multiplier` is the state of a minimum rate, which `ascended` moves on after each step.
    """
    distortion, rate = -terms.log_px.mean(), terms.kl_groups.sum(dim=1).mean()
    total, beta = _bound(terms, objective.rate, progress, multiplier)
    return Loss(total + _beside(terms, objective), distortion, rate, beta)


def final_weight(rate: RateConfig) -> float:
    """The weight of the KL when training ends; 1 where it is not a setting."""
    return rate.annealing.at(1.0) if isinstance(rate, Beta | FreeBits) else 1.0


def _bound(terms: Terms, rate: RateConfig, progress: float, multiplier: Multiplier) -> tuple[Tensor, float]:
    distortion = -terms.log_px.mean()
    match rate:
        case Beta():
            beta = rate.annealing.at(progress)
            return distortion + beta * weighted(terms.kl_groups, rate).sum(dim=1).mean(), beta
        case FreeBits():
            beta = rate.annealing.at(progress)
            return distortion + beta * floored(terms.kl_groups, rate).sum(dim=1).mean(), beta
        case MinimumRate():
            beta = weight(rate, multiplier)
            return distortion + beta * terms.kl_groups.sum(dim=1).mean(), beta
        case ImportanceWeighted():
            return importance_weighted(terms), 1.0
        case _:
            assert_never(rate)


def _beside(terms: Terms, objective: Objective) -> Tensor:
    extra = terms.beside
    if objective.dispersion:
        extra = extra - objective.dispersion * terms.dispersion.mean()
    if objective.component_information:
        extra = extra - objective.component_information * _component_information(terms.posterior.component_logits)
    if objective.decorrelation:
        extra = extra + objective.decorrelation * decorrelation(terms.posterior.means)
    if objective.mmd:
        extra = extra + objective.mmd * mmd_squared(terms.z[0], terms.prior_z)
    return extra


def _component_information(logits_BC: Tensor) -> Tensor:
    """I(c; x) of the batch: the entropy of the mean q(c) less the mean entropy of q(c | x) (Zhao et al. 2018)."""
    log_q_BC = logits_BC.log_softmax(dim=-1)
    log_mean_C = log_q_BC.logsumexp(dim=0) - torch.tensor(float(len(logits_BC))).log()
    return (log_q_BC.exp() * (log_q_BC - log_mean_C)).sum(dim=-1).mean()
