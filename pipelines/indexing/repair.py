"""Repair of an index: the codes in parquet are the truth, and what was derived from them is made anew.

A segment that the stage or `add` wrote is written again from its codes. Of one that `compact` wrote, the codes are
looked up by id in what it was compacted from. A file is put in its place only if it has the bytes it had at first.
"""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.artifact import Artifact, Input, checksum
from pipelines.indexing.code_files import BATCH_ROWS, CodeFiles, packed_bytes
from pipelines.indexing.facts import damaged_files
from pipelines.indexing.id_lookup import digests, write_lookup
from pipelines.indexing.segment_files import (
    CODES_FILE,
    DOCUMENTS_FILE,
    LOOKUP_FILE,
    OWN_CODES,
    Layout,
    blocks_of,
    shown_schema,
    write_codes,
    write_segment,
)
from pipelines.indexing.versions import SegmentRecord, candidates_of, newest, writing
from pipelines.progress import Progress, Silent
from pipelines.searching.segment import open_documents
from vae_core.errors import Damaged, Stale

SCRATCH = ".repair"


def repair(index: Path, *, progress: Progress = Silent()) -> list[str]:
    """Make the damaged files of the newest version anew; returns their names.

    Raises Damaged or Stale where what a file was made from is gone or is another one.
    """
    with writing(index) as artifact:
        damaged = damaged_files(artifact)
        progress.start("repair", len(damaged), "files")
        for record in newest(artifact).segments:
            names = [part.name for part in record.files() if part.name in damaged]
            if names:
                _repair_segment(artifact, record, names)
            progress.advance(len(names))
        progress.finish()
        return list(damaged)


def _repair_segment(artifact: Artifact, record: SegmentRecord, names: list[str]) -> None:
    scratch = artifact.path / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        if len(record.sources) == 1 and record.start is not None:
            _written_again(artifact, record, scratch)
        else:
            _looked_up(artifact, record, scratch, names)
        for name in names:
            made = scratch / Path(name).name
            part = next(part for part in record.files() if part.name == name)
            if not made.exists() or checksum(made) != part.checksum:
                raise Damaged(
                    f"{artifact.path / name} cannot be made anew from {_named(record.sources)}; restore the index from "
                    f"a copy, or build it again with `latentbits index CODES --out {artifact.path} --overwrite`"
                )
            made.replace(artifact.path / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _written_again(artifact: Artifact, record: SegmentRecord, scratch: Path) -> None:
    files = _codes(artifact, record.sources[0])
    schema = shown_schema(files)
    start = record.start or 0
    blocks = blocks_of(files, start, start + record.rows, schema)
    write_segment(scratch, blocks, Layout(schema, files.code_bytes, candidates_of(artifact)))


def _looked_up(artifact: Artifact, record: SegmentRecord, scratch: Path, names: list[str]) -> None:
    """Codes and lookup by the ids of the segment's documents; of two codes of one id the later one holds."""
    folder = artifact.path / record.name
    if f"{record.name}/{DOCUMENTS_FILE}" in names:
        return
    scratch.mkdir()
    reader = open_documents(folder / DOCUMENTS_FILE)
    batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    ids = pa.concat_arrays([batch.column("id") for batch in batches])
    write_lookup(scratch / LOOKUP_FILE, digests(ids))
    if f"{record.name}/{CODES_FILE}" in names:
        write_codes(scratch / CODES_FILE, _codes_of(artifact, record, ids))


def _codes_of(artifact: Artifact, record: SegmentRecord, ids: pa.Array) -> np.ndarray:
    width = int(artifact.manifest.statistics["bits"]) // 8
    codes_NC = np.zeros((len(ids), width), np.uint8)
    for source in record.sources:
        files = _codes(artifact, source)
        for batch in files.read(0, files.documents):
            _fill(codes_NC, ids, batch)
    own = artifact.path / record.name / OWN_CODES
    for batch in pq.ParquetFile(own).iter_batches(BATCH_ROWS) if own.exists() else ():
        _fill(codes_NC, ids, batch)
    return codes_NC


def _fill(codes_NC: np.ndarray, ids: pa.Array, batch: pa.RecordBatch) -> None:
    rows = pa.compute.index_in(batch.column("id"), value_set=ids)
    here = np.flatnonzero(rows.is_valid().to_numpy(zero_copy_only=False))
    codes_NC[rows.drop_null().to_numpy()] = packed_bytes(batch.column("code"))[here]


def _codes(artifact: Artifact, source: Input) -> CodeFiles:
    recorded = Path(source.uri)
    beside = artifact.path.resolve().parent / recorded.name
    path = beside if not recorded.exists() and beside.exists() else recorded
    codes = Artifact.open(path, "codes")
    if codes.fingerprint != source.fingerprint:
        raise Stale(f"{path} holds other codes than {artifact.path} was made from; put those back, or build it again")
    return CodeFiles.open(codes)


def _named(sources: tuple[Input, ...]) -> str:
    return ", ".join(source.uri for source in sources) or "what it was made from"
