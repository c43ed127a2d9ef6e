"""The probe against scikit-learn's logistic regression, and on features that tell everything or nothing."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vae_core.diagnostics.probe import PENALTIES, Accuracy, fitted, probe


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def overlapping(documents: int = 200, classes: int = 4, features: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normal clouds, each feature on a scale and at a place of its own."""
    noise = generator(seed)
    labels = torch.randint(classes, (documents,), generator=noise)
    centres = torch.randn(classes, features, generator=noise, dtype=torch.float64)
    x = centres[labels] + torch.randn(documents, features, generator=noise, dtype=torch.float64)
    return x * torch.logspace(-2, 3, features, dtype=torch.float64) + 7, labels


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("classes", [2, 4])
def test_the_classifier_is_scikit_learns_at_the_same_penalty(penalty: float, classes: int) -> None:
    """C = 1 / (penalty L). Of two classes sklearn fits one logit, whose penalty is twice ours on the difference."""
    x, y = overlapping(classes=classes)
    ours = fitted(x, y, classes, penalty)
    standardised = ((x - x.mean(0)) / x.std(0, unbiased=False)).numpy()
    scale = penalty * len(y) / (2 if classes == 2 else 1)
    theirs = LogisticRegression(C=1 / scale, tol=1e-10, max_iter=10_000).fit(standardised, y.numpy())
    coefficients = ours.coefficients.numpy()
    if classes == 2:
        coefficients = coefficients[1:] - coefficients[:1]
    np.testing.assert_allclose(coefficients, theirs.coef_, atol=2e-4, rtol=2e-3)
    probabilities = ours.logits(x).softmax(dim=1).numpy()
    np.testing.assert_allclose(probabilities, theirs.predict_proba(standardised), atol=2e-4)


def test_separable_classes_are_all_found() -> None:
    labels = torch.arange(400) % 3
    features = 20 * torch.eye(3)[labels] + torch.rand(400, 3, generator=generator())
    assert probe(features, labels, generator(), counts=(30, 100)) == [Accuracy(30, 1.0, 0.0), Accuracy(100, 1.0, 0.0)]


def test_random_labels_are_found_by_chance_alone() -> None:
    noise = generator(3)
    features, labels = torch.randn(4000, 8, generator=noise), torch.randint(4, (4000,), generator=noise)
    error = math.sqrt(0.25 * 0.75 / 3000)
    assert error < 0.01
    for accuracy in probe(features, labels, generator(), counts=(100, 1000), draws=3):
        assert abs(accuracy.mean - 0.25) < 4.9 * error


def test_the_mean_and_sd_are_those_of_single_draws() -> None:
    x, y = overlapping(600)
    together = generator(5)
    singles = [probe(x, y, together, counts=(60,), draws=1)[0] for _ in range(4)]
    assert all(single.sd == 0 for single in singles)
    (accuracy,) = probe(x, y, generator(5), counts=(60,), draws=4)
    means = [single.mean for single in singles]
    assert accuracy.mean == pytest.approx(np.mean(means))
    assert accuracy.sd == pytest.approx(np.std(means, ddof=1))
    assert accuracy.sd > 0


def test_the_same_generator_gives_the_same_numbers_and_more_labels_better_ones() -> None:
    x, y = overlapping(1500, features=10)
    first, second = (probe(x, y, generator(1), counts=(10, 1000), draws=3) for _ in range(2))
    assert first == second
    assert first != probe(x, y, generator(2), counts=(10, 1000), draws=3)
    assert first[0].mean < first[1].mean


def test_scales_and_shifts_of_features_change_nothing_and_a_constant_one_neither() -> None:
    x, y = overlapping(400)
    plain = probe(x, y, generator(), counts=(50,), draws=3)
    moved = torch.cat([x * 1000 - 3, torch.full((400, 1), 0.1, dtype=torch.float64)], dim=1)
    assert probe(moved, y, generator(), counts=(50,), draws=3) == plain


def test_only_the_labelled_documents_are_looked_at() -> None:
    """With the others' labels turned over, what was right is wrong; one of them moved far away moves nothing else."""
    x, y = overlapping(300, classes=2)
    others = torch.randperm(300, generator=generator(9))[100:]
    far, turned = x.clone(), y.clone()
    far[others[0]] += 1e6
    turned[others] = 1 - y[others]
    plain, with_turned, with_far = (
        probe(features, labels, generator(9), counts=(100,), draws=1)[0].mean
        for features, labels in ((x, y), (x, turned), (far, y))
    )
    assert plain > 0.8
    assert with_turned == pytest.approx(1 - plain)
    assert with_far == pytest.approx(plain, abs=1.01 / len(others))


def test_a_class_without_a_label_is_never_predicted_and_costs_its_documents() -> None:
    x, y = overlapping(300)
    seen = y != 2
    classifier = fitted(x[seen], y[seen], 4, 0.01)
    assert not (classifier.logits(x).argmax(1) == 2).any()
    assert classifier.logits(x)[:, 2].isneginf().all()
    alone = fitted(x[y == 1], y[y == 1], 4, 0.01)
    assert (alone.logits(x).argmax(1) == 1).all()
    rare = torch.zeros(300, dtype=torch.long)
    rare[0] = 3
    assert probe(x, rare, generator(), counts=(1, 2, 10), draws=2)[2].mean > 0.99


def test_counts_that_leave_no_document_are_left_out() -> None:
    x, y = overlapping(100)
    assert [accuracy.labelled for accuracy in probe(x, y, generator(), draws=1)] == [10, 30]
    with pytest.raises(ValueError, match="draws 0"):
        probe(x, y, generator(), draws=0)
