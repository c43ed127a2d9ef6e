"""What deduplication found, open for reading: what to keep, what not and why, and the same for a stricter threshold."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.artifact import Artifact
from pipelines.deduplication.links import Links, ends_of, level_of, links_of
from pipelines.deduplication.near_pairs import as_words, distances
from pipelines.indexing.code_files import packed_bytes
from vae_core.errors import Misuse

Rows = NDArray[np.int64]


class Duplicate(NamedTuple):
    """A document that is not kept, and why: `near_id` is what it is a near duplicate of.

    That is the kept document, or one of a chain that leads to it. `distance` are the bits in which the code differs
    from the kept one's; `near_distance` and `near_jaccard` say how near `near_id` is, the latter None without texts.
    """

    id: str
    kept_id: str
    distance: int
    near_id: str
    near_distance: int
    near_jaccard: float | None


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """A row for each document, in the order of the codes; `facts` are the artifact's statistics."""

    table: pa.Table
    facts: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> "NearDuplicates":
        """The duplicates artifact at `path`. Raises Misuse, Unfinished or Damaged."""
        artifact = Artifact.open(path, "duplicates")
        table = pa.concat_tables([pq.read_table(part) for part in artifact.files(".parquet")])
        return cls(table, artifact.manifest.statistics)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def selected(self) -> list[str]:
        """The ids of the documents to keep."""
        return list(self.table.filter(self.table["keep"])["id"].to_pylist())

    @property
    def duplicates(self) -> list[Duplicate]:
        """The documents not to keep, each with its reason."""
        return list(_duplicates(self._dropped))

    @property
    def selected_with_duplicates(self) -> dict[str, list[Duplicate]]:
        """Each document that has duplicates, with these; with `against`, its documents too."""
        found: dict[str, list[Duplicate]] = {}
        for duplicate in _duplicates(self._dropped):
            found.setdefault(duplicate.kept_id, []).append(duplicate)
        return found

    @property
    def duplicate_ratio(self) -> float:
        """The share of documents that are not kept."""
        return len(self._dropped) / max(1, len(self))

    @property
    def exact_duplicate_ratio(self) -> float:
        """The share of documents that are not kept and have the code, and as far as is known the words, of another."""
        alike = pc.and_(
            pc.equal(self._dropped["near_distance"], 0), pc.equal(pc.fill_null(self._dropped["near_jaccard"], 1.0), 1.0)
        )
        return (pc.sum(alike).as_py() or 0) / max(1, len(self))

    def least_similar(self, count: int = 10) -> list[Duplicate]:
        """The duplicates that are least near to what they are a duplicate of: where a threshold is best judged."""
        by = [("near_jaccard", "ascending"), ("near_distance", "descending")]
        if not self.facts["confirmed_by_text"]:
            by.reverse()
        return list(_duplicates(self._dropped.sort_by(by).slice(0, count)))

    def rethreshold(self, *, radius: int | None = None, jaccard: float | None = None) -> "NearDuplicates":
        """The same for a smaller radius or, where texts confirmed the pairs, a higher Jaccard similarity.

        Exact, without a new run: the links are a minimum spanning forest, so those that are left connect what all
        pairs that are left would. Raises Misuse for a threshold that is wider, or not the one that decided.
        """
        confirmed = bool(self.facts["confirmed_by_text"])
        bound = _bound(self.facts, radius, jaccard)
        dropped = np.flatnonzero(~self.table["keep"].to_numpy())
        near = self.table["near_row"].take(dropped)
        apart = self.table["near_distance"].take(dropped).to_numpy()
        similar = self.table["near_jaccard"].take(dropped).to_numpy()
        levels = level_of(similar) if confirmed else apart
        # Unit 0 stands for all documents of the other collection.
        others = pc.fill_null(near, -1).to_numpy() + 1
        forest = links_of(others, dropped + 1, levels, apart, similar)
        links = Links(len(self) + 1, 1, [bound], forest[levels <= bound])
        changes = {"radius": self.facts["radius"] if confirmed else bound, "jaccard": jaccard or self.facts["jaccard"]}
        return _linked(self.table, links, self.facts | changes)

    def to_pandas(self) -> Any:
        """The table as a pandas data frame."""
        return self.table.to_pandas()

    @cached_property
    def _dropped(self) -> pa.Table:
        return self.table.filter(pc.invert(self.table["keep"]))


def _bound(facts: dict[str, Any], radius: int | None, jaccard: float | None) -> int:
    """The highest level of links that stay."""
    confirmed = facts["confirmed_by_text"]
    if (radius is None) == (jaccard is None) or (jaccard is None) == confirmed:
        name = "jaccard" if confirmed else "radius"
        raise Misuse(f"these duplicates were decided by {name}; give {name}= a stricter value than {facts[name]}")
    if (radius is not None and radius > facts["radius"]) or (jaccard is not None and jaccard < facts["jaccard"]):
        raise Misuse(
            f"pairs beyond radius {facts['radius']} and Jaccard {facts['jaccard']} were not kept; run dedup again"
        )
    return int(level_of(jaccard)) if jaccard is not None else int(radius or 0)


def _linked(table: pa.Table, links: Links, facts: dict[str, Any]) -> NearDuplicates:
    all_parents, all_edges, all_ends = links.parents()
    parents, edges, ends = all_parents[1:], all_edges[1:], all_ends[1:]
    rows = np.arange(len(table))
    dropped, outside = parents - 1 != rows, ends == 0
    near_id = _chosen(table, parents == 0, "near_id", parents - 1)
    # The last of a chain that leads outside is the one whose own link does.
    last = ends_of(np.where(parents == 0, rows, parents - 1))
    kept_id = pc.if_else(pa.array(outside), near_id.take(last), table["id"].take(np.where(outside, rows, ends - 1)))
    words = as_words(np.concatenate([packed_bytes(chunk) for chunk in table["code"].chunks]))
    apart = np.where(outside, table["distance"].to_numpy(), distances(words, rows, np.where(outside, rows, ends - 1)))
    numbers = kept_id.combine_chunks().dictionary_encode().indices.to_numpy()
    clusters = np.unique(np.where(outside, len(rows) + 1 + numbers, ends), return_inverse=True)[1]
    similar = np.where(np.isnan(edges["jaccard"]) | ~dropped, np.nan, edges["jaccard"])
    new = {
        "id": table["id"],
        "keep": pa.array(~dropped),
        "cluster": pa.array(clusters),
        "kept_id": kept_id,
        "distance": pa.array(apart, pa.int32()),
        "near_id": pc.if_else(pa.array(dropped), near_id, None),
        "near_distance": pa.array(edges["distance"], pa.int32(), mask=~dropped),
        "near_jaccard": pa.array(similar, pa.float32(), mask=np.isnan(similar)),
        "near_row": pa.array(parents - 1, pa.int64(), mask=~dropped | (parents == 0)),
        "code": table["code"],
    }
    counts = {"kept": int((~dropped).sum()), "dropped": int(dropped.sum())}
    return NearDuplicates(pa.table(new), facts | counts | {"clusters": len(np.unique(clusters[dropped]))})


def _chosen(table: pa.Table, own: NDArray[np.bool_], name: str, others: Rows) -> pa.ChunkedArray:
    """Column `name` where `own` is set, and elsewhere the id of the document at `others`."""
    return pc.if_else(pa.array(own), table[name], table["id"].take(np.maximum(others, 0)))


def _duplicates(table: pa.Table) -> Iterator[Duplicate]:
    columns = [table[name] for name in Duplicate._fields]
    for row in zip(*(column.to_pylist() for column in columns), strict=True):
        yield Duplicate(*row)
