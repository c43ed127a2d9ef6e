"""The ELBO under a minimum desired rate: max E ELBO subject to E KL >= r (Pelsmaeker and Aziz 2020).

The Lagrangian D + R + m (r - R) weighs the rate by 1 - m. At the optimum m = 1 + dD/dR lies between 0 and 1, which a
sigmoid keeps it in; m rises while the mean rate is below r. A damping term, which vanishes at r, keeps the rate from
swinging, and from 0, where a decoder that ignores z makes every multiplier but 1 collapse.
"""

import math
from typing import Literal, NamedTuple

from pydantic import Field

from vae_core.config import Config


class MinimumRate(Config):
    """Weigh the KL so that its mean over documents is at least `nats`."""

    kind: Literal["minimum_rate"] = "minimum_rate"
    nats: float = Field(gt=0, description="the least mean KL of a document")
    ascent: float = Field(default=0.1, gt=0, description="step of the logit of m when all of the rate is missing")
    damping: float = Field(default=5.0, ge=0, description="further weight on the share of the rate that is missing")
    memory: float = Field(default=0.9, ge=0, lt=1, description="of the running mean of the rate")


class Multiplier(NamedTuple):
    """The multiplier's logit and the running mean of the rate: part of the state of training."""

    logit: float = 0.0
    rate: float | None = None


def weight(config: MinimumRate, multiplier: Multiplier) -> float:
    """The KL's weight: 1 - m, less the damping; below 0 where the rate has to grow."""
    missing = 0.0 if multiplier.rate is None else max(0.0, 1 - multiplier.rate / config.nats)
    return 1 - 1 / (1 + math.exp(-multiplier.logit)) - config.damping * missing


def ascended(config: MinimumRate, multiplier: Multiplier, rate: float) -> Multiplier:
    """The multiplier after a step whose mean rate over all workers was `rate`.

    Mirror ascent: the logit moves by the share of the target that is missing, however flat the sigmoid is there.
    """
    before = rate if multiplier.rate is None else multiplier.rate
    mean = config.memory * before + (1 - config.memory) * rate
    return Multiplier(min(20.0, max(-20.0, multiplier.logit + config.ascent * (1 - mean / config.nats))), mean)
