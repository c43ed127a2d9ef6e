"""Transformer blocks over documents cut into segments. Shapes: N ids of all documents, G segments of L ids, D width."""

import torch
from torch import Tensor, nn

from vae_core.attention import Block
from vae_core.batch import Ragged

SHORTEST_SEGMENT = 3
"""Segments are padded to a power of two, at least 2 to this."""


class SegmentBlocks(nn.Module):
    """Blocks within segments of at most `longest` ids, those of like length together, so that little is padding.

    How often the blocks run depends on the documents, so training must treat this module as one: see ZeRO 3's leaf
    modules.
    """

    def __init__(self, layers: int, width: int, heads: int, *, longest: int) -> None:
        super().__init__()
        self.longest = longest
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, x_ND: Tensor, ids: Ragged, weights_N: Tensor) -> Tensor:
        """Vectors of the ids after the blocks, (N, D); `weights_N` are positive."""
        if len(self.blocks) == 0 or len(x_ND) == 0:
            return x_ND
        segment_N, place_N, width_G = _segments(ids, self.longest)
        rows, mixed = [], []
        for width in width_G.unique().tolist():
            alike_G = width_G == width
            row = alike_G[segment_N].nonzero().squeeze(1)
            slot = (alike_G.cumsum(0) - 1)[segment_N[row]] * width + place_N[row]
            segments = int(alike_G.sum())
            mixed.append(self._padded(x_ND.index_select(0, row), weights_N[row], slot, (segments, width)))
            rows.append(row)
        return torch.empty_like(x_ND).index_copy(0, torch.cat(rows), torch.cat(mixed))

    def _padded(self, x_ND: Tensor, weights_N: Tensor, slot_N: Tensor, shape: tuple[int, int]) -> Tensor:
        """The blocks over segments padded to `shape`, given and returned without the padding."""
        x_GLD = x_ND.new_zeros(shape[0] * shape[1], x_ND.shape[1]).index_copy(0, slot_N, x_ND).unflatten(0, shape)
        # log w on the logits lets a word draw attention in proportion to its weight; -inf hides padding.
        log_weights_N = weights_N.clamp(min=1e-6).log()
        bias_GL = x_ND.new_full((shape[0] * shape[1],), -torch.inf).index_copy(0, slot_N, log_weights_N)
        bias = bias_GL.view(shape[0], 1, 1, shape[1])
        with torch.autocast(x_ND.device.type, torch.bfloat16, enabled=self.training and _fast_bf16(x_ND.device)):
            for block in self.blocks:
                x_GLD = block(x_GLD, bias)
        return x_GLD.flatten(0, 1).index_select(0, slot_N).to(x_ND.dtype)


def _segments(ids: Ragged, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each id its segment and its place in it (N,); for each segment its padded length (G,), a power of two."""
    per_document_B = torch.div(ids.lengths + length - 1, length, rounding_mode="floor")
    first_B = per_document_B.cumsum(0) - per_document_B
    segment_N = first_B[ids.rows] + torch.div(ids.positions, length, rounding_mode="floor")
    sizes_G = torch.bincount(segment_N, minlength=int(per_document_B.sum()))
    width_G = 2 ** sizes_G.double().log2().ceil().long().clamp(min=SHORTEST_SEGMENT)
    return segment_N, ids.positions % length, width_G.clamp(max=length)


def _fast_bf16(device: torch.device) -> bool:
    """Whether training may run the blocks in bfloat16; codes are always computed in float32."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
