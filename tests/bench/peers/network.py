"""What the neural peers share: sparse rows in, words out, mini-batches between.

Shapes: N documents, B of a batch, V words, H hidden units, K bits.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

Encoder = Callable[[csr_matrix], NDArray[np.float32]]
"""Rows (N, V) to numbers (N, K) whose signs are the code; log-odds of its bits where the method has them."""
Loss = Callable[["Bags", float], Tensor]
"""Of a batch, after so many epochs (a fraction within one): a scalar."""


class Bags(NamedTuple):
    """Sparse rows for torch: word ids and weights, document after document, and where each begins and the last ends."""

    ids: Tensor
    weights: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, rows: csr_matrix) -> "Bags":
        offsets = torch.from_numpy(rows.indptr.astype(np.int64))
        return cls(torch.from_numpy(rows.indices.astype(np.int64)), torch.from_numpy(rows.data), offsets)


class WordLayer(nn.Module):
    """`nn.Linear` over sparse rows, its weights uniform within `bound` (Glorot & Bengio's where there is none)."""

    def __init__(self, words: int, width: int, bound: float | None = None) -> None:
        super().__init__()
        bound = (6 / (words + width)) ** 0.5 if bound is None else bound
        self.weight_VH = nn.Parameter(torch.empty(words, width).uniform_(-bound, bound))
        self.bias_H = nn.Parameter(torch.zeros(width))

    def forward(self, bags: Bags) -> Tensor:
        sums_BH = embedding_bag(
            bags.ids,
            self.weight_VH,
            bags.offsets,
            mode="sum",
            per_sample_weights=bags.weights,
            include_last_offset=True,
        )
        return sums_BH + self.bias_H


class Hidden(nn.Sequential):
    """The encoder up to its heads, as the three VAEs' papers have it: two layers of ReLU, then dropout."""

    def __init__(self, words: int, width: int, dropout: float, layers: int) -> None:
        deeper = [part for _ in range(layers - 1) for part in (nn.Linear(width, width), nn.ReLU())]
        super().__init__(WordLayer(words, width), nn.ReLU(), *deeper, nn.Dropout(dropout))


class WordDecoder(nn.Module):
    """log p(x | z), a softmax for each distinct word of a document; starts at the words' frequency."""

    def __init__(self, bits: int, train: csr_matrix) -> None:
        super().__init__()
        self.logits = nn.Linear(bits, train.shape[1])
        frequency_V = torch.from_numpy(np.bincount(train.indices, minlength=train.shape[1]) / train.nnz)
        self.logits.bias.data = (frequency_V + 1e-6).log().float()

    def forward(self, z_BK: Tensor, bags: Bags) -> Tensor:
        log_p_BV = self.logits(z_BK).log_softmax(dim=1)
        owners = torch.repeat_interleave(torch.arange(len(z_BK)), bags.offsets.diff())
        return z_BK.new_zeros(len(z_BK)).index_add(0, owners, log_p_BV[owners, bags.ids])


def train(
    loss: Loss, parameters: Iterable[nn.Parameter], rows: csr_matrix, batch: int, learning_rate: float, clip: float = 0
) -> Iterator[None]:
    """Adam, for as many epochs as are asked for; a last batch that is not full is left out."""
    parameters = list(parameters)
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    steps, epoch = max(1, rows.shape[0] // batch), 0
    while True:
        order = torch.randperm(rows.shape[0]).numpy()
        for step in range(steps):
            optimizer.zero_grad()
            loss(Bags.of(rows[order[step * batch : (step + 1) * batch]]), epoch + step / steps).backward()
            if clip:
                nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
        epoch += 1
        yield


def encoder(module: nn.Module, values: Callable[[Bags], Tensor]) -> Encoder:
    """`values` of rows, a thousand at a time, with the module's dropout off."""

    def encode(rows: csr_matrix) -> NDArray[np.float32]:
        module.eval()
        with torch.no_grad():
            blocks = [values(Bags.of(rows[at : at + 1000])).numpy() for at in range(0, rows.shape[0], 1000)]
        module.train()
        return np.concatenate(blocks)

    return encode
