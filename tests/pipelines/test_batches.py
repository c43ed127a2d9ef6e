"""The order of documents: a permutation an epoch, whatever the number of workers."""

import itertools
import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.training.batches import digest, rows_of_step, rows_of_worker, steps_per_epoch

SIZES = {"documents": st.integers(1, 3000), "batch_size": st.integers(1, 400), "seed": st.integers(0, 2**31)}


def epoch_rows(epoch: int, documents: int, batch_size: int, seed: int) -> list[NDArray[np.int64]]:
    steps = steps_per_epoch(documents, batch_size)
    sizes = {"documents": documents, "batch_size": batch_size, "seed": seed}
    return [rows_of_step(step, **sizes) for step in range(epoch * steps, (epoch + 1) * steps)]


@settings(deadline=None)
@given(**SIZES, epoch=st.integers(0, 3))
def test_no_row_comes_twice_in_an_epoch_and_fewer_than_a_batch_are_left_out(
    documents: int, batch_size: int, seed: int, epoch: int
) -> None:
    batches = epoch_rows(epoch, documents, batch_size, seed)
    rows = np.concatenate(batches)
    assert {len(batch) for batch in batches} == {min(batch_size, documents)}
    assert len(set(rows.tolist())) == len(rows) > documents - min(batch_size, documents)
    assert rows.min() >= 0
    assert rows.max() < documents


@settings(deadline=None)
@given(documents=st.integers(1, 3000), seed=st.integers(0, 2**31))
def test_every_row_comes_exactly_once_where_batches_fill_the_epoch(documents: int, seed: int) -> None:
    divisors = [size for size in range(1, documents + 1) if documents % size == 0]
    for size in (divisors[0] if documents < 200 else documents, divisors[len(divisors) // 2]):
        rows = np.concatenate(epoch_rows(1, documents, size, seed))
        np.testing.assert_array_equal(np.sort(rows), np.arange(documents))


@settings(deadline=None)
@given(**SIZES, step=st.integers(0, 10_000), workers=st.integers(1, 9))
def test_the_shares_of_any_number_of_workers_are_the_same_batch(
    documents: int, batch_size: int, seed: int, step: int, workers: int
) -> None:
    rows = rows_of_step(step, documents=documents, batch_size=batch_size, seed=seed)
    shares = [rows_of_worker(rows, rank, workers) for rank in range(workers)]
    put_together = [row for row in itertools.chain(*itertools.zip_longest(*shares)) if row is not None]
    assert put_together == rows.tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [np.concatenate(epoch_rows(epoch, 1000, 100, seed)) for seed in (0, 1) for epoch in (0, 1, 2)]
    for one, other in itertools.combinations([np.arange(1000), *orders], 2):
        # Two independent permutations agree in one place on average: in more than 12 once in 10 ** 9 pairs.
        assert (one == other).sum() <= 12


def test_neighbours_are_spread_over_the_whole_epoch() -> None:
    """Of 1000 rows drawn from a million, each tenth of the range holds 100 on average, standard deviation 9.5."""
    rows = rows_of_step(3, documents=1_000_000, batch_size=1000, seed=5)
    counts = np.bincount(rows // 100_000, minlength=10)
    assert abs(counts - 100).max() < 50


def test_a_million_million_documents_take_the_memory_of_one_batch() -> None:
    tracemalloc.start()
    rows = rows_of_step(10**9, documents=10**12, batch_size=256, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert len(set(rows.tolist())) == 256
    assert rows.max() > 2**32
    assert rows.max() < 10**12


def test_fewer_documents_than_a_batch_make_one_batch_an_epoch() -> None:
    assert steps_per_epoch(7, 256) == 1
    for step in range(3):
        rows = rows_of_step(step, documents=7, batch_size=256, seed=0)
        assert sorted(rows.tolist()) == list(range(7))


def test_a_digest_names_the_rows_and_their_order() -> None:
    rows = np.array([3, 1, 2])
    # printf '\3\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0' | sha256sum | head -c 12
    assert digest(rows) == digest(rows.astype(np.int32).astype(np.int64)) == "7c4cec7a82e1"
    assert digest(rows[::-1]) != digest(rows)
