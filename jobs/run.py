"""The stages in order, each skipped where its artifact is up to date."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobs.config import RunConfig, TrackingConfig
from jobs.tracked import track_run, track_stage
from pipelines.artifact import MANIFEST, Artifact
from pipelines.embed import embed
from pipelines.encode import encode
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.graph import graph
from pipelines.index import index
from pipelines.pretrain import lends_neighbours, pretrain
from pipelines.progress import Progress, Silent
from pipelines.scatter import shared_cluster
from pipelines.slices import find_files
from pipelines.storage import Store, is_folder, shown, uri_of
from pipelines.tokenize import tokenize
from pipelines.tracking import NoTracking, Tracker, Tracking, sqlite_uri
from pipelines.working_folder import home
from vae_core.errors import Misuse
from vae_core.latents import SETS

STAGES = ("tokenize", "embed", "graph", "pretrain", "encode", "index", "evaluate")
READS = {
    "embed": ("shards",),
    "graph": ("shards",),
    "pretrain": ("shards",),
    "encode": ("shards", "model"),
    "index": ("codes",),
    "evaluate": ("index", "model"),
}
"""The folders that a stage reads, of those that earlier stages always write."""
ASKED_FOR_BY = {"embed": "embed.folder", "graph": "model.decoder.kind to bag_of_words and graph to {}"}
SENDING_S = 30.0
"""How long a finished run waits for the tracking server to take the rest."""


@dataclass(frozen=True, slots=True)
class Done:
    """A stage's artifact, how long it took, and whether it was there already."""

    stage: str
    artifact: Artifact
    seconds: float
    skipped: bool


@dataclass(frozen=True, slots=True)
class RunResult:
    """The stages that were asked for, in order; `unsent` tracking records wait in the run's folder."""

    stages: list[Done]
    unsent: int

    def artifact(self, stage: str) -> Artifact:
        """The artifact of `stage`. Raises KeyError where it was not asked for."""
        return {done.stage: done.artifact for done in self.stages}[stage]


def run(
    config: RunConfig,
    *,
    first: str = STAGES[0],
    last: str = STAGES[-1],
    overwrite: bool = False,
    progress: Progress = Silent(),
) -> RunResult:
    """Do the stages from `first` to `last` on one Ray cluster and return what they made.

    Ray is started by the first stage that has work for it. Raises Misuse for an unknown stage, for one that lacks
    what an earlier one makes, and for a stale artifact, and what the stages raise.
    """
    chosen = _chosen(first, last)
    if not any(has_work(stage, config) for stage in chosen):
        raise Misuse(f"nothing asks for {chosen[0]}; set {ASKED_FOR_BY[chosen[0]]}")
    _require_codes(config, chosen)
    _require_embeddings(config, chosen)
    _require_origins(config, chosen)
    tracking = _tracker(config.tracking, config.out, _beside(config.out))
    stages = _stages(config, overwrite, progress, tracking)
    done: list[Done] = []
    failed = True
    try:
        with shared_cluster():
            for stage, folder, make in stages:
                if stage in chosen and has_work(stage, config):
                    done.append(_timed(stage, config.out / folder, make, tracking))
        if not all(one.skipped for one in done):
            track_run(config, [one.artifact for one in done], tracking)
        failed = False
    finally:
        unsent = tracking.close(SENDING_S, failed=failed)
    return RunResult(done, unsent)


def run_stage(stage: str, out: Path, config: TrackingConfig, make: Callable[[Tracker], Artifact]) -> Artifact:
    """Make one artifact outside a run, tracked like a stage of one; `make` is handed the tracker."""
    tracking = _tracker(config, out.parent, _database(out.parent))
    failed = True
    try:
        artifact = _timed(stage, out, lambda _: make(tracking), tracking).artifact
        failed = False
    finally:
        tracking.close(SENDING_S, failed=failed)
    return artifact


def tracking_of(run: Path, config: TrackingConfig) -> tuple[str, int]:
    """Where a run is tracked, and how many of its records are not there yet, after a try to send them."""
    uri, unsent = config.uri or sqlite_uri(_beside(run)), 0
    if (run / ".tracking").is_dir():
        unsent = _tracker(config, run, _beside(run)).close(SENDING_S)
    return uri, unsent


def _chosen(first: str, last: str) -> tuple[str, ...]:
    for stage in (first, last):
        if stage not in STAGES:
            raise Misuse(f"no stage {stage!r}; the stages are {', '.join(STAGES)}")
    chosen = STAGES[STAGES.index(first) : STAGES.index(last) + 1]
    if not chosen:
        raise Misuse(f"--from {first} comes after --until {last}; the order is {', '.join(STAGES)}")
    return chosen


def has_work(stage: str, config: RunConfig) -> bool:
    """Whether the config asks for this stage; what it does not ask for is left out of the run."""
    if stage == "graph":
        return config.graph is not None and lends_neighbours(config.model)
    return stage != "embed" or config.embed.folder is not None


def _require_codes(config: RunConfig, chosen: tuple[str, ...]) -> None:
    """Raise Misuse where a model is to be encoded with that has no codes, before it is trained."""
    kind = config.model.latent.kind
    if kind in SETS and "pretrain" in chosen and STAGES.index(chosen[-1]) >= STAGES.index("encode"):
        raise Misuse(f"a {kind} latent has no codes to encode and search; end the run with --until pretrain")


def _require_embeddings(config: RunConfig, chosen: tuple[str, ...]) -> None:
    """Raise Misuse where a model is to be trained on embeddings that nothing makes."""
    there = is_folder(config.out / "embeddings")
    if config.model.joined and "pretrain" in chosen and config.embed.folder is None and not there:
        raise Misuse("model.encoder.joined reads documents' embeddings, and nothing makes them; set embed.folder")


def _require_origins(config: RunConfig, chosen: tuple[str, ...]) -> None:
    """Raise Misuse where what the first stage reads is missing, before anything is written."""
    if chosen[0] == STAGES[0]:
        find_files(config.corpus.files)
        return
    for name in READS[chosen[0]]:
        if not is_folder(config.out / name):
            raise Misuse(
                f"{chosen[0]} reads {shown(config.out / name)}, which is not there; "
                f"give the folder of a run that has it, or run the stages before {chosen[0]} first"
            )


def _stages(
    config: RunConfig, overwrite: bool, progress: Progress, tracking: Tracker
) -> list[tuple[str, str, Callable[[Path], Artifact]]]:
    """Stage, folder and how to make it: one entry here is all that a new stage needs."""
    shards, embeddings, near, model, codes, index_ = (
        config.out / name for name in ("shards", "embeddings", "graph", "model", "codes", "index")
    )

    def make_shards(out: Path) -> Artifact:
        return tokenize(config.corpus, out, config.tokenize, overwrite=overwrite, progress=progress)

    def make_embeddings(out: Path) -> Artifact:
        return embed(shards, out, config.embed, overwrite=overwrite, progress=progress)

    def make_graph(out: Path) -> Artifact:
        return graph(
            shards,
            out,
            config.graph,
            embeddings=_if(has_work("embed", config), embeddings),
            overwrite=overwrite,
            progress=progress,
        )

    def make_model(out: Path) -> Artifact:
        how, parts = config.pretrain, config.model
        return pretrain(
            shards,
            out,
            parts,
            how,
            embeddings=_if(parts.joined and is_folder(embeddings), embeddings),
            graph=_if(has_work("graph", config), near),
            overwrite=overwrite,
            progress=progress,
            tracking=tracking,
        )

    def make_codes(out: Path) -> Artifact:
        return encode(
            model,
            shards,
            out,
            config.encode,
            embeddings=_if(is_folder(embeddings), embeddings),
            encoder_folder=config.embed.folder,
            overwrite=overwrite,
            progress=progress,
        )

    def make_index(out: Path) -> Artifact:
        return index(codes, out, config.index, overwrite=overwrite, progress=progress)

    def make_report(out: Path) -> Artifact:
        return evaluate(
            index_,
            model,
            out,
            _judge(config, embeddings),
            queries=config.query_corpus(),
            shards=_if(is_folder(shards), shards),
            encoder_folder=config.embed.folder,
            overwrite=overwrite,
            progress=progress,
        )

    return [
        ("tokenize", "shards", make_shards),
        ("embed", "embeddings", make_embeddings),
        ("graph", "graph", make_graph),
        ("pretrain", "model", make_model),
        ("encode", "codes", make_codes),
        ("index", "index", make_index),
        ("evaluate", "report", make_report),
    ]


def _judge(config: RunConfig, embeddings: Path) -> EvaluateConfig:
    """What is evaluated: beside the rest the embeddings of the run, unless others are named."""
    if config.evaluate.embeddings is not None or not has_work("embed", config):
        return config.evaluate
    return config.evaluate.model_copy(update={"embeddings": embeddings})


def _if(wanted: bool, folder: Path) -> Path | None:
    return folder if wanted else None


def _timed(stage: str, out: Path, make: Callable[[Path], Artifact], tracking: Tracker) -> Done:
    before = _written(out)
    start = time.monotonic()
    artifact = make(out)
    done = Done(stage, artifact, time.monotonic() - start, skipped=before is not None and before == _written(out))
    if not done.skipped:
        track_stage(done.stage, done.artifact, done.seconds, tracking)
    return done


def _written(out: Path) -> object:
    """What changes when an artifact is written at `out`; None while there is none."""
    if uri := uri_of(out):
        return Store.at(uri).read(MANIFEST)
    manifest = out / MANIFEST
    return manifest.stat().st_mtime_ns if manifest.exists() else None


def _tracker(config: TrackingConfig, run_folder: Path, database: Path) -> Tracker:
    if not config.enabled:
        return NoTracking()
    uri, stored = config.uri or sqlite_uri(database), uri_of(run_folder)
    spool = home(stored) if stored else run_folder
    return Tracking.start(uri, config.experiment, spool.resolve().name, spool / ".tracking")


def _beside(run_folder: Path) -> Path:
    """The folder of this machine that holds the run's; for a run in a store the one that the command is run in."""
    return Path.cwd() if uri_of(run_folder) else run_folder.resolve().parent


def _database(run_folder: Path) -> Path:
    """Where a stage on its own is tracked: beside its run folder if runs are tracked there, else inside."""
    beside = _beside(run_folder)
    return beside if (beside / "mlflow.db").exists() or uri_of(run_folder) else run_folder
