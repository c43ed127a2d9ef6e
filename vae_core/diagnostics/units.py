"""Which units of z carry anything (Burda et al. 2016, appendix C). Shapes: B documents, U units, G groups of the KL."""

import torch
from torch import Tensor

ACTIVE_VARIANCE = 0.01
"""A unit is active where the variance over documents of E_q[z_i] is above this."""
ACTIVE_NATS = 0.01
"""By the other count, a group is active where its mean KL is above this."""


class UnitVariance:
    """Variance of each unit's posterior mean over documents that come batch by batch (Chan et al. 1979)."""

    def __init__(self, units: int) -> None:
        self.documents = 0
        self._mean_U = torch.zeros(units, dtype=torch.float64)
        self._squares_U = torch.zeros(units, dtype=torch.float64)

    def update(self, means_BU: Tensor) -> None:
        """Take in the posterior means of a batch."""
        if len(means_BU):
            means_BU = means_BU.double()
            mean_U = means_BU.mean(dim=0)
            self._add(len(means_BU), mean_U, (means_BU - mean_U).square().sum(dim=0))

    def merge(self, other: "UnitVariance") -> None:
        """Take in what `other` was given."""
        if other.documents:
            self._add(other.documents, other._mean_U, other._squares_U)

    @property
    def variances(self) -> Tensor:
        """Unbiased, (U,). Raises ValueError for fewer than two documents."""
        if self.documents < 2:
            raise ValueError(f"a variance over documents needs two or more, got {self.documents}")
        return self._squares_U / (self.documents - 1)

    @property
    def active(self) -> int:
        """How many units are active."""
        return int((self.variances > ACTIVE_VARIANCE).sum())

    def _add(self, documents: int, mean_U: Tensor, squares_U: Tensor) -> None:
        total = self.documents + documents
        apart_U = mean_U - self._mean_U
        self._squares_U = self._squares_U + squares_U + apart_U.square() * (self.documents * documents / total)
        self._mean_U = self._mean_U + apart_U * (documents / total)
        self.documents = total


def active_by_kl(mean_kl_G: Tensor) -> int:
    """How many groups have a mean KL above ACTIVE_NATS."""
    return int((mean_kl_G > ACTIVE_NATS).sum())
