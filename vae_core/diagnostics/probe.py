"""How much a classifier can read off features with few labels: what codes are worth in semi-supervised learning.

Multinomial logistic regression on frozen features (Kingma et al. 2014, model M1, with a linear classifier). Shapes: N
documents, L labelled ones, T held out or tested, F features, C classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Weights of the squared coefficients, of which a held-out part of the labelled documents chooses one."""
HELD_OUT = 5
"""One labelled document in so many is held out to choose the penalty."""
ITERATIONS = 300


class Accuracy(NamedTuple):
    """Of so many labelled documents: mean and standard deviation, over draws of them, of the share of others found."""

    labelled: int
    mean: float
    sd: float


class LinearClassifier(NamedTuple):
    """Coefficients (C, F) and biases (C,) on features less `centre` and divided by `scale`, (F,)."""

    coefficients: Tensor
    biases: Tensor
    centre: Tensor
    scale: Tensor

    def logits(self, features_NF: Tensor) -> Tensor:
        """(N, C), for every class: -inf for those that were not among the labelled documents."""
        return (features_NF - self.centre) / self.scale @ self.coefficients.T + self.biases


def probe(
    features_NF: Tensor,
    labels_N: Tensor,
    generator: torch.Generator,
    counts: tuple[int, ...] = (10, 30, 100, 300, 1000),
    draws: int = 5,
) -> list[Accuracy]:
    """Accuracy on the other documents for each count of labelled ones; counts that leave none are left out.

    Labels are numbers from 0. The same generator draws the same labelled documents, whatever the features. Raises
    ValueError where a draw would be of fewer than one document or draws.
    """
    if draws < 1 or min(counts, default=1) < 1:
        raise ValueError(f"a probe needs a draw of a document or more, got draws {draws} and counts {counts}")
    return [
        _over_draws(features_NF.double(), labels_N, generator, count, draws)
        for count in counts
        if count < len(labels_N)
    ]


def fitted(features_LF: Tensor, labels_L: Tensor, classes: int, penalty: float) -> LinearClassifier:
    """The minimum of the mean -log softmax(W x + b) + penalty / 2 |W|^2 over the standardised documents.

    Classes without a document are not predicted.
    """
    features_LF = features_LF.double()
    centre, scale = _standard(features_LF)
    present_C = one_hot(labels_L, classes).any(dim=0)
    x_LF, y_L = (features_LF - centre) / scale, (present_C.cumsum(0) - 1)[labels_L]
    weights = _minimum(x_LF, y_L, int(present_C.sum()), penalty)
    coefficients = weights.new_zeros(classes, x_LF.shape[1])
    coefficients[present_C] = weights[:, :-1]
    biases = weights.new_full((classes,), -torch.inf)
    biases[present_C] = weights[:, -1]
    return LinearClassifier(coefficients, biases, centre, scale)


def _over_draws(features_NF: Tensor, labels_N: Tensor, generator: torch.Generator, count: int, draws: int) -> Accuracy:
    classes = int(labels_N.max()) + 1
    found = []
    for _ in range(draws):
        order = torch.randperm(len(labels_N), generator=generator)
        labelled, others = order[:count], order[count:]
        penalty = _chosen(features_NF[labelled], labels_N[labelled], classes)
        classifier = fitted(features_NF[labelled], labels_N[labelled], classes, penalty)
        found.append(_accuracy(classifier, features_NF[others], labels_N[others]))
    accuracies = torch.tensor(found, dtype=torch.float64)
    return Accuracy(count, float(accuracies.mean()), float(accuracies.std()) if draws > 1 else 0.0)


def _chosen(features_LF: Tensor, labels_L: Tensor, classes: int) -> float:
    """The penalty whose classifier finds most of the held-out fifth; the largest of several."""
    held = max(1, len(labels_L) // HELD_OUT)
    if len(labels_L) == held:
        return PENALTIES[-1]
    found = {
        penalty: _accuracy(
            fitted(features_LF[held:], labels_L[held:], classes, penalty), features_LF[:held], labels_L[:held]
        )
        for penalty in PENALTIES
    }
    return max(PENALTIES, key=lambda penalty: (found[penalty], penalty))


def _accuracy(classifier: LinearClassifier, features_TF: Tensor, labels_T: Tensor) -> float:
    return float((classifier.logits(features_TF).argmax(dim=1) == labels_T).double().mean())


def _standard(features_LF: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature, 1 for one that does not vary."""
    scale = features_LF.std(dim=0, unbiased=False)
    varies = scale > 1e-9 * (1 + features_LF.abs().amax(dim=0))
    return features_LF.mean(dim=0), torch.where(varies, scale, 1.0)


def _minimum(x_LF: Tensor, y_L: Tensor, classes: int, penalty: float) -> Tensor:
    """Coefficients with the biases as last column, (C, F + 1)."""
    weights = x_LF.new_zeros(classes, x_LF.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits_LC = x_LF @ weights[:, :-1].T + weights[:, -1]
        total = cross_entropy(logits_LC, y_L) + 0.5 * penalty * weights[:, :-1].square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(closure)
    return weights.detach()
