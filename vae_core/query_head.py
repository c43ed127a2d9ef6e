"""What a query ranks by: how likely its bits are among the neighbours of the document that it is.

A posterior tells which bits a document has, and is surer of them than it should be: it learned to be sure. Which of
them its neighbours share is another question, and the one that a query asks. A small network answers it that has seen
noisy log-odds of documents and their neighbours' codes. Both are heard, pooled as logarithmic opinions (Genest and
Zidek, Combining Probability Distributions, 1986). Shapes: N documents, B of a batch, K bits.
"""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from vae_core.codes import MAX_LOG_ODDS

HIDDEN, BATCH, LEARNING_RATE = 512, 512, 5e-3
EPOCHS, LEAST_STEPS, MOST_STEPS = 40, 200, 600
NOISE = 0.3
"""Of the log-odds' root mean square: with none it learns documents by heart; more blurs a model that is not sure."""
SHARE = 0.5
"""Of the network in the pool: with 0.8 queries find more, and less where training was short (docs/quality.md)."""


class QueryHead(nn.Module):
    """From the log-odds of a document's own bits to what its bits count as a query's, with the same signs."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(bits, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, bits))

    @torch.no_grad()
    def forward(self, log_odds_BK: Tensor) -> Tensor:
        """(B, K); what the neighbours speak against counts as little as the document alone says."""
        own_BK = _clamped(log_odds_BK)
        agreed_BK = own_BK.sign() * self.layers(own_BK)
        return (1 - SHARE) * own_BK + SHARE * own_BK.sign() * agreed_BK.clamp(min=0)

    @classmethod
    def fitted(cls, log_odds_NK: Tensor, likely_NK: Tensor, seed: int = 0) -> Self:
        """A head that foretells from noisy log-odds how likely each bit is, (N, K) between 0 and 1 (cross entropy)."""
        generator = torch.Generator().manual_seed(seed)
        known_NK, likely_NK = _clamped(log_odds_NK.float().cpu()), likely_NK.float().cpu()
        noise = NOISE * known_NK.square().mean().sqrt()
        steps = min(MOST_STEPS, max(LEAST_STEPS, EPOCHS * len(known_NK) // BATCH))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = cls(known_NK.shape[1])
        optimiser = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
        for _ in range(steps):
            rows = torch.randint(len(known_NK), (BATCH,), generator=generator)
            noisy = known_NK[rows] + noise * torch.randn(BATCH, known_NK.shape[1], generator=generator)
            optimiser.zero_grad()
            binary_cross_entropy_with_logits(head.layers(noisy), likely_NK[rows]).backward()
            optimiser.step()
            schedule.step()
        return head.eval()


def _clamped(log_odds: Tensor) -> Tensor:
    """As a ranking has them."""
    return log_odds.clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS)
