"""The index stage: codes to segments that search opens by mapping them. Shapes: N codes, C = K/8 bytes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipelines.artifact import Artifact, Draft, Part, Plan, begin, find_part, record_part, replacing, require_disk
from pipelines.progress import Progress, Silent
from pipelines.search import CODES_FILE, DOCUMENTS_FILE
from vae_core.config import Config
from vae_core.errors import Damaged

BATCH_ROWS = 65_536
SHOWN = ("id", "labels", "text", "component", "metadata")


class IndexConfig(Config):
    """How codes are cut into segments; a segment is what one search maps and scans at a time."""

    segment_documents: int = Field(default=5_000_000, ge=1, description="codes of a segment at most")


def index(
    codes: Path, out: Path, config: IndexConfig, *, overwrite: bool = False, progress: Progress = Silent()
) -> Artifact:
    """Build the index of the codes artifact at `codes` in the folder `out`.

    Row r of the index is row r of the codes, in the order of their parts. Segments that an earlier, killed run
    finished are kept. Raises Misuse or Stale where `codes` or `out` hold something else, and Damaged.
    """
    source = Artifact.open(codes, "codes")
    plan = Plan(kind="index", config=config.model_dump(mode="json"), inputs=(source.as_input("codes"),))
    draft = begin(out, plan, overwrite=overwrite)
    if isinstance(draft, Artifact):
        return draft
    require_disk(draft.path, 4 * sum(part.bytes for part in source.manifest.parts))
    return _build(CodeFiles.open(source), draft, config, progress)


@dataclass(frozen=True)
class CodeFiles:
    """The parquet files of a codes artifact, read as one table of which a range of rows is never held whole."""

    paths: tuple[Path, ...]
    rows: tuple[int, ...]
    schema: pa.Schema

    @classmethod
    def open(cls, codes: Artifact) -> "CodeFiles":
        """The files of `codes`. Raises Damaged where one cannot be read or holds other codes than the first."""
        paths = tuple(codes.files(".parquet"))
        if not paths:
            raise Damaged(f"{codes.path} holds no .parquet file; run encode with --overwrite to write it again")
        footers = [_footer(path) for path in paths]
        for path, (_, schema) in zip(paths, footers, strict=True):
            _require_code_column(path, schema, footers[0][1])
        return cls(paths, tuple(rows for rows, _ in footers), _common_schema(codes.path, [one for _, one in footers]))

    @property
    def documents(self) -> int:
        return sum(self.rows)

    @property
    def code_bytes(self) -> int:
        """Bytes of one code: K/8."""
        return int(self.schema.field("code").type.byte_width)

    def read(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """The rows start <= r < stop in batches; row groups outside the range are not read."""
        first = 0
        for path, rows in zip(self.paths, self.rows, strict=True):
            if first < stop and start < first + rows:
                yield from _read_file(path, start - first, stop - first)
            first += rows


def packed_bytes(column: pa.Array) -> np.ndarray:
    """A column of fixed-size binary codes as (N, C) uint8, without a copy."""
    width = column.type.byte_width
    flat = np.frombuffer(column.buffers()[1], np.uint8)
    return flat[column.offset * width :][: len(column) * width].reshape(len(column), width)


def _build(files: CodeFiles, draft: Draft, config: IndexConfig, progress: Progress) -> Artifact:
    size = config.segment_documents
    starts = range(0, max(files.documents, 1), size)
    parts: list[Part] = []
    progress.start("index", files.documents, "documents")
    for number, start in enumerate(starts):
        stop = min(start + size, files.documents)
        parts += _segment(files, draft.path, f"segments/{number:05d}", start, stop)
        progress.advance(stop - start, f"segment {number + 1} of {len(starts)}")
    progress.finish()
    statistics = {
        "documents": files.documents,
        "bits": 8 * files.code_bytes,
        "segments": len(starts),
        "bytes": sum(part.bytes for part in parts),
    }
    return draft.finish(parts, statistics)


def _segment(files: CodeFiles, folder: Path, segment: str, start: int, stop: int) -> list[Part]:
    """Both parts of one segment, made unless they are there; one pass over the codes writes both."""
    names = (f"{segment}/{CODES_FILE}", f"{segment}/{DOCUMENTS_FILE}")
    known = [part for name in names if (part := find_part(folder, name)) is not None]
    if len(known) == len(names):
        return known
    (folder / segment).mkdir(parents=True, exist_ok=True)
    with replacing(folder / names[0]) as codes, replacing(folder / names[1]) as documents:
        _write_segment(files, start, stop, codes, documents)
    return [record_part(folder, name, stop - start) for name in names]


def _write_segment(files: CodeFiles, start: int, stop: int, codes: Path, documents: Path) -> None:
    import faiss

    flat = faiss.IndexBinaryFlat(8 * files.code_bytes)
    shown = [name for name in SHOWN if name in files.schema.names]
    schema = pa.schema([files.schema.field(name) for name in shown], files.schema.metadata)
    with pa.OSFile(str(documents), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in files.read(start, stop):
            flat.add(packed_bytes(batch.column("code")))
            writer.write_batch(batch.select(shown).cast(schema))
    faiss.write_index_binary(flat, str(codes))


def _read_file(path: Path, start: int, stop: int) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first < stop and start < first + rows:
                yield from _read_group(file, group, start - first, stop - first)
            first += rows


def _read_group(file: pq.ParquetFile, group: int, start: int, stop: int) -> Iterator[pa.RecordBatch]:
    first = 0
    for batch in file.iter_batches(BATCH_ROWS, row_groups=[group]):
        low, high = max(start - first, 0), min(stop - first, len(batch))
        if low < high:
            yield batch.slice(low, high - low)
        first += len(batch)


def _footer(path: Path) -> tuple[int, pa.Schema]:
    try:
        with pq.ParquetFile(path) as file:
            return file.metadata.num_rows, file.schema_arrow
    except (OSError, pa.ArrowInvalid) as error:
        raise Damaged(f"{path} cannot be read as parquet: {error}; run encode with --overwrite") from error


def _common_schema(folder: Path, schemas: list[pa.Schema]) -> pa.Schema:
    """The narrowest types that hold every file's values: metadata may be all null in one and text in the next."""
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise Damaged(f"the files of {folder} disagree about their columns: {error}; encode again") from error


def _require_code_column(path: Path, schema: pa.Schema, first: pa.Schema) -> None:
    if "code" not in schema.names or not pa.types.is_fixed_size_binary(schema.field("code").type):
        raise Damaged(f"{path} has no column 'code' of fixed-size binary; its columns: {schema.names}")
    ours, theirs = schema.metadata or {}, first.metadata or {}
    if schema.field("code").type != first.field("code").type or ours.get(b"model") != theirs.get(b"model"):
        raise Damaged(f"{path} holds codes of another model than the files before it; run encode with --overwrite")
