"""What a bag-of-words model's z means in words. Shapes: M codes, C components, K bits, V words, W words kept."""

from typing import NamedTuple

import torch
from torch import Tensor

from vae_core.decoders import BagOfWordsDecoder
from vae_core.errors import Misuse
from vae_core.generation import mixture, unknown
from vae_core.latents.bernoulli_mixture import BernoulliMixtureLatent
from vae_core.model import VAE


class Words(NamedTuple):
    """Term ids, the word of the highest lift first, and their lift in nats, each (M, W)."""

    ids: Tensor
    lift: Tensor


@torch.no_grad()
def top_words(decoder: BagOfWordsDecoder, z_MK: Tensor, count: int) -> Words:
    """The words that each z raises most over their biases, which hold how frequent they are anyway."""
    return _most(decoder.words(z_MK) - decoder.words.bias, count)


@torch.no_grad()
def component_words(model: VAE, count: int) -> Words:
    """The words of each component c: those of the highest log p(v | E[z | c]) - log p(v), where p(v) is their mixture.

    Raises Misuse where the prior has no components or the decoder no bag of words.
    """
    latent, decoder = mixture(model), bag_of_words(model)
    means_CK = latent.prior_log_odds.sigmoid() if isinstance(latent, BernoulliMixtureLatent) else latent.prior_means
    means_CK = model.decoder_input(unknown(model, len(means_CK)), means_CK.unsqueeze(0))[0]
    log_p_CV = decoder.words(means_CK).log_softmax(dim=-1)
    log_shares_C1 = latent.prior_components.log_softmax(dim=0).unsqueeze(1)
    return _most(log_p_CV - (log_p_CV + log_shares_C1).logsumexp(dim=0), count)


@torch.no_grad()
def bit_words(model: VAE, count: int) -> tuple[Words, Words]:
    """The words that each number of z raises where it is one, or large, and those that it lowers, each (K, W).

    Raises Misuse where the decoder has no bag of words.
    """
    columns_KV = bag_of_words(model).words.weight.T[: model.latent.width]
    lowered = _most(-columns_KV, count)
    return _most(columns_KV, count), Words(lowered.ids, -lowered.lift)


def bag_of_words(model: VAE) -> BagOfWordsDecoder:
    """The model's decoder. Raises Misuse where it is another kind."""
    if isinstance(model.decoder, BagOfWordsDecoder):
        return model.decoder
    kind = model.config.decoder.kind
    raise Misuse(f"words are read off a bag_of_words decoder, and this is a {kind} one; sample from it instead")


def _most(lift_MV: Tensor, count: int) -> Words:
    lift, ids = lift_MV.topk(min(count, lift_MV.shape[1]), dim=-1)
    return Words(ids, lift)
