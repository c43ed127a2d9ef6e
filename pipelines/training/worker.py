"""What every training worker runs, from the first step or from a checkpoint to the last."""

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipelines.artifact import Artifact, write_text
from pipelines.training import checkpoint
from pipelines.training.aggressive import Lag, aggressive_step, looked_at
from pipelines.training.batches import digest, rows_of_worker
from pipelines.training.engine import PretrainConfig, set_learning_rate
from pipelines.training.held_out import Watch, best, export, forget, looked
from pipelines.training.phases import Job, PhaseRun, Schedule
from pipelines.training.stopping import Told
from vae_core.errors import LatentbitsError
from vae_core.model import VAE, Terms
from vae_core.objectives import Loss, Multiplier

METRICS, EXPORT, FAILURE, CHECKPOINTS = "metrics.jsonl", "export", "failure.json", "checkpoints"
__all__ = ["Job", "PretrainConfig", "Schedule", "train"]


def train(job: Job) -> None:
    """Train in step with the other workers; leaves the model in `scratch/export`.

    Metrics go to `scratch/metrics.jsonl`, one line a logged step, and checkpoints to `scratch/checkpoints`. Where the
    loss is not a number all workers stop. What went wrong, where it is a LatentbitsError, is in `scratch/failure.json`;
    a worker that finds one there, since Ray starts failed workers again, has nothing to do.
    """
    failure = job.scratch / FAILURE
    if failure.exists():
        return
    try:
        _train(job)
    except LatentbitsError as error:
        write_text(failure, json.dumps({"kind": type(error).__name__, "message": str(error)}))
        if not isinstance(error, Diverged):  # the other workers may be waiting for this one
            raise


class Diverged(LatentbitsError):
    """The loss became NaN or infinite; raised by all workers in the same step."""


def _train(job: Job) -> None:
    resumed = checkpoint.latest(job.scratch / CHECKPOINTS)
    start = resumed.step if resumed else 0
    run, lag, watch = _begin(job, resumed)
    journal = _Journal(job.scratch / METRICS, start)
    told = Told(job.scratch, next(run.engine.module.parameters()).device)
    forget(run, watch)  # what a run that was killed found best after its last checkpoint is found again
    for step in range(start, run.schedule.steps):
        if watch.looks >= job.config.patience:
            break
        if (number := run.schedule.phase_of(step)) != run.number:
            run, lag = run.next(number), Lag()
        lag, watch = _step(run, lag, watch, step, journal)
        stopping = step % job.config.log_every == 0 and told()
        if stopping or run.schedule.saves_after(step):
            state = {"multiplier": tuple(run.multiplier), "lag": asdict(lag), "watch": asdict(watch)}
            beside = [job.scratch / METRICS, best(job.scratch, watch)]
            checkpoint.save(run.engine, job.scratch / CHECKPOINTS, step + 1, state, beside)
            forget(run, watch)
        if stopping:
            return
    export(run, watch, job.scratch / EXPORT)


def _begin(job: Job, resumed: checkpoint.Checkpoint | None) -> tuple[PhaseRun, Lag, Watch]:
    """At the first step, or as the checkpoint left it: at the end of its phase, where that was the last step."""
    if resumed is None:
        return PhaseRun(job, 0), Lag(), Watch()
    documents = Artifact.open(job.shards, "shards").manifest.statistics["documents"]
    number = Schedule.of(job.config, documents, job.model.latent).phase_of(resumed.step - 1)
    run = PhaseRun(job, number, VAE(job.model))
    state = checkpoint.restore(run.engine, job.scratch / CHECKPOINTS, resumed)
    run.multiplier = Multiplier(*state["multiplier"])
    return run, Lag(**state["lag"]), Watch(**state["watch"])


def _step(run: PhaseRun, lag: Lag, watch: Watch, step: int, journal: "_Journal") -> tuple[Lag, Watch]:
    config, schedule, rank, world_size = run.job.config, run.schedule, dist.get_rank(), dist.get_world_size()
    # Noise depends on the step alone, so that a resumed run draws what an undisturbed one would have drawn.
    torch.manual_seed((config.seed * 1_000_003 + step) * 4096 + rank)
    rows = run.rows(step, config.batch_size, config.seed)
    mine = rows_of_worker(rows, rank, world_size)
    set_learning_rate(run.engine, schedule.factor(step))
    if run.phase.aggressive:
        aggressive_step(run, run.phase.aggressive, lag, step, mine)
    terms, parts = run.minimise(mine, schedule.progress(step))
    if run.phase.aggressive:
        lag = looked_at(run, run.phase.aggressive, lag, step)
    journal.count(len(rows), run.shards.token_count(mine) * world_size)
    logged = step % config.log_every == 0 or step + 1 == schedule.steps
    looks = bool(len(run.held_out)) and schedule.looks_after(step)
    if logged or looks or schedule.saves_after(step):
        means = _means(step, parts, terms, coded=run.engine.module.latent.code_bits > 0)
    watch, seen = looked(run, watch, step) if looks else (watch, {})
    if logged or looks:
        means |= seen
        facts = {"learning_rate": config.learning_rate * schedule.factor(step), "phase": run.number}
        journal.write({"step": step, **means, "beta": parts.beta, **facts, "rows": digest(rows)})
    return lag, watch


def _means(step: int, parts: Loss, terms: Terms, *, coded: bool) -> dict[str, float]:
    """Loss and health over all workers. Collective. Raises Diverged where the loss is not a number."""
    active = (terms.posterior.means.var(dim=0) > 0.01).sum() if coded else parts.total.new_zeros(())
    sums = torch.stack([x.detach().float() for x in (parts.total, parts.distortion, parts.rate, active)])
    dist.all_reduce(sums)
    total, distortion, rate, units = (sums / dist.get_world_size()).tolist()
    if not math.isfinite(total):
        raise Diverged(
            f"training diverged at step {step}: loss {total}, distortion {distortion:.4g}, rate {rate:.4g}; "
            f"the last checkpoint is kept; try a lower pretrain.learning_rate with --overwrite"
        )
    return {"loss": total, "distortion": distortion, "rate": rate, "active_units": units}


class _Journal:
    """Lines of metrics, written by the first worker; those of steps that are done again are dropped."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        self.documents = self.tokens = 0
        self.since = time.monotonic()
        if dist.get_rank() == 0:
            kept = "".join(line for line in _lines(path) if json.loads(line)["step"] < start)
            write_text(path, kept)

    def count(self, documents: int, tokens: int) -> None:
        self.documents += documents
        self.tokens += tokens

    def write(self, record: dict[str, Any]) -> None:
        """One line, with rates since the line before."""
        seconds = time.monotonic() - self.since
        rates = {"documents_per_second": self.documents / seconds, "tokens_per_second": self.tokens / seconds}
        if dist.get_rank() == 0:
            with self.path.open("a") as file:
                file.write(json.dumps(record | rates | {"process": os.getpid()}) + "\n")
        self.documents = self.tokens = 0
        self.since = time.monotonic()


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        with path.open() as file:
            yield from (line for line in file if line.endswith("\n"))
