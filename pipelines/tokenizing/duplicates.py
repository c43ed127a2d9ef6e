"""Ids that occur more than once in a corpus: found with bounded memory, and taken out of the parts that hold them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.artifact import Part, record_part, replacing
from pipelines.files.published import fetch_part
from pipelines.tokenizing.part_files import PartFiles, PartJob

WALKED_AT_ONCE = 2_000_000
"""Ids compared in memory at a time."""
DUPLICATE = np.dtype(
    [
        ("part", "<u4"),
        ("row", "<u4"),
        ("piece", "<u4"),
        ("position", "<i8"),
        ("bytes", "<u8"),
        ("cut", "?"),
        ("first_piece", "<u4"),
        ("first_position", "<i8"),
    ]
)
"""A row whose id an earlier row has, and where that one stands."""


def find_duplicates(folder: Path, jobs: Sequence[PartJob], documents: int) -> np.ndarray:
    """All rows but the first of each id, DUPLICATE (D,), by part and row.

    Ids are compared by 128-bit hashes. Each range of their first 64 bits is read from all parts' sorted files and
    compared on its own, so that memory depends on the duplicates, not on the corpus.
    """
    files = [PartFiles.of(folder, job.number) for job in jobs]
    ranges = max(1, -(-documents // WALKED_AT_ONCE))
    edges = [(number << 64) // ranges for number in range(1, ranges)]
    found = [
        _repeated(*_gathered(files, jobs, low, high)) for low, high in zip([0, *edges], [*edges, None], strict=True)
    ]
    duplicates = np.concatenate(found)
    return duplicates[np.lexsort((duplicates["row"], duplicates["part"]))]


def drop_duplicates(folder: Path, job: PartJob, part: Part, duplicates: np.ndarray) -> Part:
    """The part without these rows of it; a part from which an earlier run took them is left as it is."""
    if part.statistics["duplicates"] == len(duplicates):
        return part
    keep = np.ones(part.rows, bool)
    keep[duplicates["row"]] = False
    tokens, terms = 0, 0
    with pa.memory_map(str(fetch_part(folder, part))) as source, replacing(folder / job.name) as temporary:
        reader = pa.ipc.open_file(source)
        with pa.ipc.new_file(str(temporary), reader.schema) as writer:
            for batch in _kept(reader, keep):
                writer.write_batch(batch)
                tokens += len(batch["tokens"].flatten())
                terms += int(batch["term_counts"].flatten().to_numpy().sum(dtype=np.int64))
    sums = {
        **part.statistics,
        "documents": part.rows - len(duplicates),
        "duplicates": len(duplicates),
        "tokens": tokens,
        "terms": terms,
        "bytes": part.statistics["bytes"] - int(duplicates["bytes"].sum()),
        "truncated": part.statistics["truncated"] - int(duplicates["cut"].sum()),
    }
    return record_part(folder, job.name, part.rows - len(duplicates), sums)


def _gathered(
    files: Sequence[PartFiles], jobs: Sequence[PartJob], low: int, high: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys in [low, high), origins and part numbers, in the parts' order."""
    keys, origins, parts = [], [], []
    for job, file in zip(jobs, files, strict=True):
        sorted_keys = np.load(file.keys, mmap_mode="r")
        start = int(np.searchsorted(sorted_keys, np.uint64(low)))
        stop = len(sorted_keys) if high is None else int(np.searchsorted(sorted_keys, np.uint64(high)))
        keys.append(np.array(sorted_keys[start:stop]))
        origins.append(np.array(np.load(file.origins, mmap_mode="r")[start:stop]))
        parts.append(np.full(stop - start, job.number, np.uint32))
    return np.concatenate(keys), np.concatenate(origins), np.concatenate(parts)


def _repeated(keys: np.ndarray, origins: np.ndarray, parts: np.ndarray) -> np.ndarray:
    # Stable, so that rows of one id stay in the order of parts and rows.
    order = np.lexsort((origins["check"], keys))
    keys, origins, parts = keys[order], origins[order], parts[order]
    again = np.zeros(len(keys), bool)
    again[1:] = (keys[1:] == keys[:-1]) & (origins["check"][1:] == origins["check"][:-1])
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(keys))))[again]
    found = np.empty(int(again.sum()), DUPLICATE)
    found["part"] = parts[again]
    for field in ("row", "piece", "position", "bytes", "cut"):
        found[field] = origins[field][again]
    found["first_piece"], found["first_position"] = origins["piece"][first], origins["position"][first]
    return found


def _kept(reader: pa.ipc.RecordBatchFileReader, keep: np.ndarray) -> Iterator[pa.RecordBatch]:
    row = 0
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        kept = batch.filter(pa.array(keep[row : row + batch.num_rows]))
        row += batch.num_rows
        if kept.num_rows:
            yield kept
