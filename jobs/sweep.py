"""A sweep: one run for each combination of settings, each in a folder of its own, and what came out side by side.

Shards, embeddings and graph lie in `shared/`, and the runs that have the same ones hold links to them. Everything else
is as in `latentbits run`: what is up to date is skipped, so that a sweep that was killed goes on.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jobs.config import RunConfig, load_config
from jobs.console import time_left
from jobs.run import run
from jobs.stages import LAST, has_work
from jobs.sweep_grid import Sweep, Trial
from jobs.sweep_report import html_report
from jobs.sweep_results import Made, Result, facts, figures_of, made_before, require_objective
from pipelines.artifact import write_text
from pipelines.progress import Progress, Silent
from pipelines.scatter import cluster, cores, scatter, shared_cluster
from pipelines.storage import uri_of
from vae_core.errors import LatentbitsError, Misuse, Stale

SHARED = {
    "tokenize": ("shards", ("corpus", "tokenize")),
    "embed": ("embeddings", ("corpus", "tokenize", "embed")),
    "graph": ("graph", ("corpus", "tokenize", "embed", "graph")),
}
"""The stages whose artifact trials share, its folder, and the settings it is made by."""
EXCLUDED = {"embed": {"workers"}, "graph": {"workers"}}
LAST_SHARED = tuple(SHARED)[-1]
RESULTS, PAGE = "sweep.json", "sweep.html"


class Outcome(NamedTuple):
    """How a trial ended: the stages it made or found, or the error that ended it."""

    stages: dict[str, Made]
    error: str | None = None


def sweep(asked: Sweep, progress: Progress = Silent()) -> dict[str, Any]:
    """Run every trial, and write `sweep.json` and `sweep.html` after each; returns what is in sweep.json.

    A trial that fails is among the results with its error. Raises Misuse for what cannot be varied, for an objective
    that reports lack, for more trials at once than the cluster has cores for, and for an address as the place of the
    results; LatentbitsError where all failed.
    """
    if uri_of(asked.out):
        raise Misuse(f"--out {asked.out}: trials share folders by links, which stores do not have; give a folder")
    trials = asked.chosen()
    configs = _configs(asked, trials)
    asked.out.mkdir(parents=True, exist_ok=True)
    before, results = made_before(asked.out / RESULTS), {trial.name: Result(trial, asked.out) for trial in trials}
    found: dict[str, Any] = {}
    with shared_cluster():
        for name, outcome in _outcomes(asked, configs, progress):
            before[name] = _known(outcome.stages, before.get(name, {}))
            figures = {} if outcome.error else figures_of(asked.out / name)
            results[name] = Result(results[name].trial, asked.out, figures, before[name], outcome.error)
            ended = [result for result in results.values() if result.figures or result.error]
            require_objective(asked.objective, ended)
            found = facts(asked, ended, before, labelled_queries=_asks(configs))
            write_text(asked.out / RESULTS, json.dumps(found, indent=1) + "\n")
            write_text(asked.out / PAGE, html_report(found))
    if found["best"] is None:
        reasons = "\n".join(f"{row['name']}: {row['error']}" for row in found["trials"])
        raise LatentbitsError(f"all {len(trials)} trials failed\n{reasons}")
    return found


def _configs(asked: Sweep, trials: Sequence[Trial]) -> dict[str, RunConfig | Misuse]:
    """The config of each trial, or why it has none. Raises the first reason where none has one."""
    if any(setting.partition("=")[0] == "out" for setting in asked.settings):
        raise Misuse("--set out: the folders of trials are made in --out; leave it out")
    configs: dict[str, RunConfig | Misuse] = {}
    for trial in trials:
        out = f"out={json.dumps(str(asked.out / trial.name))}"
        try:
            configs[trial.name] = load_config(asked.config, [*asked.settings, *trial.settings, out])
        except Misuse as error:
            configs[trial.name] = error
    wrong = [config for config in configs.values() if isinstance(config, Misuse)]
    if len(wrong) == len(configs):
        raise wrong[0]
    return configs


def _outcomes(
    asked: Sweep, configs: dict[str, RunConfig | Misuse], progress: Progress
) -> Iterator[tuple[str, Outcome]]:
    whole: dict[str, RunConfig] = {}
    for name, config in configs.items():
        if isinstance(config, Misuse):
            yield name, Outcome({}, str(config))
        else:
            whole[name] = config
    if asked.parallel == 1:
        watch = TrialProgress(progress, len(whole))
        for name, config in whole.items():
            watch.begin()
            yield name, _outcome(asked, config, watch)
    else:
        yield from _at_once(asked, whole, progress)


def _at_once(asked: Sweep, configs: dict[str, RunConfig], progress: Progress) -> Iterator[tuple[str, Outcome]]:
    """Several trials at once, after all that they share has been made, one after the other."""
    _require_cores(asked, configs)
    prepared: dict[tuple[Path, ...], str | None] = {}
    waiting, made = [], {}
    for name, config in configs.items():
        places = tuple(_shared(asked, config).values())
        if places not in prepared:
            outcome = _outcome(asked, config, progress, last=LAST_SHARED)
            prepared[places], made[name] = outcome.error, outcome.stages
        if (error := prepared[places]) is not None:
            yield name, Outcome({}, error)
        else:
            waiting.append((name, config))
    progress.start("sweep", len(waiting), "trials")
    make_runner = partial(_make_runner, asked, Path.cwd())
    outcomes = scatter(make_runner, waiting, workers=asked.parallel, running_stages=True, given_up=_given_up)
    for name, outcome in outcomes:
        progress.advance(1, name)
        yield name, Outcome(_known(outcome.stages, made.get(name, {})), outcome.error)
    progress.finish()


def _given_up(item: tuple[str, RunConfig], reason: LatentbitsError) -> tuple[str, Outcome]:
    return item[0], Outcome({}, str(reason))


def _require_cores(asked: Sweep, configs: dict[str, RunConfig]) -> None:
    widest = max(config.pretrain.workers for config in configs.values())
    with cluster():
        most = cores() // widest
    if asked.parallel > most:
        raise Misuse(
            f"--parallel is {asked.parallel}, and the cluster has {cores()} cores, of which a trial takes "
            f"pretrain.workers, {widest}, at least; give --parallel {max(1, most)}"
        )


def _make_runner(asked: Sweep, place: Path) -> Callable[[tuple[str, RunConfig]], tuple[str, Outcome]]:
    os.chdir(place)  # where the paths of the settings begin; workers have other working folders

    def run_trial(item: tuple[str, RunConfig]) -> tuple[str, Outcome]:
        name, config = item
        return name, _outcome(asked, config, Silent())

    return run_trial


def _outcome(asked: Sweep, config: RunConfig, progress: Progress, *, last: str = LAST) -> Outcome:
    try:
        for link, place in _shared(asked, config).items():
            _link(link, place, overwrite=asked.overwrite)
        result = run(config, last=last, overwrite=asked.overwrite, progress=progress)
    except LatentbitsError as error:
        return Outcome({}, str(error))
    except Exception as error:  # whatever ends a trial is its result, and the others go on
        return Outcome({}, f"{type(error).__name__}: {error}")
    made = {
        done.stage: Made(done.artifact.fingerprint, None if done.skipped else round(done.seconds, 2))
        for done in result.stages
    }
    return Outcome(made)


def _shared(asked: Sweep, config: RunConfig) -> dict[Path, Path]:
    """Where the trial's folder has a link, and to which shared folder."""
    places = {}
    for stage, (folder, sections) in SHARED.items():
        if has_work(stage, config):
            settings = config.model_dump(mode="json", include=set(sections), exclude=EXCLUDED)
            key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
            places[config.out / folder] = asked.out / "shared" / key / folder
    return places


def _link(link: Path, place: Path, *, overwrite: bool) -> None:
    """Make `link` lead to `place`; a folder that is there already stays as it is."""
    place.mkdir(parents=True, exist_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.resolve() != place.resolve():
        if not overwrite:
            raise Stale(
                f"{link} is that of an earlier sweep with other settings of {', '.join(SHARED)}; "
                f"give another --out, or --overwrite to replace it"
            )
        link.unlink()
    if not link.exists():
        link.symlink_to(os.path.relpath(place, link.parent))


def _known(stages: dict[str, Made], before: dict[str, Made]) -> dict[str, Made]:
    """The stages with the seconds that making them took, where they were made by an earlier call."""
    seconds = {made.fingerprint: made.seconds for made in before.values()}
    return {
        stage: made if made.seconds is not None else made._replace(seconds=seconds.get(made.fingerprint))
        for stage, made in stages.items()
    }


def _asks(configs: dict[str, RunConfig | Misuse]) -> bool:
    return any(not isinstance(config, Misuse) and config.queries is not None for config in configs.values())


class TrialProgress:
    """The progress of one trial's stages: which trial it is, and how long all will take."""

    def __init__(self, progress: Progress, trials: int) -> None:
        self.progress, self.trials = progress, trials
        self.number, self.began = 0, time.monotonic()
        self.taken: list[float] = []
        self.worked = False

    def begin(self) -> None:
        """The next trial. One that found everything done says nothing of how long the others take."""
        now = time.monotonic()
        if self.worked:
            self.taken.append(now - self.began)
        self.number, self.began, self.worked = self.number + 1, now, False

    def start(self, stage: str, total: int, unit: str) -> None:
        self.worked = True
        self.progress.start(f"{self.number}/{self.trials} {stage}", total, unit)

    def advance(self, amount: int, note: str = "", metrics: Mapping[str, float] | None = None) -> None:
        self.progress.advance(amount, f"{note}  {self._left()}".rstrip() if note else "", metrics)

    def finish(self) -> None:
        self.progress.finish()

    def _left(self) -> str:
        if not self.taken:
            return ""
        each, here = sum(self.taken) / len(self.taken), time.monotonic() - self.began
        left = time_left(max(0.0, each - here) + each * (self.trials - self.number))
        return f"all: {left}"
