"""Read .npy files from any thread."""

from pathlib import Path
from threading import Lock

import numpy as np

_HEADERS = Lock()


def read_npy(path: Path, *, mapped: bool = False) -> np.ndarray:
    """The array in the file, mapped or in memory. Raises OSError or ValueError.

    Threads take turns: NumPy parses the header by `ast`, which fails now and then in CPython 3.11 where two do so at
    once (SystemError: AST constructor recursion depth mismatch).
    """
    with _HEADERS:
        array: np.ndarray = np.load(path, mmap_mode="r" if mapped else None)
    return array
