"""What an evaluation asks with: documents of other files, or a sample of the database's own."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.corpus import CorpusConfig, Document, plan_slices, read_slice
from pipelines.progress import Progress
from pipelines.tokenizer import Tokenizer

DOCUMENTS_AT_ONCE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """Documents in the shard schema, and each one's own row in the database, (Q,), -1 where it has none."""

    table: pa.Table
    own: NDArray[np.int64]

    def __len__(self) -> int:
        return self.table.num_rows

    def batches(self, documents: int) -> Iterator["Queries"]:
        """The same, `documents` at a time."""
        for start in range(0, len(self), documents):
            yield Queries(self.table.slice(start, documents), self.own[start : start + documents])


def read_queries(
    corpus: CorpusConfig, tokenizer: Tokenizer, most: int, seed: int, *, labelled: bool, progress: Progress
) -> Queries:
    """The documents of `corpus`, only those with a label if `labelled`; of more than `most` a sample of that size.

    Rows that hold no document are passed over. The sample is Vitter's (1985, algorithm R), in the order of the files.
    """
    chance = np.random.default_rng(seed)
    kept: list[tuple[int, Document]] = []
    for seen, document in enumerate(_documents(corpus, labelled, progress)):
        if seen < most:
            kept.append((seen, document))
        elif (place := int(chance.integers(0, seen + 1))) < most:
            kept[place] = (seen, document)
    progress.finish()
    documents = [document for _, document in sorted(kept, key=lambda one: one[0])]
    starts = range(0, len(documents), DOCUMENTS_AT_ONCE)
    tables = [tokenizer.table(documents[start : start + DOCUMENTS_AT_ONCE]) for start in starts]
    table = pa.concat_tables(tables) if tables else tokenizer.table([])
    return Queries(table.combine_chunks(), np.full(len(documents), -1))


def _documents(corpus: CorpusConfig, labelled: bool, progress: Progress) -> Iterator[Document]:
    slices = plan_slices(corpus)
    progress.start("queries", sum(piece.bytes for piece in slices), "bytes")
    for piece in slices:
        for row in read_slice(corpus, piece):
            if isinstance(row, Document) and (row.labels or not labelled):
                yield row
        progress.advance(piece.bytes)
