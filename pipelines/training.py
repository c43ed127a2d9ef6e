"""The door to DeepSpeed: what every training worker runs, from the first step or from a checkpoint to the last."""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from pydantic import Field

from pipelines import checkpoint
from pipelines.artifact import Artifact, write_text
from pipelines.batches import digest, rows_of_step, rows_of_worker, steps_per_epoch
from pipelines.shards import Shards
from vae_core.config import Config
from vae_core.errors import LatentbitsError, Misuse
from vae_core.model import VAE, Terms, VAEConfig
from vae_core.objectives import Beta, Loss, RateConfig, loss

METRICS, EXPORT, FAILURE, CHECKPOINTS = "metrics.jsonl", "export", "failure.txt", "checkpoints"
SAMPLE = 50_000
"""Documents from which the encoder's first term vectors are computed."""


class PretrainConfig(Config):
    """Settings of training; those of the model itself are its composition."""

    epochs: float = Field(default=20, gt=0)
    batch_size: int = Field(default=256, ge=1, description="documents of one step, over all workers")
    learning_rate: float = Field(default=3e-3, gt=0)
    block_learning_rate: float = Field(default=1e-3, gt=0, description="of the Transformer blocks")
    rate: RateConfig = Beta()
    workers: int = Field(default=1, ge=1)
    accumulation: int = Field(default=1, ge=1, description="micro-batches of a step, where one does not fit")
    zero_stage: Literal[0, 1, 2, 3] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    gpus: bool = Field(default=False, description="one GPU for each worker")
    seed: int = 0
    log_every: int = Field(default=10, ge=1)
    checkpoint_every: int | None = Field(default=None, ge=1, description="steps; null: a twentieth of training")


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
    loss is not a number all workers stop and the reason is in `scratch/failure.txt`.
    """
    shards = Shards(Artifact.open(job.shards, "shards"))
    schedule = Schedule.of(job.config, len(shards))
    resumed = checkpoint.latest(job.scratch / CHECKPOINTS)
    engine = _engine(job, _model(job, shards, fresh=resumed is None))
    if resumed is not None:
        checkpoint.restore(engine, job.scratch / CHECKPOINTS, resumed)
    start = resumed.step if resumed else 0
    journal = _Journal(job.scratch / METRICS, start, schedule.steps)
    try:
        for step in range(start, schedule.steps):
            _step(engine, shards, job.config, schedule, step, journal)
            if schedule.saves_after(step):
                checkpoint.save(engine, job.scratch / CHECKPOINTS, step + 1)
        _export(engine, job.scratch / EXPORT)
    except Diverged as error:
        if dist.get_rank() == 0:
            write_text(job.scratch / FAILURE, str(error))


class Diverged(LatentbitsError):
    """The loss became NaN or infinite; raised by all workers in the same step."""


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
    if step % config.log_every == 0 or step + 1 == schedule.steps:
        journal.write(step, parts, terms, {"learning_rate": config.learning_rate * schedule.factor(step)}, digest(rows))


def _engine(job: Job, model: VAE) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if job.config.gpus else "cpu")
    import deepspeed

    # Otherwise a C++ extension is compiled at the first start; gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    groups = _parameter_groups(model, job.config)
    optimizer = torch.optim.Adam(groups, fused=True)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=_engine_config(job.config), dist_init_required=False
    )
    engine.train()
    return engine


def _engine_config(config: PretrainConfig) -> dict[str, Any]:
    world_size = dist.get_world_size()
    share = world_size * config.accumulation
    if config.batch_size % share:
        raise Misuse(
            f"pretrain.batch_size {config.batch_size} cannot be divided among {world_size} workers x "
            f"{config.accumulation} micro-batches; take a multiple of {share}"
        )
    return {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.batch_size // share,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": 1000.0,
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def _parameter_groups(model: VAE, config: PretrainConfig) -> list[dict[str, Any]]:
    blocks = [parameter for name, parameter in model.named_parameters() if ".blocks." in name]
    others = [parameter for name, parameter in model.named_parameters() if ".blocks." not in name]
    rates = [(others, config.learning_rate), (blocks, config.block_learning_rate)]
    return [{"params": params, "lr": rate, "initial_lr": rate} for params, rate in rates if params]


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
    import deepspeed

    stage_3 = engine.zero_optimization_stage() == 3
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters()), enabled=stage_3):
        if dist.get_rank() == 0:
            beside = folder.with_name(f"{folder.name}.tmp")
            shutil.rmtree(beside, ignore_errors=True)
            engine.module.save_pretrained(beside)
            os.replace(beside, folder)
    dist.barrier()


class _Journal:
    """Metrics of all workers, averaged and written by the first one."""

    def __init__(self, path: Path, start: int, steps: int) -> None:
        self.path = path
        self.steps = steps
        self.documents = self.tokens = 0
        self.since = time.monotonic()
        if dist.get_rank() == 0:
            kept = "".join(line for line in _lines(path) if json.loads(line)["step"] < start)
            write_text(path, kept)

    def count(self, documents: int, tokens: int) -> None:
        self.documents += documents
        self.tokens += tokens

    def write(self, step: int, parts: Loss, terms: Terms, more: dict[str, float], rows: str) -> None:
        """One line for `step`, and rates since the line before. Collective. Raises Diverged."""
        active = (terms.posterior.log_odds.sigmoid().var(dim=0) > 0.01).sum()
        sums = torch.stack([x.detach().float() for x in (parts.total, parts.distortion, parts.rate, active)])
        dist.all_reduce(sums)
        total, distortion, rate, units = (sums / dist.get_world_size()).tolist()
        if not math.isfinite(total):
            raise Diverged(
                f"training diverged at step {step}: loss {total}, distortion {distortion:.4g}, rate {rate:.4g}; "
                f"the last checkpoint is kept; try a lower pretrain.learning_rate with --overwrite"
            )
        seconds = time.monotonic() - self.since
        record = {"step": step, "loss": total, "distortion": distortion, "rate": rate, "beta": parts.beta}
        record |= {"active_units": units, "documents_per_second": self.documents / seconds} | more
        record |= {"tokens_per_second": self.tokens / seconds, "rows": rows, "process": os.getpid()}
        if dist.get_rank() == 0:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        self.documents = self.tokens = 0
        self.since = time.monotonic()


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        with path.open() as file:
            yield from (line for line in file if line.endswith("\n"))
