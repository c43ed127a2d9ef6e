"""Which slices a part of the shards is made of, and what it leaves for the end of the stage. Shapes: N documents."""

from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from pipelines.artifact import UNFINISHED
from pipelines.corpus import Slice
from vae_core.config import Config

ORIGIN = np.dtype(
    [("check", "<u8"), ("row", "<u4"), ("piece", "<u4"), ("position", "<i8"), ("bytes", "<u8"), ("cut", "?")]
)
"""Where a row of a part came from, and what it adds to the statistics; `check` is the second half of its id's hash."""


class PartJob(Config):
    """Part `number`: these slices, the first of which is slice `first_piece` of the corpus."""

    number: int
    first_piece: int
    pieces: tuple[Slice, ...]

    @property
    def name(self) -> str:
        return f"part-{self.number:05d}.arrow"

    @property
    def bytes(self) -> int:
        return sum(piece.bytes for piece in self.pieces)


class PartFiles(NamedTuple):
    """What a part leaves in the draft's scratch folder until all parts are done."""

    keys: Path
    """First 64 bits of each id's hash, sorted, uint64 (N,)."""
    origins: Path
    """ORIGIN (N,), in the order of the keys."""
    rejected: Path

    @classmethod
    def of(cls, folder: Path, number: int) -> Self:
        scratch = folder / UNFINISHED
        return cls(
            scratch / f"keys-{number:05d}.npy",
            scratch / f"origins-{number:05d}.npy",
            scratch / f"rejected-{number:05d}.parquet",
        )
