"""The embeddings of some shards, a unit vector beside each row: memory-mapped. Shapes: n rows, D dimensions."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.artifact import Artifact
from pipelines.files.arrow import record_batches
from pipelines.text_encoder import TextEncoder
from vae_core.errors import Damaged, Stale

COLUMN = "embedding"
__all__ = ["COLUMN", "Embeddings", "TextEncoder"]


class Embeddings:
    """All vectors of an embeddings artifact under the row numbers of its shards, in their order."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.dimensions = int(artifact.manifest.statistics["dimensions"])
        self._blocks = [block for path in artifact.files(".arrow") for block in mapped_blocks(path, self.dimensions)]
        self._starts = np.concatenate([[0], np.cumsum([len(block) for block in self._blocks])]).astype(np.int64)

    @classmethod
    def open(cls, path: Path, shards: Artifact) -> "Embeddings":
        """The embeddings at `path`. Raises Stale where they are of other documents than those of `shards`."""
        artifact = Artifact.open(path, "embeddings")
        require_shards(artifact, shards)
        return cls(artifact)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def folder(self) -> Path:
        """The folder of the encoder that made them, where it lies now."""
        return self.artifact.input_path("encoder")

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors at `rows`, in that order, (n, D)."""
        found = np.empty((len(rows), self.dimensions), np.float32)
        blocks = np.searchsorted(self._starts, rows, side="right") - 1
        for block in np.unique(blocks):
            here = blocks == block
            found[here] = self._blocks[block][rows[here] - self._starts[block]]
        return found

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """All vectors in order, some thousand at a time, (n, D) each."""
        for block in self._blocks:
            yield block.astype(np.float32)


def require_shards(embeddings: Artifact, shards: Artifact) -> None:
    """Raise Stale unless `embeddings` were made from `shards`."""
    if embeddings.input("shards").fingerprint != shards.fingerprint:
        raise Stale(
            f"{embeddings.path} holds embeddings of other shards than {shards.path}; "
            f"run `latentbits embed {shards.path} FOLDER --out {embeddings.path} --overwrite`"
        )


def mapped_blocks(path: Path, dimensions: int) -> Iterator[NDArray[np.float16]]:
    """The vectors of a part, (n, D) for each of its record batches, mapped. Raises Damaged where it holds others."""
    for batch in record_batches(path):
        if batch.schema.field(COLUMN).type != vector_type(dimensions):
            raise Damaged(f"{path} holds no embeddings of {dimensions} dimensions; run embed with --overwrite")
        yield batch.column(COLUMN).flatten().to_numpy().reshape(-1, dimensions)


def vector_type(dimensions: int) -> pa.DataType:
    """How a vector is stored."""
    return pa.list_(pa.float16(), dimensions)
