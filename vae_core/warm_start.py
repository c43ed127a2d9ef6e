"""Begin with the weights of a model that learned on another corpus. Shapes: V terms, D width of their vectors."""

import torch
from torch import Tensor

from vae_core.encoders import BagOfWordsEncoder, TransformerEncoder
from vae_core.model import VAE

EMBEDDING, COORDINATES = "encoder.embedding.weight", "encoder.coordinates.vectors"


@torch.no_grad()
def warm_start(model: VAE, old: VAE, places_V: Tensor) -> None:
    """Give `model`, already started on its corpus, all that `old` learned.

    `places_V` says which row of the old vocabulary each term has, -1 where it has none: such a term keeps the start
    that its corpus gave it. Both are of one architecture and one vocabulary of subwords.
    """
    known, by_term = old.state_dict(), term_rows(model)
    for name in by_term & {EMBEDDING, COORDINATES}:
        _turn(model.state_dict()[name], known[name], places_V)
    for name, tensor in model.state_dict().items():
        if name in by_term:
            rows = places_V[: len(tensor)]
            shared = (rows >= 0) & (rows < len(known[name]))
            tensor[shared] = known[name][rows[shared]]
        else:
            tensor.copy_(known[name])


def term_rows(model: VAE) -> set[str]:
    """The tensors of a model, by name, that have a row for each term, or for each of the first ones."""
    names = {"idf"}
    if isinstance(model.encoder, TransformerEncoder) and not model.encoder.reads_tokens:
        names.add(EMBEDDING)
        if model.encoder.coordinates is not None:
            names.add(COORDINATES)
    if isinstance(model.encoder, BagOfWordsEncoder):
        names.add("encoder.weights.weight")
    if model.config.decoder.kind == "bag_of_words":
        names |= {"decoder.words.weight", "decoder.words.bias"}
    return names


def _turn(vectors_VD: Tensor, known_VD: Tensor, places_V: Tensor) -> None:
    """Turn and scale the new corpus's LSI vectors to the old ones' axes, by the terms that both have.

    The axes of an SVD are its corpus's own, so that untouched a new term would lie anywhere among the old ones
    (orthogonal Procrustes: Schönemann 1966).
    """
    shared = places_V >= 0
    ours, theirs = vectors_VD[shared].double(), known_VD[places_V[shared]].double()
    left, sizes, right = torch.linalg.svd(ours.T @ theirs)
    scale = sizes.sum() / ours.square().sum().clamp(min=1e-12)
    if scale > 0:
        vectors_VD.copy_(scale * vectors_VD.double() @ left @ right)
