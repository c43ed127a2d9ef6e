"""Packed binary codes and the two ways to rank them. Shapes: N codes, Q queries, K bits, C = K/8 bytes."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import softplus

MAX_LOG_ODDS = 10.0
"""Log-odds are clamped to this before ranking, so that one saturated bit does not outweigh all others."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedCodes:
    """N codes of K bits in little bit order: bit i of a code is bit i mod 8 of its byte i div 8 (uint8, (N, K/8))."""

    bytes_NC: Tensor

    def __post_init__(self) -> None:
        if self.bytes_NC.ndim != 2 or self.bytes_NC.dtype != torch.uint8:
            raise ValueError(
                f"packed codes must be (codes, bits / 8) uint8, got {tuple(self.bytes_NC.shape)} {self.bytes_NC.dtype}"
            )

    @classmethod
    def pack(cls, bits_NK: Tensor) -> Self:
        """Pack (N, K) bool. Raises ValueError for another type or a K that is not a multiple of 8."""
        if bits_NK.ndim != 2 or bits_NK.dtype != torch.bool:
            raise ValueError(f"bits must be (codes, bits) bool, got {tuple(bits_NK.shape)} {bits_NK.dtype}")
        if bits_NK.shape[1] % 8 or bits_NK.shape[1] == 0:
            raise ValueError(f"the number of bits must be a positive multiple of 8, got {bits_NK.shape[1]}")
        weights = 2 ** torch.arange(8, device=bits_NK.device)
        grouped = bits_NK.unflatten(1, (-1, 8))
        return cls((grouped * weights).sum(dim=-1).to(torch.uint8))

    @property
    def bits(self) -> int:
        return 8 * self.bytes_NC.shape[1]

    def __len__(self) -> int:
        return len(self.bytes_NC)

    def __getitem__(self, rows: slice) -> "PackedCodes":
        return PackedCodes(self.bytes_NC[rows])

    def unpack(self) -> Tensor:
        """The bits, (N, K) bool."""
        shifts = torch.arange(8, dtype=torch.uint8, device=self.bytes_NC.device)
        return (self.bytes_NC.unsqueeze(-1) >> shifts & 1).flatten(1).bool()


def hamming(queries: PackedCodes, codes: PackedCodes) -> Tensor:
    """Number of differing bits, (Q, N) int64. Raises ValueError where the widths differ."""
    _require_same_bits(queries.bits, codes)
    ones_per_byte = PackedCodes(torch.arange(256, dtype=torch.uint8).unsqueeze(1)).unpack().sum(dim=1)
    differing = queries.bytes_NC.unsqueeze(1) ^ codes.bytes_NC
    return ones_per_byte.to(differing.device)[differing.long()].sum(dim=-1)


def log_odds_scores(log_odds_QK: Tensor, codes: PackedCodes) -> Tensor:
    """log q(code | query) in nats, (Q, N): sum_i b_i a_i - softplus(a_i) over the query's log-odds a.

    The code of a document is scored by its probability under the query's posterior, so that bits the query is sure
    of weigh more; with all |a_i| equal the order is Hamming's. Raises ValueError where the widths differ.
    """
    _require_same_bits(log_odds_QK.shape[1], codes)
    log_odds_QK = log_odds_QK.clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS)
    bits_NK = codes.unpack().to(log_odds_QK.dtype)
    return log_odds_QK @ bits_NK.T - softplus(log_odds_QK).sum(dim=1, keepdim=True)


def _require_same_bits(bits: int, codes: PackedCodes) -> None:
    if bits != codes.bits:
        raise ValueError(f"the queries have {bits} bits and the codes {codes.bits}: they come from different models")
