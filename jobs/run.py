"""The stages in order, each skipped where its artifact is up to date."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jobs.config import RunConfig, TrackingConfig
from jobs.stages import FIRST, LAST, STAGES, Making, chosen
from jobs.tracked import track_run, track_stage
from pipelines.artifact import MANIFEST, Artifact
from pipelines.files.working_folder import home
from pipelines.progress import Progress, Silent
from pipelines.scatter import shared_cluster
from pipelines.storage import Store, is_folder, shown, uri_of
from pipelines.tokenizing.slices import find_files
from pipelines.tracking import NoTracking, Tracker, Tracking, sqlite_uri
from vae_core.errors import Misuse
from vae_core.latents import SETS

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
    first: str = FIRST,
    last: str = LAST,
    overwrite: bool = False,
    progress: Progress = Silent(),
) -> RunResult:
    """Do the stages from `first` to `last` on one Ray cluster and return what they made.

    Ray is started by the first stage that has work for it. Raises Misuse for an unknown stage, for one that lacks
    what an earlier one makes, and for a stale artifact, and what the stages raise.
    """
    stages = chosen(first, last, config)
    _require_codes(config, stages)
    _require_embeddings(config, stages)
    _require_origins(config, first)
    tracking = _tracker(config.tracking, config.out, _beside(config.out))
    making = Making(config, overwrite, progress, tracking)
    done: list[Done] = []
    failed = True
    try:
        with shared_cluster():
            for stage in stages:
                make = partial(STAGES[stage].make, making)
                done.append(_timed(stage, making.folder(stage), make, tracking))
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


def _require_codes(config: RunConfig, stages: list[str]) -> None:
    """Raise Misuse where a model is to be encoded with that has no codes, before it is trained."""
    kind = config.model.latent.kind
    if kind in SETS and {"pretrain", "encode"} <= set(stages):
        raise Misuse(f"a {kind} latent has no codes to encode and search; end the run with --until pretrain")


def _require_embeddings(config: RunConfig, stages: list[str]) -> None:
    """Raise Misuse where a model is to be trained on embeddings that nothing makes."""
    there = is_folder(config.out / "embeddings")
    if config.model.joined and "pretrain" in stages and config.embed.folder is None and not there:
        raise Misuse("model.encoder.joined reads documents' embeddings, and nothing makes them; set embed.folder")


def _require_origins(config: RunConfig, first: str) -> None:
    """Raise Misuse where what the first stage reads is missing, before anything is written."""
    if first == FIRST:
        find_files(config.corpus.files)
        return
    for stage in STAGES[first].reads:
        folder = config.out / STAGES[stage].folder
        if not is_folder(folder):
            raise Misuse(
                f"{first} reads {shown(folder)}, which is not there; "
                f"give the folder of a run that has it, or run the stages before {first} first"
            )


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
