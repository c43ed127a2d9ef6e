"""Files of codes: the parquet parts of a codes artifact, or one table of codes, read as batches. Shapes: N, C = K/8."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.artifact import Artifact
from vae_core.errors import Damaged

BATCH_ROWS = 65_536


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

    @property
    def model(self) -> str:
        """Fingerprint of the model that made the codes."""
        return (self.schema.metadata or {}).get(b"model", b"").decode()

    def read(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """The rows start <= r < stop in batches; row groups outside the range are not read."""
        first = 0
        for path, rows in zip(self.paths, self.rows, strict=True):
            if first < stop and start < first + rows:
                yield from _read_file(path, start - first, stop - first)
            first += rows

    def empty_columns(self, names: tuple[str, ...]) -> set[str]:
        """Those of the columns `names` that the footers say hold nothing but nulls, empty texts and empty lists."""
        empty = {name for name in names if name in self.schema.names}
        for path in self.paths:
            with pq.ParquetFile(path) as file:
                empty -= {name for name in empty if not _is_empty(file.metadata, name)}
        return empty


def packed_bytes(column: pa.Array) -> np.ndarray:
    """A column of fixed-size binary codes as (N, C) uint8, without a copy."""
    width = column.type.byte_width
    flat = np.frombuffer(column.buffers()[1], np.uint8)
    return flat[column.offset * width :][: len(column) * width].reshape(len(column), width)


def _is_empty(metadata: pq.FileMetaData, name: str) -> bool:
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        leaves = [group.column(place) for place in range(group.num_columns)]
        for leaf in leaves:
            if leaf.path_in_schema.split(".")[0] == name and not _says_nothing(leaf.statistics, leaf.num_values):
                return False
    return True


def _says_nothing(statistics: pq.Statistics | None, values: int) -> bool:
    if statistics is None or not statistics.has_null_count:
        return values == 0
    return bool(statistics.null_count == values or (statistics.has_min_max and statistics.max in ("", b"")))


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
