"""The tokenize stage: corpus files to shards, one Arrow file for each part of the corpus."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipelines.artifact import (
    Artifact,
    Draft,
    Input,
    Part,
    Plan,
    begin,
    checksum,
    find_part,
    record_part,
    require_disk,
)
from pipelines.corpus import CorpusConfig, Slice, corpus_inputs, plan_slices
from pipelines.files.published import fetch
from pipelines.progress import Progress, Silent
from pipelines.scatter import scatter
from pipelines.tokenizer import Tokenizer, read_bpe
from pipelines.tokenizing.config import TokenizeConfig
from pipelines.tokenizing.duplicates import drop_duplicates, find_duplicates
from pipelines.tokenizing.part_files import PartFiles, PartJob
from pipelines.tokenizing.readers import format_of
from pipelines.tokenizing.rejected import REJECTED, write_rejected
from pipelines.tokenizing.sample import learn, learned_types
from pipelines.tokenizing.shard_parts import write_part
from pipelines.tokenizing.slices import suitable_bytes

__all__ = ["TokenizeConfig", "tokenize"]
SUMS = ("documents", "tokens", "terms", "bytes", "truncated")


def tokenize(
    corpus: CorpusConfig,
    out: Path,
    config: TokenizeConfig,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Make the shards artifact `out` of the corpus, or finish it, or find it done.

    Raises LatentbitsError where more rows are rejected than the budget allows, and where no documents are left.
    """
    pieces = plan_slices(corpus)
    draft = begin(out, _plan(corpus, config), overwrite=overwrite)
    if isinstance(draft, Artifact):
        return draft
    progress = progress or Silent()
    jobs = _jobs(pieces)
    progress.start("tokenize", total=sum(job.bytes for job in jobs), unit="bytes")
    progress.advance(0, "learning subwords and words")
    learned = learn(corpus, pieces, config, draft.path)
    progress.advance(0, "starting workers")
    parts = _write_parts(corpus, draft, jobs, progress)
    finished = _finish(draft, pieces, jobs, parts, learned, config.rejected_budget)
    progress.finish()
    return finished


def _plan(corpus: CorpusConfig, config: TokenizeConfig) -> Plan:
    """What decides the artifact's bytes: not where files lie, nor how many rejections are allowed."""
    inputs = corpus_inputs(corpus)
    if config.tokenizer is not None:
        read_bpe(path := Path(config.tokenizer))
        inputs += (Input(name="tokenizer", uri=str(path.absolute()), fingerprint=checksum(path)),)
    settings = {
        "corpus": corpus.model_dump(mode="json", exclude={"files"}),
        "tokenize": config.model_dump(mode="json", exclude={"tokenizer", "rejected_budget"}),
    }
    return Plan(kind="shards", config=settings, inputs=inputs)


def _jobs(pieces: Sequence[Slice]) -> list[PartJob]:
    """One part for each slice, small neighbours together, so that thousands of small files make few parts."""
    target = suitable_bytes(sorted({Path(piece.file) for piece in pieces}))
    groups: list[list[Slice]] = []
    size = target
    for piece in pieces:
        if size + piece.bytes > target:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += piece.bytes
    starts = np.cumsum([0, *map(len, groups)]).tolist()
    return [
        PartJob(number=number, first_piece=start, pieces=tuple(group))
        for number, (start, group) in enumerate(zip(starts, groups, strict=False))
    ]


def _write_parts(corpus: CorpusConfig, draft: Draft, jobs: Sequence[PartJob], progress: Progress) -> list[Part]:
    """The parts in order; those that an earlier run finished are not made again."""
    parts: dict[str, Part] = {}
    waiting = []
    for job in jobs:
        part = _done(draft.path, job)
        if part is None:
            waiting.append(job)
        else:
            parts[job.name] = part
            progress.advance(job.bytes, _note(parts))
    require_disk(draft.path, sum(_expected_bytes(piece) for job in waiting for piece in job.pieces))
    sizes = {job.name: job.bytes for job in jobs}
    for part in scatter(partial(_make_worker, corpus, draft.path), waiting):
        parts[part.name] = part
        progress.advance(sizes[part.name], _note(parts))
    return [parts[job.name] for job in jobs]


def _make_worker(corpus: CorpusConfig, folder: Path) -> Callable[[PartJob], Part]:
    # A worker has one core; the library would start a thread for each core of the machine.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return partial(write_part, Tokenizer.load(folder), corpus, learned_types(folder), folder)


def _done(folder: Path, job: PartJob) -> Part | None:
    part = find_part(folder, job.name)
    return part if part and all(fetch(file) for file in PartFiles.of(folder, job.number)) else None


def _note(parts: Mapping[str, Part]) -> str:
    return f"{sum(part.statistics['documents'] for part in parts.values()):,} documents"


def _expected_bytes(piece: Slice) -> int:
    """What a slice may become on disk: as much as its text, of which compressed files hold several times their size."""
    kind, compression = format_of(Path(piece.file))
    return piece.bytes * (5 if compression or kind == "parquet" else 2)


def _finish(
    draft: Draft,
    pieces: Sequence[Slice],
    jobs: Sequence[PartJob],
    parts: Sequence[Part],
    learned: Sequence[Part],
    budget: float,
) -> Artifact:
    documents = sum(part.statistics["documents"] + part.statistics["duplicates"] for part in parts)
    duplicates = find_duplicates(draft.path, jobs, documents)
    by_part = [duplicates[duplicates["part"] == job.number] for job in jobs]
    tally = write_rejected(draft.path, pieces, jobs, by_part)
    rejected = record_part(draft.path, REJECTED, tally.kinds.total())
    tally.require_within(budget, documents + tally.kinds.total() - len(duplicates), draft.path / REJECTED)
    kept = [drop_duplicates(draft.path, job, part, rows) for job, part, rows in zip(jobs, parts, by_part, strict=True)]
    statistics = {name: sum(part.statistics[name] for part in kept) for name in SUMS}
    return draft.finish([*kept, *learned, rejected], {**statistics, "rejected": rejected.rows})
