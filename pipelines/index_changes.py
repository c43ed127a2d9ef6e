"""Changes to an index: add, upsert, delete and compact. Each writes new files first, then publishes one version.

Readers see the version before or the one after, whole; so does whoever comes after a kill. Many small additions do not
make many small segments: once there are MERGED of a size, an addition writes them together, and a document is written
again as often as the index grew by that factor.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.artifact import MANIFEST, Artifact, replacing, require_disk, write_text
from pipelines.indexing.code_files import BATCH_ROWS, CodeFiles
from pipelines.indexing.segment_files import block_of, blocks_of, part_of, shown_schema, write_rows
from pipelines.indexing.segments import merged, new_segment, watched, with_own_codes
from pipelines.indexing.versions import (
    SegmentRecord,
    Version,
    candidates_of,
    kept,
    newest,
    publish,
    version_path,
    writing,
)
from pipelines.progress import Progress, Silent
from pipelines.search import Index
from pipelines.searching.approximate import FlatConfig
from pipelines.searching.opened import View
from pipelines.searching.segment import Segment
from vae_core.errors import Misuse, Stale

MERGED = 8
"""Segments of about a size, the newest among them, that an addition makes one."""
MERGED_DOCUMENTS, MERGED_WITH_STRUCTURE = 1_000_000, 20_000
"""Documents that an addition writes again at most, and in an index that is not flat; `compact` writes all."""
IDS_SHOWN = 3


def add(index: Path, codes: Path | pa.Table, *, upsert: bool = False, progress: Progress = Silent()) -> int:
    """Add the documents of a codes artifact, or of a table in the codes schema; returns the new version's number.

    With `upsert`, documents whose ids are in the index already take their place. Raises Misuse where ids are there,
    or twice in `codes`, or the codes have another width, and Stale where another model made them.
    """
    with writing(index) as artifact:
        opened = Index(artifact)
        version = newest(artifact)
        made = _table_segment if isinstance(codes, pa.Table) else _artifact_segment
        record = made(artifact, opened, codes, version.number + 1, progress)
        segment = Segment(artifact.path / record.name)
        replaced = _known_rows(opened, segment)
        if len(replaced) and not upsert:
            shutil.rmtree(segment.folder)
            raise Misuse(_already_there(opened, replaced))
        changed = _without(artifact.path, version, opened, replaced)
        segments = _fewer(artifact, version.number + 1, (*changed, record))
        number = _published(artifact, version, "upsert" if upsert else "add", segments, record.rows)
        if len(segments) <= len(changed):
            _remove_unneeded(artifact, kept(artifact)[-2:])
        return number


def delete(index: Path, ids: Sequence[str]) -> int:
    """Delete documents by id; returns the new version's number. Raises Misuse where an id is not there."""
    with writing(index) as artifact:
        opened = Index(artifact)
        version = newest(artifact)
        sought = pa.array(list(dict.fromkeys(ids)), pa.string())
        places, rows = opened.rows_of(sought)
        if len(missing := np.setdiff1d(np.arange(len(sought)), places)):
            some = ", ".join(repr(sought[int(place)].as_py()) for place in missing[:IDS_SHOWN])
            raise Misuse(f"{index} has no document {some}{_more(len(missing))}; nothing was deleted")
        if not len(rows):
            raise Misuse("no id to delete was given")
        changed = _without(artifact.path, version, opened, rows)
        return _published(artifact, version, "delete", changed, len(rows))


def compact(index: Path, *, progress: Progress = Silent()) -> int:
    """Write the documents that are not deleted to segments as large as the index's settings allow, and remove the rest.

    The version before stays readable, for those that are in the middle of opening it. Returns the new version's number.
    """
    with writing(index) as artifact:
        version, size = newest(artifact), artifact.manifest.config["segment_documents"]
        if _is_compact(version, size):
            _remove_unneeded(artifact, kept(artifact)[-1:])
            return version.number
        opened = Index(artifact)
        require_disk(artifact.path, sum(part.bytes for segment in version.segments for part in segment.files()))
        progress.start("compact", len(opened), "documents")
        records = tuple(merged(artifact, version.number + 1, opened.opened.views, size, progress))
        progress.finish()
        number = _published(artifact, version, "compact", records, 0)
        _remove_unneeded(artifact, kept(artifact)[-2:])
        return number


def _published(
    artifact: Artifact, before: Version, change: str, segments: tuple[SegmentRecord, ...], changed: int
) -> int:
    version = Version(number=before.number + 1, change=change, segments=segments, changed=changed)
    publish(artifact.path, version)
    return version.number


def _fewer(artifact: Artifact, number: int, records: tuple[SegmentRecord, ...]) -> tuple[SegmentRecord, ...]:
    """The same segments, with the last ones made one where there are too many of their size."""
    most = MERGED_DOCUMENTS if isinstance(candidates_of(artifact), FlatConfig) else MERGED_WITH_STRUCTURE
    count = segments_to_merge([record.live for record in records], most)
    if not count:
        return records
    views = [View(Segment(artifact.path / record.name), record, artifact.path) for record in records[-count:]]
    return (*records[:-count], *merged(artifact, number, views, most, Silent(), first_piece=1))


def segments_to_merge(documents: Sequence[int], most: int = MERGED_DOCUMENTS) -> int:
    """How many of the last segments are to be one of at most `most`, by the documents of each; 0: they can stay."""
    count = 1
    while True:
        size = _magnitude(sum(documents[-count:]))
        larger = (n for n, one in enumerate(reversed(documents)) if n >= count and _magnitude(one) > size)
        run = next(larger, len(documents))
        if run - count + 1 < MERGED or sum(documents[-run:]) > most:
            return count if count > 1 else 0
        count = run


def _magnitude(documents: int) -> int:
    """The largest n with MERGED ** n of them, MERGED being a power of two."""
    return (max(documents, 1).bit_length() - 1) // (MERGED.bit_length() - 1)


def _artifact_segment(artifact: Artifact, opened: Index, codes: Path, number: int, progress: Progress) -> SegmentRecord:
    source = Artifact.open(codes, "codes")
    files = CodeFiles.open(source)
    _require_fit(opened, source.path, 8 * files.code_bytes, files.model, files.schema)
    require_disk(artifact.path, 4 * sum(part.bytes for part in source.manifest.parts))
    schema = shown_schema(files)
    progress.start("add", files.documents, "documents")
    blocks = watched(blocks_of(files, 0, files.documents, schema), progress)
    record = new_segment(artifact, number, blocks, schema, files.code_bytes)
    progress.finish()
    return record.model_copy(update={"sources": (source.as_input("codes"),), "start": 0})


def _table_segment(
    artifact: Artifact, opened: Index, codes: pa.Table, number: int, progress: Progress
) -> SegmentRecord:
    del progress
    facts = codes.schema.metadata or {}
    if "code" not in codes.schema.names or not pa.types.is_fixed_size_binary(codes.schema.field("code").type):
        raise Misuse(f"the table has no column 'code' of fixed-size binary; its columns: {codes.schema.names}")
    width = codes.schema.field("code").type.byte_width
    model = facts.get(b"model", opened.model_fingerprint.encode()).decode()
    _require_fit(opened, "the table", 8 * width, model, codes.schema)
    names = [name for name in opened.segments[0].schema.names if name in codes.schema.names]
    extra = [name for name in ("labels", "text", "metadata") if name in codes.schema.names and name not in names]
    schema = pa.schema([codes.schema.field(name) for name in [*names, *extra]], opened.segments[0].schema.metadata)
    blocks = (block_of(batch, schema) for batch in codes.combine_chunks().to_batches(BATCH_ROWS))
    record = new_segment(artifact, number, blocks, schema, width)
    return with_own_codes(artifact, record, codes.select(["id", "code"]))


def _require_fit(opened: Index, name: Path | str, bits: int, model: str, schema: pa.Schema) -> None:
    if bits != opened.bits:
        raise Misuse(
            f"{name} holds codes of {bits} bits and the index {opened.bits}; encode with the index's own model"
        )
    if model != opened.model_fingerprint:
        raise Stale(
            f"{name} holds codes of the model {model} and the index those of {opened.model_fingerprint}; encode with "
            f"the index's own model, or build an index of its own"
        )
    for segment in opened.segments:
        shared = [column for column in schema.names if column in segment.schema.names]
        for column in shared:
            _require_same_kind(name, schema.field(column), segment.schema.field(column))


def _require_same_kind(name: Path | str, ours: pa.Field, theirs: pa.Field) -> None:
    try:
        pa.unify_schemas([pa.schema([theirs]), pa.schema([ours])], promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        raise Misuse(
            f"{ours.name} is {ours.type} in {name} and {theirs.type} in the index; encode it with the same fields"
        ) from None


def _known_rows(opened: Index, segment: Segment) -> np.ndarray:
    """Rows of the index whose ids are in the new segment too."""
    rows = [np.empty(0, np.int64)]
    for view, start in zip(opened.opened.views, opened.starts, strict=False):
        found = view.segment.lookup.shared(segment.lookup)
        rows.append(start + found[~view.deleted_at(found)])
    return np.concatenate(rows)


def _already_there(opened: Index, rows: np.ndarray) -> str:
    some = ", ".join(repr(id) for id in opened.ids(np.sort(rows)[:IDS_SHOWN]))
    return f"the index has the document {some}{_more(len(rows))} already; --upsert replaces what is there"


def _more(count: int) -> str:
    return f" and {count - IDS_SHOWN:,} more" if count > IDS_SHOWN else ""


def _without(root: Path, version: Version, opened: Index, rows: np.ndarray) -> tuple[SegmentRecord, ...]:
    """The segments of a version, with these rows deleted too."""
    records = []
    for record, view, start in zip(version.segments, opened.opened.views, opened.starts, strict=False):
        here = rows[(rows >= start) & (rows < start + record.rows)] - start
        records.append(
            _with_deleted(root, record, np.union1d(view.deleted, here), version.number + 1) if len(here) else record
        )
    return tuple(records)


def _with_deleted(root: Path, record: SegmentRecord, rows: np.ndarray, number: int) -> SegmentRecord:
    name = f"{record.name}/deleted-{number:08d}.npy"
    with replacing(root / name) as temporary:
        write_rows(temporary, rows)
    return record.model_copy(update={"deleted": part_of(root, name, len(rows))})


def _is_compact(version: Version, size: int) -> bool:
    fewest = max(1, -(-version.documents // size))
    return len(version.segments) == fewest and all(segment.deleted is None for segment in version.segments)


def _remove_unneeded(artifact: Artifact, versions: list[Version]) -> None:
    """Remove what no version in `versions` names, after the manifest names the segments of the newest."""
    newest_one = versions[-1]
    if newest_one.number == 0:
        return
    parts = tuple(part for record in newest_one.segments for part in record.parts if record.deleted is None)
    counted = {"documents": newest_one.documents, "segments": len(newest_one.segments)}
    statistics = artifact.manifest.statistics | counted | {"bytes": sum(part.bytes for part in parts)}
    manifest = artifact.manifest.model_copy(update={"parts": parts, "statistics": statistics})
    write_text(artifact.path / MANIFEST, manifest.model_dump_json(indent=1))
    needed = {record.name for version in versions for record in version.segments}
    numbers = {version.number for version in versions}
    for version in kept(artifact):
        if version.number not in numbers:
            version_path(artifact.path, version.number).unlink(missing_ok=True)
    for folder in sorted((artifact.path / "segments").iterdir()):
        if f"segments/{folder.name}" not in needed:
            shutil.rmtree(folder)
