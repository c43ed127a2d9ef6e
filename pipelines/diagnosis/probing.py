"""What a model's features are worth to a classifier with few labels, beside a bag of words (Kingma et al. 2014, M1).

Shapes: N documents, U units of z, K bits, F features, V terms.
"""

from typing import Any

import torch
from torch import Tensor

from vae_core.batch import Batch
from vae_core.condition import ClassCondition
from vae_core.diagnostics.probe import probe
from vae_core.encoders.lsi import lsi_vectors
from vae_core.model import VAE

COUNTS = (10, 30, 100, 300, 1000)
"""Labelled documents; of these, those that leave as many to be tested on."""


def probe_figures(
    model: VAE, posterior: Any, documents: Batch, labels: list[str], *, draws: int, seed: int
) -> dict[str, Any] | None:
    """Accuracy by number of labels from posterior means, from bits, and from TF-IDF reduced to as many numbers.

    Documents are of the class of their label, those of none ("") are left out. None where the model is told the class
    or there is nothing to tell apart, or too few documents to try it on.
    """
    names = sorted(set(labels) - {""})
    labelled = torch.tensor([row for row, label in enumerate(labels) if label], dtype=torch.long)
    counts = tuple(count for count in COUNTS if 2 * count <= len(labelled))
    if not draws or not counts or len(names) < 2 or isinstance(model.condition, ClassCondition):
        return None
    classes_N = torch.tensor([names.index(label) for label in labels if label])
    features = {
        "means": posterior.means,
        "bits": (posterior.log_odds > 0).double(),
        "tfidf": _bag_of_words(documents, model.idf, posterior.means.shape[1], seed),
    }
    return {
        "classes": len(names),
        "documents": len(labelled),
        "most_frequent": float(classes_N.bincount().max()) / len(labelled),
        "draws": draws,
        "dimensions": {name: x_NF.shape[1] for name, x_NF in features.items()},
        "accuracy": {
            name: [
                accuracy._asdict()
                for accuracy in probe(x_NF[labelled], classes_N, _generator(seed), counts=counts, draws=draws)
            ]
            for name, x_NF in features.items()
        },
    }


def _bag_of_words(documents: Batch, idf_V: Tensor, dimensions: int, seed: int) -> Tensor:
    """The mean LSI vector of each document's terms, weighted by TF-IDF, (N, F)."""
    torch.manual_seed(seed)
    terms, tfidf = documents.terms, documents.tfidf(idf_V)
    vectors_VF = lsi_vectors(documents, idf_V, dimensions)
    summed = vectors_VF.new_zeros(len(documents), dimensions)
    return summed.index_add(0, terms.rows, tfidf.unsqueeze(1) * vectors_VF[terms.values])


def _generator(seed: int) -> torch.Generator:
    """The same for all features, so that they are tried on the same documents."""
    return torch.Generator().manual_seed(seed)
