"""BMSH: NASH with a mixture of Bernoullis as its prior (Dong et al., EMNLP 2019, section 3.2).

c ~ Cat(pi), z_k | c ~ Bernoulli(sigmoid(u_ck)); each word of x ~ softmax(E z' + b), z' ~ N(z, diag sigma(x)^2).
q(c, z | x) = q(c | x) prod_k q(z_k | x), and the KL has a closed form. The noise's scale is a function of the document
here, as in NASH. Shapes: B documents, H hidden units, K bits, C components.

Tried on the validation part of 20 Newsgroups by date at 64 bits, seed 0, from what served NASH: P@100 by Hamming
distance / by log-odds. One layer, deterministic, 3e-3: dropout .5 .474/.489 after 3 epochs, .516/.539 after 6,
.512/.543 after 9; .7 .494/.512 (6), .511/.533 (9).
"""

from collections.abc import Iterator
from typing import Literal

import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn.functional import softplus

from tests.bench.peers.nash import NOISE_START, straight_through
from tests.bench.peers.network import Bags, Encoder, Hidden, WordDecoder, encoder, train
from vae_core.config import Config


class Settings(Config):
    """Chosen on the validation part of 20 Newsgroups by date, 64 bits."""

    epochs: int = 6
    batch: int = 128
    learning_rate: float = 3e-3
    hidden: int = 500
    layers: int = 1
    dropout: float = 0.5
    components: int = 20
    kl_weight: float = 1.0
    warmup: float = 5
    """Epochs over which the KL's weight grows from 0."""
    rounding: Literal["stochastic", "deterministic"] = "deterministic"
    """In training; codes are always rounded at 1/2."""


SETTINGS = Settings()


def fit(rows: csr_matrix, bits: int, seed: int = 0, settings: Settings = SETTINGS) -> Encoder:
    """The log-odds of the bits."""
    learning = fits(rows, bits, seed, settings)
    return [next(learning) for _ in range(settings.epochs)][-1]


def fits(rows: csr_matrix, bits: int, seed: int = 0, settings: Settings = SETTINGS) -> Iterator[Encoder]:
    """The encoder after each epoch, without end."""
    torch.manual_seed(seed)
    model = Bmsh(rows, bits, settings)
    for _ in train(model.loss, model.parameters(), rows, settings.batch, settings.learning_rate):
        yield encoder(model, model)


class Bmsh(nn.Module):
    """Heads for q(c, z | x) and the noise's scale, the mixture prior, and the words' softmax."""

    def __init__(self, rows: csr_matrix, bits: int, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.hidden = Hidden(rows.shape[1], settings.hidden, settings.dropout, settings.layers)
        self.log_odds, self.log_variance = nn.Linear(settings.hidden, bits), nn.Linear(settings.hidden, bits)
        self.component = nn.Linear(settings.hidden, settings.components)
        self.prior_components_C = nn.Parameter(torch.zeros(settings.components))
        self.prior_log_odds_CK = nn.Parameter(0.5 * torch.randn(settings.components, bits))
        nn.init.constant_(self.log_variance.bias, NOISE_START)
        self.words = WordDecoder(bits, rows)

    def forward(self, bags: Bags) -> Tensor:
        return self.log_odds(self.hidden(bags))

    def loss(self, bags: Bags, epoch: float) -> Tensor:
        features_BH = self.hidden(bags)
        log_odds_BK = self.log_odds(features_BH)
        z_BK = straight_through(log_odds_BK, self.settings.rounding)
        noise_BK = (self.log_variance(features_BH) / 2).exp() * torch.randn_like(z_BK)
        kl_B = kl(log_odds_BK, self.component(features_BH), self.prior_log_odds_CK, self.prior_components_C)
        weight = self.settings.kl_weight * min(1.0, epoch / self.settings.warmup)
        return (weight * kl_B - self.words(z_BK + noise_BK, bags)).mean()


def kl(
    log_odds_BK: Tensor, component_logits_BC: Tensor, prior_log_odds_CK: Tensor, prior_components_C: Tensor
) -> Tensor:
    """KL(q(c, z | x), p(c, z)) in nats, (B,): that of c, and that of z given c averaged over q(c | x)."""
    log_q_BC, log_p_C = component_logits_BC.log_softmax(dim=1), prior_components_C.log_softmax(dim=0)
    chance_BK = log_odds_BK.sigmoid()
    negative_entropy_B1 = (chance_BK * log_odds_BK - softplus(log_odds_BK)).sum(dim=1, keepdim=True)
    cross_BC = softplus(prior_log_odds_CK).sum(dim=1) - chance_BK @ prior_log_odds_CK.T
    return (log_q_BC.exp() * (log_q_BC - log_p_C + negative_entropy_B1 + cross_BC)).sum(dim=1)
