"""Texts whose tokens are probabilities, through which gradients reach the decoder that writes them (Hu et al. 2017,
arXiv 1703.00955). Shapes: M texts, T places, N places of all texts, V tokens, R ids that a
decoder reads, K what the decoder reads.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from vae_core.batch import Ragged
from vae_core.decoders.convolutional import ConvolutionalDecoder
from vae_core.decoders.transformer import TransformerDecoder

SoftDecoder = TransformerDecoder | ConvolutionalDecoder
"""Decoders that read soft inputs."""
FAINTEST = 1e-6
"""A text that goes on with less probability has ended: gradients through its tokens would be no numbers."""


class SoftText(NamedTuple):
    """Probabilities of the tokens at every place where the text goes on, (M, T, V), and of its going on, (M, T)."""

    tokens: Tensor
    goes_on: Tensor


class Places(NamedTuple):
    """The places where texts go on: by number, in each text; their tokens' probabilities (N, V); their weights (N,)."""

    numbers: Ragged
    tokens: Tensor
    weights: Tensor


def write_softly(decoder: SoftDecoder, z_MK: Tensor, temperature: float, length: int) -> SoftText:
    """At most `length` tokens of a text for each z; each token is softmax(logits / temperature) of those before it.

    As the temperature falls to 0 this is what `generate` writes greedily. A text goes on at a place with the
    probability that no token up to it is the end.
    """
    teacher = decoder.teacher
    ids_2 = torch.tensor([teacher.begin, teacher.hidden], device=z_MK.device)
    begin_MR, hidden_MR = one_hot(ids_2, teacher.read).to(z_MK.dtype).unsqueeze(1).expand(-1, len(z_MK), -1)
    read, written = [begin_MR], []
    for _ in range(min(length, teacher.positions)):
        logits_MV = decoder.logits(torch.stack(read, dim=1), z_MK)[:, -1]
        written.append(_softened(logits_MV, temperature))
        read.append(hidden_MR if teacher.blind else pad(written[-1], (0, teacher.read - teacher.written)))
    return _up_to_the_end(torch.stack(written, dim=1), teacher.end)


def places(text: SoftText) -> Places:
    """The places of the texts one after the other, without those after an end; weighted by their going on."""
    there_MT = text.goes_on > 0
    offsets = pad(there_MT.sum(dim=1).cumsum(0), (1, 0))
    return Places(Ragged(there_MT.nonzero()[:, 1], offsets), text.tokens[there_MT], text.goes_on[there_MT])


def _softened(logits_MV: Tensor, temperature: float) -> Tensor:
    # The largest is 0 first: a small temperature then makes the others -inf, and not the largest inf.
    return ((logits_MV - logits_MV.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)


def _up_to_the_end(written_MTV: Tensor, end: int) -> SoftText:
    """Tokens and the end, (M, T, V + 1), as a soft text."""
    words_MTV = written_MTV[..., :end]
    word_MT = words_MTV.sum(dim=-1)
    goes_on_MT = word_MT.cumprod(dim=1)
    ended_MT = goes_on_MT < FAINTEST
    words_MTV = words_MTV / word_MT.masked_fill(ended_MT, 1.0).unsqueeze(-1)
    return SoftText(words_MTV, goes_on_MT.masked_fill(ended_MT, 0.0))
