"""The layer that reads a posterior's parameters off the features, in single precision or better."""

import torch
from torch import Tensor, nn


class Head(nn.Linear):
    """A linear layer whose result is no shorter than float32, under autocast or with weights in bfloat16 too.

    A KL is a difference of large numbers, and log-odds of eight bits make nonsense of it.
    """

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            values = super().forward(features.to(self.weight.dtype))
        return values.to(torch.promote_types(values.dtype, torch.float32))
