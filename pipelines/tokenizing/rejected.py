"""Rows of the corpus that were refused: written to rejected.parquet, counted by kind, held to a budget."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.artifact import replacing
from pipelines.corpus import Rejection, Slice
from pipelines.tokenizing.part_files import PartFiles, PartJob
from vae_core.errors import LatentbitsError

REJECTED = "rejected.parquet"
SCHEMA = pa.schema([("file", pa.string()), ("position", pa.int64()), ("reason", pa.string())])
TOLERATED = 10
"""Rejected rows that no budget but 0 minds."""
WRITTEN_AT_ONCE = 4096


class RejectedWriter:
    """Writes rejections to a parquet file, some thousand at a time."""

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._writer = pq.ParquetWriter(path, SCHEMA)
        self._waiting: list[Rejection] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, rejection: Rejection) -> None:
        self.count += 1
        self._waiting.append(rejection)
        if len(self._waiting) == WRITTEN_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            rows = [(item.file, item.position, item.reason) for item in self._waiting]
            self._writer.write_table(pa.Table.from_arrays(list(zip(*rows, strict=True)), schema=SCHEMA))
            self._waiting.clear()


@dataclass
class Tally:
    """How many rows were rejected for each kind of reason, and the first of them."""

    kinds: Counter[str] = field(default_factory=Counter)
    first: list[Rejection] = field(default_factory=list)

    def add(self, rejection: Rejection) -> None:
        self.kinds[rejection.reason.partition(":")[0]] += 1
        if len(self.first) < 3:
            self.first.append(rejection)

    def require_within(self, budget: float, rows: int, written: Path) -> None:
        """Raise LatentbitsError where more than a share `budget` of all rows was rejected."""
        total = self.kinds.total()
        if total <= (max(TOLERATED, budget * rows) if budget else 0):
            return
        share = total / rows
        kinds = "".join(f"  {count} x {kind}\n" for kind, count in self.kinds.most_common())
        first = "".join(f"  {row.file}:{row.position} {row.reason}\n" for row in self.first)
        raise LatentbitsError(
            f"{total} of {rows} rows were rejected ({share:.1%}), and tokenize.rejected_budget allows {budget:.1%}:\n"
            f"{kinds}the first of them:\n{first}all of them: {written}\n"
            f"mend the files, or allow it with --set tokenize.rejected_budget={min(1.0, share + 0.005):.2f}"
        )


def write_rejected(
    folder: Path, pieces: Sequence[Slice], jobs: Sequence[PartJob], duplicates: Sequence[np.ndarray]
) -> Tally:
    """Write rejected.parquet from what the parts left and from each part's duplicates, in the corpus's order."""
    tally = Tally()
    with replacing(folder / REJECTED) as temporary, RejectedWriter(temporary) as writer:
        for job, repeated in zip(jobs, duplicates, strict=True):
            for rejection in _rejections(folder, pieces, job, repeated):
                writer.add(rejection)
                tally.add(rejection)
    return tally


def _rejections(folder: Path, pieces: Sequence[Slice], job: PartJob, duplicates: np.ndarray) -> Iterator[Rejection]:
    """The part's rejected rows and its duplicates, in the order of the corpus."""
    rows: list[dict[str, Any]] = pq.read_table(PartFiles.of(folder, job.number).rejected).to_pylist()
    rows += [
        {
            "file": pieces[row["piece"]].name,
            "position": int(row["position"]),
            "reason": f"duplicate id: first at {pieces[row['first_piece']].name}:{row['first_position']}",
        }
        for row in duplicates
    ]
    order = {piece.name: number for number, piece in enumerate(job.pieces)}
    for row in sorted(rows, key=lambda row: (order[row["file"]], row["position"])):
        yield Rejection(**row)
