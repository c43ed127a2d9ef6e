"""Gradients of E_q(z | x) log p(x | z) by the logits of a discrete q. Shapes: S samples, B documents, K bits, or M
variables of K values.

| estimator | bias | needs |
| --- | --- | --- |
| straight-through (Bengio et al. 2013) | none if log p(x given z) is multilinear in z | one sample |
| Gumbel-softmax (Jang 2017; Maddison 2017) | falls with the temperature; variance grows | relaxed z |
| straight-through Gumbel-softmax | some | one sample |
| score function with a leave-one-out baseline (Williams 1992; Kool et al. 2019) | none | two samples or more |
| enumeration | none, and no variance | few enough values to list them all |
"""

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
    """Bits of q for training, (S, B, K): every code, in `every_value`'s order, where the estimator lists them all.

    Raises Misuse where these are too many.
    """
    a_SBK = log_odds_BK.expand(samples, -1, -1)
    match estimator:
        case StraightThrough(draw="mode"):
            return straight_through(a_SBK.sigmoid(), above_zero(a_SBK))
        case StraightThrough():
            return straight_through(a_SBK.sigmoid(), torch.bernoulli(a_SBK.sigmoid().detach()))
        case GumbelSoftmax():
            perturbed = a_SBK + gumbel(a_SBK) - gumbel(a_SBK)
            relaxed = (perturbed / estimator.temperature).sigmoid()
            return straight_through(relaxed, above_zero(perturbed)) if estimator.hard else relaxed
        case ScoreFunction():
            return torch.bernoulli(a_SBK.sigmoid().detach())
        case Enumeration():
            codes = every_value(log_odds_BK.shape[1], 2, log_odds_BK.device).to(a_SBK.dtype)
            return codes.unsqueeze(1).expand(-1, len(log_odds_BK), -1)
        case _:
            assert_never(estimator)


def sample_values(logits_BMK: Tensor, samples: int, estimator: EstimatorConfig) -> Tensor:
    """One-hot values of q for training, (S, B, M, K): every joint value where the estimator lists them all.

    Softened values are points of the simplex. Raises Misuse where there are too many to list.
    """
    logits = logits_BMK.expand(samples, -1, -1, -1)
    match estimator:
        case StraightThrough(draw="mode"):
            return straight_through(logits.softmax(dim=-1), hardest(logits))
        case StraightThrough():
            return straight_through(logits.softmax(dim=-1), hardest(logits + gumbel(logits)))
        case GumbelSoftmax():
            perturbed = logits + gumbel(logits)
            relaxed = (perturbed / estimator.temperature).softmax(dim=-1)
            return straight_through(relaxed, hardest(perturbed)) if estimator.hard else relaxed
        case ScoreFunction():
            return hardest(logits + gumbel(logits))
        case Enumeration():
            _, variables, values = logits_BMK.shape
            every = one_hot(every_value(variables, values, logits.device), values).to(logits.dtype)
            return every.unsqueeze(1).expand(-1, len(logits_BMK), -1, -1)
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


def above_zero(logits: Tensor) -> Tensor:
    """1 where a logit is above 0, else 0."""
    return (logits > 0).to(logits.dtype)


def hardest(logits: Tensor) -> Tensor:
    """One-hot of the largest value on the last axis; with Gumbel noise on the logits, an exact draw."""
    return one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)


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


def every_value(variables: int, values: int, device: torch.device | None = None) -> Tensor:
    """All joint values of `variables` variables, each 0 to `values` - 1, the last one fastest: (values ** M, M).

    Raises Misuse where they are more than MOST_ENUMERATED.
    """
    if values**variables > MOST_ENUMERATED:
        raise Misuse(
            f"the estimator enumeration lists every value of z, here {values} ** {variables}, and at most "
            f"{MOST_ENUMERATED} are; take fewer bits or variables, or the estimator straight_through"
        )
    places = values ** torch.arange(variables - 1, -1, -1, device=device)
    return torch.arange(values**variables, device=device).unsqueeze(1) // places % values
