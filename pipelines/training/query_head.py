"""How a model's queries are to rank, learned when all else is: from codes of documents and of their graph neighbours.

Shapes: n documents of the sample, K bits.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pipelines.neighbours.words import NeighbourWords
from pipelines.training.phases import PhaseRun
from vae_core.decoders import BagOfWordsDecoderConfig
from vae_core.model import VAE
from vae_core.query_head import QueryHead

SAMPLE = 10_000
"""Documents that are encoded for it; of a larger corpus some, and their neighbours."""
NEAREST = 30
"""Of a document's neighbours, those that count: more lose on short texts what they win on news."""
ROWS_AT_ONCE = 256


def fit_query_head(run: PhaseRun, model: VAE) -> None:
    """Give `model`, which is trained, its query head where one is wanted; without a graph, or codes, it has none."""
    config, decoder = run.job.config, run.job.model.decoder
    if not config.query_head or run.near is None or not model.latent.code_bits:
        return
    assert isinstance(decoder, BagOfWordsDecoderConfig)  # no other is given a graph
    rows_n = sampled(run.near, len(run.shards), config.seed)
    log_odds_nK = _log_odds(run, model, rows_n)
    likely_nK = likely_bits(run.near, rows_n, (log_odds_nK > 0).float().numpy(), decoder.neighbours)
    model.query_head = QueryHead.fitted(log_odds_nK, torch.from_numpy(likely_nK), config.seed)


def sampled(near: NeighbourWords, documents: int, seed: int) -> NDArray[np.int64]:
    """All rows, ascending; of more than SAMPLE those of some documents, drawn at random, and of their nearest."""
    if documents <= SAMPLE:
        return np.arange(documents)
    some = np.random.default_rng(seed).choice(documents, SAMPLE // (NEAREST + 1), replace=False)
    return np.union1d(some, near.nearest(some, NEAREST)[0])


def likely_bits(
    near: NeighbourWords, rows_n: NDArray[np.int64], own_nK: NDArray[np.float32], share: float
) -> NDArray[np.float32]:
    """How likely each bit is in a document, which counts 1 - `share`, and its nearest in the sample, (n, K).

    Of a document that has none there, its own bits.
    """
    neighbours, offsets = near.nearest(rows_n, NEAREST)
    places = np.minimum(np.searchsorted(rows_n, neighbours), len(rows_n) - 1)
    here = rows_n[places] == neighbours
    document = np.repeat(np.arange(len(rows_n)), np.diff(offsets))[here]
    counts_n = np.bincount(document, minlength=len(rows_n))
    weights = (share / counts_n[document]).astype(np.float32)
    theirs = csr_matrix((weights, (document, places[here])), shape=(len(rows_n), len(rows_n)))
    alone = np.where(counts_n > 0, 1 - share, 1.0).astype(np.float32)
    return alone[:, None] * own_nK + theirs @ own_nK


@torch.inference_mode()
def _log_odds(run: PhaseRun, model: VAE, rows_n: NDArray[np.int64]) -> torch.Tensor:
    model.to(run.engine.device)
    chunks = (rows_n[start : start + ROWS_AT_ONCE] for start in range(0, len(rows_n), ROWS_AT_ONCE))
    found = [model.encode(run.batch(rows)).log_odds.cpu() for rows in chunks]
    model.cpu()
    return torch.cat(found)
