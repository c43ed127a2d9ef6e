"""Two models compared query by query."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.evaluation.query_figures import PRECISION, RECALL, QueryFigures, compare
from vae_core.errors import Damaged, Misuse

QUERIES = 400
IDS = [f"q{number}" for number in range(QUERIES)]


def figures(precision: np.ndarray, recall: np.ndarray | None = None, database: str = "one") -> QueryFigures:
    nothing = np.full(QUERIES, np.nan)
    return QueryFigures(database, IDS, {PRECISION: precision, RECALL: nothing if recall is None else recall})


def test_a_small_steady_gain_is_told_from_one_that_is_chance() -> None:
    """Queries differ far more than models do, so only the pairing tells 0.01 more of each from 0.01 on average."""
    chance = np.random.default_rng(1)
    theirs = chance.random(QUERIES)
    steady = compare(figures(theirs + 0.01), figures(theirs))
    assert steady.better
    assert steady.difference == pytest.approx(0.01)
    assert steady.low == pytest.approx(0.01)
    noisy = compare(figures(chance.permutation(theirs) + 0.01), figures(theirs))
    assert noisy.difference == pytest.approx(0.01)
    assert not noisy.better
    assert not compare(figures(theirs), figures(theirs + 0.01)).better
    assert not compare(figures(theirs), figures(theirs)).better


def test_without_labels_the_exact_neighbours_decide() -> None:
    nothing = np.full(QUERIES, np.nan)
    recall = np.random.default_rng(2).random(QUERIES)
    recall[:10] = np.nan
    found = compare(figures(nothing, recall + 0.1), figures(nothing, recall))
    assert (found.figure, found.queries, found.better) == (RECALL, QUERIES - 10, True)
    with pytest.raises(Misuse, match="neither labels nor exact neighbours"):
        compare(figures(nothing), figures(nothing))


def test_other_documents_and_other_queries_are_not_compared() -> None:
    same = np.zeros(QUERIES)
    with pytest.raises(Misuse, match="evaluated over other documents"):
        compare(figures(same), figures(same, database="two"))
    with pytest.raises(Misuse, match="asked other queries"):
        compare(figures(same), QueryFigures("one", IDS[::-1], figures(same).figures))


def test_what_is_written_is_read_and_a_torn_file_is_named(tmp_path: Path) -> None:
    written = figures(np.linspace(0, 1, QUERIES))
    written.write(tmp_path / "queries.parquet")
    found = QueryFigures.read(tmp_path / "queries.parquet")
    assert (found.database, found.ids) == ("one", IDS)
    np.testing.assert_array_equal(found.figures[PRECISION], written.figures[PRECISION])
    assert np.isnan(found.figures[RECALL]).all()
    (tmp_path / "queries.parquet").write_bytes(b"PAR1")
    with pytest.raises(Damaged, match=r"queries\.parquet cannot be read"):
        QueryFigures.read(tmp_path / "queries.parquet")
    pa.parquet.write_table(pa.table({"id": IDS}), tmp_path / "queries.parquet")
    with pytest.raises(Damaged):
        QueryFigures.read(tmp_path / "queries.parquet")
