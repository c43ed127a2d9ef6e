"""embed: shards -> embeddings. A pool of workers, each with the encoder loaded once; one shard an item."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch
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
)
from pipelines.embeddings import COLUMN, vector_type
from pipelines.progress import Progress, Silent
from pipelines.scatter import scatter
from pipelines.shards import record_batches
from pipelines.text_encoder import TextEncoder, folder_fingerprint
from pipelines.tokenizer import Tokenizer
from vae_core.config import Config
from vae_core.errors import Misuse


class EmbedConfig(Config):
    """Which encoder makes the embeddings; no folder, no embeddings."""

    folder: Path | None = Field(
        default=None, description="of a Hugging Face sentence encoder with model.safetensors; null: no embeddings"
    )
    workers: int | None = Field(default=None, ge=1, description="null: one for each core of the cluster")


def embed(
    shards: Path,
    out: Path,
    config: EmbedConfig,
    *,
    overwrite: bool = False,
    progress: Progress = Silent(),
) -> Artifact:
    """Embed every document of `shards` with the encoder in `config.folder`; write the embeddings artifact to `out`.

    A document's text is what its tokens decode to, so that of a long one the part is read that the shards keep.
    Raises Misuse or Damaged for a folder that cannot be read.
    """
    source = Artifact.open(shards, "shards")
    folder = _folder(config)
    inputs = (source.as_input("shards"), encoder_input(folder))
    draft = begin(out, Plan(kind="embeddings", config={}, inputs=inputs), overwrite=overwrite)
    if isinstance(draft, Artifact):
        return draft
    dimensions = TextEncoder.load(folder).dimensions
    parts = {part.name: part for part in source.manifest.parts if part.name.endswith(".arrow")}
    rows = sum(part.rows for part in parts.values())
    require_disk(out, needed=2 * dimensions * rows)
    progress.start("embed", rows, "documents")
    found = {name: find_part(draft.path, name) for name in parts}
    for part in filter(None, found.values()):
        progress.advance(part.rows, f"{part.rows:,} embeddings were there")
    waiting = [name for name, part in found.items() if part is None]
    make_worker = partial(_make_worker, source.path, folder, draft.path)
    for part in scatter(make_worker, waiting, workers=config.workers):
        found[part.name] = part
        progress.advance(part.rows, f"{part.rows:,} embeddings in {part.name}")
    progress.finish()
    return _finished(draft, [part for part in found.values() if part], dimensions)


def encoder_input(folder: Path) -> Input:
    """An encoder's folder as the input of an artifact: where it lies, and a hash of what decides its vectors."""
    return Input(name="encoder", uri=str(folder.resolve()), fingerprint=folder_fingerprint(folder))


def _folder(config: EmbedConfig) -> Path:
    if config.folder is None:
        raise Misuse("embed needs the folder of a sentence encoder; set embed.folder")
    if not config.folder.is_dir():
        raise Misuse(f"embed.folder: there is no folder {config.folder}; give one with a Hugging Face sentence encoder")
    return config.folder.absolute()


def _make_worker(shards: Path, folder: Path, out: Path) -> Callable[[str], Part]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    return partial(write_part, TextEncoder.load(folder), Tokenizer.load(shards), shards, out)


def write_part(encoder: TextEncoder, tokenizer: Tokenizer, shards: Path, out: Path, name: str) -> Part:
    """The embeddings of the shard `name`, row by row, and their receipt."""
    kind = vector_type(encoder.dimensions)
    rows = 0
    with (
        replacing(out / name) as temporary,
        pa.ipc.new_file(str(temporary), pa.schema([(COLUMN, kind)])) as writer,
    ):
        for batch in record_batches(shards / name):
            vectors = encoder.embed_documents(tokenizer, batch)
            writer.write_batch(
                pa.record_batch([pa.FixedSizeListArray.from_arrays(vectors.ravel(), type=kind)], [COLUMN])
            )
            rows += len(vectors)
    return record_part(out, name, rows)


def _finished(draft: Draft, parts: list[Part], dimensions: int) -> Artifact:
    return draft.finish(parts, {"documents": sum(part.rows for part in parts), "dimensions": dimensions})
