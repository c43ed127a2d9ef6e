"""The phases of a training run: which step belongs to which, and the engine of the present one."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from pipelines.artifact import Artifact
from pipelines.embeddings import Embeddings
from pipelines.neighbours.words import NeighbourWords
from pipelines.shards import Shards
from pipelines.training.batches import among_the_rest, held_out_count, held_out_rows, rows_of_step, steps_per_epoch
from pipelines.training.engine import PretrainConfig, build_engine, whole_parameters
from pipelines.training.warm_start import start_from
from vae_core.batch import Batch
from vae_core.few_bits import share_of_enough
from vae_core.latents import LatentConfig
from vae_core.model import VAE, Terms, VAEConfig
from vae_core.objectives import UNWEIGHTED, Loss, MinimumRate, Multiplier, ascended, loss
from vae_core.objectives.fitting import settled
from vae_core.schedule import Phase, reset

LOOKS = 20
"""How often in training the held-out documents are looked at; the last time after the last step."""
EPOCHS_OF_A_DOCUMENT = 1500.0
"""Epochs, times the root of the number of documents, where they are not set: 15 at 10,000, 1.5 at a million.

Few bits take longer to be shared out: they learn for the cube root of what they lack times as long, 1.6 at 16 bits.
"""
SAMPLE = 50_000
"""Documents from which the encoder's first term vectors are computed."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is handed: where to read, where to write, what to train."""

    shards: Path
    scratch: Path
    model: VAEConfig
    config: PretrainConfig
    embeddings: Path | None = None
    graph: Path | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long training and each of its phases is, and the learning rate at every step."""

    steps: int
    documents: int
    checkpoint_every: int
    starts: tuple[int, ...]

    @classmethod
    def of(cls, config: PretrainConfig, documents: int, latent: LatentConfig) -> "Schedule":
        """Of training such a latent on so many `documents`, a few of which are held out."""
        phases = config.all_phases
        documents -= held_out_count(documents, config.held_out)
        epochs = config.epochs or EPOCHS_OF_A_DOCUMENT / documents**0.5 / share_of_enough(latent) ** (1 / 3)
        steps = max(len(phases), round(epochs * steps_per_epoch(documents, config.batch_size)))
        every = config.checkpoint_every or max(50, steps // 20)
        shares = [phase.share for phase in phases]
        starts = [round(steps * sum(shares[:number]) / sum(shares)) for number in range(len(phases))]
        for number in range(1, len(starts)):  # every phase has a step
            starts[number] = max(starts[number - 1] + 1, min(starts[number], steps - len(starts) + number))
        return cls(steps, documents, every, tuple(starts))

    def phase_of(self, step: int) -> int:
        """The number of the phase that `step` belongs to."""
        return sum(start <= step for start in self.starts) - 1

    def length(self, phase: int) -> int:
        """Steps of a phase."""
        return (*self.starts, self.steps)[phase + 1] - self.starts[phase]

    def progress(self, step: int) -> float:
        """The share of its phase that is done before `step`."""
        phase = self.phase_of(step)
        return (step - self.starts[phase]) / self.length(phase)

    def progress_after(self, step: int) -> float:
        """The share of its phase that is done after `step`."""
        phase = self.phase_of(step)
        return (step + 1 - self.starts[phase]) / self.length(phase)

    def factor(self, step: int) -> float:
        """The learning rate's factor, in each phase: linear warm-up, then a cosine to zero."""
        phase = self.phase_of(step)
        warmup = min(50, max(1, self.length(phase) // 10))
        return min(1.0, (step - self.starts[phase] + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * self.progress(step)))

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint is due after `step`; always after the last one."""
        return (step + 1) % self.checkpoint_every == 0 or step + 1 == self.steps

    def looks_after(self, step: int) -> bool:
        """Whether the held-out documents are looked at after `step`: LOOKS times, whenever checkpoints are written."""
        return (step + 1) * LOOKS // self.steps > step * LOOKS // self.steps


class PhaseRun:
    """The engine of one phase, and what training knows beside it. All methods are collective."""

    def __init__(self, job: Job, number: int, model: VAE | None = None) -> None:
        """The phase `number`, on a newly started model unless one is given."""
        self.job, self.number = job, number
        embeddings = Embeddings(Artifact.open(job.embeddings, "embeddings")) if job.embeddings else None
        shards = Artifact.open(job.shards, "shards")
        self.shards = Shards(shards, classes=job.model.classes, embeddings=embeddings)
        self.near = NeighbourWords(Artifact.open(job.graph, "graph")) if job.graph else None
        self.schedule = Schedule.of(job.config, len(self.shards), job.model.latent)
        self.held_out = held_out_rows(len(self.shards), job.config.held_out, job.config.seed)
        self.phase: Phase = job.config.all_phases[number]
        self.objective = settled(self.phase.objective, job.model.latent)
        self.multiplier: Multiplier = UNWEIGHTED
        self.engine = build_engine(job.config, model or self._first_model(), self.phase)

    def next(self, number: int) -> "PhaseRun":
        """The phase `number` on the weights of this one, except those that it resets."""
        model = VAE(self.job.model)
        with whole_parameters(self.engine):
            model.load_state_dict(
                {name: tensor.detach().clone() for name, tensor in self.engine.module.state_dict().items()}
            )
        self.engine.destroy()
        parts = self.job.config.all_phases[number].reset
        if parts:
            reset(model, self._new_model(number), parts)
        return PhaseRun(self.job, number, model)

    def rows(self, step: int, batch_size: int, seed: int) -> NDArray[np.int64]:
        """The documents of one step in the order that `seed` makes, none of them held out."""
        rows = rows_of_step(step, documents=self.schedule.documents, batch_size=batch_size, seed=seed)
        return among_the_rest(rows, self.held_out)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """The documents at `rows` as the model reads them, on its device."""
        batch = self.shards.batch(rows, tokens=self.engine.module.reads_tokens)
        if self.near is not None:
            batch = replace(batch, neighbours=self.near.of(rows))
        return batch.to(self.engine.device)

    def minimise(self, rows: NDArray[np.int64], progress: float) -> tuple[Terms, Loss]:
        """One step of the optimiser on this worker's `rows`; the terms and the loss of the last micro-batch."""
        config, objective = self.job.config, self.objective
        micro = len(rows) // config.accumulation
        for start in range(0, micro * config.accumulation, micro):
            terms = self.engine(self.batch(rows[start : start + micro]), samples=config.samples, progress=progress)
            parts = loss(terms, objective, progress, self.multiplier)
            self.engine.backward(parts.total)
            self.engine.step()
        if isinstance(objective.rate, MinimumRate):
            self.multiplier = ascended(objective.rate, self.multiplier, mean_over_workers(parts.rate))
        return terms, parts

    def _first_model(self) -> VAE:
        """What training begins with: a new model, which a warm start gives the weights of another one."""
        model = self._new_model()
        if self.job.config.start_from is not None:
            start_from(model, self.job.config.start_from, self.job.shards)
        return model

    def _new_model(self, draw: int = 0) -> VAE:
        """A model that has had a first look at the corpus; another `draw` starts from other random weights."""
        config = self.job.config
        torch.manual_seed(config.seed + draw)
        model = VAE(self.job.model)
        vocabulary = pq.read_table(self.job.shards / "vocabulary.parquet")
        frequencies = torch.from_numpy(vocabulary["df"].to_numpy().astype("int64"))
        sample = self.rows(0, SAMPLE, config.seed)
        counted_on = int(vocabulary.schema.metadata[b"documents"])
        model.start_from(frequencies, counted_on, self.shards.batch(sample, tokens=model.starts_from_tokens))
        return model


def mean_over_workers(value: torch.Tensor) -> float:
    """The mean of a number over all workers. Collective."""
    total = value.detach().float().clone()
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()
