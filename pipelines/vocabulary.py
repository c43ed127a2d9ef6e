"""The words a bag of words counts, and how often they occur. Shapes: N documents, P pairs of a document and a term."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.artifact import replacing
from vae_core.errors import Damaged, Misuse

VOCABULARY = "vocabulary.parquet"
WORD = re.compile(r"\w\w+")
MOST_COUNTED = 65_535


def words(text: str) -> list[str]:
    """The lower-cased words of at least two word characters, in order."""
    return WORD.findall(text.lower())


class TermCounts(NamedTuple):
    """Document n has terms `ids[offsets[n]:offsets[n + 1]]`, ascending, each so many times."""

    ids: np.ndarray
    """(P,) uint32"""
    counts: np.ndarray
    """(P,) uint16, at most MOST_COUNTED"""
    offsets: np.ndarray
    """(N + 1,) int32"""


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """Terms by descending document frequency, then by name; a term's place is its id."""

    ids: Mapping[str, int]
    df: np.ndarray
    """(V,) uint32: in how many of `documents` each term occurs."""
    documents: int

    @classmethod
    def of(cls, df: Mapping[str, int], documents: int) -> Self:
        """The vocabulary of all these terms."""
        ordered = sorted(df, key=lambda term: (-df[term], term))
        return cls(
            {term: row for row, term in enumerate(ordered)},
            np.fromiter((df[term] for term in ordered), np.uint32, len(ordered)),
            documents,
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `vocabulary.parquet`. Raises Misuse where there is none and Damaged where it cannot be read."""
        path = folder / VOCABULARY
        if not path.is_file():
            raise Misuse(f"{folder} has no {VOCABULARY}; give the folder of a model or of shards")
        try:
            table = pq.read_table(path)
            terms, df = table["term"].to_pylist(), table["df"].to_numpy()
            documents = int(table.schema.metadata[b"documents"])
        except (pa.ArrowException, OSError, KeyError, TypeError) as error:
            raise Damaged(f"{path} is not a vocabulary of term and df: {error}; run the stage that wrote it") from error
        return cls({term: row for row, term in enumerate(terms)}, df, documents)

    def save(self, folder: Path) -> None:
        """Write `vocabulary.parquet`, readable by any parquet reader."""
        metadata = {b"documents": str(self.documents).encode()}
        schema = pa.schema([("term", pa.string()), ("df", pa.uint32())], metadata=metadata)
        with replacing(folder / VOCABULARY) as temporary:
            pq.write_table(pa.table([list(self.ids), self.df], schema=schema), temporary)

    def __len__(self) -> int:
        return len(self.ids)

    def count(self, texts: Sequence[str]) -> TermCounts:
        """The texts' terms; words that are not in the vocabulary are left out."""
        found = [words(text) for text in texts]
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        lookup = map(self.ids.get, chain.from_iterable(found), repeat(-1))
        terms = np.fromiter(lookup, np.int64, int(lengths.sum()))
        # Document and term in one number, so that one sort counts the whole batch.
        pairs = (np.repeat(np.arange(len(found)), lengths) << 32 | terms)[terms >= 0]
        distinct, counts = np.unique(pairs, return_counts=True)
        offsets = np.searchsorted(distinct, np.arange(len(found) + 1) << 32)
        return TermCounts(
            (distinct & 0xFFFFFFFF).astype(np.uint32),
            np.minimum(counts, MOST_COUNTED).astype(np.uint16),
            offsets.astype(np.int32),
        )


def select(df: Counter[str], documents: int, size: int, min_documents: int, max_share: float) -> Vocabulary:
    """The `size` terms in most documents, of those in at least `min_documents` and at most a share `max_share`.

    A corpus too small for these bounds gives up the upper one first, then the lower one. Empty only without words.
    """
    for least, most in ((min_documents, max_share * documents), (min_documents, documents), (1, documents)):
        kept = {term: count for term, count in df.items() if least <= count <= most}
        if kept:
            break
    else:
        kept = {}
    ranked = sorted(kept, key=lambda term: (-kept[term], term))[:size]
    return Vocabulary.of({term: kept[term] for term in ranked}, documents)
