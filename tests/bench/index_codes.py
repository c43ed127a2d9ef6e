"""Codes artifacts of any size, without texts: ids of 16 characters, clustered or random codes, a field to filter by."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.artifact import Artifact, Draft, Plan, begin, record_part

PART = 500_000
CENTRES, FLIPPED = 4000, 0.15
"""Half of the codes are a centre's with this share of the bits flipped, as codes of documents are; half are random."""


def write_codes(folder: Path, documents: int, bits: int = 128, seed: int = 0, first: int = 0) -> Artifact:
    """Documents called by their number in hexadecimal, from `first` on, with a metadata field `year` of 0 to 99."""
    facts = {"bits": str(bits), "bit_order": "little", "model": "bench", "source": "random"}
    settings = {"documents": documents, "bits": bits, "seed": seed, "first": first}
    draft = begin(folder, Plan(kind="codes", config=settings, inputs=()))
    assert isinstance(draft, Draft)
    parts, dice = [], np.random.default_rng(seed)
    for number, start in enumerate(range(0, documents, PART)):
        count = min(PART, documents - start)
        columns = {
            "id": ids(np.arange(first + start, first + start + count)),
            "code": packed(random_codes(count, bits, dice)),
            "component": pa.array(np.zeros(count, np.uint16)),
            "confidence": pa.array(np.full(count, 0.75, np.float32)),
            "metadata": pa.StructArray.from_arrays(
                [pa.array(dice.integers(0, 100, count, dtype=np.int16))], names=["year"]
            ),
        }
        pq.write_table(pa.table(columns).replace_schema_metadata(facts), draft.path / f"part-{number:05d}.parquet")
        parts.append(record_part(draft.path, f"part-{number:05d}.parquet", count))
    return draft.finish(parts, {"documents": documents, "bits": bits})


def random_codes(count: int, bits: int, dice: np.random.Generator) -> np.ndarray:
    """Packed codes, (count, bits / 8) uint8."""
    codes = dice.integers(0, 256, (count, bits // 8), dtype=np.uint8)
    some = np.flatnonzero(dice.random(count) < 0.5)
    codes[some] = clustered_codes(len(some), bits, dice)
    return codes


def clustered_codes(count: int, bits: int, dice: np.random.Generator) -> np.ndarray:
    """Packed codes, (count, bits / 8) uint8, each a centre's with flipped bits."""
    centres = np.random.default_rng(7).integers(0, 256, (CENTRES, bits // 8), dtype=np.uint8)
    flips = np.packbits(dice.random((count, bits), dtype=np.float32) < FLIPPED, axis=1, bitorder="little")
    return centres[dice.integers(0, CENTRES, count)] ^ flips


def random_queries(count: int, bits: int, seed: int = 1) -> np.ndarray:
    """Log-odds of codes like these, some bits surer than others, (count, bits) float32."""
    dice = np.random.default_rng(seed)
    ones = np.unpackbits(random_codes(count, bits, dice), axis=1, bitorder="little")[:, :bits].astype(np.float32)
    sure = np.abs(dice.normal(scale=4.0, size=(count, bits))).astype(np.float32)
    return (2 * ones - 1) * sure


def ids(numbers: np.ndarray) -> pa.Array:
    """The numbers in 16 hexadecimal digits each."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    shifts = np.arange(60, -4, -4, dtype=np.uint64)
    text = digits[((numbers.astype(np.uint64)[:, None] >> shifts) & np.uint64(15)).astype(np.uint8)]
    offsets = pa.py_buffer(np.arange(0, 16 * len(numbers) + 1, 16, dtype=np.int32))
    return pa.StringArray.from_buffers(len(numbers), offsets, pa.py_buffer(np.ascontiguousarray(text)))


def packed(codes: np.ndarray) -> pa.Array:
    """Packed codes as a column."""
    width = codes.shape[1]
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(codes), [None, pa.py_buffer(np.ascontiguousarray(codes))]
    )
