"""A codes artifact on disk, as the encode stage writes it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.artifact import Artifact, Draft, Plan, begin, record_part


def write_codes(folder: Path, codes: np.ndarray, *, files: int = 1, labels: list[list[str]] | None = None) -> Artifact:
    """Codes (N, C) of an unnamed model `cafe`, the rows spread over `files` parquet files."""
    draft = begin(folder, Plan(kind="codes", config={"seed": int(codes.sum())}, inputs=()))
    assert isinstance(draft, Draft)
    facts = {b"bits": b"%d" % (8 * codes.shape[1]), b"bit_order": b"little", b"model": b"cafe", b"source": b"test"}
    parts = []
    for number, rows in enumerate(np.array_split(np.arange(len(codes)), files)):
        table = pa.table(
            {
                "id": [f"d{row}" for row in rows],
                "code": pa.array([codes[row].tobytes() for row in rows], pa.binary(codes.shape[1])),
                "component": pa.array(rows % 3, pa.uint16()),
                "confidence": pa.array(np.full(len(rows), 0.75), pa.float32()),
                "labels": pa.array([labels[row] if labels else [] for row in rows], pa.list_(pa.string())),
                "text": [f"text {row}" for row in rows],
                "metadata": pa.array([{"year": int(row)} for row in rows], pa.struct([("year", pa.int64())])),
            }
        ).replace_schema_metadata(facts)
        pq.write_table(table, draft.path / f"part-{number:05d}.parquet", row_group_size=max(5, len(codes) // 40))
        parts.append(record_part(draft.path, f"part-{number:05d}.parquet", len(rows)))
    return draft.finish(parts, {"documents": len(codes)})
