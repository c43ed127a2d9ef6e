"""What an objective gives training. Shapes: B documents, S samples, G groups of the KL."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Loss:
    """The scalar that is minimised, and what it is made of: all in nats, means over documents.

    `rate` is the true KL, without weight or threshold; `beta` is the weight that it had.
    """

    total: Tensor
    distortion: Tensor
    rate: Tensor
    beta: float
