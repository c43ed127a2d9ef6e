"""Code health: how well N codes use their K bits. Shapes: N codes, K bits, W = K/64 words rounded up, D distinct codes.

Every figure comes from sums that add up over shards: the bits' sums and products, how often each code occurs, how
often each component does. Sums are whole numbers, so that shards merged in any order give exactly the same figures.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vae_core.codes import PackedCodes

EXACT_ROWS = 1 << 16
"""Rows a product of bits is taken over at a time: float32 counts exactly up to 2**24, and is fast."""
ACTIVE = 0.01
"""A bit is active where more than this share of the codes has a one in it, and more than this share a zero."""


@dataclass(frozen=True, slots=True, eq=False)
class _Counted:
    """Distinct codes as rows of whole words, in ascending order, with how often each occurs."""

    words_DW: Tensor
    counts_D: Tensor

    @classmethod
    def of(cls, words: Tensor, counts: Tensor) -> "_Counted":
        order = torch.arange(len(words))
        for word in reversed(range(words.shape[1])):
            order = order[torch.sort(words[order, word], stable=True).indices]
        words, counts = words[order], counts[order]
        first = torch.ones(len(words), dtype=torch.bool)
        first[1:] = (words[1:] != words[:-1]).any(dim=1)
        totals = torch.zeros(int(first.sum()), dtype=torch.int64)
        return cls(words[first], totals.index_add_(0, first.cumsum(0) - 1, counts))


class CodeHealth:
    """Sums over codes of `bits` bits, given shard by shard; `components` is how many the model has, where known."""

    def __init__(self, bits: int, components: int | None = None) -> None:
        self.bits = bits
        self.components = components
        self.documents = 0
        self._ones_K = torch.zeros(bits, dtype=torch.int64)
        self._products_KK = torch.zeros(bits, bits, dtype=torch.int64)
        self._component_counts = torch.zeros(components or 0, dtype=torch.int64)
        self._confidence = 0.0
        self._confident_documents = 0
        self._counted = _Counted(torch.empty(0, -(-bits // 64), dtype=torch.int64), torch.empty(0, dtype=torch.int64))
        self._pending: list[_Counted] = []

    def update(self, codes: PackedCodes, components: Tensor, confidence: Tensor | None = None) -> None:
        """Count N codes with their components (N,) and, where known, confidences (N,).

        Raises ValueError for other bits, another number of components, or a component the model does not have.
        """
        self._require_fitting(codes, components)
        self.documents += len(codes)
        for start in range(0, len(codes), EXACT_ROWS):
            bits_NK = codes[start : start + EXACT_ROWS].unpack().float()
            self._ones_K += bits_NK.sum(dim=0).long()
            self._products_KK += (bits_NK.T @ bits_NK).long()
        self._component_counts = _added(
            self._component_counts, torch.bincount(components.long(), minlength=len(self._component_counts))
        )
        if confidence is not None:
            self._confidence += float(confidence.double().sum())
            self._confident_documents += len(confidence)
        self._count(_Counted(_words(codes), torch.ones(len(codes), dtype=torch.int64)))

    def merge(self, other: "CodeHealth") -> None:
        """Add what `other` counted. Raises ValueError for other bits."""
        if other.bits != self.bits:
            raise ValueError(f"code health over {self.bits} bits cannot take in one over {other.bits} bits")
        self.documents += other.documents
        self._ones_K += other._ones_K
        self._products_KK += other._products_KK
        self._component_counts = _added(self._component_counts, other._component_counts)
        self._confidence += other._confidence
        self._confident_documents += other._confident_documents
        for counted in (other._counted, *other._pending):
            self._count(counted)

    def as_dict(self) -> dict[str, Any]:
        """The figures, ready for JSON; those that the codes counted so far do not define are None.

        bit_means: share of ones in each bit. dead_bits: bits that are the same in every code; active_bits: bits that
        are not so in nearly every code. correlation: of two bits, over pairs without a dead one. effective_bits: Renyi
        entropy of order 2 of the codes, in bits. collision_rate: share of pairs of documents with the same code.
        component_counts: documents of each component; effective_components: exp of the entropy of their shares.
        """
        figures: dict[str, Any] = {"documents": self.documents, "bits": self.bits}
        return figures | self._balance() | self._correlation() | self._buckets() | self._component_use()

    def _balance(self) -> dict[str, Any]:
        if not self.documents:
            balance = ("bit_balance_mean", "bit_balance_min", "bit_balance_max")
            return dict.fromkeys(("bit_means", *balance, "dead_bits", "active_bits"))
        means = self._ones_K.double() / self.documents
        return {
            "bit_means": means.tolist(),
            "bit_balance_mean": float(means.mean()),
            "bit_balance_min": float(means.min()),
            "bit_balance_max": float(means.max()),
            "dead_bits": int((~self._alive()).sum()),
            "active_bits": int(((means > ACTIVE) & (means < 1 - ACTIVE)).sum()),
        }

    def _correlation(self) -> dict[str, Any]:
        alive = self._alive()
        pairs = int(alive.sum()) * (int(alive.sum()) - 1) // 2
        if not pairs:
            return {"correlation_mean": None, "correlation_max": None}
        ones = self._ones_K[alive].double()
        covariance = self.documents * self._products_KK[alive][:, alive].double() - ones.outer(ones)
        deviation = (ones * (self.documents - ones)).sqrt()
        correlation = (covariance / deviation.outer(deviation)).abs()
        above = correlation[torch.ones_like(correlation).triu(1).bool()]
        return {"correlation_mean": float(above.mean()), "correlation_max": float(above.max())}

    def _buckets(self) -> dict[str, Any]:
        if not self.documents:
            return dict.fromkeys(("distinct_codes", "effective_bits", "collision_rate", "largest_bucket"))
        self._compact()
        counts = self._counted.counts_D.double()
        pairs = self.documents * (self.documents - 1)
        return {
            "distinct_codes": len(counts),
            "effective_bits": abs(float((counts / self.documents).square().sum().log2())),
            "collision_rate": float((counts * (counts - 1)).sum()) / pairs if pairs else None,
            "largest_bucket": float(counts.max()) / self.documents,
        }

    def _component_use(self) -> dict[str, Any]:
        shares = self._component_counts[self._component_counts > 0].double() / max(1, self.documents)
        return {
            "component_counts": self._component_counts.tolist(),
            "components_used": len(shares),
            "component_share_used": len(shares) / self.components if self.components else None,
            "effective_components": float(torch.special.entr(shares).sum().exp()) if len(shares) else None,
            "mean_confidence": self._confidence / self._confident_documents if self._confident_documents else None,
        }

    def _alive(self) -> Tensor:
        return (self._ones_K > 0) & (self._ones_K < self.documents)

    def _count(self, counted: _Counted) -> None:
        """Keep codes for counting; sorting them only once they outnumber the distinct ones costs N log N in all."""
        self._pending.append(counted)
        if sum(len(pending.counts_D) for pending in self._pending) > max(EXACT_ROWS, len(self._counted.counts_D)):
            self._compact()

    def _compact(self) -> None:
        both = [self._counted, *self._pending]
        self._counted = _Counted.of(torch.cat([c.words_DW for c in both]), torch.cat([c.counts_D for c in both]))
        self._pending = []

    def _require_fitting(self, codes: PackedCodes, components: Tensor) -> None:
        if codes.bits != self.bits:
            raise ValueError(f"code health counts {self.bits}-bit codes, got {codes.bits} bits")
        if components.shape != (len(codes),):
            raise ValueError(f"{len(codes)} codes need as many components, got shape {tuple(components.shape)}")
        if self.components and len(codes) and int(components.max()) >= self.components:
            raise ValueError(f"component {int(components.max())} is not one of the model's {self.components}")


def _words(codes: PackedCodes) -> Tensor:
    """The codes as (N, W) int64, filled up with zero bytes."""
    width = codes.bytes_NC.shape[1]
    return pad(codes.bytes_NC.cpu(), (0, -width % 8)).contiguous().view(torch.int64)


def _added(counts: Tensor, more: Tensor) -> Tensor:
    length = max(len(counts), len(more))
    return pad(counts, (0, length - len(counts))) + pad(more, (0, length - len(more)))
