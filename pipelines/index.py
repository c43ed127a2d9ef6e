"""The index stage: codes to segments that search opens by mapping them. Shapes: N codes, C = K/8 bytes."""

from pathlib import Path

from pydantic import Field

from pipelines.artifact import MANIFEST, Artifact, Draft, Part, Plan, begin, find_part, record_part, require_disk
from pipelines.indexing.code_files import CodeFiles
from pipelines.indexing.repair import repair
from pipelines.indexing.segment_files import Layout, blocks_of, shown_schema, write_segment
from pipelines.indexing.versions import newest_number
from pipelines.progress import Progress, Silent
from pipelines.searching.approximate import CandidatesConfig, FlatConfig
from vae_core.config import Config

LAYOUT = 2
"""Of a segment's files: an index of another layout is made again."""


class IndexConfig(Config):
    """How codes are cut into segments; a segment is what one search maps and scans at a time."""

    segment_documents: int = Field(default=10_000_000, ge=1, description="codes of a segment at most")
    candidates: CandidatesConfig = Field(default=FlatConfig(), description="where hits are looked for")


def index(
    codes: Path, out: Path, config: IndexConfig, *, overwrite: bool = False, progress: Progress = Silent()
) -> Artifact:
    """Build the index of the codes artifact at `codes` in the folder `out`.

    Row r of the index is row r of the codes, in the order of their parts. Segments that an earlier, killed run
    finished are kept. Raises Misuse or Stale where `codes` or `out` hold something else, and Damaged.
    """
    source = Artifact.open(codes, "codes")
    settings = config.model_dump(mode="json") | {"layout": LAYOUT}
    plan = Plan(kind="index", config=settings, inputs=(source.as_input("codes"),))
    if _was_changed(out, plan):
        if overwrite:
            repair(out, progress=progress)
        return Artifact.open(out, "index")
    draft = begin(out, plan, overwrite=overwrite)
    if isinstance(draft, Artifact):
        return draft
    require_disk(draft.path, 4 * sum(part.bytes for part in source.manifest.parts))
    return _build(CodeFiles.open(source), draft, config, progress)


def _was_changed(out: Path, plan: Plan) -> bool:
    """Whether `out` is the index of this plan, with changes on top that making its parts again would undo."""
    changed = (out / MANIFEST).exists() and newest_number(out) > 0
    return changed and Artifact.open(out).fingerprint == plan.fingerprint


def _build(files: CodeFiles, draft: Draft, config: IndexConfig, progress: Progress) -> Artifact:
    size = config.segment_documents
    starts = range(0, max(files.documents, 1), size)
    parts: list[Part] = []
    layout = Layout(shown_schema(files), files.code_bytes, config.candidates)
    progress.start("index", files.documents, "documents")
    for number, start in enumerate(starts):
        rows = range(start, min(start + size, files.documents))
        parts += _segment(files, layout, draft.path, f"segments/{number:05d}", rows)
        progress.advance(len(rows), f"segment {number + 1} of {len(starts)}")
    progress.finish()
    statistics = {
        "documents": files.documents,
        "bits": 8 * files.code_bytes,
        "segments": len(starts),
        "bytes": sum(part.bytes for part in parts),
    }
    return draft.finish(parts, statistics)


def _segment(files: CodeFiles, layout: Layout, folder: Path, segment: str, rows: range) -> list[Part]:
    """The parts of one segment, made unless they are there; one pass over the codes writes all."""
    names = [f"{segment}/{file}" for file in layout.files]
    known = [part for name in names if (part := find_part(folder, name)) is not None]
    if len(known) == len(names):
        return known
    write_segment(folder / segment, blocks_of(files, rows.start, rows.stop, layout.schema), layout)
    return [record_part(folder, name, len(rows)) for name in names]
