"""encode: shards or raw files -> codes. A pool of workers, each with the model loaded once; one part an item."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from pipelines.artifact import (
    Artifact,
    Draft,
    Input,
    Part,
    Plan,
    begin,
    find_part,
    record_part,
    replacing,
    require_disk,
    write_text,
)
from pipelines.blame import blamed
from pipelines.corpus import CorpusConfig, Document, Rejection, corpus_inputs, plan_slices, read_slice
from pipelines.embeddings import mapped_blocks, require_shards
from pipelines.encoder import EncodedDocuments, Encoder
from pipelines.files.arrow import record_batches
from pipelines.files.published import fetch, fetch_part
from pipelines.metadata import SeenTypes, Types, misfit
from pipelines.progress import Progress, Silent
from pipelines.scatter import scatter
from pipelines.tokenizing.slices import Slice, suitable_bytes
from vae_core.config import Config
from vae_core.errors import LatentbitsError, Stale

Source = Path | CorpusConfig
"""A shards artifact, or raw files as a corpus config describes them."""
ROWS_AT_ONCE, CHARACTERS_AT_ONCE = 4096, 4 << 20
TYPED_ROWS = 1000
"""Rows of each slice that decide the types of the metadata."""
CARRIED = ("labels", "text", "metadata")
"""What a code keeps of its document, for display and filters."""


class EncodeConfig(Config):
    """Settings of encoding; none of them changes a code."""

    workers: int | None = Field(default=None, ge=1, description="null: one for each core of the cluster")
    rejected_budget: float = Field(default=0.01, ge=0, le=1, description="share of rows that may hold no document")


def encode(
    model: Path,
    source: Source,
    out: Path,
    config: EncodeConfig = EncodeConfig(),  # noqa: B008 - frozen
    *,
    embeddings: Path | None = None,
    encoder_folder: Path | None = None,
    overwrite: bool = False,
    progress: Progress = Silent(),
) -> Artifact:
    """Encode every document of `source` and write the codes artifact to `out`.

    A model that reads embeddings finds those of shards in `embeddings`; otherwise it makes them with its sentence
    encoder, which lies in `encoder_folder` (None: where it lay when the model was trained).
    Raises Misuse for a model or source that is not one, and LatentbitsError where more rows than
    `config.rejected_budget` (as a share) hold no document.
    """
    trained = Artifact.open(model, "model")
    embedded = _embedded(trained, source, embeddings)
    items, inputs, total, unit = _items(source, embedded)
    settings = {} if isinstance(source, Path) else source.model_dump(mode="json", exclude={"files"})
    draft = begin(
        out, Plan(kind="codes", config=settings, inputs=(trained.as_input("model"), *inputs)), overwrite=overwrite
    )
    if isinstance(draft, Artifact):
        return draft
    require_disk(out, needed=sum(item.inputs_bytes for item in items) // 4)
    progress.start("encode", total, unit)
    place = encoder_folder.absolute() if encoder_folder else None  # workers have other working folders
    load = partial(Encoder.load, trained.path, place, embedded=embedded is not None)
    make_worker = partial(_make_worker, load, _raw(source, draft), draft.path)
    found = {item.name: find_part(draft.path, item.name) for item in items}
    waiting = [item for item in items if found[item.name] is None]
    for item in items:
        if part := found[item.name]:
            progress.advance(item.amount, f"{part.rows:,} codes were there")
    for name, part in scatter(make_worker, waiting, workers=config.workers):
        found[name] = part
        progress.advance(next(item.amount for item in waiting if item.name == name), f"{part.rows:,} codes in {name}")
    progress.finish()
    return _finished(draft, [found[item.name] for item in items], config)


class _Item(Config):
    """A part of the artifact and what it is made from, a shard or slices; `amount` counts towards progress."""

    name: str
    shard: Path | None = None
    embeddings: Path | None = None
    slices: tuple[Slice, ...] = ()
    amount: int
    inputs_bytes: int

    @property
    def source(self) -> str:
        return self.shard.name if self.shard else ", ".join(dict.fromkeys(piece.name for piece in self.slices))


@dataclass(frozen=True, slots=True)
class _Raw:
    """Raw files, and the type of each metadata field in all parts of the artifact."""

    corpus: CorpusConfig
    types: Types


def _embedded(model: Artifact, source: Source, embeddings: Path | None) -> Artifact | None:
    """The embeddings of the source's documents, if the model reads them. Raises Stale where they are others."""
    reads = any(item.name == "encoder" for item in model.manifest.inputs)
    if not reads or embeddings is None or not isinstance(source, Path):
        return None
    artifact = Artifact.open(embeddings, "embeddings")
    require_shards(artifact, Artifact.open(source, "shards"))
    if artifact.input("encoder").fingerprint != model.input("encoder").fingerprint:
        raise Stale(
            f"{artifact.path} was made by another sentence encoder than the one that {model.path} was trained with; "
            f"embed again with {model.input('encoder').uri}"
        )
    return artifact


def _items(source: Source, embeddings: Artifact | None) -> tuple[list[_Item], tuple[Input, ...], int, str]:
    if isinstance(source, CorpusConfig):
        items = [
            _Item(name=f"part-{number:05d}.parquet", slices=group, amount=size, inputs_bytes=size)
            for number, group in enumerate(_groups(plan_slices(source)))
            for size in [sum(piece.bytes for piece in group)]
        ]
        return items, corpus_inputs(source), sum(item.amount for item in items), "bytes"
    shards = Artifact.open(source, "shards")
    parts = [part for part in shards.manifest.parts if part.name.endswith(".arrow")]
    items = [
        _Item(
            name=part.name.replace(".arrow", ".parquet"),
            shard=shards.path / part.name,
            embeddings=embeddings.path / part.name if embeddings else None,
            amount=part.rows,
            inputs_bytes=part.bytes,
        )
        for part in parts
    ]
    return items, (shards.as_input("shards"),), sum(item.amount for item in items), "documents"


def _groups(slices: list[Slice]) -> Iterator[tuple[Slice, ...]]:
    """Small neighbours together, so that thousands of small files make few parts."""
    target = suitable_bytes(sorted({Path(piece.file) for piece in slices}))
    group: list[Slice] = []
    for piece in slices:
        if group and sum(member.bytes for member in group) + piece.bytes > target:
            yield tuple(group)
            group = []
        group.append(piece)
    if group:
        yield tuple(group)


def _raw(source: Source, draft: Draft) -> _Raw | None:
    """The metadata types are those of the first rows of every slice; what was found once holds for a resumed run."""
    if isinstance(source, Path):
        return None
    found = draft.scratch / "metadata.json"
    if not fetch(found):
        seen = SeenTypes(source.metadata)
        for piece in plan_slices(source) if source.metadata else []:
            for row in islice(read_slice(source, piece), TYPED_ROWS):
                if isinstance(row, Document):
                    seen.add(row.metadata)
        write_text(found, json.dumps(seen.types()))
    return _Raw(source, json.loads(found.read_text()))


def _make_worker(load: Callable[[], Encoder], raw: _Raw | None, folder: Path) -> Callable[[_Item], tuple[str, Part]]:
    import os

    import torch

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    return partial(_encode_item, load(), raw, folder)


def _encode_item(encoder: Encoder, raw: _Raw | None, folder: Path, item: _Item) -> tuple[str, Part]:
    refused = _Refused()
    tables = _shard_tables(encoder, item) if raw is None else _file_tables(encoder, raw, item, refused)
    empty = _empty_shard(item) if raw is None else encoder.table([], raw.types)
    nothing = np.zeros((0, encoder.model.config.embeddings)) if encoder.model.config.joined else None
    schema = _described(codes_table(empty, encoder.encode(empty, nothing)).schema, encoder, item.source)
    rows = 0
    with replacing(folder / item.name) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for table, vectors in tables:
            writer.write_table(_codes(encoder, table, vectors, item.name).cast(schema))
            rows += len(table)
    return item.name, record_part(folder, item.name, rows, {"rejected": refused.count, "first": refused.first})


def _codes(encoder: Encoder, table: pa.Table, vectors: NDArray[np.float16] | None, part: str) -> pa.Table:
    """The codes of the documents of `table`. Raises LatentbitsError that names the one that cannot be encoded."""

    def encoded(rows: Sequence[int]) -> pa.Table:
        begin, end = (rows[0], rows[-1] + 1) if rows else (0, 0)
        some = table.slice(begin, end - begin)
        return codes_table(some, encoder.encode(some, None if vectors is None else vectors[begin:end]))

    return blamed(encoded, range(len(table)), part=part, name=lambda row: str(table.column("id")[row].as_py()))


def codes_table(table: pa.Table, encoded: EncodedDocuments) -> pa.Table:
    """The codes of the documents of `table`, in the codes schema."""
    packed = encoded.codes.bytes_NC.numpy()
    width = packed.shape[1]
    codes = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(packed), [None, pa.py_buffer(packed.tobytes())])
    columns = {"id": table.column("id"), "code": codes}
    columns |= {"component": pa.array(encoded.components), "confidence": pa.array(encoded.confidence)}
    return pa.table(columns | {name: table.column(name) for name in CARRIED if name in table.column_names})


Embedded = tuple[pa.Table, NDArray[np.float16] | None]
"""Documents with their embeddings, where these were there already."""


def _shard_tables(encoder: Encoder, item: _Item) -> Iterator[Embedded]:
    assert item.shard is not None
    tables = (pa.Table.from_batches([batch]) for batch in record_batches(item.shard))
    if item.embeddings is None:
        return zip(tables, repeat(None))
    return zip(tables, mapped_blocks(item.embeddings, encoder.model.config.embeddings), strict=True)


def _empty_shard(item: _Item) -> pa.Table:
    assert item.shard is not None
    return pa.ipc.open_file(pa.memory_map(str(item.shard))).schema.empty_table()


class _Refused:
    """How many rows of a part hold no document, and why the first of them do not."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, row: Rejection) -> None:
        self.count += 1
        if len(self.first) < 3:
            self.first.append(f"{row.file}:{row.position} {row.reason}")


def _file_tables(encoder: Encoder, raw: _Raw, item: _Item, refused: _Refused) -> Iterator[Embedded]:
    documents: list[Document] = []
    characters = 0
    for document in _documents(raw, item, refused):
        documents.append(document)
        characters += len(document.text)
        if len(documents) == ROWS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield encoder.table(documents, raw.types), None
            documents, characters = [], 0
    if documents:
        yield encoder.table(documents, raw.types), None


def _documents(raw: _Raw, item: _Item, refused: _Refused) -> Iterator[Document]:
    for row in chain.from_iterable(read_slice(raw.corpus, piece) for piece in item.slices):
        if isinstance(row, Rejection):
            refused.add(row)
        elif raw.types and (reason := misfit(row.metadata, raw.types)):
            refused.add(Rejection(row.file, row.position, f"metadata of another type: {reason}"))
        else:
            yield row


def _enough(share: float) -> str:
    """The next hundredth, so that what is advised is allowed."""
    return f"{min(1.0, share + 0.01):.2f}"


def _described(schema: pa.Schema, encoder: Encoder, source: str) -> pa.Schema:
    facts = {"bits": str(encoder.bits), "bit_order": "little", "model": encoder.fingerprint, "source": source}
    return schema.with_metadata(facts)


def _finished(draft: Draft, parts: list[Part | None], config: EncodeConfig) -> Artifact:
    whole = [part for part in parts if part is not None]
    documents = sum(part.rows for part in whole)
    rejected = sum(part.statistics["rejected"] for part in whole)
    first = [line for part in whole for line in part.statistics["first"]][:3]
    if rejected > config.rejected_budget * (documents + rejected):
        places = "\n  ".join(first)
        raise LatentbitsError(
            f"{rejected:,} of {documents + rejected:,} rows hold no document that can be encoded, and "
            f"encode.rejected_budget allows {config.rejected_budget:.1%}; the first ones:\n  {places}\n"
            f"mend the files, or set encode.rejected_budget to {_enough(rejected / (documents + rejected))}"
        )
    if not documents:
        raise LatentbitsError("there was no document to encode in the files given")
    bits = int(pq.read_schema(fetch_part(draft.path, whole[0])).metadata[b"bits"])
    statistics = {"documents": documents, "bits": bits, "rejected": rejected, "first_rejected": first}
    return draft.finish(whole, statistics)
