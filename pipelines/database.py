"""What an evaluation asks: an index, its documents' labels, and baseline codes of the same documents in its order."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.artifact import Artifact
from pipelines.baselines import Projection, sign_random_projection, simhash
from pipelines.encoder import Encoder
from pipelines.precision import Labels
from pipelines.search import Index
from pipelines.shards import record_batches
from pipelines.vocabulary import Vocabulary
from vae_core.errors import Stale


class Database:
    """What queries are asked of: the index, its documents' labels, and the baselines' codes of the same documents."""

    def __init__(self, index: Index, shards: Artifact | None, encoder: Encoder, seed: int) -> None:
        self.index = index
        self.encoder = encoder
        self.shards = shards
        self.labels = Labels.of(index.column("labels"))
        self.baselines: dict[str, tuple[Projection, NDArray[np.uint8]]] = {}
        if shards is not None and len(self.labels.labelled):
            vocabulary = Vocabulary.load(shards.path)
            _require_same_terms(vocabulary, encoder, shards)
            for name, projection in _projections(vocabulary, index.bits, seed).items():
                self.baselines[name] = (projection, projection.encode(self.batches()).bytes_NC.numpy())

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The shards' documents, in the order of the index. Raises Stale where they are others than the index's."""
        assert self.shards is not None
        ids, start = self.index.column("id"), 0
        for path in self.shards.files(".arrow"):
            for batch in record_batches(path):
                if pa.chunked_array([batch.column("id")]) != ids.slice(start, len(batch)):
                    raise _other_documents(self.index, self.shards)
                start += len(batch)
                yield batch
        if start != len(ids):
            raise _other_documents(self.index, self.shards)

    def take(self, rows: NDArray[np.int64]) -> pa.Table:
        """The shards' documents at `rows`, which ascend."""
        taken, start = [], 0
        for batch in self.batches():
            here = rows[(rows >= start) & (rows < start + len(batch))] - start
            taken.append(pa.Table.from_batches([batch]).take(pa.array(here)))
            start += len(batch)
        return pa.concat_tables(taken).combine_chunks()


def shards_of(index: Index, shards: Path | None) -> Artifact | None:
    """The shards of the index's documents: the ones given, else those its codes name, if they are still there."""
    if shards is not None:
        return Artifact.open(shards, "shards")
    folder = index.artifact.input_path("codes")
    if not folder.exists():
        return None
    codes = Artifact.open(folder, "codes")
    named = any(item.name == "shards" for item in codes.manifest.inputs)
    return Artifact.open(codes.input_path("shards")) if named and codes.input_path("shards").exists() else None


def _projections(vocabulary: Vocabulary, bits: int, seed: int) -> dict[str, Projection]:
    return {
        "simhash": simhash(vocabulary, bits),
        "sign_random_projection": sign_random_projection(vocabulary, bits, seed),
    }


def _require_same_terms(vocabulary: Vocabulary, encoder: Encoder, shards: Artifact) -> None:
    if vocabulary.ids != encoder.tokenizer.vocabulary.ids:
        raise Stale(
            f"{shards.path} counts {len(vocabulary):,} terms and the model knows {len(encoder.tokenizer.vocabulary):,} "
            f"others; give the shards that the index's documents were encoded from"
        )


def _other_documents(index: Index, shards: Artifact) -> Stale:
    return Stale(
        f"{shards.path} does not hold the {len(index):,} documents of {index.artifact.path} in their order; "
        f"give the shards that they were encoded from"
    )
