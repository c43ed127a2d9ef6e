"""Arrays on disk, read by many threads at once."""

import gc
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipelines.files.npy import read_npy


class Garbage:
    """Something that only the collector finds, that lets other threads run when it is found, and leaves another one."""

    more = True

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        time.sleep(0)
        if self.more:
            Garbage()


@pytest.fixture
def eager_collector() -> Iterator[None]:
    thresholds = gc.get_threshold()
    gc.set_threshold(5)
    Garbage()
    yield
    Garbage.more = False
    gc.set_threshold(*thresholds)
    gc.collect()
    Garbage.more = True


@pytest.mark.usefixtures("eager_collector")
@pytest.mark.parametrize("mapped", [False, True])
def test_many_threads_read_at_once(tmp_path: Path, mapped: bool) -> None:
    """Without taking turns some of these reads fail in CPython 3.11: NumPy reads a header by its syntax tree."""
    path = tmp_path / "rows.npy"
    np.save(path, np.arange(3, dtype=np.uint32))
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: int(read_npy(path, mapped=mapped).sum()), range(500))) == [3] * 500
