"""log p(x) by importance sampling or by listing every z, and perplexity. Shapes: S samples, B documents, W width of z.

Every log-likelihood is in nats a document and float64; random draws come from torch's global generator.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from vae_core.batch import Batch
from vae_core.decoders import BagOfWordsDecoder
from vae_core.estimators import MOST_ENUMERATED, every_value
from vae_core.latents import BernoulliLatent, BernoulliMixtureLatent, CategoricalLatent
from vae_core.latents.latent import Latent
from vae_core.model import VAE


class Drawn(NamedTuple):
    """Exact draws z from q(z | x) and what they weigh: log p(x | z) and log p(x, z) / q(z | x), each (S, B)."""

    log_px: Tensor
    log_weights: Tensor


class Mean(NamedTuple):
    """A mean over documents and its standard error, None of a single one."""

    mean: float
    error: float | None


def log_marginal(model: VAE, batch: Batch, samples: int, chunk: int) -> Tensor:
    """The importance-sampled log p(x) of documents, (B,): in expectation a lower bound (Burda et al. 2016, eq. 8).

    `chunk` samples are decoded at a time, which bounds the memory.
    """
    return log_mean_exp(importance_sample(model, batch, samples, chunk).log_weights)


@torch.no_grad()
def importance_sample(model: VAE, batch: Batch, samples: int, chunk: int, posterior: Any = None) -> Drawn:
    """Draw from q(z | x), or from the `posterior` of these documents where it is known already, and weigh."""
    posterior = model.posterior(batch) if posterior is None else posterior
    z_SBW = model.latent.sample(posterior, samples)
    log_px = torch.cat([model.log_px(batch, z).double() for z in z_SBW.split(chunk)])
    log_ratio = model.latent.log_prior(z_SBW).double() - model.latent.log_q(posterior, z_SBW).double()
    return Drawn(log_px, log_px + log_ratio)


@torch.no_grad()
def exact_log_marginal(model: VAE, batch: Batch, values_ZW: Tensor, chunk: int) -> Tensor:
    """log p(x) = log sum_z p(z) p(x | z) over every value of z, as `values_of` lists them, (B,)."""
    log_px = [model.log_px(batch, z.unsqueeze(1).expand(-1, len(batch), -1)) for z in values_ZW.split(chunk)]
    log_joint_ZB = torch.cat(log_px).double() + model.latent.log_prior(values_ZW).double().unsqueeze(1)
    return log_joint_ZB.logsumexp(dim=0)


def values_of(latent: Latent) -> Tensor | None:
    """Every value of z, (Z, W), of a discrete latent that has at most MOST_ENUMERATED; None of any other."""
    like = next(latent.parameters()).detach()
    if isinstance(latent, BernoulliLatent | BernoulliMixtureLatent) and 2**latent.width <= MOST_ENUMERATED:
        return every_value(latent.width, 2, like.device).to(like.dtype)
    if isinstance(latent, CategoricalLatent):
        variables, values = latent.config.variables, latent.config.values
        if values**variables <= MOST_ENUMERATED:
            return one_hot(every_value(variables, values, like.device), values).flatten(1).to(like.dtype)
    return None


def log_mean_exp(log_weights_SB: Tensor) -> Tensor:
    """The log of the mean over S, (B,)."""
    return log_weights_SB.logsumexp(dim=0) - math.log(len(log_weights_SB))


def bound_at(log_weights_SB: Tensor, count: int) -> Tensor:
    """What `count` samples a document give, averaged over as many disjoint sets of them as there are, (B,).

    Where the counts divide one another, each is at least the one before on every document (Burda et al. 2016,
    theorem 1); with 1 it is the evidence lower bound.
    """
    sets = len(log_weights_SB) // count
    return log_mean_exp(log_weights_SB[: sets * count].unflatten(0, (sets, count)).transpose(0, 1)).mean(dim=0)


def effective_samples(log_weights_SB: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of each document, between 1, where one sample decides, and S, (B,)."""
    return (2 * log_weights_SB.logsumexp(dim=0) - (2 * log_weights_SB).logsumexp(dim=0)).exp()


def no_likelihood(model: VAE) -> str | None:
    """Why what the decoder gives is not the log-probability of the document; None where it is."""
    if not isinstance(model.decoder, BagOfWordsDecoder):
        return None
    weights, length = model.decoder.config.weights, model.decoder.length
    if weights != "counts":
        return f"the decoder weighs words by {weights}, not by counts, so log p(x | z) is no likelihood"
    if length != "own":
        return f"the decoder counts every document as {length:g} words, so log p(x | z) is no likelihood"
    return None


def predicted(model: VAE, batch: Batch) -> Tensor:
    """How many words or tokens of each document log p(x | z) is about, (B,) float64.

    The end of a document is one, unless it is cut; padding, the begin symbol and what the model is told are none.
    """
    batch = batch if model.condition is None else model.condition.rest(batch)
    decoder = model.decoder
    if isinstance(decoder, BagOfWordsDecoder):
        known = batch.keep_terms(batch.terms.values < decoder.terms)
        return torch.zeros(len(batch), dtype=torch.float64).index_add(0, known.terms.rows, known.counts.double())
    return (batch.tokens.lengths + 1).clamp(max=decoder.config.positions).double()


def perplexity(log_px_N: Tensor, predicted_N: Tensor) -> float:
    """exp(-sum log p / sum predicted): a ratio over the corpus, not a mean over documents.

    A lower bound on log p(x) gives an upper bound on it.
    """
    return math.exp(-float(log_px_N.double().sum() / predicted_N.double().sum()))


def perplexity_error(log_px_N: Tensor, predicted_N: Tensor) -> float | None:
    """The standard error of `perplexity` over documents, by the delta method for a ratio; None of a single one."""
    if len(log_px_N) < 2:
        return None
    ratio = log_px_N.sum() / predicted_N.sum()
    spread = (log_px_N - ratio * predicted_N).std() / predicted_N.mean() / math.sqrt(len(log_px_N))
    return perplexity(log_px_N, predicted_N) * float(spread)


def bits_per_byte(log_px_N: Tensor, bytes_N: Tensor) -> float:
    """-sum log2 p / sum bytes: comparable between tokenizers."""
    return -float(log_px_N.double().sum() / bytes_N.double().sum()) / math.log(2)


def mean_over_documents(values_N: Tensor) -> Mean:
    """The mean and its standard error."""
    values_N = values_N.double()
    error = float(values_N.std()) / math.sqrt(len(values_N)) if len(values_N) > 1 else None
    return Mean(float(values_N.mean()), error)
