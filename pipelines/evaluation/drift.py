"""How far two sets of codes of the same documents are apart: after training again, or with other settings.

Shapes: n documents that are in both, K bits, S documents that are asked for their neighbours.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.artifact import Artifact
from pipelines.evaluation.code_sets import CodeSet, signs
from pipelines.evaluation.ranking import best, rank_keys, ranked
from pipelines.search import Index
from vae_core.errors import Misuse

ASKED = 500
"""Documents whose neighbours by both codes are compared."""
NEIGHBOURS = (10, 100)
AT_ONCE = 1 << 16
CELLS = 1 << 23


def drift(index: Index, other: Artifact, seed: int) -> dict[str, Any]:
    """How the codes in `other` differ from those in `index`, over the ids that are in both.

    flip_rates: for each bit the share of documents in which it differs, and mean_distance their sum; None where the
    codes have another number of bits. neighbours_kept_at_k: share of a document's k nearest, by Hamming distance and
    ties by row, that both codes agree on. Raises Misuse where they have no two ids in common.
    """
    ours, theirs = _aligned(index, other)
    if len(ours) < 2:
        raise Misuse(f"{other.path} has no two ids of {index.artifact.path}; give codes of the same documents")
    found: dict[str, Any] = {"documents": len(ours), "flip_rates": None, "mean_distance": None, "unchanged": None}
    if ours.shape[1] == theirs.shape[1]:
        flips_K = _flips(ours, theirs) / len(ours)
        same = float((ours == theirs).all(axis=1).mean())
        found |= {"flip_rates": flips_K.tolist(), "mean_distance": float(flips_K.sum()), "unchanged": same}
    chance = np.random.default_rng(seed)
    asked = np.sort(chance.choice(len(ours), min(ASKED, len(ours)), replace=False))
    places = min(max(NEIGHBOURS), len(ours) - 1)
    first, second = (_neighbours(codes, asked, places) for codes in (ours, theirs))
    for k in NEIGHBOURS:
        pairs = zip(first[:, :k], second[:, :k], strict=True)
        found[f"neighbours_kept_at_{k}"] = float(np.mean([np.isin(one, two).mean() for one, two in pairs]))
    return found


def _aligned(index: Index, other: Artifact) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The codes of the documents in both, in the index's order, (n, C) each."""
    table = pq.read_table(other.files(".parquet"), columns=["id", "code"])
    rows = pc.index_in(index.column("id"), value_set=table["id"].combine_chunks())
    rows = rows.combine_chunks() if isinstance(rows, pa.ChunkedArray) else rows
    shared = np.flatnonzero(pc.is_valid(rows).to_numpy(zero_copy_only=False))
    width = table.schema.field("code").type.byte_width
    theirs = np.concatenate([_bytes(chunk, width) for chunk in table["code"].chunks])
    return np.concatenate(index.codes())[shared], theirs[rows.drop_null().to_numpy()]


def _bytes(chunk: pa.FixedSizeBinaryArray, width: int) -> NDArray[np.uint8]:
    start = chunk.offset * width
    return np.frombuffer(chunk.buffers()[1], np.uint8)[start : start + len(chunk) * width].reshape(-1, width)


def _flips(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> NDArray[np.int64]:
    """In how many documents each bit differs, (K,)."""
    flips_K = np.zeros(8 * ours.shape[1], np.int64)
    for start in range(0, len(ours), AT_ONCE):
        differing = ours[start : start + AT_ONCE] ^ theirs[start : start + AT_ONCE]
        flips_K += np.unpackbits(differing, axis=1, bitorder="little").sum(axis=0, dtype=np.int64)
    return flips_K


def _neighbours(codes: NDArray[np.uint8], asked: NDArray[np.int64], places: int) -> NDArray[np.int64]:
    """Rows of the nearest documents of some, without themselves, (S, places)."""
    held, found = CodeSet(codes), []
    step = max(1, CELLS // len(codes))
    for start in range(0, len(asked), step):
        rows = asked[start : start + step]
        scores = held.scores(signs(codes[rows]))
        scores[np.arange(len(rows)), rows] = -np.inf
        found.append(ranked(best(rank_keys(scores), places)).rows)
    return np.concatenate(found)
