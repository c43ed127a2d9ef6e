"""What tracking is told of a run: of each stage its settings, figures and files, and in the end cards and the model."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from jobs.config import RunConfig
from pipelines.artifact import Artifact, flat, write_text
from pipelines.cards import MODEL_CARD, opened, report_of, write_cards
from pipelines.evaluation.query_figures import QUERIES
from pipelines.mlflow_runs import PARENT
from pipelines.tracking import Tracker

FILES = {"evaluate": ("report.json", "report.html"), "pretrain": ("metrics.jsonl",)}
"""Files of a stage's artifact that are copied to the server."""
CONFIG = "config.yaml"


def track_stage(stage: str, artifact: Artifact, seconds: float, tracking: Tracker) -> None:
    """What was asked for, what came out, from what data and by what code."""
    manifest = artifact.manifest
    tracking.params(stage, flat(manifest.config))
    numbers = {
        name: float(value) for name, value in flat(manifest.statistics).items() if isinstance(value, int | float)
    }
    tracking.log(stage, numbers | {"seconds": seconds}, step=0)
    inputs = {f"input.{item.name}": item.fingerprint for item in manifest.inputs}
    facts = {"fingerprint": artifact.fingerprint, "path": artifact.place, "git_revision": _revision(artifact)}
    versions = {f"version.{name}": version for name, version in manifest.versions.items()}
    tracking.tags(stage, facts | inputs | versions)
    for name in FILES.get(stage, ()):
        for path in artifact.files(name):
            tracking.artifact(stage, path)


def track_run(config: RunConfig, made: Sequence[Artifact], tracking: Tracker) -> None:
    """The run as a whole: its config, its data and code, its cards, and the model, to be registered as candidate."""
    cards = write_cards(config.out)
    settings = config.model_dump(mode="json")
    write_text(cards / CONFIG, yaml.safe_dump(settings, sort_keys=False))
    tracking.params(PARENT, flat(settings))
    newest = made[-1].manifest
    facts = {"run": str(config.out), "git_revision": _revision(made[-1]), "data": data_version(config.out)}
    tracking.tags(PARENT, facts | {f"version.{name}": version for name, version in newest.versions.items()})
    tracking.artifact(PARENT, cards)
    model = opened(config.out, "model", "model")
    if model is not None:
        tracking.model("pretrain", registration(config.tracking.experiment, config.out, model, cards))


def registration(name: str, run: Path, model: Artifact, cards: Path) -> dict[str, Any]:
    """What the registry is told of a model; paths are of this machine, and absolute."""
    report = report_of(run)
    measured = opened(run, "report", "report")
    figures: dict[str, Any] = {}
    if report is not None:
        found = {"precision_at_100": report["ties_averaged"], "recall_at_100": report["label_free"]["recall_at_100"]}
        figures = {
            name: f"{values['log_odds']:.4f}" for name, values in found.items() if values.get("log_odds") is not None
        }
        figures |= {"bits": report["bits"], "documents": report["documents"]}
    files = measured.files(QUERIES) + measured.files("report.json") if report is not None and measured else []
    return {
        "name": name,
        "folder": str(model.path.resolve()),
        "fingerprint": model.fingerprint,
        "card": str((cards / MODEL_CARD).resolve()),
        "tags": {"run": str(run), "git_revision": _revision(model), "data": data_version(run)},
        "figures": figures,
        "evaluation": [str(path.resolve()) for path in files],
    }


def data_version(run: Path) -> str:
    """A fingerprint of the run's input files: equal for equal bytes, whatever they are called."""
    shards = opened(run, "shards", "shards")
    if shards is None:
        return "unknown"
    files = sorted(item.fingerprint for item in shards.manifest.inputs if item.name.startswith("file:"))
    return hashlib.sha256(" ".join(files).encode()).hexdigest()[:16]


def _revision(artifact: Artifact) -> str:
    return artifact.manifest.git_revision or "unknown: installed as a wheel"
