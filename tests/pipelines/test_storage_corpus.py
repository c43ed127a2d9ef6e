"""A corpus whose files lie in an S3 server is read as one whose files lie here."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.corpus import CorpusConfig, Document, Rejection, corpus_inputs, plan_slices, read_slice
from pipelines.storage import Store
from tests.s3_server import bucket, s3
from vae_core.errors import Misuse

__all__ = ["bucket", "s3"]
ROWS = [{"id": f"d{number}", "text": f"the ship number {number} left its harbour"} for number in range(500)]


def write_files(folder: Path) -> None:
    """The same rows in every format, two of them in a folder below."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "below").mkdir(parents=True)
    (folder / "a.jsonl").write_text(lines)
    (folder / "below" / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    texts = "".join(f"{row['text']}\n" for row in ROWS)
    (folder / "below" / "c.txt.zst").write_bytes(pa.compress(texts.encode(), "zstd", True))
    (folder / "d.csv").write_text("id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "e.parquet", row_group_size=100)
    (folder / "f.txt").write_text(texts)


def rows(corpus: CorpusConfig, slice_bytes: int) -> list[Document | Rejection]:
    return [row for piece in plan_slices(corpus, slice_bytes) for row in read_slice(corpus, piece)]


@pytest.fixture
def both(bucket: str, tmp_path: Path) -> tuple[str, str]:
    """The folder of the files here, and the address of their copies."""
    write_files(tmp_path / "docs")
    for path in (tmp_path / "docs").rglob("*.*"):
        Store.at(f"{bucket}/docs").upload(path, path.relative_to(tmp_path / "docs").as_posix())
    return str(tmp_path / "docs"), f"{bucket}/docs"


@pytest.mark.parametrize("pattern", ["*.jsonl", "below/*.gz", "**/*.zst", "d.csv", "e.parquet", "[ef].parquet", "f.*"])
def test_documents_positions_and_fingerprints_are_those_of_local_files(both: tuple[str, str], pattern: str) -> None:
    here, there = (CorpusConfig(files=(f"{folder}/{pattern}",)) for folder in both)
    for slice_bytes in (3000, 1 << 20):
        found = rows(there, slice_bytes)
        assert found == rows(here, slice_bytes)
        assert len(found) == len(ROWS)
    assert [item.fingerprint for item in corpus_inputs(there)] == [item.fingerprint for item in corpus_inputs(here)]
    assert corpus_inputs(there)[0].uri.startswith(both[1])


def test_a_glob_of_any_depth_finds_the_files_of_all_folders(both: tuple[str, str]) -> None:
    patterns = ("/**/*.jsonl", "/**/*.jsonl.gz")
    here, there = (tuple(f"{folder}{pattern}" for pattern in patterns) for folder in both)
    names = [[piece.name for piece in plan_slices(CorpusConfig(files=files))] for files in (here, there)]
    assert names[0] == names[1] == ["a.jsonl", "b.jsonl.gz"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("/*.tsv", "no file matches s3://.*/docs/\\*.tsv"),
        ("/gone.jsonl", "no file s3://.*/docs/gone.jsonl"),
        ("", "is a folder; name its files by a glob"),
    ],
)
def test_what_is_not_there_is_told_with_its_address(both: tuple[str, str], pattern: str, message: str) -> None:
    with pytest.raises(Misuse, match=message):
        plan_slices(CorpusConfig(files=(both[1] + pattern,)))


def test_a_field_that_is_not_there_is_told_with_the_files_address(both: tuple[str, str]) -> None:
    with pytest.raises(Misuse, match=r"s3://.*/docs/e.parquet has no field 'body'"):
        plan_slices(CorpusConfig(files=(f"{both[1]}/e.parquet",), text="body"))
