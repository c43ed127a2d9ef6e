"""LSI + ITQ, what learned codes are held against: K singular directions, unit length, the best rotation to signs."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pipelines.evaluation.itq import fit_itq
from pipelines.evaluation.references import unit_rows
from pipelines.lsi import fit_lsi
from tests.bench.peers.network import Encoder


def fit(train: csr_matrix, bits: int, seed: int = 0) -> Encoder:
    """The rotated coordinates; there is nothing to set."""
    vectors_VD, _ = fit_lsi(lambda: iter([train]), train.shape[1], bits, seed)
    rotation = fit_itq(unit_rows(train @ vectors_VD), bits, seed)

    def encode(rows: csr_matrix) -> NDArray[np.float32]:
        return rotation.values(unit_rows(rows @ vectors_VD))

    return encode
