"""New segments of an index: of added documents, or of what several segments hold without what was deleted."""

import shutil
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.artifact import Artifact, replacing
from pipelines.indexing.id_lookup import digests
from pipelines.indexing.segment_files import OWN_CODES, Block, Layout, part_of, write_segment
from pipelines.indexing.versions import SegmentRecord, candidates_of
from pipelines.progress import Progress
from pipelines.searching.opened import View
from pipelines.searching.segment import Segment, nothing
from vae_core.errors import Misuse


def new_segment(
    artifact: Artifact, number: int, blocks: Iterable[Block], schema: pa.Schema, code_bytes: int, piece: int = 0
) -> SegmentRecord:
    """Write a segment of the version `number`. Raises Misuse where an id is twice in it."""
    name = f"segments/v{number:08d}-{piece:05d}"
    shutil.rmtree(artifact.path / name, ignore_errors=True)  # left by a kill
    layout = Layout(schema, code_bytes, candidates_of(artifact))
    write_segment(artifact.path / name, blocks, layout)
    segment = Segment(artifact.path / name)
    _require_unique(segment)
    return SegmentRecord(
        name=name,
        rows=len(segment),
        parts=tuple(part_of(artifact.path, f"{name}/{file}", len(segment)) for file in layout.files),
    )


def with_own_codes(artifact: Artifact, record: SegmentRecord, codes: pa.Table) -> SegmentRecord:
    """The record of a segment whose folder keeps the codes of some of its documents, for want of an artifact."""
    name = f"{record.name}/{OWN_CODES}"
    with replacing(artifact.path / name) as temporary:
        pq.write_table(codes, temporary, compression="zstd")
    return record.model_copy(update={"parts": (*record.parts, part_of(artifact.path, name, len(codes)))})


def merged(
    artifact: Artifact, number: int, views: Sequence[View], size: int, progress: Progress, first_piece: int = 0
) -> Iterator[SegmentRecord]:
    """The documents of `views` that are not deleted, in new segments of at most `size` for the version `number`."""
    schema = pa.unify_schemas([view.segment.schema for view in views], promote_options="permissive")
    sources = tuple(dict.fromkeys(source for view in views for source in view.record.sources))
    own = _own_codes(artifact, views)
    documents = sum(view.record.live for view in views)
    blocks = _Cut(_live_blocks(views, schema))
    for piece in range(len(range(0, max(documents, 1), size))):
        some = watched(blocks.take(size), progress)
        record = new_segment(artifact, number, some, schema, views[0].segment.bits // 8, first_piece + piece)
        record = record.model_copy(update={"sources": sources})
        if own is not None:
            record = with_own_codes(artifact, record, _those_in(own, Segment(artifact.path / record.name)))
        yield record


def watched(blocks: Iterable[Block], progress: Progress) -> Iterator[Block]:
    """The same blocks, and `progress` told of each one's documents after it."""
    for block in blocks:
        yield block
        progress.advance(len(block.codes))


def _require_unique(segment: Segment) -> None:
    """Raise Misuse where an id is twice in a segment: of the two nobody could say which is meant."""
    hashed, rows = segment.lookup.digests, segment.lookup.rows
    same = np.flatnonzero(hashed[1:] == hashed[:-1])
    if not len(same):
        return
    ids = segment.table(rows[np.union1d(same, same + 1)].astype(np.int64), ["id"])["id"].to_pylist()
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(id for id in ids if id in seen or seen.add(id))  # type: ignore[func-returns-value]
        shutil.rmtree(segment.folder)
        raise Misuse(f"the id {twice!r} is there twice; an index has one document of each id")


def _live_blocks(views: Sequence[View], schema: pa.Schema) -> Iterator[Block]:
    for view in views:
        live, unknown = np.ones(len(view.segment), bool), np.zeros(len(view.segment), bool)
        live[view.deleted] = False
        unknown[view.segment.uninformative] = True
        for start, batch in zip(view.segment.ends, view.segment.batches, strict=False):
            kept_n = live[start : start + len(batch)]
            codes = view.segment.codes[start : start + len(batch)][kept_n]
            documents = _fitted(batch.filter(pa.array(kept_n)), schema)
            yield Block(documents, codes, unknown[start : start + len(batch)][kept_n])


def _fitted(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with the columns of `schema`: what it lacks is null."""
    names = batch.schema.names
    columns = [batch.column(name) if name in names else nothing(name, len(batch)) for name in schema.names]
    fields = zip(columns, schema.names, strict=True)
    found = pa.schema([pa.field(name, column.type) for column, name in fields])
    whole = pa.Table.from_arrays(columns, schema=found)
    fitted = pa.concat_tables([whole, schema.empty_table()], promote_options="permissive").cast(schema)
    return fitted.combine_chunks().to_batches()[0] if len(batch) else _no_rows(schema)


def _no_rows(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


class _Cut:
    """Blocks, cut where a segment is full."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self.blocks = blocks
        self.rest: Block | None = None

    def take(self, documents: int) -> Iterator[Block]:
        while documents and (block := self.rest or next(self.blocks, None)) is not None:
            some = min(documents, len(block.codes))
            self.rest = None if some == len(block.codes) else _sliced(block, some, len(block.codes))
            documents -= some
            yield _sliced(block, 0, some)


def _sliced(block: Block, start: int, stop: int) -> Block:
    return Block(block.documents.slice(start, stop - start), block.codes[start:stop], block.uninformative[start:stop])


def _own_codes(artifact: Artifact, views: Sequence[View]) -> pa.Table | None:
    names = [part.name for view in views for part in view.record.parts if part.name.endswith(OWN_CODES)]
    return pa.concat_tables([pq.read_table(artifact.path / name) for name in names]) if names else None


def _those_in(own: pa.Table, segment: Segment) -> pa.Table:
    ids = own["id"].combine_chunks()
    places, rows = segment.lookup.find(ids, digests(ids))
    same = np.array(
        [
            own["code"][int(place)].as_py() == segment.codes[row].tobytes()
            for place, row in zip(places, rows, strict=True)
        ],
        bool,
    )
    return own.take(pa.array(places[same]))
