"""The index stage: what it writes, and what a second run makes of it."""

from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from code_files import write_codes

from pipelines.artifact import MANIFEST, Artifact
from pipelines.index import IndexConfig, index
from pipelines.search import Index
from vae_core.errors import Damaged, Misuse, Stale

CODES = np.random.default_rng(7).integers(0, 256, (103, 4), dtype=np.uint8)


def stored_codes(file: Path) -> np.ndarray:
    flat = faiss.read_index_binary(str(file))
    return faiss.vector_to_array(flat.xb).reshape(flat.ntotal, -1)


@pytest.mark.parametrize("size", [9, 40, 103, 1000])
def test_segments_hold_the_codes_in_order_whatever_their_size(tmp_path: Path, size: int) -> None:
    write_codes(tmp_path / "codes", CODES, files=3)
    made = index(tmp_path / "codes", tmp_path / "index", IndexConfig(segment_documents=size))
    files = made.files("codes.faiss")
    assert len(files) == -(-len(CODES) // size) == made.manifest.statistics["segments"]
    np.testing.assert_array_equal(np.concatenate([stored_codes(file) for file in files]), CODES)
    tables = [pa.ipc.open_file(file).read_all() for file in made.files("documents.arrow")]
    assert pa.concat_tables(tables)["id"].to_pylist() == [f"d{row}" for row in range(len(CODES))]
    assert made.manifest.statistics["documents"] == 103
    assert made.manifest.statistics["bits"] == 32


def test_documents_keep_every_shown_column_and_the_model_fingerprint(tmp_path: Path) -> None:
    write_codes(tmp_path / "codes", CODES)
    made = index(tmp_path / "codes", tmp_path / "index", IndexConfig())
    (file,) = made.files("documents.arrow")
    table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    assert table.schema.names == ["id", "text", "component", "metadata"]
    assert table.schema.metadata[b"model"] == b"cafe"
    assert made.manifest.inputs[0].fingerprint == Artifact.open(tmp_path / "codes").fingerprint


def test_a_killed_run_is_finished_without_writing_whole_segments_again(tmp_path: Path) -> None:
    write_codes(tmp_path / "codes", CODES)
    config = IndexConfig(segment_documents=50)
    whole = index(tmp_path / "codes", tmp_path / "whole", config)

    class Killed(Exception):
        pass

    class Dies:
        def start(self, stage: str, total: int, unit: str) -> None:
            assert (stage, total, unit) == ("index", 103, "documents")

        def advance(self, amount: int, note: str = "", metrics: object = None) -> None:
            del amount, metrics
            if note == "segment 2 of 3":
                raise Killed

        def finish(self) -> None:
            pass

    with pytest.raises(Killed):
        index(tmp_path / "codes", tmp_path / "index", config, progress=Dies())
    assert not (tmp_path / "index" / MANIFEST).exists()
    second = tmp_path / "index" / "segments" / "00001" / "codes.faiss"
    second.unlink()
    kept = (tmp_path / "index" / "segments" / "00000" / "codes.faiss").stat().st_mtime_ns
    finished = index(tmp_path / "codes", tmp_path / "index", config)
    assert (tmp_path / "index" / "segments" / "00000" / "codes.faiss").stat().st_mtime_ns == kept
    assert finished.manifest.parts == whole.manifest.parts


def test_an_index_that_is_up_to_date_is_left_alone_and_other_settings_are_refused(tmp_path: Path) -> None:
    write_codes(tmp_path / "codes", CODES)
    index(tmp_path / "codes", tmp_path / "index", IndexConfig())
    written = (tmp_path / "index" / MANIFEST).stat().st_mtime_ns
    index(tmp_path / "codes", tmp_path / "index", IndexConfig())
    assert (tmp_path / "index" / MANIFEST).stat().st_mtime_ns == written
    with pytest.raises(Stale, match="segment_documents was 10000000 and is now 50"):
        index(tmp_path / "codes", tmp_path / "index", IndexConfig(segment_documents=50))
    index(tmp_path / "codes", tmp_path / "index", IndexConfig(segment_documents=50), overwrite=True)
    assert len(Index.open(tmp_path / "index").segments) == 3


def test_one_changed_byte_is_found_and_its_file_named(tmp_path: Path) -> None:
    write_codes(tmp_path / "codes", CODES)
    made = index(tmp_path / "codes", tmp_path / "index", IndexConfig(segment_documents=60))
    made.verify()
    file = tmp_path / "index" / "segments" / "00001" / "codes.faiss"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(Damaged, match=r"segments/00001/codes\.faiss has other bytes"):
        Artifact.open(tmp_path / "index").verify()


def test_something_else_than_codes_is_refused(tmp_path: Path) -> None:
    write_codes(tmp_path / "codes", CODES)
    index(tmp_path / "codes", tmp_path / "index", IndexConfig())
    with pytest.raises(Misuse, match="holds index, and codes is needed here"):
        index(tmp_path / "index", tmp_path / "other", IndexConfig())
    with pytest.raises(Misuse, match="not a folder"):
        index(tmp_path / "nowhere", tmp_path / "other", IndexConfig())


def test_a_damaged_codes_file_is_named(tmp_path: Path) -> None:
    write_codes(tmp_path / "codes", CODES, files=2)
    (tmp_path / "codes" / "part-00001.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(Damaged, match=r"part-00001\.parquet cannot be read as parquet"):
        index(tmp_path / "codes", tmp_path / "index", IndexConfig())


def test_metadata_that_is_null_in_one_file_and_text_in_another_is_text(tmp_path: Path) -> None:
    write_codes(tmp_path / "codes", CODES[:10], files=2)
    file = tmp_path / "codes" / "part-00000.parquet"
    table = pq.read_table(file)
    nothing = pa.array([{"year": None}] * len(table), pa.struct([("year", pa.null())]))
    pq.write_table(table.set_column(table.schema.names.index("metadata"), "metadata", nothing), file)
    index(tmp_path / "codes", tmp_path / "index", IndexConfig())
    documents = Index.open(tmp_path / "index").documents(np.array([0, 9]))
    assert [document["metadata"] for document in documents] == [{"year": None}, {"year": 9}]
