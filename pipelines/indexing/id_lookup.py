"""From a document's id to its row: 8 bytes a document, mapped, and no id is read but the one asked for."""

from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa

from pipelines.files.npy import read_npy
from vae_core.errors import Damaged


def digests(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """CRC-32 of each id's UTF-8 bytes, (n,) uint32."""
    return np.fromiter(map(crc32, ids.cast(pa.binary()).to_pylist()), np.uint32, len(ids))


def write_lookup(path: Path, digests_N: np.ndarray) -> None:
    """Write the ids' digests in ascending order beside their rows, as a .npy file of (2, N) uint32."""
    rows = np.arange(len(digests_N), dtype=np.uint64)
    keys = np.sort(digests_N.astype(np.uint64) << np.uint64(32) | rows)
    table = np.stack([(keys >> np.uint64(32)).astype(np.uint32), keys.astype(np.uint32)])
    with path.open("wb") as file:
        np.save(file, table)


class IdLookup:
    """The rows of a segment by id. `ids_of` gives the ids of some rows, as the segment holds them."""

    def __init__(self, path: Path, ids_of: Callable[[np.ndarray], pa.ChunkedArray]) -> None:
        try:
            self.digests, self.rows = read_npy(path, mapped=True)
        except (OSError, ValueError) as error:
            raise Damaged(f"{path} cannot be read as .npy ({error}); run index with --overwrite") from error
        self.ids_of = ids_of

    def find(self, ids: pa.Array, digests_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places in `ids` (n,) of those that are here, ascending, and the row of each; an id may have several rows."""
        order = np.argsort(digests_n)
        sought = digests_n[order]
        low = np.searchsorted(self.digests, sought, side="left")
        counts = np.searchsorted(self.digests, sought, side="right") - low
        places = np.repeat(order, counts)
        steps = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = self.rows[np.repeat(low, counts) + steps].astype(np.int64)
        if not len(rows):
            return places, rows
        same = pa.compute.equal(self.ids_of(rows), ids.take(pa.array(places)))
        good = np.asarray(same.to_numpy(zero_copy_only=False), bool)
        places, rows = places[good], rows[good]
        sorted_places = np.lexsort((rows, places))
        return places[sorted_places], rows[sorted_places]

    def shared(self, other: "IdLookup") -> np.ndarray:
        """Rows of this segment whose ids are in the other one too."""
        if not len(self.digests) or not len(other.digests):
            return np.empty(0, np.int64)
        places = np.minimum(np.searchsorted(self.digests, other.digests), len(self.digests) - 1)
        alike = np.flatnonzero(self.digests[places] == other.digests)
        if not len(alike):
            return np.empty(0, np.int64)
        ids = other.ids_of(other.rows[alike].astype(np.int64)).combine_chunks()
        return self.find(ids, other.digests[alike])[1]
