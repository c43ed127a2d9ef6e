"""pretrain: shards -> model. Ray Train places the workers and starts them again after one dies."""

import json
import logging
import os
import shutil
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import tokenizers

from pipelines import artifact
from pipelines.artifact import (
    Artifact,
    Draft,
    Input,
    Part,
    Plan,
    begin,
    find_part,
    record_part,
    replacing,
    require_disk,
)
from pipelines.connection import Waiting, wait_for
from pipelines.embeddings import require_shards
from pipelines.files.working_folder import working_folder_of
from pipelines.neighbours import words as neighbour_words
from pipelines.progress import Progress, Silent
from pipelines.scatter import cluster, cores, packed, unpacked
from pipelines.shards import distinct_labels
from pipelines.tracking import NoTracking, Tracker
from pipelines.training.batches import held_out_count
from pipelines.training.carrier import carried_up, fetch_left, leave, mirror, refresh, withdraw
from pipelines.training.engine import PretrainConfig
from pipelines.training.phases import Job, Schedule
from pipelines.training.stopping import stopped_in_order
from pipelines.training.warm_start import require_alike
from pipelines.training.worker import EXPORT, FAILURE, METRICS, train
from vae_core import errors
from vae_core.condition import ClassConditionConfig
from vae_core.decoders import BagOfWordsDecoderConfig
from vae_core.encoders import TransformerEncoderConfig
from vae_core.encoders.pretrained import PretrainedEncoderConfig, with_architecture
from vae_core.errors import LatentbitsError, Misuse
from vae_core.latents import BernoulliMixtureConfig
from vae_core.model import CONFIG_FILE, WEIGHTS_FILE, Composition, VAEConfig
from vae_core.objectives.fitting import require_fitting

RESTARTS = 3
MOST_CLASSES = 10_000
"""Labels that a model may be conditional on without their being listed."""
RAY_FILES = "ray"
FROM_SHARDS = ("tokenizer.json", "vocabulary.parquet")


def pretrain(
    shards: Path,
    out: Path,
    model: Composition,
    config: PretrainConfig,
    *,
    embeddings: Path | None = None,
    graph: Path | None = None,
    overwrite: bool = False,
    progress: Progress = Silent(),
    tracking: Tracker = NoTracking(),
) -> Artifact:
    """Train `model` on the shards artifact and write the model artifact to `out`.

    `embeddings` are those of the shards, which an encoder that joins them to the words needs; with the `graph` of the
    shards, documents are reconstructed with the words of their neighbours.
    Killed and called again, it goes on from the last checkpoint with the same order of documents.
    Raises Misuse where the settings cannot be met, and LatentbitsError where training failed.
    """
    source = Artifact.open(shards, "shards")
    documents = source.manifest.statistics["documents"]
    config.require_shares(documents - held_out_count(documents, config.held_out))
    _require_documents(model, source)
    _require_gathered(model, config)
    for phase in config.all_phases:
        require_fitting(model, phase.objective, config.samples)
    if isinstance(model.encoder, PretrainedEncoderConfig):
        model = model.model_copy(update={"encoder": with_architecture(model.encoder)})
    beside = _embeddings(model, source, embeddings)
    near = _graph(model, source, graph)
    model, config, start = _warmed(model, config, source, beside)
    settings = {"model": model.model_dump(mode="json"), "pretrain": _settings(config)}
    plan = Plan(kind="model", config=settings, inputs=_inputs(source, beside, near, start))
    draft = begin(out, plan, overwrite=overwrite)
    if isinstance(draft, Artifact):
        return draft
    sized = _sized(model, source, beside)
    schedule = Schedule.of(config, documents, model.latent)
    if not (fetch_left(draft.scratch) or (draft.scratch / EXPORT).exists()):
        require_disk(out, needed=500_000_000)
        tracking.params("pretrain", artifact.flat(settings))
        extra = {"embeddings": beside.path if beside else None, "graph": near.path if near else None}
        job = Job(source.path, draft.scratch, sized, config, **extra)
        _run(job, schedule, progress, tracking)
    last = json.loads((draft.scratch / METRICS).read_text().splitlines()[-1])
    parts = _collect(draft, source, last["step"] + 1)
    kept = ("loss", "distortion", "rate", "active_units")
    statistics = {"steps": last["step"] + 1, "documents": schedule.documents} | {name: last[name] for name in kept}
    return draft.finish(parts, statistics, tracking.run_id("pretrain"))


def _require_documents(model: Composition, shards: Artifact) -> None:
    """Raise Misuse where there are fewer documents than bits: no bit could be learned from what it tells apart."""
    documents, bits = shards.manifest.statistics["documents"], getattr(model.latent, "bits", 0)
    if documents < bits:
        sensible = max(8, documents // 4 // 8 * 8)
        fewer = f"set model.latent.bits to {sensible}, or " if documents >= sensible else ""
        raise Misuse(
            f"{shards.path} has {documents} documents, too few to learn {bits} bits from; {fewer}add documents"
        )


def lends_neighbours(model: Composition) -> bool:
    """Whether training can make use of a graph."""
    return isinstance(model.decoder, BagOfWordsDecoderConfig) and model.decoder.neighbours > 0


def _require_gathered(model: Composition, config: PretrainConfig) -> None:
    """Raise Misuse where a part is used outside its own forward, for which ZeRO 3 does not gather it."""
    if config.zero_stage == 3 and model.attributes is not None:
        raise Misuse("attributes read whole parts of the model, and ZeRO 3 cuts them up; set pretrain.zero_stage to 2")


def _settings(config: PretrainConfig) -> dict[str, Any]:
    """What decides the model: not where it is trained, nor how often metrics and checkpoints are written.

    With another number of workers the noise of training is another, the order of documents is not. The model that
    training begins with is an input, wherever it lies.
    """
    return config.model_dump(mode="json", exclude={"log_every", "checkpoint_every", "gpus", "workers", "start_from"})


def _embeddings(model: Composition, shards: Artifact, embeddings: Path | None) -> Artifact | None:
    """The embeddings that the model reads, if it does. Raises Misuse where there are none, Stale for other ones."""
    if not model.joined:
        return None
    if embeddings is None:
        raise Misuse("model.encoder.joined reads documents' embeddings; set embed.folder, or give --embeddings")
    artifact = Artifact.open(embeddings, "embeddings")
    require_shards(artifact, shards)
    return artifact


def _graph(model: Composition, shards: Artifact, graph: Path | None) -> Artifact | None:
    """The graph that training reads. Raises Misuse for a decoder that cannot use one, Stale for one of other shards."""
    if graph is None:
        return None
    if not lends_neighbours(model):
        raise Misuse(
            f"a graph lends a document words of its neighbours, and the decoder {model.decoder.kind} reconstructs "
            f"none of them; leave the graph out, or set model.decoder.kind to bag_of_words and its neighbours above 0"
        )
    artifact = Artifact.open(graph, "graph")
    neighbour_words.require_shards(artifact, shards)
    return artifact


def _warmed(
    model: Composition, config: PretrainConfig, shards: Artifact, embeddings: Artifact | None
) -> tuple[Composition, PretrainConfig, Artifact | None]:
    """The settings of a warm start, and what it begins with; unchanged and None where there is none."""
    if config.start_from is None:
        return model, config, None
    start = Artifact.open(config.start_from, "model")
    encoder = embeddings.input("encoder").fingerprint if embeddings else None
    require_alike(_sized(model, shards, embeddings), start, shards, encoder)
    if isinstance(model.encoder, TransformerEncoderConfig):  # blocks that have learned are no identity to join later
        model = model.model_copy(update={"encoder": model.encoder.model_copy(update={"grow_after": 0.0})})
    return model, config.model_copy(update={"start_from": start.path}), start  # workers have other working folders


def _inputs(
    shards: Artifact, embeddings: Artifact | None, graph: Artifact | None, start: Artifact | None
) -> tuple[Input, ...]:
    """What a model is made from; the encoder of the embeddings too, which its user needs when they are gone."""
    inputs = [shards.as_input("shards")]
    if embeddings is not None:
        inputs += [embeddings.as_input("embeddings"), embeddings.input("encoder")]
    named = {"graph": graph, "start": start}
    return (*inputs, *(artifact.as_input(name) for name, artifact in named.items() if artifact is not None))


def components_for(documents: int) -> int:
    """How many components the prior of a corpus has: 21 for 11,000 documents, 200 for a million."""
    return min(256, max(8, round(documents**0.5 / 5)))


def _sized(model: Composition, shards: Artifact, embeddings: Artifact | None) -> VAEConfig:
    tokenizer = tokenizers.Tokenizer.from_file(str(shards.path / "tokenizer.json"))
    terms = pq.read_metadata(shards.path / "vocabulary.parquet").num_rows
    if isinstance(model.condition, ClassConditionConfig) and not model.condition.classes:
        classes = distinct_labels(shards, MOST_CLASSES)
        model = model.model_copy(update={"condition": model.condition.model_copy(update={"classes": classes})})
    if isinstance(model.latent, BernoulliMixtureConfig) and model.latent.components is None:
        components = components_for(shards.manifest.statistics["documents"])
        model = model.model_copy(update={"latent": model.latent.model_copy(update={"components": components})})
    width = embeddings.manifest.statistics["dimensions"] if embeddings else 0
    return VAEConfig(**model.model_dump(), terms=terms, tokens=tokenizer.get_vocab_size(), embeddings=width)


def _run(job: Job, schedule: Schedule, progress: Progress, tracking: Tracker) -> None:
    failure = job.scratch / FAILURE
    withdraw(failure)
    with cluster():
        cores = _cores_each(job.config)
        _wait_for_room(job.config, cores)
        watcher = _Watcher(job, cores, schedule.steps, progress, tracking)
        watcher.start()
        try:
            with stopped_in_order(job.scratch):
                _fit(job, cores)
        finally:
            watcher.stop()
            shutil.rmtree(job.scratch / RAY_FILES, ignore_errors=True)
    mirror(failure)
    if failure.exists():
        raise _recorded(failure)
    fetch_left(job.scratch)


def _wait_for_room(config: PretrainConfig, cores: int) -> None:
    """Return once so many cores, and the GPUs, are free, and tell what is waited for until then."""
    import ray

    wait_for(_wanted(config, cores), lambda: _has_room(ray.available_resources(), config, cores))


def _wanted(config: PretrainConfig, cores: int) -> str:
    return f"{config.workers} training workers with {cores} cores{' and a GPU' if config.gpus else ''} each"


def _has_room(resources: dict[str, float], config: PretrainConfig, cores: int) -> bool:
    needed = {"CPU": config.workers * cores} | ({"GPU": config.workers} if config.gpus else {})
    return all(resources.get(kind, 0) >= count for kind, count in needed.items())


def _fit(job: Job, cores: int) -> None:
    """Train on workers of so many cores each; those that die are started again, RESTARTS times."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    scaling = ScalingConfig(
        num_workers=job.config.workers, use_gpu=job.config.gpus, resources_per_worker={"CPU": cores}
    )
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": packed(job), "threads": cores},
        scaling_config=scaling,
        run_config=RunConfig(
            name="train",
            storage_path=str(job.scratch / RAY_FILES),
            failure_config=FailureConfig(max_failures=RESTARTS),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        mirror(job.scratch / FAILURE)
        if not (job.scratch / FAILURE).exists():
            raise _reason(error) from None


def _cores_each(config: PretrainConfig) -> int:
    """The most cores that each of the workers can have on the cluster's nodes. Raises Misuse where there is no room."""
    import ray

    wait_for("a core", lambda: bool(ray.cluster_resources().get("CPU")))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if config.gpus and gpus < config.workers:
        raise Misuse(f"pretrain.workers is {config.workers} with a GPU each, and the cluster has {gpus} GPUs")
    of_nodes, ours = [int(node.get("CPU", 0)) for node in nodes], cores()
    for each in range(min(max(of_nodes, default=0), ours // config.workers), 0, -1):
        if sum(available // each for available in of_nodes) >= config.workers:
            return each
    raise Misuse(f"pretrain.workers is {config.workers}, and the cluster has {ours} cores; set it to {ours} or less")


def _worker(config: dict[str, Any]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(config["threads"])
    job: Job = unpacked(config["job"])
    mirror(job.scratch / FAILURE)  # what an earlier attempt left on this machine is none of this one's
    with carried_up(job.scratch / METRICS) if dist.get_rank() == 0 else nullcontext():
        train(job)
    if dist.get_rank() == 0 and (job.scratch / EXPORT).exists():
        leave(job.scratch, EXPORT, METRICS)


def _recorded(failure: Path) -> LatentbitsError:
    """The error that a worker left, as it was raised."""
    left = json.loads(failure.read_text())
    withdraw(failure)
    kind: type[LatentbitsError] = getattr(errors, left["kind"], LatentbitsError)
    return kind(left["message"])


def _reason(error: Exception) -> LatentbitsError:
    """What the first failed worker raised, in one line; its traceback goes along as a note."""
    failures = getattr(error, "worker_failures", {}) or {}
    lines = str(next(iter(failures.values()), error)).strip().splitlines() or [type(error).__name__]
    reason = LatentbitsError(f"training failed {RESTARTS + 1} times, the last time with: {lines[-1]}")
    reason.add_note(str(error))
    return reason


def _collect(draft: Draft, source: Artifact, steps: int) -> list[Part]:
    """Put what training left, and what a model needs of the shards, in their places."""
    export = draft.scratch / EXPORT
    origins = {name: export / name for name in (CONFIG_FILE, WEIGHTS_FILE)}
    origins |= {name: source.path / name for name in FROM_SHARDS} | {METRICS: draft.scratch / METRICS}
    parts = []
    for name, origin in origins.items():
        part = find_part(draft.path, name)
        if part is None:
            with replacing(draft.path / name) as temporary:
                shutil.copyfile(origin, temporary)
            part = record_part(draft.path, name, rows=0)
        parts.append(part)
    with replacing(draft.path / "README.md") as temporary:
        temporary.write_text(_card(draft, source, steps))
    return [*parts, record_part(draft.path, "README.md", rows=0)]


def _card(draft: Draft, source: Artifact, steps: int) -> str:
    settings = json.dumps(draft.plan.config, indent=1)
    return (
        "# Text hashing model\n\n"
        "Encodes a document into a binary code; opened by `vae_core.model.VAE.from_pretrained` and by\n"
        "`latentbits encode`. `metrics.jsonl` holds the training curves.\n\n"
        f"- documents: {source.manifest.statistics['documents']:,}, from shards `{source.fingerprint}`\n"
        f"- steps: {steps:,}\n\n```json\n{settings}\n```\n"
    )


class _Watcher(threading.Thread):
    """Carries the metrics that workers write to whoever watches, while the trainer runs, and tells of lost nodes."""

    def __init__(self, job: Job, cores: int, steps: int, progress: Progress, tracking: Tracker) -> None:
        super().__init__(daemon=True)
        path = job.scratch / METRICS
        self.steps, self.progress, self.tracking = steps, progress, tracking
        # In a store this is a copy under another name, since the worker may write on this very machine.
        self.path = path if working_folder_of(path) is None else path.with_name(f"watched-{path.name}")
        self.origin = path.name
        self.config, self.cores = job.config, cores
        self.done = self.offset = self.inode = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        import ray

        self.progress.start("pretrain", self.steps, "steps")
        lost = Waiting(f"{_wanted(self.config, self.cores)}, since a node was lost")
        while not self.stopped.wait(0.5):
            self._carry()
            if ray.is_initialized() and not _has_room(ray.cluster_resources(), self.config, self.cores):
                lost.tell()
        self._carry()
        self.progress.finish()

    def stop(self) -> None:
        self.stopped.set()
        self.join()

    def _carry(self) -> None:
        refresh(self.path, self.origin)
        if not self.path.exists():
            return
        with self.path.open() as file:
            if (inode := os.fstat(file.fileno()).st_ino) != self.inode:  # written anew, without the steps to do again
                self.inode, self.offset = inode, 0
            file.seek(self.offset)
            while (line := file.readline()).endswith("\n"):
                self._show(json.loads(line))
                self.offset = file.tell()

    def _show(self, record: dict[str, Any]) -> None:
        step = record["step"] + 1
        if step <= self.done:
            return
        note = f"loss {record['loss']:.1f} = {record['distortion']:.1f} + {record['beta']:.2f} x {record['rate']:.1f}"
        numbers = {name: value for name, value in record.items() if isinstance(value, float)}
        self.progress.advance(step - self.done, f"{note}  {record['tokens_per_second']:,.0f} tokens/s", numbers)
        self.tracking.log("pretrain", numbers, record["step"])
        self.done = step
