"""The order of documents and of ties against plain sorting and the enumeration of all orders."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipelines.evaluation.ranking import Ties, best, rank_keys, ranked

SCORES = st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, float("-inf")]), st.floats(width=32, allow_nan=False))


@settings(max_examples=100, deadline=None)
@given(arrays(np.float32, (2, 9), elements=SCORES), st.integers(1, 12))
def test_documents_come_by_score_and_then_by_row(scores: np.ndarray, places: int) -> None:
    found = ranked(best(rank_keys(scores, 5), places))
    order = np.stack([np.lexsort((np.arange(9), -row)) for row in scores])[:, :places]
    np.testing.assert_array_equal(found.rows, order + 5)
    np.testing.assert_array_equal(found.scores, np.take_along_axis(scores, order, axis=1))


def test_the_best_of_two_blocks_are_the_best_of_both() -> None:
    scores = np.random.default_rng(0).integers(0, 4, (6, 50)).astype(np.float32)
    halves = [best(rank_keys(scores[:, :23]), 10), best(rank_keys(scores[:, 23:], 23), 10)]
    np.testing.assert_array_equal(best(np.concatenate(halves, axis=1), 10), best(rank_keys(scores), 10))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=6), st.data())
def test_gains_over_ties_are_the_mean_over_all_orders(documents: list[tuple[int, float]], data: st.DataObject) -> None:
    places = data.draw(st.integers(1, len(documents)))
    gains = []
    for order in itertools.permutations(documents):
        gains.append([gain for _, gain in sorted(order, key=lambda one: -one[0])[:places]])
    scores = np.array([[score for score, _ in documents]], np.float32)
    worth = np.array([[gain for _, gain in documents]], np.float32)
    top = ranked(best(rank_keys(scores), places))
    last = scores == top.scores[:, -1:]
    ties = Ties(top.scores, last.sum(axis=1))
    averaged = ties.averaged(np.take_along_axis(worth, top.rows, axis=1), (worth * last).sum(axis=1))
    assert averaged[0].tolist() == pytest.approx(np.mean(gains, axis=0).tolist())
    assert ties.sizes(places - 1).tolist() == last.sum(axis=1).tolist()
