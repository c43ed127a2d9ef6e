"""How much z says of x, I(X; Z) under q, and how far q(z) = E_x q(z | x) is from the prior; all in nats.

R = I + KL(q(z) || p(z)) (Hoffman and Johnson 2016), and H - D <= I <= R (Alemi et al. 2018) for the data's entropy H.
Shapes: N documents with one draw z each, W latent width, Z values of a discrete z.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae_core.latents.latent import Latent

SATURATED_WITHIN = 1.0
"""Nats: an estimate this near to log N, the most it can be, says only that there are too few documents."""


class Densities(NamedTuple):
    """Log-densities at draws z_i from q(z | x_i), each (N,) float64.

    `own`: log q(z_i | x_i). `mixture`: log q(z_i), the mean over all N documents. `others`: over all but document i.
    """

    own: Tensor
    mixture: Tensor
    others: Tensor


class Bracket(NamedTuple):
    """Two estimates between which a quantity lies in expectation."""

    lower: float
    upper: float


class Exact(NamedTuple):
    """Figures without sampling."""

    information: float
    marginal_kl: float


@torch.no_grad()
def densities(latent: Latent, posterior: Any, z_NW: Tensor, rows: int) -> Densities:
    """Compare every draw with every document's posterior, `rows` draws at a time, which bounds the memory."""
    parts = []
    for first in range(0, len(z_NW), rows):
        log_q_RN = latent.log_q(posterior, z_NW[first : first + rows].unsqueeze(1)).double()
        parts.append(_densities(log_q_RN, first))
    return Densities(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def densities_of(log_q_NN: Tensor) -> Densities:
    """The same of a matrix log q(z_i | x_j) that is there as a whole."""
    return _densities(log_q_NN.double(), 0)


def mutual_information(drawn: Densities) -> Bracket:
    """Plug-in estimate, at most log N and in expectation a lower bound, and leave-one-out estimate, an upper bound.

    They are the two bounds of Poole et al. 2019, section 2.2. Raises ValueError for fewer than two documents.
    """
    if len(drawn.own) < 2:
        raise ValueError("mutual information needs two documents or more, got 1")
    return Bracket(float((drawn.own - drawn.mixture).mean()), float((drawn.own - drawn.others).mean()))


def is_saturated(information: Bracket, documents: int) -> bool:
    """Whether the lower estimate is as good as log N, so that only more documents would tell."""
    return information.lower > math.log(documents) - SATURATED_WITHIN


def marginal_kl(drawn: Densities, log_prior_N: Tensor) -> Bracket:
    """KL(q(z) || p(z)) = R - I by the two estimates of I, paired with the same draws, so that their noise cancels."""
    log_prior_N = log_prior_N.double()
    return Bracket(float((drawn.others - log_prior_N).mean()), float((drawn.mixture - log_prior_N).mean()))


def exact_information(log_q_ZN: Tensor, log_prior_Z: Tensor) -> Exact:
    """I and KL(q(z) || p(z)) of N equally probable documents whose z has Z values."""
    log_q_ZN, log_prior_Z = log_q_ZN.double(), log_prior_Z.double()
    log_q_Z = log_q_ZN.logsumexp(dim=1) - math.log(log_q_ZN.shape[1])
    rate = _entropies_to(log_q_ZN, log_prior_Z.unsqueeze(1)).mean()
    kl = _entropies_to(log_q_Z.unsqueeze(1), log_prior_Z.unsqueeze(1))[0]
    return Exact(float(rate - kl), float(kl))


def _densities(log_q_RN: Tensor, first: int) -> Densities:
    """`log_q_RN` has the draws of documents `first`, `first` + 1 and so on as rows."""
    rows, documents = log_q_RN.shape
    own = torch.arange(rows), torch.arange(first, first + rows)
    others = log_q_RN.index_put(own, log_q_RN.new_tensor(-torch.inf))
    return Densities(
        log_q_RN[own],
        log_q_RN.logsumexp(dim=1) - math.log(documents),
        others.logsumexp(dim=1) - math.log(max(1, documents - 1)),
    )


def _entropies_to(log_q_ZN: Tensor, log_p_ZN: Tensor) -> Tensor:
    """KL of each column of q to that of p, (N,); 0 log 0 is 0."""
    return torch.where(log_q_ZN == -torch.inf, 0.0, log_q_ZN.exp() * (log_q_ZN - log_p_ZN)).sum(dim=0)
