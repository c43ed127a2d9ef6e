"""Filters against Python over the same rows, and what is said of one that cannot be read."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from code_files import write_codes
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.index import IndexConfig, index
from pipelines.index_changes import add
from pipelines.search import Index, Rank
from vae_core.errors import Misuse

ROWS = 90
DICE = np.random.default_rng(4)
CODES = DICE.integers(0, 256, (ROWS, 2), dtype=np.uint8)
DOCUMENTS: list[dict[str, Any]] = [
    {
        "id": f"d{row}",
        "text": f"text number {row}" if row % 7 else "",
        "labels": [["sea"], ["sea", "it's"], []][row % 3],
        "component": row % 5,
        "year": None if row % 11 == 0 else 2000 + row % 20,
        "lang": ["en", "de", None, "e_n"][row % 4],
        "good": row % 2 == 0,
        "price": row / 4,
        "a name": row,
    }
    for row in range(ROWS)
]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("filters")
    write_codes(folder / "codes", CODES)
    file = folder / "codes" / "part-00000.parquet"
    table = pq.read_table(file)
    fields = ("year", "lang", "good", "price", "a name")
    columns = {name: [document[name] for document in DOCUMENTS] for name in ("text", "labels", "component")}
    metadata = [{name: document[name] for name in fields} for document in DOCUMENTS]
    written = {
        "id": table["id"],
        "code": table["code"],
        "component": pa.array(columns["component"], pa.uint16()),
        "confidence": table["confidence"],
        "labels": pa.array(columns["labels"], pa.list_(pa.string())),
        "text": columns["text"],
        "metadata": metadata,
    }
    made = pa.table(written).replace_schema_metadata(table.schema.metadata)
    pq.write_table(made.slice(0, 70), file)
    index(folder / "codes", folder / "index", IndexConfig(segment_documents=30))
    add(folder / "index", made.slice(70))
    return Index.open(folder / "index")


def passing(opened: Index, where: str) -> set[str]:
    found = opened.search(np.ones((1, 16), np.float32), ROWS, where=where)
    return set(opened.ids(found.rows[found.rows >= 0]))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("year >= 2010", lambda d: d["year"] is not None and d["year"] >= 2010),
        ("year != 2010", lambda d: d["year"] is not None and d["year"] != 2010),
        ("not (year = 2010)", lambda d: d["year"] is not None and d["year"] != 2010),
        ("year is null", lambda d: d["year"] is None),
        ("lang is not null and lang <> 'en'", lambda d: d["lang"] not in (None, "en")),
        ("lang in ('en', 'fr')", lambda d: d["lang"] == "en"),
        ("lang not in ('en', 'fr')", lambda d: d["lang"] not in (None, "en")),
        ("lang like 'e%'", lambda d: d["lang"] in ("en", "e_n")),
        ("lang like 'e\\_n'", lambda d: d["lang"] == "e_n"),
        ("text contains 'number 1'", lambda d: "number 1" in d["text"]),
        ("id = 'd7' or id = 'd80'", lambda d: d["id"] in ("d7", "d80")),
        ("labels = 'sea'", lambda d: "sea" in d["labels"]),
        ("labels = 'it''s'", lambda d: "it's" in d["labels"]),
        ("not labels = 'sea'", lambda d: "sea" not in d["labels"]),
        ("labels in ('it''s', 'x')", lambda d: "it's" in d["labels"]),
        ("good = true and price < 3.5", lambda d: d["good"] and d["price"] < 3.5),
        ("price = 3", lambda d: d["price"] == 3),
        ("component > 1.5", lambda d: d["component"] > 1.5),
        ('"a name" >= 85', lambda d: d["a name"] >= 85),
        (
            "year = 2001 or year = 2002 and good = true",
            lambda d: d["year"] == 2001 or (d["year"] == 2002 and d["good"]),
        ),
        ("(year = 2001 or year = 2002) and good=true", lambda d: d["year"] in (2001, 2002) and d["good"]),
        ("YEAR_IS_A_COLUMN", None),
    ],
)
def test_a_filter_lets_pass_what_python_does(opened: Index, where: str, expected: Any) -> None:
    if expected is None:
        with pytest.raises(Misuse, match="no column 'YEAR_IS_A_COLUMN'"):
            passing(opened, where)
        return
    assert passing(opened, where) == {document["id"] for document in DOCUMENTS if expected(document)}


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("yeer = 2000", r"no column 'yeer' to filter by; did you mean 'year'\? there are: .*year \(int64\)"),
        ("year =", "where a text in single quotes, a number, true or false should be, at character 7, it ends"),
        ("year = 'late'", "year holds int64, and 'late' is none"),
        ("lang = 3", "lang holds string, and 3 is none"),
        ("good = 1", "good holds bool, and 1 is none"),
        ("year like '2%'", "year holds int64, and like and contains are for text"),
        ("year = 2000 and", "where a column should be"),
        ("year = 2000 lang = 'en'", "where 'and', 'or' or the end should be, at character 13, there is 'lang'"),
        ("(year = 2000", r"where '\)' should be"),
        ("year in ()", "where a text in single quotes, a number"),
        ("year ~ 3", "cannot be read at character 6, '~ 3'"),
        ("lang = 'en", "cannot be read at character 8"),
        ("", "where a column should be, at character 1, it ends"),
        ("year not 3", "where 'in', 'like' or 'contains' should be"),
    ],
)
def test_a_filter_that_cannot_be_read_is_refused_with_the_place(opened: Index, where: str, said: str) -> None:
    with pytest.raises(Misuse, match=said):
        passing(opened, where)


@settings(max_examples=30, deadline=None)
@given(range_=st.tuples(st.integers(0, 95), st.integers(0, 95)), k=st.integers(1, 95), hamming=st.booleans())
def test_the_best_are_those_of_a_search_among_what_passes(
    opened: Index, range_: tuple[int, int], k: int, hamming: bool
) -> None:
    """At any selectivity, and whatever part of a segment passes."""
    rank: Rank = "hamming" if hamming else "log-odds"
    least, most = range_
    log_odds = np.random.default_rng(k).normal(size=(3, 16)).astype(np.float32)
    found = opened.search(log_odds, k, rank, f'"a name" >= {least} and "a name" <= {most} or id = \'d3\'')
    everything = opened.search(log_odds, ROWS, rank)
    for query in range(3):
        rows = everything.rows[query]
        good = [row for row in rows if least <= row <= most or row == 3][:k]
        assert found.rows[query].tolist() == good + [-1] * (k - len(good))
