"""What one model does with a sample of documents, and the figures that follow from it; in nats a document.

Shapes: N documents of the sample, S samples of z each, W latent width, G groups of the KL, U units, K bits.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from vae_core.batch import Batch
from vae_core.codes import PackedCodes
from vae_core.config import Config
from vae_core.decoders import BagOfWordsDecoder
from vae_core.diagnostics import likelihood as of_x
from vae_core.diagnostics.code_health import CodeHealth
from vae_core.diagnostics.information import densities, exact_information, is_saturated, marginal_kl, mutual_information
from vae_core.diagnostics.mixed_membership import fit_mixed_membership, split
from vae_core.diagnostics.two_sample import compare_columns, is_binary, permutation_test
from vae_core.diagnostics.units import UnitVariance, active_by_kl
from vae_core.latents.nonparametric import NonparametricLatent, sparsity
from vae_core.mmd import BANDWIDTHS
from vae_core.model import VAE

NUMBERS_AT_ONCE = 1 << 24
"""Logits, or pairs of a draw and a document, that are in memory at a time."""
DISTORTION_SAMPLES = 10
"""Draws of z that the distortion is a mean over where no likelihood is asked for."""
BOUNDS = (1, 10, 100, 1000)
TESTED = 1000
"""Points of each sample at most that the permutation test, whose memory grows with their square, compares."""
COLLAPSED_NATS = 0.1


class DiagnoseConfig(Config):
    """How many documents and draws the diagnostics are taken over."""

    documents: int = Field(
        default=1000, ge=20, le=20_000, description="of the shards, evenly spread; the time grows with their square"
    )
    samples: int = Field(
        default=100, ge=1, description="draws of z for each document's likelihood; the time grows with them"
    )
    batch_size: int = Field(default=16, ge=1, description="documents that are decoded together")
    permutations: int = Field(default=500, ge=1, description="of the test whether q(z) is p(z)")
    components: int = Field(default=10, ge=1, description="shared by q(z) and p(z) in the mixed membership model")
    entropy: float | None = Field(
        default=None, ge=0, description="of the corpus, nats a document, if known: adds the bound H - D on I(X; Z)"
    )
    probe_draws: int = Field(
        default=5, ge=0, description="of labelled documents that a classifier learns its labels from; 0: no classifier"
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="of every draw")


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """What a pass over the sample leaves: KL by group (N, G), distortion (N,), and what only some models have.

    `kept` is the share of vectors that a set latent keeps, (N,). `log_weights` (S, N), or the `exact` log p(x) (N,), is
    there where the decoder gives a likelihood, with how many words are `predicted` (N,). `posterior` is that of all.
    """

    kl_groups: Tensor
    distortion: Tensor
    kept: Tensor | None
    log_weights: Tensor | None
    exact: Tensor | None
    predicted: Tensor | None
    posterior: Any


@torch.no_grad()
def examine(
    model: VAE, batches: Iterable[Batch], config: DiagnoseConfig, *, likelihood: bool, advance: Callable[[int], None]
) -> Examined:
    """Run the model over the sample; `likelihood` asks for log p(x) where there is one."""
    torch.manual_seed(config.seed)
    parts = []
    for batch in batches:
        parts.append(_examine_batch(model, batch, config, likelihood and no_likelihood(model) is None))
        advance(len(batch))
    along = {field.name: int(field.name == "log_weights") for field in fields(Examined)}
    return Examined(*(_joined([getattr(part, name) for part in parts], dim) for name, dim in along.items()))


def no_likelihood(model: VAE) -> str | None:
    """Why the model gives no log p(x) by importance sampling; None where it does."""
    if model.latent.reads_states:
        return "z is a set of vectors, and importance sampling is not defined for it"
    return of_x.no_likelihood(model)


def written(model: VAE) -> tuple[Any, ...]:
    """What log p(x | z) is about: the distortions of two models are comparable where this is the same."""
    if isinstance(model.decoder, BagOfWordsDecoder):
        return "words", model.decoder.terms, model.decoder.config.weights, model.decoder.length
    condition = model.config.condition
    given = condition.tokens if condition is not None and condition.kind == "opening" else 0
    return "tokens", model.config.tokens, model.decoder.config.positions, given


def plane_figures(examined: Examined) -> dict[str, Any]:
    """Where the model lies in the rate-distortion plane, with standard errors."""
    rate_N = examined.kl_groups.sum(dim=1)
    rate, distortion = of_x.mean_over_documents(rate_N), of_x.mean_over_documents(examined.distortion)
    elbo = of_x.mean_over_documents(-rate_N - examined.distortion)
    return {
        "rate": rate.mean,
        "rate_error": rate.error,
        "distortion": distortion.mean,
        "distortion_error": distortion.error,
        "elbo": elbo.mean,
        "elbo_error": elbo.error,
        "kl_groups": examined.kl_groups.double().mean(dim=0).tolist(),
        "groups_above_0.01_nats": active_by_kl(examined.kl_groups.mean(dim=0)),
        "vectors_kept": None if examined.kept is None else float(examined.kept.mean()),
    }


def likelihood_figures(examined: Examined) -> dict[str, Any] | None:
    """log p(x), by listing every z or by importance sampling, and the perplexity that follows."""
    if examined.predicted is None:
        return None
    weights = examined.log_weights
    log_px = examined.exact if weights is None else of_x.log_mean_exp(weights)
    assert log_px is not None
    mean = of_x.mean_over_documents(log_px)
    elbo = -examined.kl_groups.double().sum(dim=1) - examined.distortion
    return {
        "log_px": mean.mean,
        "log_px_error": mean.error,
        "exact": weights is None,
        "bounds": _bounds(weights),
        "effective_samples": _effective(weights),
        "perplexity": of_x.perplexity(log_px, examined.predicted),
        "perplexity_error": of_x.perplexity_error(log_px, examined.predicted),
        "perplexity_by_elbo": of_x.perplexity(elbo, examined.predicted),
        "predicted": int(examined.predicted.sum()),
    }


@torch.no_grad()
def information_figures(model: VAE, examined: Examined, config: DiagnoseConfig) -> dict[str, Any]:
    """I(X; Z), KL(q(z) || p(z)) and the active units: what needs the posteriors of all documents side by side."""
    torch.manual_seed(config.seed)
    posterior, latent = examined.posterior, model.latent
    z_NW = latent.sample(posterior, 1)[0]
    documents, width = z_NW.shape
    drawn = densities(latent, posterior, z_NW, max(1, NUMBERS_AT_ONCE // (documents * width)))
    information, kl = mutual_information(drawn), marginal_kl(drawn, latent.log_prior(z_NW))
    values = of_x.values_of(latent)
    units = UnitVariance(posterior.means.shape[1])
    units.update(posterior.means)
    figures: dict[str, Any] = {
        "information": {"lower": information.lower, "upper": information.upper, "exact": None},
        "marginal_kl": {"lower": kl.lower, "upper": kl.upper, "exact": None},
        "saturated": is_saturated(information, documents),
        "information_at_most": math.log(len(values)) if values is not None else _bits(z_NW),
        "entropy_less_distortion": None
        if config.entropy is None
        else config.entropy - float(examined.distortion.mean()),
        "active_units": units.active,
        "units": len(units.variances),
        "unit_variances": units.variances.tolist(),
    }
    if values is not None:
        exact = exact_information(latent.log_q(posterior, values.unsqueeze(1)), latent.log_prior(values))
        figures["information"]["exact"], figures["marginal_kl"]["exact"] = exact.information, exact.marginal_kl
    return figures


@torch.no_grad()
def prior_figures(model: VAE, examined: Examined, config: DiagnoseConfig) -> dict[str, Any]:
    """Whether q(z) is p(z): a permutation test of all numbers of z together, and a test of each alone."""
    z_NW, prior_NW = draws(model, examined, config)
    at_most = slice(None, TESTED)
    generator = torch.Generator().manual_seed(config.seed)
    together = permutation_test(z_NW[at_most], prior_NW[at_most], config.permutations, generator)
    alone = compare_columns(z_NW, prior_NW)
    return {
        "mmd_squared": together.mmd_squared,
        "p_value": together.p_value,
        "permutations": config.permutations,
        "points": min(TESTED, len(z_NW)),
        "bandwidths": list(BANDWIDTHS),
        "test": "proportions" if is_binary(z_NW) and is_binary(prior_NW) else "kolmogorov_smirnov",
        "differing": alone.differing(),
        "numbers": z_NW.shape[1],
        "largest_effect": float(alone.effects.abs().max()),
        "mean_effect": float(alone.effects.abs().mean()),
    }


@torch.no_grad()
def membership_figures(model: VAE, examined: Examined, config: DiagnoseConfig) -> dict[str, Any] | None:
    """q(z) and p(z) as mixtures of the same components; only for real z."""
    z_NW, prior_NW = draws(model, examined, config)
    if is_binary(z_NW):
        return None
    generator = torch.Generator().manual_seed(config.seed)
    fitted = fit_mixed_membership((prior_NW, z_NW), min(config.components, len(z_NW) // 4), generator)
    _, held_out = split(z_NW)
    log_prior = model.latent.log_prior(held_out.to(z_NW.dtype)).double()
    excess = of_x.mean_over_documents(fitted.log_density(held_out, 1) - log_prior)
    return {
        "distance": fitted.distance(1),
        "marginal_kl": excess.mean,
        "marginal_kl_error": excess.error,
        "prior_weights": fitted.log_weights[0].exp().tolist(),
        "posterior_weights": fitted.log_weights[1].exp().tolist(),
    }


@torch.no_grad()
def code_figures(model: VAE, examined: Examined) -> dict[str, Any] | None:
    """How the sample's codes use their bits; None where the bits do not fill bytes."""
    log_odds = examined.posterior.log_odds
    bits_NK = log_odds > 0
    if bits_NK.shape[1] % 8:
        return None
    log_components = model.latent.components_of(bits_NK)
    health = CodeHealth(bits_NK.shape[1], log_components.shape[1])
    health.update(
        PackedCodes.pack(bits_NK), log_components.argmax(dim=1), (-softplus(-log_odds.abs()).mean(dim=1)).exp()
    )
    return health.as_dict()


@torch.no_grad()
def component_shares(model: VAE, examined: Examined) -> list[float] | None:
    """The mean of p(c | code) over documents; None of a prior that is no mixture."""
    log_components = model.latent.components_of(examined.posterior.log_odds > 0)
    return None if log_components.shape[1] < 2 else log_components.double().exp().mean(dim=0).tolist()


@torch.no_grad()
def draws(model: VAE, examined: Examined, config: DiagnoseConfig) -> tuple[Tensor, Tensor]:
    """One draw of z for each document, and as many from the prior, each (N, W)."""
    torch.manual_seed(config.seed)
    z_NW: Tensor = model.latent.sample(examined.posterior, 1)[0]
    return z_NW, model.latent.sample_prior(len(z_NW))


def _examine_batch(model: VAE, batch: Batch, config: DiagnoseConfig, likelihood: bool) -> Examined:
    posterior = model.posterior(batch)
    chunk = _chunk(model, batch)
    values = of_x.values_of(model.latent) if likelihood else None
    samples = config.samples if likelihood and values is None else min(config.samples, DISTORTION_SAMPLES)
    if model.latent.reads_states:
        log_px = torch.cat([model.log_px(batch, model.latent.sample(posterior, 1)).double() for _ in range(samples)])
        drawn = of_x.Drawn(log_px, log_px)
    else:
        drawn = of_x.importance_sample(model, batch, samples, chunk, posterior)
    return Examined(
        kl_groups=model.latent.kl_groups(posterior).double(),
        distortion=-drawn.log_px.mean(dim=0),
        kept=_kept(model, posterior),
        log_weights=drawn.log_weights if likelihood and values is None else None,
        exact=None if values is None else of_x.exact_log_marginal(model, batch, values, chunk),
        predicted=of_x.predicted(model, batch) if likelihood else None,
        posterior=None if model.latent.reads_states else posterior,
    )


def _kept(model: VAE, posterior: Any) -> Tensor | None:
    """The share of its tokens' vectors that a set latent keeps of each document in evaluation, (B,)."""
    if not isinstance(model.latent, NonparametricLatent):
        return None
    return sparsity(posterior, model.latent.config.keep_above).share.double()


def _chunk(model: VAE, batch: Batch) -> int:
    """How many samples of z are decoded at a time."""
    logits = model.config.terms
    if model.decoder.reads_tokens and len(batch.tokens.values):
        logits = model.config.tokens * int(batch.tokens.lengths.max())
    return max(1, NUMBERS_AT_ONCE // (len(batch) * logits))


def _joined(parts: list[Any], dim: int) -> Any:
    """Tensors, or tuples of them, one after the other; None where there is none."""
    if parts[0] is None:
        return None
    if isinstance(parts[0], Tensor):
        return torch.cat(parts, dim=dim)
    return type(parts[0])(*(_joined(list(same), dim) for same in zip(*parts, strict=True)))


def _bounds(weights: Tensor | None) -> dict[str, float]:
    """The mean bound of so many samples: how far each is from the next shows how loose the last may be."""
    if weights is None:
        return {}
    counts = [count for count in BOUNDS if count < len(weights)] + [len(weights)]
    return {str(count): float(of_x.bound_at(weights, count).mean()) for count in counts}


def _effective(weights: Tensor | None) -> dict[str, float] | None:
    if weights is None:
        return None
    effective = of_x.effective_samples(weights)
    return {"median": float(effective.median()), "smallest": float(effective.min()), "of": len(weights)}


def _bits(z_NW: Tensor) -> float | None:
    return z_NW.shape[1] * math.log(2) if is_binary(z_NW) else None
