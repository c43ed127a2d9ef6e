"""Gradients of E_q(z | x) log p(x | z) by the logits of a discrete q (MODELS 3). Shapes: S samples, B documents.

| estimator | bias | needs |
| --- | --- | --- |
| straight-through (Bengio et al. 2013) | none if log p(x given z) is multilinear in z | one sample |
| Gumbel-softmax (Jang 2017; Maddison 2017) | falls with the temperature; variance grows | relaxed z |
| straight-through Gumbel-softmax | some | one sample |
| score function with a leave-one-out baseline (Kool et al. 2019) | none | two samples or more |
| enumeration | none, and no variance | few enough values to list them all |
"""

from itertools import product
from typing import Annotated, Literal, assert_never

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from vae_core.config import Config
from vae_core.errors import Misuse

MOST_ENUMERATED = 4096


class StraightThrough(Config):
    """A hard value forward, the gradient of its probability backward."""

    kind: Literal["straight_through"] = "straight_through"
    draw: Literal["mode", "sample"] = Field(
        default="mode", description="what the decoder sees in training: the most probable value, or one drawn from q"
    )


class GumbelSoftmax(Config):
    """A value perturbed by Gumbel noise and softened by a temperature."""

    kind: Literal["gumbel_softmax"] = "gumbel_softmax"
    temperature: float = Field(default=0.9, gt=0, description="towards 0 the value hardens, and the gradient spreads")
    hard: bool = Field(default=True, description="one-hot forward, soft backward; the one-hot is an exact draw from q")


class ScoreFunction(Config):
    """grad log q times the advantage over the other samples; needs pretrain.samples of 2 or more."""

    kind: Literal["score_function"] = "score_function"


class Enumeration(Config):
    """The exact expectation, for latents of few values."""

    kind: Literal["enumeration"] = "enumeration"


EstimatorConfig = Annotated[StraightThrough | GumbelSoftmax | ScoreFunction | Enumeration, Field(discriminator="kind")]


def sample_bits(log_odds_BK: Tensor, samples: int, estimator: EstimatorConfig) -> Tensor:
    """Bits of q for training, (S, B, K): every code, in `every_code`'s order, where the estimator lists them all."""
    a_SBK = log_odds_BK.expand(samples, -1, -1)
    match estimator:
        case StraightThrough(draw="mode"):
            return straight_through(a_SBK.sigmoid(), (a_SBK > 0).to(a_SBK.dtype))
        case StraightThrough():
            return straight_through(a_SBK.sigmoid(), torch.bernoulli(a_SBK.sigmoid().detach()))
        case GumbelSoftmax():
            relaxed = relaxed_bernoulli(a_SBK, estimator.temperature)
            return straight_through(relaxed, (relaxed > 0.5).to(relaxed.dtype)) if estimator.hard else relaxed
        case ScoreFunction():
            return torch.bernoulli(a_SBK.sigmoid().detach())
        case Enumeration():
            return every_code(log_odds_BK.shape[1], log_odds_BK).unsqueeze(1).expand(-1, len(log_odds_BK), -1)
        case _:
            assert_never(estimator)


def expected_log_px(log_px_SB: Tensor, log_q_SB: Tensor, estimator: EstimatorConfig) -> Tensor:
    """log p(x | z) of samples whose mean over S has the estimator's value and gradient, (S, B) or (1, B).

    `log_q_SB` is log q(z | x) of the samples, which carry no gradient themselves where the estimator uses it.
    """
    match estimator:
        case ScoreFunction():
            return leave_one_out(log_px_SB, log_q_SB)
        case Enumeration():
            return enumerated(log_px_SB, log_q_SB)
        case _:
            return log_px_SB


def straight_through(relaxed: Tensor, hard: Tensor) -> Tensor:
    """`hard` in the forward pass, the gradient of `relaxed` in the backward pass."""
    return relaxed + (hard - relaxed).detach()


def gumbel(like: Tensor) -> Tensor:
    """Independent standard Gumbel noise; -log of an exponential never takes the logarithm of 0."""
    return -torch.empty_like(like).exponential_().clamp(min=torch.finfo(like.dtype).tiny).log()


def gumbel_softmax(logits: Tensor, temperature: float) -> Tensor:
    """A point of the simplex near a draw from Categorical(logits), with a gradient; the logits' last axis is K."""
    return ((logits + gumbel(logits)) / temperature).softmax(dim=-1)


def relaxed_bernoulli(logits: Tensor, temperature: float) -> Tensor:
    """The same for a bit: a number in (0, 1); above 1/2 with exactly the probability of a one."""
    return ((logits + gumbel(logits) - gumbel(logits)) / temperature).sigmoid()


def hardest(relaxed: Tensor) -> Tensor:
    """One-hot of the largest value on the last axis."""
    return one_hot(relaxed.argmax(dim=-1), relaxed.shape[-1]).to(relaxed.dtype)


def leave_one_out(log_px_SB: Tensor, log_q_SB: Tensor) -> Tensor:
    """log p(x | z), unchanged, whose mean over samples has the score-function gradient by q added.

    Each sample's baseline is the mean of the others. `log_q_SB` are of samples without a gradient of their own.
    Raises Misuse for one sample, which leaves nothing to compare with.
    """
    samples = len(log_px_SB)
    if samples < 2:
        raise Misuse("the score function needs two samples or more of each document, got 1; set pretrain.samples to 2")
    reward = log_px_SB.detach()
    advantage = (reward - reward.mean(dim=0)) * samples / (samples - 1)
    surrogate = advantage * log_q_SB
    return log_px_SB + surrogate - surrogate.detach()


def enumerated(log_px_SB: Tensor, log_q_SB: Tensor) -> Tensor:
    """sum_z q(z | x) log p(x | z) over all S values of z, (1, B)."""
    return (log_q_SB.exp() * log_px_SB).sum(dim=0, keepdim=True)


def every_code(bits: int, like: Tensor) -> Tensor:
    """All codes, (2 ** bits, bits). Raises Misuse where they are too many to list."""
    require_few(2**bits)
    return torch.tensor(list(product([0.0, 1.0], repeat=bits)), dtype=like.dtype, device=like.device)


def require_few(values: int) -> None:
    """Raise Misuse where a latent has too many values to list."""
    if values > MOST_ENUMERATED:
        raise Misuse(
            f"enumeration lists every value of z, here {values:,}, and at most {MOST_ENUMERATED:,} are; "
            f"take fewer bits, or the estimator straight_through"
        )
