"""Drift between two code sets with known flips."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from code_files import write_codes

from pipelines.evaluation.drift import drift
from pipelines.index import IndexConfig, index
from pipelines.search import Index
from vae_core.errors import Misuse

CODES = np.random.default_rng(0).integers(0, 256, (300, 2), dtype=np.uint8)


def indexed(folder: Path) -> Index:
    write_codes(folder / "codes", CODES, files=2)
    index(folder / "codes", folder / "index", IndexConfig(segment_documents=128))
    return Index.open(folder / "index")


def test_the_same_codes_have_not_drifted(tmp_path: Path) -> None:
    found = drift(indexed(tmp_path), write_codes(tmp_path / "same", CODES, files=3), seed=0)
    assert found["documents"] == 300
    assert found["flip_rates"] == [0.0] * 16
    assert (found["mean_distance"], found["unchanged"]) == (0.0, 1.0)
    assert (found["neighbours_kept_at_10"], found["neighbours_kept_at_100"]) == (1.0, 1.0)


def test_flips_are_counted_by_bit(tmp_path: Path) -> None:
    other = CODES.copy()
    other[:75, 0] ^= 0b1001
    other[30:60, 1] ^= 0b10
    found = drift(indexed(tmp_path), write_codes(tmp_path / "other", other), seed=0)
    expected = np.zeros(16)
    expected[[0, 3, 9]] = 0.25, 0.25, 0.1
    assert found["flip_rates"] == pytest.approx(expected.tolist())
    assert found["mean_distance"] == pytest.approx(0.6)
    assert found["unchanged"] == pytest.approx(0.75)


def test_turning_a_bit_over_everywhere_keeps_all_neighbours(tmp_path: Path) -> None:
    found = drift(indexed(tmp_path), write_codes(tmp_path / "other", CODES ^ 0b100), seed=0)
    assert found["flip_rates"][2] == found["flip_rates"][10] == 1.0
    assert found["neighbours_kept_at_10"] == 1.0


def test_codes_of_another_width_are_compared_by_neighbours_alone(tmp_path: Path) -> None:
    twice = np.repeat(CODES, 2, axis=1)
    found = drift(indexed(tmp_path), write_codes(tmp_path / "other", twice), seed=0)
    assert found["flip_rates"] is None
    # Every distance is twice what it was, so every order is the same.
    assert found["neighbours_kept_at_100"] == 1.0
    unrelated = np.random.default_rng(1).integers(0, 256, (300, 4), dtype=np.uint8)
    chance = drift(indexed(tmp_path / "b"), write_codes(tmp_path / "unrelated", unrelated), seed=0)
    assert chance["neighbours_kept_at_100"] == pytest.approx(100 / 299, abs=0.03)


def test_documents_are_matched_by_id(tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    artifact = write_codes(folder, CODES)
    path = folder / "part-00000.parquet"
    table = pq.read_table(path)
    moved = table.take(pa.array(np.random.default_rng(0).permutation(300)[:200]))
    pq.write_table(moved, path)
    found = drift(indexed(tmp_path), artifact, seed=0)
    assert (found["documents"], found["mean_distance"]) == (200, 0.0)
    pq.write_table(table.set_column(0, "id", pa.array([f"x{row}" for row in range(300)])), path)
    with pytest.raises(Misuse, match="has no two ids of"):
        drift(indexed(tmp_path / "b"), artifact, seed=0)
