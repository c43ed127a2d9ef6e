"""Aggressive training of the inference network (He et al. 2019, algorithm 1): many steps of it for each of the rest.

It keeps q(z | x) close to p(z | x) while the decoder is young, and ends for good once I(z; x) falls.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.training.batches import rows_of_worker
from pipelines.training.engine import set_learning_rate, whole_parameters
from pipelines.training.phases import PhaseRun, mean_over_workers
from vae_core.diagnostics.information import densities, mutual_information
from vae_core.schedule import INFERENCE, PARTS, Aggressive

ROWS = 256
"""Draws that are compared with all documents at a time."""
INNER_SEED = 1_000_000_007
"""Added to the seed for the order of the inner batches, so that they are other than the outer ones."""


@dataclass(frozen=True, slots=True)
class Lag:
    """Whether the inference network still lags behind, and I(z; x) in nats when it was last measured."""

    behind: bool = True
    information: float = -math.inf


def aggressive_step(run: PhaseRun, settings: Aggressive, lag: Lag, step: int, rows: NDArray[np.int64]) -> None:
    """Move the inference network alone, then leave the learning rates so that the next step moves the rest alone.

    All workers do the same number of inner steps. Collective.
    """
    if not lag.behind:
        return
    set_learning_rate(run.engine, run.schedule.factor(step), INFERENCE)
    _infer(run, settings, step, rows)
    set_learning_rate(run.engine, run.schedule.factor(step), [part for part in PARTS if part not in INFERENCE])


def looked_at(run: PhaseRun, settings: Aggressive, lag: Lag, step: int) -> Lag:
    """The lag after `step`: over for good if I(z; x), measured where a check is due, has fallen. Collective."""
    before, after = run.schedule.progress(step), run.schedule.progress_after(step)
    if not lag.behind or int(before * settings.checks) == int(after * settings.checks):
        return lag
    information = _information(run, settings.documents)
    return replace(lag, behind=information >= lag.information, information=information)


def _infer(run: PhaseRun, settings: Aggressive, step: int, rows: NDArray[np.int64]) -> None:
    config = run.job.config
    rank, workers = torch.distributed.get_rank(), torch.distributed.get_world_size()
    before, losses = float("inf"), []
    for inner in range(settings.most):
        _, parts = run.minimise(rows, run.schedule.progress(step))
        losses.append(parts.total.detach())
        if len(losses) == settings.window:
            mean = mean_over_workers(torch.stack(losses).mean())
            if mean > before:
                return
            before, losses = mean, []
        number = step * settings.most + inner
        rows = rows_of_worker(run.rows(number, config.batch_size, config.seed + INNER_SEED), rank, workers)


@torch.no_grad()
def _information(run: PhaseRun, documents: int) -> float:
    """The plug-in estimate of I(z; x) on the first of the training documents in the run's order, in nats."""
    rows = run.rows(0, documents, run.job.config.seed)
    model = run.engine.module
    with whole_parameters(run.engine):
        model.eval()
        posterior = model.posterior(run.batch(rows))
        information = mutual_information(densities(model.latent, posterior, model.latent.sample(posterior, 1)[0], ROWS))
        model.train()
    return mean_over_workers(torch.tensor(information.lower, device=run.engine.device))
