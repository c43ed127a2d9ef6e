"""The documents that deduplication compares: of one collection, or of one with those of another that is known.

Rows of the known collection come first. Shapes: N documents, C = K / 8 bytes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.artifact import Artifact, Input
from pipelines.indexing.code_files import CodeFiles, packed_bytes
from pipelines.indexing.segment_files import NO_WORD_CONFIDENCE
from vae_core.errors import Misuse, Stale


@dataclass(frozen=True, slots=True, eq=False)
class Collection:
    """Codes in memory; ids and texts as they are asked for."""

    source: Input
    model: str
    codes: NDArray[np.uint8]
    informative: NDArray[np.bool_]
    """Not of documents without a known word, nor of those that an index has deleted."""
    column: Callable[[str], Iterator[pa.Array]]
    """A column of text, `id` or `text`, in chunks."""
    has_text: bool

    @classmethod
    def open(cls, path: Path, name: str) -> "Collection":
        """The codes artifact or the index at `path`, to be the input `name`. Raises Misuse for anything else."""
        artifact = Artifact.open(path)
        if artifact.manifest.kind == "codes":
            return _of_codes(artifact, name)
        if artifact.manifest.kind == "index":
            return _of_index(artifact, name)
        raise Misuse(f"{path} holds {artifact.manifest.kind}; give codes that `encode` wrote, or an index")

    def __len__(self) -> int:
        return len(self.codes)


class Compared:
    """A collection and, before it, the one that is known; `known` counts the rows of that."""

    def __init__(self, collection: Collection, known: Collection | None) -> None:
        if known is not None and known.model != collection.model:
            raise Stale(
                f"{known.source.uri} holds codes of the model {known.model}, and {collection.source.uri} of the model "
                f"{collection.model}: their distances mean nothing; encode both with one model"
            )
        self.collections = [collection] if known is None else [known, collection]
        self.known = 0 if known is None else len(known)
        self.codes = np.concatenate([one.codes for one in self.collections])
        self.informative = np.concatenate([one.informative for one in self.collections])
        self.has_text = all(one.has_text for one in self.collections)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def bits(self) -> int:
        return 8 * self.codes.shape[1]

    def texts(self) -> Iterator[pa.Array]:
        """The texts of all rows."""
        for one in self.collections:
            yield from one.column("text")

    def ids(self) -> pa.ChunkedArray:
        """The ids of all rows."""
        chunks = [chunk.cast(pa.large_string()) for one in self.collections for chunk in one.column("id")]
        return pa.chunked_array(chunks, pa.large_string())


def _of_codes(artifact: Artifact, name: str) -> Collection:
    files = CodeFiles.open(artifact)
    codes = np.empty((files.documents, files.code_bytes), np.uint8)
    informative = np.ones(files.documents, bool)
    row = 0
    for path in artifact.files(".parquet"):
        row = _read(path, codes, informative, row)

    def column(name: str) -> Iterator[pa.Array]:
        return (batch.column(name) for batch in files.read(0, files.documents))

    return Collection(artifact.as_input(name), files.model, codes, informative, column, "text" in files.schema.names)


def _read(path: Path, codes: NDArray[np.uint8], informative: NDArray[np.bool_], row: int) -> int:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["code", "confidence"]):
            rows = slice(row, row + len(batch))
            codes[rows] = packed_bytes(batch.column("code"))
            known = batch.column("confidence").to_numpy() > NO_WORD_CONFIDENCE
            informative[rows] = known | codes[rows].any(axis=1)
            row += len(batch)
    return row


def _of_index(artifact: Artifact, name: str) -> Collection:
    from pipelines.search import Index

    index = Index.open(artifact.path)
    informative = index.live()
    for start, segment in zip(index.starts, index.segments, strict=False):
        informative[start + segment.uninformative] = False
    whole = artifact.as_input(name)
    changed = {"fingerprint": f"{whole.fingerprint} version {index.version}"} if index.version else {}
    return Collection(
        whole.model_copy(update=changed),
        index.model_fingerprint,
        np.concatenate(index.codes()),
        informative,
        lambda column: iter(index.column(column).chunks),
        any("text" in segment.schema.names for segment in index.segments),
    )
