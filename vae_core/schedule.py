"""Phases of training: what is minimised, which parts learn, and which start anew, one after the other.

Each phase is a training of its own on the weights of the one before: its optimiser and its learning-rate curve start
afresh. Li et al. (2019) train without KL, reset the decoder, and anneal with free bits; He et al. (2019) train the
inference network aggressively until the mutual information stops to grow.
"""

from typing import Literal

from pydantic import Field
from torch import nn

from vae_core.config import Config
from vae_core.objectives import Objective

PartName = Literal["encoder", "latent", "prior", "decoder", "condition", "attributes"]
PARTS: tuple[PartName, ...] = ("encoder", "latent", "prior", "decoder", "condition", "attributes")
INFERENCE: tuple[PartName, ...] = ("encoder", "latent")
"""The parts that make q(z | x); the others make p(x, z)."""


class Aggressive(Config):
    """Many steps of the inference network for each of the others (He et al. 2019, algorithm 1).

    The inner steps stop where the mean loss of a window is worse than that of the window before, or at `most`. The
    whole ends for good once I(z; x) falls, looked at `checks` times in the phase.
    """

    most: int = Field(default=100, ge=1, description="inner steps at most")
    window: int = Field(default=15, ge=1, description="inner steps whose mean loss is compared with the window before")
    checks: int = Field(default=10, ge=1, description="how often in the phase I(z; x) is measured")
    documents: int = Field(default=500, ge=2, description="that I(z; x) is measured on")


class Phase(Config):
    """A stretch of training."""

    share: float = Field(default=1.0, gt=0, description="length, as a share of all phases' together")
    objective: Objective = Objective()
    trains: tuple[PartName, ...] = Field(default=PARTS, min_length=1, description="parts that learn")
    reset: tuple[PartName, ...] = Field(default=(), description="parts whose weights start anew with the phase")
    aggressive: Aggressive | None = Field(default=None, description="train the inference network ahead; null: no")


def part_of(parameter: str) -> PartName:
    """The part that a parameter of a VAE belongs to, by its name in `named_parameters`."""
    first, *rest = parameter.split(".")
    if first == "latent" and rest[0].startswith("prior"):
        return "prior"
    return next(part for part in PARTS if part == first)


def reset(model: nn.Module, fresh: nn.Module, parts: tuple[PartName, ...]) -> None:
    """Give `model` the parameters that a newly made model has in these parts; all others stay, bit for bit."""
    new = dict(fresh.named_parameters())
    for name, parameter in model.named_parameters():
        if part_of(name) in parts:
            parameter.data.copy_(new[name].data)
