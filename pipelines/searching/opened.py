"""One version of an index, all of it open: its segments without the rows that were deleted."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.artifact import Artifact
from pipelines.files.npy import read_npy
from pipelines.indexing.versions import SegmentRecord, Version, newest, newest_number
from pipelines.searching.filters import Filter, parse_filter
from pipelines.searching.segment import Segment, shown
from pipelines.searching.subset import Subset, subset_of
from vae_core.errors import Damaged

FILTERS_KEPT = 8


class View:
    """A segment as one version has it: without the rows that were deleted."""

    def __init__(self, segment: Segment, record: SegmentRecord, root: Path) -> None:
        self.segment = segment
        self.record = record
        self.deleted = _deleted(root, record)
        silent = np.setdiff1d(segment.uninformative, self.deleted, assume_unique=True)
        self.uninformative = len(silent)
        self.hidden = np.concatenate([self.deleted, silent])

    def deleted_at(self, rows: np.ndarray) -> np.ndarray:
        """Which of `rows` are deleted."""
        return np.isin(rows, self.deleted)

    @cached_property
    def shown(self) -> Subset:
        """All rows that may be hits."""
        return subset_of(len(self.segment), self.hidden)


class Opened:
    """One version of an index, all of it open."""

    def __init__(self, version: Version, views: list[View]) -> None:
        self.version = version
        self.views = views
        self.starts = [0, *np.cumsum([len(view.segment) for view in views]).tolist()]
        self._filtered: dict[str, list[Subset]] = {}

    @cached_property
    def columns(self) -> dict[str, str]:
        known: dict[str, str] = {}
        for view in self.views:
            for column in view.segment.schema:
                fields = column.type if column.name == "metadata" else [column]
                known |= {one.name: str(one.type) for one in fields if str(one.type) != "null" or one.name not in known}
        return {"labels": "list<string>", "text": "string"} | known

    def subsets(self, where: str | None) -> list[Subset]:
        """Of each segment the rows that may be hits and pass the filter; the last few filters are remembered."""
        if where is None:
            return [view.shown for view in self.views]
        known = self._filtered
        if where not in known:
            parsed: Filter = parse_filter(where, self.columns)
            while len(known) >= FILTERS_KEPT:
                known.pop(next(iter(known)), None)
            known[where] = [view.shown.where(parsed.mask(view.segment)) for view in self.views]
        return known[where]

    def table(self, rows: np.ndarray, columns: list[str] | None = None) -> pa.Table:
        """Documents by row, as a table."""
        if len(self.views) == 1:
            return self.views[0].segment.table(rows, columns)
        numbers = np.searchsorted(self.starts, rows, side="right") - 1
        tables, places = [], []
        for number in np.unique(numbers):
            some = np.flatnonzero(numbers == number)
            tables.append(self.views[number].segment.table(rows[some] - self.starts[number], columns))
            places.append(some)
        if not tables:
            return self.views[0].segment.table(rows, columns)
        merged = pa.concat_tables(tables, promote_options="permissive")
        return merged.take(pa.array(np.argsort(np.concatenate(places), kind="stable")))

    def documents(self, rows: np.ndarray) -> list[dict[str, Any]]:
        return shown(self.table(rows)) if len(rows) else []


def open_newest(artifact: Artifact, before: Opened | None) -> Opened:
    """The newest version; segments that are open already are used again."""
    known = {view.record.key: view.segment for view in before.views} if before else {}
    artifact.files()  # what lies in a store is brought here
    while True:
        version = newest(artifact)
        try:
            views = [
                View(known.get(record.key) or Segment(artifact.path / record.name), record, artifact.path)
                for record in version.segments
            ]
        except Damaged:
            if newest_number(artifact.path) == version.number:
                raise
            continue  # a compaction took its files away meanwhile
        return Opened(version, views)


def _deleted(root: Path, record: SegmentRecord) -> np.ndarray:
    if record.deleted is None:
        return np.empty(0, np.int64)
    path = root / record.deleted.name
    try:
        return read_npy(path).astype(np.int64)
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} cannot be read as .npy ({error}); restore it from a copy of the index") from error
