"""Attention as denoising: a query is a vector of a mixture, seen in noise (Henderson and Fehr 2023, arXiv 2207.13529).

Shapes: M sequences, H heads, T queries, N components, D width, P dimensions of a component, E = D / H of a head,
Q = H * T.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vae_core.attention import require_heads


class Mixture(NamedTuple):
    """Normals with diagonal variances: log weights (..., N), -inf for none; means and variances (..., N, P).

    A component of variance 0 is an impulse: a set of vectors with weights is a mixture too.
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor


def denoise(queries: Tensor, mixture: Mixture, noise: float) -> Tensor:
    """E[v | u] of v drawn from the mixture and seen as u = v + N(0, noise I), for queries u (M, T, P).

    Exact for any variances; of impulses it is softmax_k(log w_k - |u - z_k|^2 / (2 noise)) z_k, and ordinary attention
    where w_k is proportional to exp(|z_k|^2 / (2 noise)). In float32 at least.
    """
    accurate = torch.promote_types(queries.dtype, torch.float32)
    queries, log_weights, means, variances = (x.to(accurate) for x in (queries, *mixture))
    spread = noise + variances
    # log N(u; mu, s^2), up to what no component changes: u (mu / s^2) + u^2 (1 / noise - 1 / s^2) / 2 + bias. Taking
    # 1 / noise off first leaves 0 for impulses, where a large u^2 would cost digits.
    keys = torch.cat([means / spread, variances / (2 * noise * spread)], dim=-1)
    bias = log_weights - 0.5 * (means.square() / spread + spread.log()).sum(dim=-1)
    values = torch.cat([noise / spread * means, variances / spread], dim=-1)
    with torch.autocast(queries.device.type, enabled=False):
        seen = torch.cat([queries, queries.square()], dim=-1)
        mixed = scaled_dot_product_attention(seen, keys, values, attn_mask=bias.unsqueeze(-2), scale=1.0)
    centre, share = mixed.chunk(2, dim=-1)
    return centre + share * queries


class DenoisingAttention(nn.Module):
    """Multi-head cross-attention to a mixture, of which every head sees the same vectors.

    The mixture stays in its own space of P dimensions: a head projects its query back into it, by the matrix that
    would make a key of a vector, and the mean that it finds there to a value. A key's bias would change no weight.
    """

    def __init__(self, width: int, heads: int, dimensions: int) -> None:
        super().__init__()
        require_heads(width, heads)
        self.noise = math.sqrt(width // heads)
        self.queries = nn.Linear(width, width)
        self.keys_HEP = nn.Parameter(torch.empty(heads, width // heads, dimensions))
        self.values_HEP = nn.Parameter(torch.empty(heads, width // heads, dimensions))
        self.output = nn.Linear(width, width)
        for projection in (self.keys_HEP, self.values_HEP):
            nn.init.normal_(projection, std=dimensions**-0.5)

    def forward(self, x_MTD: Tensor, mixture: Mixture) -> Tensor:
        """What every position finds in its sequence's mixture, (M, T, D)."""
        queries_MHTE = self.queries(x_MTD).unflatten(-1, self.keys_HEP.shape[:2]).transpose(1, 2)
        # All heads share one mixture, so that their queries are only more queries.
        back_MQP = (queries_MHTE @ self.keys_HEP).flatten(1, 2)
        found_MHTP = denoise(back_MQP, mixture, self.noise).unflatten(1, queries_MHTE.shape[1:3])
        values_MHTE = found_MHTP.to(x_MTD.dtype) @ self.values_HEP.transpose(1, 2)
        return self.output(values_MHTE.transpose(1, 2).flatten(2))
