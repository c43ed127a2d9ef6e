"""What a sweep found: the figures of each trial's report, which trial is best, and how to run that one again."""

import difflib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jobs.sweep_grid import Sweep, Trial
from pipelines.artifact import flat
from pipelines.evaluation.report import NAMES, OURS
from vae_core.errors import Misuse

LABELLED, LABEL_FREE = "precision_at_100.log_odds", "label_free.recall_at_100.log_odds"
"""The objective where the corpus has labels, and where it has none."""
NOT_OURS = ("intervals.", "curves.", "baselines", "references")
"""Numbers of a report that are of other rankings, or say how a figure came about: no objectives."""
SHOWN = ("precision_at_100", "precision_at_10", "label_free.recall_at_100")
HEALTH = ("distinct_codes", "effective_bits", "largest_bucket", "dead_bits", "active_units", "rate", "uninformative")
CHOSEN_ON_QUERIES = (
    "the objective reads the labels of the queries: a trial that is chosen by them looks better on them than it is. "
    "Measure the best one on documents that chose nothing, or choose by --objective " + LABEL_FREE
)
WIDTH = "model.latent.bits"
WIDTHS_DIFFER = (
    "the objective is agreement with exact neighbours, which rises with the number of bits whatever they are worth: "
    "compare trials of one width by it"
)


class Made(NamedTuple):
    """A stage's artifact, and the seconds it took to make; None where another trial made it, or a killed call."""

    fingerprint: str
    seconds: float | None


class Result(NamedTuple):
    """A trial, the numbers of its report by dotted name, its stages, and the error that ended it."""

    trial: Trial
    out: Path
    figures: Mapping[str, float] = {}
    stages: Mapping[str, Made] = {}
    error: str | None = None


def figures_of(run_folder: Path) -> dict[str, float]:
    """The single numbers of a run's report, by their dotted names."""
    report = json.loads((run_folder / "report" / "report.json").read_text())
    return {
        name: value
        for name, value in flat(report).items()
        if isinstance(value, int | float) and math.isfinite(value) and _is_ours(name)
    }


def require_objective(asked: str | None, results: Sequence[Result]) -> None:
    """Raise Misuse where `asked` is in none of the reports there are."""
    reports = [result.figures for result in results if result.figures]
    if asked is None or not reports or any(asked in figures for figures in reports):
        return
    near = difflib.get_close_matches(asked, reports[0], 1)
    hint = f"; nearest: {near[0]}" if near else ""
    raise Misuse(f"reports have no number {asked}{hint}. They have {', '.join(reports[0])}")


def facts(
    asked: Sweep, results: Sequence[Result], stages: Mapping[str, Mapping[str, Made]], *, labelled_queries: bool
) -> dict[str, Any]:
    """The content of sweep.json: trials from the best to the worst, then those that failed."""
    objective = _objective(asked.objective, results)
    trials = {result.trial.name: result.trial for result in results}
    rows = sorted((_row(result, objective) for result in results), key=_place)
    best = trials[rows[0]["name"]] if rows[0]["error"] is None else None
    widths = {trial.values.get(WIDTH) for trial in trials.values()}
    return {
        "config": asked.config,
        "settings": list(asked.settings),
        "varied": list(results[0].trial.values),
        "objective": objective,
        "warnings": _warnings(objective, labelled_queries=labelled_queries, several_widths=len(widths) > 1),
        "best": best.name if best else None,
        "command": _command(asked, best) if best else None,
        "trials": rows,
        "stages": {name: {stage: made._asdict() for stage, made in of.items()} for name, of in stages.items()},
    }


def made_before(path: Path) -> dict[str, dict[str, Made]]:
    """The stages of each trial that an earlier call wrote down in sweep.json; none where there is no such file."""
    if not path.exists():
        return {}
    trials: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text())["stages"]
    return {name: {stage: Made(**made) for stage, made in of.items()} for name, of in trials.items()}


def _is_ours(name: str) -> bool:
    figure, _, ranking = name.rpartition(".")
    return bool(figure) and not name.startswith(NOT_OURS) and (ranking in OURS or ranking not in NAMES)


def _objective(asked: str | None, results: Sequence[Result]) -> str:
    if asked is not None:
        return asked
    labelled = all(LABELLED in result.figures for result in results if result.figures)
    return LABELLED if labelled else LABEL_FREE


def _row(result: Result, objective: str) -> dict[str, Any]:
    value = result.figures.get(objective)
    error = result.error
    if error is None and value is None:
        error = f"its report has no number {objective}"
    return {
        "name": result.trial.name,
        "folder": str(result.out / result.trial.name),
        "settings": {key: _typed(value) for key, value in result.trial.values.items()},
        "objective": value,
        **{name.rpartition(".")[2]: _ours(result.figures, name) for name in SHOWN},
        "code_health": {name: result.figures.get(f"code_health.{name}") for name in HEALTH},
        "seconds": {stage: made.seconds for stage, made in result.stages.items()},
        "error": error,
    }


def _place(row: dict[str, Any]) -> tuple[bool, float]:
    return row["error"] is not None, -(row["objective"] or 0.0)


def _ours(figures: Mapping[str, float], name: str) -> dict[str, float | None]:
    return {ranking: figures.get(f"{name}.{ranking}") for ranking in ("log_odds", "hamming")}


def _typed(text: str) -> str | int | float | None:
    """A value as a number where it is one, and else as it was written. YAML takes 1e-3 for a word, settings do not."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _warnings(objective: str, *, labelled_queries: bool, several_widths: bool) -> list[str]:
    on_queries = labelled_queries and objective.startswith(("precision_at", "ties_averaged"))
    across_widths = several_widths and objective.startswith("label_free.")
    return [CHOSEN_ON_QUERIES] * on_queries + [WIDTHS_DIFFER] * across_widths


def _command(asked: Sweep, best: Trial) -> str:
    settings = [part for setting in [*asked.settings, *best.settings] for part in ("--set", setting)]
    return shlex.join(["latentbits", "run", asked.config, *settings, "--out", str(asked.out / best.name)])
