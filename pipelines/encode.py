"""encode: shards or raw files -> codes. A pool of workers, each with the model loaded once; one part an item."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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
)
from pipelines.corpus import CorpusConfig, Document, Rejection, corpus_inputs, plan_slices, read_slice
from pipelines.encoder import EncodedDocuments, Encoder
from pipelines.progress import Progress, Silent
from pipelines.scatter import scatter
from pipelines.shards import record_batches
from pipelines.slices import Slice
from pipelines.tracking import NoTracking, Tracker
from vae_core.config import Config
from vae_core.errors import LatentbitsError

Source = Path | CorpusConfig
"""A shards artifact, or raw files as a corpus config describes them."""
ROWS_AT_ONCE = 4096
CARRIED = ("labels", "text", "metadata")
"""What a code keeps of its document, for display and filters."""


class EncodeConfig(Config):
    """Settings of encoding; none of them changes a code."""

    workers: int | None = None
    rejected_budget: float = 0.01


def encode(
    model: Path,
    source: Source,
    out: Path,
    config: EncodeConfig = EncodeConfig(),  # noqa: B008 - frozen
    *,
    overwrite: bool = False,
    progress: Progress = Silent(),
    tracking: Tracker = NoTracking(),
) -> Artifact:
    """Encode every document of `source` and write the codes artifact to `out`.

    Raises Misuse for a model or source that is not one, and LatentbitsError where more rows than
    `config.rejected_budget` (as a share) hold no document.
    """
    trained = Artifact.open(model, "model")
    items, inputs, total, unit = _items(source)
    settings = {} if isinstance(source, Path) else source.model_dump(mode="json", exclude={"files"})
    draft = begin(
        out, Plan(kind="codes", config=settings, inputs=(trained.as_input("model"), *inputs)), overwrite=overwrite
    )
    if isinstance(draft, Artifact):
        return draft
    require_disk(out, needed=sum(item.inputs_bytes for item in items) // 4)
    progress.start("encode", total, unit)
    make_worker = partial(_make_worker, trained.path, source if isinstance(source, CorpusConfig) else None, draft.path)
    found = {item.name: find_part(draft.path, item.name) for item in items}
    waiting = [item for item in items if found[item.name] is None]
    for item in items:
        if part := found[item.name]:
            progress.advance(item.amount, f"{part.rows:,} codes were there")
    for name, part in scatter(make_worker, waiting, workers=config.workers):
        found[name] = part
        progress.advance(next(item.amount for item in waiting if item.name == name), f"{part.rows:,} codes in {name}")
    progress.finish()
    return _finished(draft, [found[item.name] for item in items], trained, config, tracking)


class _Item(Config):
    """A part of the artifact and what it is made from; `amount` counts towards progress."""

    name: str
    shard: Path | None = None
    slice: Slice | None = None
    amount: int
    inputs_bytes: int


def _items(source: Source) -> tuple[list[_Item], tuple[Input, ...], int, str]:
    if isinstance(source, CorpusConfig):
        slices = plan_slices(source)
        items = [
            _Item(name=f"part-{number:05d}.parquet", slice=piece, amount=piece.bytes, inputs_bytes=piece.bytes)
            for number, piece in enumerate(slices)
        ]
        return items, corpus_inputs(source), sum(item.amount for item in items), "bytes"
    shards = Artifact.open(source, "shards")
    parts = [part for part in shards.manifest.parts if part.name.endswith(".arrow")]
    items = [
        _Item(
            name=part.name.replace(".arrow", ".parquet"),
            shard=shards.path / part.name,
            amount=part.rows,
            inputs_bytes=part.bytes,
        )
        for part in parts
    ]
    return items, (shards.as_input("shards"),), sum(item.amount for item in items), "documents"


def _make_worker(model: Path, corpus: CorpusConfig | None, folder: Path) -> Callable[[_Item], tuple[str, Part]]:
    import os

    import torch

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    return partial(_encode_item, Encoder.load(model), corpus, folder)


def _encode_item(encoder: Encoder, corpus: CorpusConfig | None, folder: Path, item: _Item) -> tuple[str, Part]:
    refused: list[Rejection] = []
    tables = _shard_tables(item) if corpus is None else _file_tables(encoder, corpus, item, refused)
    source = item.shard.name if item.shard else (item.slice.name if item.slice else "")
    rows = 0
    with replacing(folder / item.name) as temporary:
        writer = None
        for table in tables:
            coded = codes_table(table, encoder.encode(table))
            writer = writer or pq.ParquetWriter(temporary, _described(coded.schema, encoder, source))
            writer.write_table(coded.cast(writer.schema))
            rows += len(coded)
        if writer is None:
            empty = encoder.tokenizer.table([])
            schema = _described(codes_table(empty, encoder.encode(empty)).schema, encoder, source)
            writer = pq.ParquetWriter(temporary, schema)
        writer.close()
    return item.name, record_part(folder, item.name, rows, _refusals(refused))


def codes_table(table: pa.Table, encoded: EncodedDocuments) -> pa.Table:
    """The codes of the documents of `table`, in the codes schema."""
    packed = encoded.codes.bytes_NC.numpy()
    width = packed.shape[1]
    codes = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(packed), [None, pa.py_buffer(packed.tobytes())])
    columns = {"id": table.column("id"), "code": codes}
    columns |= {"component": pa.array(encoded.components), "confidence": pa.array(encoded.confidence)}
    return pa.table(columns | {name: table.column(name) for name in CARRIED if name in table.column_names})


def _shard_tables(item: _Item) -> Iterator[pa.Table]:
    assert item.shard is not None
    for batch in record_batches(item.shard):
        yield pa.Table.from_batches([batch])


def _file_tables(encoder: Encoder, corpus: CorpusConfig, item: _Item, refused: list[Rejection]) -> Iterator[pa.Table]:
    assert item.slice is not None
    documents = _kept(read_slice(corpus, item.slice), refused)
    while batch := list(islice(documents, ROWS_AT_ONCE)):
        yield encoder.tokenizer.table(batch)


def _kept(rows: Iterator[Document | Rejection], refused: list[Rejection]) -> Iterator[Document]:
    for row in rows:
        if isinstance(row, Rejection):
            refused.append(row)
        else:
            yield row


def _refusals(refused: list[Rejection]) -> dict[str, Any]:
    first = [f"{row.file}, row {row.position}: {row.reason}" for row in refused[:3]]
    return {"rejected": len(refused), "first": first}


def _described(schema: pa.Schema, encoder: Encoder, source: str) -> pa.Schema:
    facts = {"bits": str(encoder.bits), "bit_order": "little", "model": encoder.fingerprint, "source": source}
    return schema.with_metadata(facts)


def _finished(
    draft: Draft, parts: list[Part | None], model: Artifact, config: EncodeConfig, tracking: Tracker
) -> Artifact:
    whole = [part for part in parts if part is not None]
    documents = sum(part.rows for part in whole)
    rejected = sum(part.statistics["rejected"] for part in whole)
    first = [line for part in whole for line in part.statistics["first"]][:3]
    if rejected > config.rejected_budget * (documents + rejected):
        places = "\n  ".join(first)
        raise LatentbitsError(
            f"{rejected:,} of {documents + rejected:,} rows hold no document, the first ones:\n  {places}\n"
            f"put them right, or allow them with encode.rejected_budget above {config.rejected_budget:g}"
        )
    if not documents:
        raise LatentbitsError("there was no document to encode in the files given")
    bits = model.manifest.config["model"]["latent"]["bits"]
    tracking.log("encode", {"documents": float(documents), "rejected": float(rejected)}, 0)
    statistics = {"documents": documents, "bits": bits, "rejected": rejected, "first_rejected": first}
    return draft.finish(whole, statistics, tracking.run_id("encode"))
