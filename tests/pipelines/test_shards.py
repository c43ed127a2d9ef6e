"""Reading shards by row, against the lists that PyArrow gives for the same files."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.artifact import Draft, Plan, begin, record_part
from pipelines.files.arrow import record_batches
from pipelines.shards import Shards, batch_of
from vae_core.batch import Ragged
from vae_core.errors import Damaged

SCHEMA = pa.schema(
    [("tokens", pa.list_(pa.uint16())), ("term_ids", pa.list_(pa.uint32())), ("term_counts", pa.list_(pa.uint16()))]
)


def random_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        terms = generator.integers(0, 7)
        rows.append(
            {
                "tokens": generator.integers(0, 60_000, generator.integers(0, 9)).tolist(),
                "term_ids": generator.integers(0, 2**31, terms).tolist(),
                "term_counts": generator.integers(1, 60_000, terms).tolist(),
            }
        )
    return rows


def write_shards(folder: Path, parts: list[list[list[dict[str, Any]]]]) -> Shards:
    """Parts, each of record batches, each of rows."""
    draft = begin(folder, Plan(kind="shards", config={}, inputs=()))
    assert isinstance(draft, Draft)
    written = []
    for number, batches in enumerate(parts):
        name = f"part-{number:05d}.arrow"
        with pa.ipc.new_file(str(draft.path / name), SCHEMA) as writer:
            for rows in batches:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
        written.append(record_part(draft.path, name, sum(map(len, batches))))
    return Shards(draft.finish(written, {}))


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return random_rows(40)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> Shards:
    parts = [[rows[:7], rows[7:9]], [], [rows[9:30], [], rows[30:]]]
    return write_shards(tmp_path_factory.mktemp("shards") / "out", parts)


def as_lists(ragged: Ragged) -> list[list[int]]:
    bounds = ragged.offsets.tolist()
    return [ragged.values[start:stop].tolist() for start, stop in pairwise(bounds)]


@settings(deadline=None)
@given(chosen=st.lists(st.integers(0, 39), max_size=60))
def test_a_batch_holds_the_rows_asked_for_in_that_order(
    shards: Shards, rows: list[dict[str, Any]], chosen: list[int]
) -> None:
    batch = shards.batch(np.array(chosen, dtype=np.int64), tokens=True)
    assert len(shards) == 40
    assert as_lists(batch.tokens) == [rows[row]["tokens"] for row in chosen]
    assert as_lists(batch.terms) == [rows[row]["term_ids"] for row in chosen]
    assert batch.counts.tolist() == [count for row in chosen for count in rows[row]["term_counts"]]
    assert shards.token_count(np.array(chosen, dtype=np.int64)) == sum(len(rows[row]["tokens"]) for row in chosen)


def test_tokens_stay_unread_where_no_part_of_the_model_reads_them(shards: Shards) -> None:
    batch = shards.batch(np.array([3, 5]), tokens=False)
    assert as_lists(batch.tokens) == [[], []]


@settings(deadline=None)
@given(start=st.integers(0, 20), stop=st.integers(0, 20), chunks=st.integers(1, 4))
def test_a_slice_of_a_table_is_read_as_its_rows(start: int, stop: int, chunks: int) -> None:
    rows = random_rows(20, seed=1)
    batches = [pa.RecordBatch.from_pylist(rows[part::chunks], schema=SCHEMA) for part in range(chunks)]
    order = [row for part in range(chunks) for row in rows[part::chunks]]
    table = pa.Table.from_batches(batches)
    for given_as in (table.slice(start, stop), pa.RecordBatch.from_pylist(order, schema=SCHEMA).slice(start, stop)):
        batch = batch_of(given_as, tokens=True)
        wanted = order[start : start + stop]
        assert as_lists(batch.tokens) == [row["tokens"] for row in wanted]
        assert as_lists(batch.terms) == [row["term_ids"] for row in wanted]
        assert batch.counts.tolist() == [count for row in wanted for count in row["term_counts"]]


def test_ids_have_the_types_that_torch_indexes_with(shards: Shards) -> None:
    batch = shards.batch(np.arange(5), tokens=True)
    kinds = {batch.tokens.values.dtype, batch.terms.values.dtype, batch.terms.offsets.dtype}
    assert kinds == {torch.int64}
    assert batch.counts.dtype == torch.float32


def test_a_file_that_was_cut_short_is_named(tmp_path: Path, shards: Shards) -> None:
    del shards
    write_shards(tmp_path / "out", [[random_rows(50)]])
    path = tmp_path / "out" / "part-00000.arrow"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(Damaged, match=r"part-00000.arrow is not a readable Arrow file: .*--overwrite"):
        list(record_batches(path))
