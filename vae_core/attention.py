"""Pre-norm Transformer blocks. Shapes: B sequences, T positions, J memory slots, D width, H heads."""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


def require_heads(width: int, heads: int) -> None:
    """Raise ValueError where not all heads can be equally wide."""
    if width % heads:
        raise ValueError(f"width {width} cannot be divided among {heads} heads; set width to a multiple of heads")


class Attention(nn.Module):
    """Multi-head self-attention, with extra key-value slots that every position sees."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        require_heads(width, heads)
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, bias: Tensor, memory_BJD: Tensor | None = None) -> Tensor:
        """Attend with `bias` (broadcast to (B, H, T, J + T)) added to the logits; -inf hides a key."""
        query, key, value = (self._split(x) for x in self.queries_keys_values(x_BTD).chunk(3, dim=-1))
        if memory_BJD is not None:
            # Optimus (Li et al. 2020): the same vector serves as key and as value.
            slots = self._split(memory_BJD)
            key, value = torch.cat([slots, key], dim=2), torch.cat([slots, value], dim=2)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Attention and a GELU layer of four times the width, each added to its input.

    Both output projections start at zero, so that a new block changes nothing until it has learned something.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.wide_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)
        for projection in (self.attention.output, self.narrow):
            nn.init.zeros_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, x_BTD: Tensor, bias: Tensor, memory_BJD: Tensor | None = None) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), bias, memory_BJD))
        return x_BTD + self.dropout(self.narrow(gelu(self.widen(self.wide_norm(x_BTD)))))
