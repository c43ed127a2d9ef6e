"""What every training worker runs, from the first step or from a checkpoint to the last."""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from pipelines import checkpoint
from pipelines.artifact import Artifact, write_text
from pipelines.batches import digest, rows_of_step, rows_of_worker, steps_per_epoch
from pipelines.engine import PretrainConfig, build_engine, whole_parameters
from pipelines.shards import Shards
from vae_core.errors import LatentbitsError
from vae_core.model import VAE, Terms, VAEConfig
from vae_core.objectives import Loss, loss

METRICS, EXPORT, FAILURE, CHECKPOINTS = "metrics.jsonl", "export", "failure.json", "checkpoints"
__all__ = ["Job", "PretrainConfig", "Schedule", "train"]
SAMPLE = 50_000
"""Documents from which the encoder's first term vectors are computed."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is handed: where to read, where to write, what to train."""

    shards: Path
    scratch: Path
    model: VAEConfig
    config: PretrainConfig


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
    shards = Shards(Artifact.open(job.shards, "shards"))
    schedule = Schedule.of(job.config, len(shards))
    resumed = checkpoint.latest(job.scratch / CHECKPOINTS)
    engine = build_engine(job.config, _model(job, shards, fresh=resumed is None))
    if resumed is not None:
        checkpoint.restore(engine, job.scratch / CHECKPOINTS, resumed)
    start = resumed.step if resumed else 0
    journal = _Journal(job.scratch / METRICS, start)
    for step in range(start, schedule.steps):
        _step(engine, shards, job.config, schedule, step, journal)
        if schedule.saves_after(step):
            checkpoint.save(engine, job.scratch / CHECKPOINTS, step + 1)
    _export(engine, job.scratch / EXPORT)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long training is, and the learning rate at every step of it."""

    steps: int
    documents: int
    checkpoint_every: int
    warmup: int

    @classmethod
    def of(cls, config: PretrainConfig, documents: int) -> "Schedule":
        steps = max(1, round(config.epochs * steps_per_epoch(documents, config.batch_size)))
        every = config.checkpoint_every or max(50, steps // 20)
        return cls(steps, documents, every, warmup=min(50, max(1, steps // 10)))

    def progress(self, step: int) -> float:
        """The share of training done before `step`."""
        return step / self.steps

    def factor(self, step: int) -> float:
        """The learning rate's factor: linear warm-up, then a cosine to zero."""
        return min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * self.progress(step)))

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint is due after `step`; always after the last one."""
        return (step + 1) % self.checkpoint_every == 0 or step + 1 == self.steps


def _step(
    engine: Any, shards: Shards, config: PretrainConfig, schedule: Schedule, step: int, journal: "_Journal"
) -> None:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    # Noise depends on the step alone, so that a resumed run draws what an undisturbed one would have drawn.
    torch.manual_seed((config.seed * 1_000_003 + step) * 4096 + rank)
    for group in engine.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * schedule.factor(step)
    rows = rows_of_step(step, documents=schedule.documents, batch_size=config.batch_size, seed=config.seed)
    mine = rows_of_worker(rows, rank, world_size)
    micro = len(mine) // config.accumulation
    for start in range(0, micro * config.accumulation, micro):
        batch = shards.batch(mine[start : start + micro], tokens=engine.module.reads_tokens).to(engine.device)
        terms = engine(batch, progress=schedule.progress(step))
        parts = loss(terms, config.rate, schedule.progress(step))
        engine.backward(parts.total)
        engine.step()
    journal.count(len(rows), shards.token_count(mine) * world_size)
    logged = step % config.log_every == 0 or step + 1 == schedule.steps
    if logged or schedule.saves_after(step):
        means = _means(step, parts, terms)
    if logged:
        rate = {"learning_rate": config.learning_rate * schedule.factor(step)}
        journal.write({"step": step, **means, "beta": parts.beta, **rate, "rows": digest(rows)})


def _means(step: int, parts: Loss, terms: Terms) -> dict[str, float]:
    """Loss and health over all workers. Collective. Raises Diverged where the loss is not a number."""
    active = (terms.posterior.log_odds.sigmoid().var(dim=0) > 0.01).sum()
    sums = torch.stack([x.detach().float() for x in (parts.total, parts.distortion, parts.rate, active)])
    dist.all_reduce(sums)
    total, distortion, rate, units = (sums / dist.get_world_size()).tolist()
    if not math.isfinite(total):
        raise Diverged(
            f"training diverged at step {step}: loss {total}, distortion {distortion:.4g}, rate {rate:.4g}; "
            f"the last checkpoint is kept; try a lower pretrain.learning_rate with --overwrite"
        )
    return {"loss": total, "distortion": distortion, "rate": rate, "active_units": units}


def _model(job: Job, shards: Shards, *, fresh: bool) -> VAE:
    torch.manual_seed(job.config.seed)
    model = VAE(job.model)
    vocabulary = pq.read_table(job.shards / "vocabulary.parquet")
    counted_on = int(vocabulary.schema.metadata[b"documents"])
    sample = rows_of_step(0, documents=len(shards), batch_size=SAMPLE, seed=job.config.seed) if fresh else None
    model.start_from(
        torch.from_numpy(vocabulary["df"].to_numpy().astype("int64")),
        counted_on,
        None if sample is None else shards.batch(sample, tokens=False),
    )
    return model


def _export(engine: Any, folder: Path) -> None:
    with whole_parameters(engine):
        if dist.get_rank() == 0:
            beside = folder.with_name(f"{folder.name}.tmp")
            shutil.rmtree(beside, ignore_errors=True)
            engine.module.save_pretrained(beside)
            os.replace(beside, folder)
    dist.barrier()


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
