"""What an evaluation asks: an index, its documents' labels, and the same documents' terms in its order."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.artifact import Artifact
from pipelines.embeddings import Embeddings
from pipelines.encoder import Encoder
from pipelines.evaluation.precision import Labels
from pipelines.files.arrow import record_batches
from pipelines.search import Index
from pipelines.vocabulary import Vocabulary
from vae_core.errors import Misuse, Stale


class Database:
    """An index, the model that made it, and, where they are known, the shards and embeddings of its documents."""

    def __init__(
        self, index: Index, encoder: Encoder, shards: Artifact | None, embeddings: Embeddings | None = None
    ) -> None:
        self.index = index
        self.encoder = encoder
        self.shards = shards
        self.embeddings = embeddings
        self.labels = Labels.of(index.column("labels"))
        self.codes = np.concatenate(index.codes())
        if shards is not None:
            _require_same_terms(Vocabulary.load(shards.path), encoder, shards)
            _require_same_documents(index, shards)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.encoder.tokenizer.vocabulary

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The shards' documents, in the order of the index."""
        assert self.shards is not None
        for path in self.shards.files(".arrow"):
            yield from record_batches(path)

    def take(self, rows: NDArray[np.int64]) -> pa.Table:
        """The shards' documents at `rows`, which ascend. Raises Misuse where there are no shards."""
        if self.shards is None:
            raise Misuse(
                f"{self.index.artifact.path} was not made from shards, so its documents cannot be asked for again; "
                f"name queries: in the run's config, and give it with --config"
            )
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


def _require_same_documents(index: Index, shards: Artifact) -> None:
    ids, start = index.column("id"), 0
    for path in shards.files(".arrow"):
        for batch in record_batches(path):
            if pa.chunked_array([batch.column("id")]) != ids.slice(start, len(batch)):
                raise _other_documents(index, shards)
            start += len(batch)
    if start != len(ids):
        raise _other_documents(index, shards)


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
