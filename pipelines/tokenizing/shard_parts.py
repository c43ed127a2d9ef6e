"""One part of the shards: read slices, tokenize in batches, write one Arrow file. Shapes: N documents."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.artifact import Part, record_part, replacing
from pipelines.blame import blamed
from pipelines.corpus import CorpusConfig, Document, Rejection, read_slice
from pipelines.metadata import Types, misfit
from pipelines.tokenizer import Tokenizer
from pipelines.tokenizing.part_files import ORIGIN, PartFiles, PartJob
from pipelines.tokenizing.rejected import RejectedWriter

BATCH_DOCUMENTS = 4096
BATCH_CHARACTERS = 4 << 20


def write_part(tokenizer: Tokenizer, corpus: CorpusConfig, types: Types, folder: Path, job: PartJob) -> Part:
    """Make the part and its receipt; a kill leaves either the whole part or nothing that counts."""
    files = PartFiles.of(folder, job.number)
    origins = _Origins()
    sums = dict.fromkeys(("documents", "rejected", "tokens", "terms", "bytes", "truncated", "duplicates"), 0)
    with (
        replacing(files.rejected) as temporary_rejected,
        replacing(folder / job.name) as temporary,
        RejectedWriter(temporary_rejected) as rejected,
        pa.ipc.new_file(str(temporary), tokenizer.schema(types)) as writer,
    ):
        for pieces, documents in _batches(corpus, types, job, rejected):
            table, cut = blamed(
                lambda some: tokenizer.tokenize(some, types), documents, part=job.name, name=lambda one: one.id
            )
            writer.write_table(table)
            origins.add(pieces, documents, cut)
            sums["tokens"] += len(table["tokens"].chunk(0).values)
            sums["terms"] += int(table["term_counts"].chunk(0).values.to_numpy().sum(dtype=np.int64))
        sums["rejected"] = rejected.count
    sums |= origins.save(files)
    return record_part(folder, job.name, sums["documents"], sums)


def _batches(
    corpus: CorpusConfig, types: Types, job: PartJob, rejected: RejectedWriter
) -> Iterator[tuple[list[int], list[Document]]]:
    """Documents, some at a time, each with the number of its slice."""
    pieces: list[int] = []
    documents: list[Document] = []
    characters = 0
    for piece, document in _documents(corpus, types, job, rejected):
        pieces.append(piece)
        documents.append(document)
        characters += len(document.text)
        if len(documents) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield pieces, documents
            pieces, documents, characters = [], [], 0
    if documents:
        yield pieces, documents


def _documents(
    corpus: CorpusConfig, types: Types, job: PartJob, rejected: RejectedWriter
) -> Iterator[tuple[int, Document]]:
    for piece, part in enumerate(job.pieces, job.first_piece):
        for row in read_slice(corpus, part):
            if isinstance(row, Rejection):
                rejected.add(row)
            elif types and (reason := misfit(row.metadata, types)):
                rejected.add(Rejection(row.file, row.position, f"metadata of another type: {reason}"))
            else:
                yield piece, row


class _Origins:
    def __init__(self) -> None:
        self._rows = 0
        self._keys: list[np.ndarray] = []
        self._origins: list[np.ndarray] = []

    def add(self, pieces: Sequence[int], documents: Sequence[Document], cut: np.ndarray) -> None:
        hashes = _hashes(document.id for document in documents)
        origins = np.empty(len(documents), ORIGIN)
        origins["check"] = hashes[:, 1]
        origins["row"] = np.arange(self._rows, self._rows + len(documents))
        origins["piece"] = pieces
        origins["position"] = [document.position for document in documents]
        origins["bytes"] = [len(document.text.encode()) for document in documents]
        origins["cut"] = cut
        self._rows += len(documents)
        self._keys.append(hashes[:, 0])
        self._origins.append(origins)

    def save(self, files: PartFiles) -> dict[str, int]:
        """Write keys and origins; the sums over them."""
        keys = np.concatenate([np.empty(0, np.uint64), *self._keys])
        origins = np.concatenate([np.empty(0, ORIGIN), *self._origins])
        order = np.argsort(keys, kind="stable")
        for path, values in ((files.keys, keys[order]), (files.origins, origins[order])):
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, values)
        return {
            "documents": len(origins),
            "bytes": int(origins["bytes"].sum()),
            "truncated": int(origins["cut"].sum()),
        }


def _hashes(ids: Iterable[str]) -> np.ndarray:
    """128 bits of each id's hash, (N, 2) uint64: equal for equal ids, and for no two others that will ever meet."""
    digests: list[Any] = [hashlib.blake2b(item.encode(), digest_size=16).digest() for item in ids]
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
