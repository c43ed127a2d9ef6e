"""Codes by iterative quantisation (vae_core.itq) of more vectors than are in memory at once.

Shapes: N vectors, D dimensions, K bits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vae_core.codes import PackedCodes
from vae_core.itq import itq

MOST_FITTED = 20_000
"""Vectors that a rotation is fitted to at most: it has D * K numbers, and the time grows with them."""


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """The vectors' mean (D,), and where each dimension goes (D, K)."""

    mean_D: NDArray[np.float32]
    turn_DK: NDArray[np.float32]

    def values(self, vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """The rotated vectors, (N, K): their signs are the bits, their sizes how sure these are."""
        return np.asarray((vectors_ND - self.mean_D) @ self.turn_DK, np.float32)

    def codes(self, vectors_ND: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The vectors' codes, (N, K / 8)."""
        return PackedCodes.pack(torch.from_numpy(self.values(vectors_ND) > 0)).bytes_NC.numpy()


def quantise(
    blocks: Callable[[], Iterator[NDArray[np.float32]]], documents: int, bits: int, seed: int = 0
) -> tuple[Rotation, NDArray[np.uint8]]:
    """A rotation fitted to at most MOST_FITTED of the vectors that `blocks` reads, and the codes of all, (N, K / 8)."""
    fitted = np.arange(documents)
    if documents > MOST_FITTED:
        fitted = np.sort(np.random.default_rng(seed).choice(documents, MOST_FITTED, replace=False))
    taken, start = [], 0
    for block in blocks():
        taken.append(block[fitted[(fitted >= start) & (fitted < start + len(block))] - start])
        start += len(block)
    rotation = fit_itq(np.concatenate(taken), bits, seed)
    return rotation, np.concatenate([rotation.codes(block) for block in blocks()])


def fit_itq(vectors_ND: NDArray[np.float32], bits: int, seed: int = 0) -> Rotation:
    """The rotation of vae_core.itq, from a random start."""
    start_KK = np.linalg.qr(np.random.default_rng(seed).standard_normal((bits, bits)))[0]
    rotation = itq(torch.from_numpy(vectors_ND), torch.from_numpy(start_KK))
    return Rotation(rotation.mean_D.numpy(), rotation.turn_DK.numpy())
