"""AMMI: codes that tell most about the document, without a decoder (Stratos & Wiseman, ICML 2020, sections 3 and 4).

Maximised is w H(Z) - H(Z | X) for p(z_k = 1 | x) = sigmoid(l_k(x)), l linear in x, its bits independent given x (Markov
order 0, as in the authors' experiments). H(Z | X) is exact. H(Z) is bounded from above by the cross entropy H(p, q) of
a q of Markov order r over the bits, exact too: p's chances of each window of r + 1 bits, times -log q of its last. At
each step q first lowers the bound, then p raises it. Shapes: B documents, V words, K bits, W = 2^r contexts.

Tried on the validation part of 20 Newsgroups by date at 64 bits, seed 0, around the setting that the authors published
for 64 bits (weight 3.5, 0.03): P@100 by Hamming distance / by log-odds.
  weight 3.5 .586/.598 after 8 epochs, .586/.597 after 10; 2 .565/.577 (6 to 12); 5 .585/.599 (6), .588/.602 (9)
  learning rate 0.01, weight 3.5: .573/.590 (9)
"""

from collections.abc import Iterator

import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, pad, softplus

from tests.bench.peers.network import Bags, Encoder, WordLayer, encoder, train
from vae_core.config import Config


class Settings(Config):
    """Chosen on the validation part of 20 Newsgroups by date, 64 bits."""

    epochs: int = 9
    batch: int = 128
    learning_rate: float = 0.03
    start: float = 0.5
    """Weights begin uniform between this and its negative."""
    clip: float = 5.0
    order: int = 3
    prior_hidden: int = 20
    """Width of the vector that each position of q has, of which its logits are a linear function."""
    prior_steps: int = 2
    entropy_weight: float = 5.0


SETTINGS = Settings()


def fit(rows: csr_matrix, bits: int, seed: int = 0, settings: Settings = SETTINGS) -> Encoder:
    """The log-odds of the bits."""
    learning = fits(rows, bits, seed, settings)
    return [next(learning) for _ in range(settings.epochs)][-1]


def fits(rows: csr_matrix, bits: int, seed: int = 0, settings: Settings = SETTINGS) -> Iterator[Encoder]:
    """The encoder after each epoch, without end."""
    torch.manual_seed(seed)
    posterior = WordLayer(rows.shape[1], bits, settings.start)
    prior = Prior(bits, settings)

    def loss(bags: Bags, _epoch: float) -> Tensor:
        log_odds_BK = posterior(bags)
        prior.fit(log_odds_BK.sigmoid().detach())
        bound = cross_entropy(log_odds_BK.sigmoid(), prior())
        return entropy(log_odds_BK).mean() - settings.entropy_weight * bound

    for _ in train(loss, posterior.parameters(), rows, settings.batch, settings.learning_rate, settings.clip):
        yield encoder(posterior, posterior)


class Prior(nn.Module):
    """q(z_k = 1 | the r bits before it), as logits (K, W)."""

    def __init__(self, bits: int, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        start, width = settings.start, settings.prior_hidden
        self.position_KH = nn.Parameter(torch.empty(bits, width).uniform_(-start, start))
        self.logits = nn.Linear(width, 2**settings.order)
        nn.init.uniform_(self.logits.weight, -start, start)
        nn.init.zeros_(self.logits.bias)

    def forward(self) -> Tensor:
        return self.logits(self.position_KH)

    def fit(self, chance_BK: Tensor) -> None:
        """Some steps down the bound, by an Adam that begins anew as p has moved."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.settings.learning_rate)
        for _ in range(self.settings.prior_steps):
            optimizer.zero_grad()
            cross_entropy(chance_BK, self()).backward()
            nn.utils.clip_grad_norm_(self.parameters(), self.settings.clip)
            optimizer.step()
        optimizer.zero_grad()


def entropy(log_odds_BK: Tensor) -> Tensor:
    """H(p(z | x)) in nats, (B,)."""
    return (softplus(log_odds_BK) - log_odds_BK.sigmoid() * log_odds_BK).sum(dim=1)


def cross_entropy(chance_BK: Tensor, prior_logits_KW: Tensor) -> Tensor:
    """-E log q(z) over z ~ p(z | x) and the batch's x, in nats: a bound on the entropy of p(z), their average."""
    order = prior_logits_KW.shape[1].bit_length() - 1
    log_q_KW2 = torch.stack([logsigmoid(-prior_logits_KW), logsigmoid(prior_logits_KW)], dim=2)
    return -(windows(chance_BK, order) * log_q_KW2.flatten(1)).sum(dim=(1, 2)).mean()


def windows(chance_BK: Tensor, order: int) -> Tensor:
    """The chance of each value of bits k - r to k, the last the lowest: (B, K, 2W). Bits before the first are 0."""
    joint_BKW = chance_BK.new_ones(*chance_BK.shape, 1)
    for back in range(order, -1, -1):
        shifted_BK = pad(chance_BK, (back, 0))[:, : chance_BK.shape[1]]
        bit_BK2 = torch.stack([1 - shifted_BK, shifted_BK], dim=2)
        joint_BKW = (joint_BKW.unsqueeze(3) * bit_BK2.unsqueeze(2)).flatten(2)
    return joint_BKW
