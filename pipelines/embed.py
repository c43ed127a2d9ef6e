"""embed: shards -> embeddings. A pool of workers, each with the encoder loaded once; a record batch an item."""

import os
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
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
from pipelines.files.arrow import record_batches
from pipelines.files.published import fetch
from pipelines.progress import Progress, Silent
from pipelines.scatter import scatter
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
    pieces = _pieces(source, draft)
    rows = sum(piece.rows for piece in pieces)
    require_disk(out, needed=4 * dimensions * rows)
    progress.start("embed", rows, "documents")
    waiting = [piece for piece in pieces if not fetch(draft.scratch / piece.name)]
    if there := rows - sum(piece.rows for piece in waiting):
        progress.advance(there, f"{there:,} embeddings were there")
    make_worker = partial(_make_worker, source.path, folder, draft.scratch)
    for piece in scatter(make_worker, waiting, workers=config.workers):
        progress.advance(piece.rows, f"{piece.rows:,} embeddings of {piece.part}")
    progress.finish()
    parts = [_part(draft, path.name, pieces, dimensions) for path in source.files(".arrow")]
    return draft.finish(parts, {"documents": sum(part.rows for part in parts), "dimensions": dimensions})


def encoder_input(folder: Path) -> Input:
    """An encoder's folder as the input of an artifact: where it lies, and a hash of what decides its vectors."""
    return Input(name="encoder", uri=str(folder.resolve()), fingerprint=folder_fingerprint(folder))


def _folder(config: EmbedConfig) -> Path:
    if config.folder is None:
        raise Misuse("embed needs the folder of a sentence encoder; set embed.folder")
    if not config.folder.is_dir():
        raise Misuse(f"embed.folder: there is no folder {config.folder}; give one with a Hugging Face sentence encoder")
    return config.folder.absolute()


class _Piece(Config):
    """A record batch of a shard: minutes of work, so that little is lost by a kill and a small corpus has many."""

    shard: Path
    batch: int
    rows: int

    @property
    def part(self) -> str:
        """The part that it is in."""
        return self.shard.name

    @property
    def name(self) -> str:
        """Its vectors' file in the scratch folder."""
        return f"{self.part}-{self.batch:05d}.npy"


def _pieces(shards: Artifact, draft: Draft) -> list[_Piece]:
    """The record batches of the parts that are not done."""
    return [
        _Piece(shard=path, batch=number, rows=batch.num_rows)
        for path in shards.files(".arrow")
        if find_part(draft.path, path.name) is None
        for number, batch in enumerate(record_batches(path))
    ]


def _make_worker(shards: Path, folder: Path, scratch: Path) -> Callable[[_Piece], _Piece]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    return partial(_embed_piece, TextEncoder.load(folder), Tokenizer.load(shards), scratch)


def _embed_piece(encoder: TextEncoder, tokenizer: Tokenizer, scratch: Path, piece: _Piece) -> _Piece:
    batch = next(islice(record_batches(piece.shard), piece.batch, None))
    vectors = encoder.embed_documents(tokenizer, batch)
    with replacing(scratch / piece.name) as temporary, temporary.open("wb") as file:
        np.save(file, vectors)
    return piece


def _part(draft: Draft, name: str, pieces: list[_Piece], dimensions: int) -> Part:
    """The part `name` with its receipt, put together from its pieces, a record batch each."""
    if found := find_part(draft.path, name):
        return found
    kind, files = vector_type(dimensions), [draft.scratch / piece.name for piece in pieces if piece.part == name]
    rows = 0
    with (
        replacing(draft.path / name) as temporary,
        pa.ipc.new_file(str(temporary), pa.schema([(COLUMN, kind)])) as writer,
    ):
        for file in files:
            vectors = np.load(file)
            column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), type=kind)
            writer.write_batch(pa.record_batch([column], [COLUMN]))
            rows += len(vectors)
    part = record_part(draft.path, name, rows)
    for file in files:
        file.unlink()
    return part
