"""Where candidates come from in an index that trades exactness for speed: FAISS's binary graphs, lists and hash tables.

What they propose is scored exactly, by log-odds or Hamming. Shapes: Q queries, N codes, C = K/8 bytes, F candidates.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, assert_never

import numpy as np
from pydantic import Field

from vae_core.config import Config
from vae_core.errors import Damaged

TRAINED_PER_LIST = 64
"""FAISS asks for at least 39 codes for each centre."""


class FlatConfig(Config):
    """Scan every code: exact, the smallest, and fast enough for millions."""

    kind: Literal["flat"] = "flat"


class HnswConfig(Config):
    """A graph of near codes (Malkov & Yashunin 2018), walked from one to nearer ones."""

    kind: Literal["hnsw"] = "hnsw"
    neighbours: int = Field(default=32, ge=2, description="links of a code")
    build: int = Field(default=80, ge=1, description="codes looked at for the links of a new one")
    look: int = Field(default=64, ge=1, description="codes kept in sight in a search")


class IvfConfig(Config):
    """Lists of codes by nearest centre, of which a search reads a few."""

    kind: Literal["ivf"] = "ivf"
    lists: int | None = Field(
        default=None, ge=1, description="null: four times the root of the documents; at least 64 codes each"
    )
    probes: int = Field(default=16, ge=1, description="lists read in a search")


class MultiHashConfig(Config):
    """Hash tables over groups of bits; a search opens the buckets of its own bits and of a few flipped ones."""

    kind: Literal["multihash"] = "multihash"
    tables: int = Field(default=4, ge=1, description="hash tables")
    bits: int = Field(default=16, ge=1, le=32, description="bits that each table hashes")
    flips: int = Field(default=1, ge=0, description="bits that a search may have flipped")


ApproximateConfig = HnswConfig | IvfConfig | MultiHashConfig
CandidatesConfig = Annotated[FlatConfig | HnswConfig | IvfConfig | MultiHashConfig, Field(discriminator="kind")]


class Approximate:
    """A structure of FAISS over the codes of a segment."""

    def __init__(self, structure: Any) -> None:
        self.structure = structure

    @classmethod
    def build(cls, config: ApproximateConfig, codes: np.ndarray) -> "Approximate":
        """The structure that `config` describes over packed codes (N, C)."""
        structure = _empty(config, codes)
        structure.add(np.ascontiguousarray(codes))
        return cls(structure)

    @classmethod
    def open(cls, path: Path) -> "Approximate":
        """The structure in a file. Raises Damaged."""
        import faiss

        try:
            return cls(faiss.read_index_binary(str(path)))
        except RuntimeError as error:
            reason = str(error).splitlines()[-1]
            raise Damaged(f"{path} cannot be read ({reason}); make it anew with `latentbits index repair`") from error

    def write(self, path: Path) -> None:
        """Write the structure to a file."""
        import faiss

        faiss.write_index_binary(self.structure, str(path))

    def look_like(self, config: ApproximateConfig) -> None:
        """Search as `config` says from now on; how the structure was built stays."""
        match config:
            case HnswConfig():
                self.structure.hnsw.efSearch = config.look
            case IvfConfig():
                self.structure.nprobe = config.probes
            case MultiHashConfig():
                self.structure.nflip = config.flips
            case _:
                assert_never(config)

    @property
    def bytes(self) -> int:
        """Bytes that it takes on the disk."""
        import faiss

        return len(faiss.serialize_index_binary(self.structure))

    def propose(self, packed: np.ndarray, count: int) -> np.ndarray:
        """Rows that are likely the nearest to packed codes (Q, C), (Q, count) int64; -1 where there is none."""
        count = min(count, int(self.structure.ntotal))
        rows: np.ndarray = self.structure.search(np.ascontiguousarray(packed), count)[1]
        return rows


def _empty(config: ApproximateConfig, codes: np.ndarray) -> Any:
    import faiss

    bits = 8 * codes.shape[1]
    match config:
        case HnswConfig():
            graph = faiss.IndexBinaryHNSW(bits, config.neighbours)
            graph.hnsw.efConstruction, graph.hnsw.efSearch = config.build, config.look
            return graph
        case IvfConfig():
            lists = min(config.lists or int(4 * len(codes) ** 0.5), max(1, len(codes) // TRAINED_PER_LIST))
            centres: Any = faiss.IndexBinaryFlat(bits)
            by_centre = faiss.IndexBinaryIVF(centres, bits, lists)
            by_centre.own_fields, by_centre.nprobe = True, config.probes
            centres.this.disown()
            some = np.linspace(0, max(0, len(codes) - 1), min(len(codes), TRAINED_PER_LIST * lists)).astype(np.int64)
            by_centre.train(np.ascontiguousarray(codes[some]))
            return by_centre
        case MultiHashConfig():
            hashed = min(config.bits, bits)
            tables = faiss.IndexBinaryMultiHash(bits, max(1, min(config.tables, bits // hashed)), hashed)
            tables.nflip = config.flips
            return tables
        case _:
            assert_never(config)
