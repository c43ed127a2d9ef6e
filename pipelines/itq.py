"""Iterative quantisation (Gong & Lazebnik 2011): the rotation after which signs say most of a vector.

Shapes: N vectors, D dimensions, K bits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import svd

from vae_core.codes import PackedCodes

ITERATIONS = 50
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
    """The rotation of the vectors' `bits` principal directions that brings them nearest to their signs.

    Vectors of fewer dimensions than bits are turned within the space of the bits.
    """
    mean_D = vectors_ND.mean(axis=0, dtype=np.float64)
    centred_ND = vectors_ND - mean_D
    directions_DP = _principal(centred_ND, bits)
    placed_NK = np.zeros((len(centred_ND), bits), np.float32)
    placed_NK[:, : directions_DP.shape[1]] = centred_ND @ directions_DP
    turn_PK = _rotated(placed_NK, seed)[: directions_DP.shape[1]]
    return Rotation(mean_D.astype(np.float32), (directions_DP @ turn_PK).astype(np.float32))


def _rotated(placed_NK: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """The rotation R for which |sign(VR) - VR| is least, found by turns of signs and R (their section 3.1)."""
    bits = placed_NK.shape[1]
    turn_KK = np.linalg.qr(np.random.default_rng(seed).standard_normal((bits, bits)))[0]
    for _ in range(ITERATIONS):
        signs_NK = np.where(placed_NK @ turn_KK.astype(np.float32) > 0, np.float32(1), np.float32(-1))
        left_KK, _, right_KK = svd((placed_NK.T @ signs_NK).astype(np.float64))
        turn_KK = left_KK @ right_KK
    return turn_KK


def _principal(centred_ND: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """The directions of the largest variance, (D, at most `most`); all of them where there are no more."""
    directions_DD = np.linalg.eigh(centred_ND.T @ centred_ND)[1]
    return directions_DD[:, ::-1][:, :most]
