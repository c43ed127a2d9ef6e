"""When to stop, without labels: documents that training does not see tell when it learns nothing more of their kind.

The sign is what they cost at their hard code: distortion, with the words that the graph lends them as target, and rate,
at the price that it has when training ends.
It counts from the middle of training on: before, the price of the rate still rises, and the sign with it.
"""

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from pipelines.training.batches import rows_of_worker
from pipelines.training.engine import whole_parameters
from pipelines.training.phases import PhaseRun
from pipelines.training.query_head import fit_query_head
from vae_core.model import VAE
from vae_core.objectives import final_weight

COUNTS_FROM = 0.5
"""The share of training after which a look counts."""
ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Watch:
    """The lowest held-out loss so far, after which step it was seen (0: not yet), and how many looks ago."""

    best: float = math.inf
    step: int = 0
    looks: int = 0

    def after(self, loss: float, step: int) -> "Watch":
        """This watch after one more look."""
        return Watch(loss, step) if loss < self.best else Watch(self.best, self.step, self.looks + 1)


def looked(run: PhaseRun, watch: Watch, step: int) -> tuple[Watch, dict[str, float]]:
    """The watch after a look at the held-out documents, of which there are some, that follows `step`, and what it saw.

    The best model is kept. Collective.

    Several phases have an order that is to be gone through to its end: they are looked at, and not stopped.
    """
    loss = held_out_loss(run)
    if len(run.job.config.all_phases) == 1 and run.schedule.progress_after(step) >= COUNTS_FROM:
        watch = watch.after(loss, step + 1)
        if watch.step == step + 1:
            keep(run, best(run.job.scratch, watch))
    return watch, {"held_out_loss": loss}


@torch.no_grad()
def held_out_loss(run: PhaseRun) -> float:
    """Distortion and priced rate of the held-out documents at their hard code, in nats a document. Collective."""
    model, cost, price = run.engine.module, torch.zeros((), device=run.engine.device), final_weight(run.objective.rate)
    with whole_parameters(run.engine):
        model.eval()
        mine = rows_of_worker(run.held_out, dist.get_rank(), dist.get_world_size())
        for start in range(0, len(mine), ROWS_AT_ONCE):
            terms = model(run.batch(mine[start : start + ROWS_AT_ONCE]))
            cost += (price * terms.kl_groups.sum(dim=1) - terms.log_px.mean(dim=0)).sum()
        model.train()
    dist.all_reduce(cost)
    return float(cost) / len(run.held_out)


def keep(run: PhaseRun, folder: Path) -> None:
    """Write the model as it is now to `folder`, whole or not at all. Collective."""
    with whole_parameters(run.engine):
        if dist.get_rank() == 0 and not folder.exists():
            _write(run.engine.module, folder)
    dist.barrier()


def export(run: PhaseRun, watch: Watch, folder: Path) -> None:
    """Put the best model, or where none was watched for the last one, in `folder`, with its query head. Collective."""
    kept = best(run.job.scratch, watch)
    keep(run, kept)
    if dist.get_rank() == 0 and not folder.exists():
        model = VAE.from_pretrained(kept)
        fit_query_head(run, model)
        _write(model, folder)
    dist.barrier()


def forget(run: PhaseRun, watch: Watch) -> None:
    """Delete all kept models but the best of `watch`, which a checkpoint remembers. Collective."""
    if dist.get_rank() == 0:
        for folder in run.job.scratch.glob("best-*"):
            if folder != best(run.job.scratch, watch):
                shutil.rmtree(folder)
    dist.barrier()


def best(scratch: Path, watch: Watch) -> Path:
    """Where the best model of `watch` is kept."""
    return scratch / f"best-{watch.step:09d}"


def _write(model: VAE, folder: Path) -> None:
    beside = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    os.replace(beside, folder)
