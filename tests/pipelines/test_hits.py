"""Hits as a table and as a data frame, against what the documents were written with."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from code_files import write_codes

from pipelines.index import IndexConfig, index
from pipelines.search import Hits, Index

COLUMNS = ["query", "rank", "id", "score", "distance", "text", "labels", "component", "metadata"]


@pytest.fixture
def opened(tmp_path: Path) -> Index:
    """Thirty documents, whose codes are their numbers."""
    labels = [["even"] if row % 2 == 0 else ["odd", "dear"] for row in range(30)]
    write_codes(tmp_path / "codes", np.arange(30, dtype=np.uint8)[:, None], labels=labels)
    index(tmp_path / "codes", tmp_path / "index", IndexConfig(segment_documents=13))
    return Index.open(tmp_path / "index")


def test_a_table_of_hits_has_a_row_for_each_hit_of_each_query_in_order(opened: Index) -> None:
    codes = np.concatenate([opened.log_odds_of_code(row) for row in (17, 4)])
    found = opened.within_radius(codes, 1, 4, "hamming")
    near = [(0, 17, 0), (0, 1, 1), (0, 16, 1), (0, 19, 1), (1, 4, 0), (1, 0, 1), (1, 5, 1), (1, 6, 1)]
    assert [hit.id for hits in found for hit in hits] == [f"d{row}" for _, row, _ in near]
    expected = [
        {
            "query": query,
            "rank": place % 4 + 1,
            "id": f"d{row}",
            "score": -float(distance),
            "distance": distance,
            "text": f"text {row}",
            "labels": ["odd", "dear"] if row % 2 else ["even"],
            "component": row % 3,
            "metadata": {"year": row},
        }
        for place, (query, row, distance) in enumerate(near)
    ]
    table = found.to_arrow()
    assert table.column_names == COLUMNS
    assert table.to_pylist() == expected
    frame = found.to_pandas()
    assert list(frame.columns) == COLUMNS
    assert frame["id"].tolist() == [row["id"] for row in expected]
    assert frame["score"].tolist() == [row["score"] for row in expected]


def test_queries_without_a_hit_have_no_rows_in_the_table(opened: Index) -> None:
    """A query whose log-odds are all 0 has no known word."""
    asked = np.concatenate([np.zeros((1, 8), np.float32), opened.log_odds_of_code(3)])
    found = opened.search(asked, 2)
    assert [len(hits) for hits in found] == [0, 2]
    assert found.to_arrow()["query"].to_pylist() == [1, 1]


def test_a_table_of_no_hits_is_empty_and_has_the_columns_of_one_with_hits(opened: Index) -> None:
    """Their types too, but for the fields of the metadata, which are an index's own."""
    found = opened.search(np.zeros((2, 8), np.float32))
    assert list(found.to_pandas().columns) == COLUMNS
    none, some = found.to_arrow(), opened.search(opened.log_odds_of_code(3)).to_arrow()
    assert none.column_names == COLUMNS
    for name in COLUMNS[:-1]:
        assert none.schema.field(name).type == some.schema.field(name).type


def test_labels_are_lists_of_strings_where_no_hit_has_one(tmp_path: Path) -> None:
    write_codes(tmp_path / "codes", np.arange(30, dtype=np.uint8)[:, None], labels=[[] for _ in range(30)])
    index(tmp_path / "codes", tmp_path / "index", IndexConfig())
    opened = Index.open(tmp_path / "index")
    assert opened.search(opened.log_odds_of_code(3)).to_arrow().schema.field("labels").type == pa.list_(pa.string())


def test_hits_that_do_not_say_which_index_they_are_of_give_no_table() -> None:
    nobodys = Hits(np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32), np.zeros((1, 1), np.int32))
    with pytest.raises(ValueError, match="do not say which index they are of"):
        nobodys.to_arrow()
