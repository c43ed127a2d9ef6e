"""Arrow files, mapped and read batch by batch."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from vae_core.errors import Damaged


def record_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The record batches of a memory-mapped Arrow file. Raises Damaged where it cannot be read."""
    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        for number in range(file.num_record_batches):
            yield file.get_batch(number)
    except (OSError, pa.ArrowInvalid) as error:
        raise Damaged(f"{path} is not a readable Arrow file: {error}; run its stage with --overwrite") from error
