"""The command `promote`: a run's model becomes champion if it is better than the present one on the same queries."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.options import Json, Set, print_json


def promote(
    run: Annotated[Path, typer.Argument(help="Run folder whose model was evaluated.")],
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Make a run's model the champion if it is better than the present one on the same queries; else exit with 1.

    Better: the 95 % interval of the difference, by a paired bootstrap over queries, lies above 0. The first model
    evaluated has nothing to beat. Example: `latentbits promote runs/demo`
    """
    from jobs.config import load_config

    found = promoted(run, load_config(None, settings or []).tracking)
    if as_json:
        print_json(found)
    else:
        typer.echo(_said(found))
    if not found["champion"]:
        raise typer.Exit(1)


def promoted(run: Path, config: Any) -> dict[str, Any]:
    """Compare, and give the alias where it is earned; what was found. `config` is a TrackingConfig.

    Raises Misuse for a run without a model or a report of it, and LatentbitsError where the server cannot be used.
    """
    from jobs.run import tracking_of
    from pipelines.cards import opened
    from pipelines.evaluation.query_figures import QUERIES, QueryFigures, compare
    from pipelines.mlflow_client import reachable
    from pipelines.model_registry import CHAMPION, Registry
    from vae_core.errors import Misuse

    model, report = opened(run, "model", "model"), opened(run, "report", "report")
    if model is None or report is None:
        raise Misuse(f"{run} holds no model with its report; give the folder of a run that was evaluated")
    if report.input("model").fingerprint != model.fingerprint:
        raise Misuse(f"{run / 'report'} is of another model than {run / 'model'}; run `latentbits evaluate {run}`")
    if not report.files(QUERIES):
        raise Misuse(
            f"{run / 'report'} was written before queries were kept; delete it and run `latentbits evaluate {run}`"
        )
    ours = QueryFigures.read(report.files(QUERIES)[0])
    uri, unsent = tracking_of(run, config)
    with reachable(uri):
        registry = Registry.at(uri, config.experiment)
        version = registry.version_of(model.fingerprint)
        if version is None:
            waits = f"; {unsent:,} records wait to be sent" if unsent else ""
            raise Misuse(
                f"no version of {config.experiment} is this model{waits}; `latentbits run` registers what it trains, "
                f"where tracking.uri and tracking.experiment are as here"
            )
        facts = {"name": config.experiment, "version": version.number, "fingerprint": model.fingerprint}
        champion = registry.holder(CHAMPION)
        if champion is not None and champion.fingerprint == model.fingerprint:
            return facts | {"champion": True, "was": champion.number, "compared": None}
        if champion is None:
            registry.crown(version, {"over": "none"})
            return facts | {"champion": True, "was": None, "compared": None}
        with registry.evaluation(champion, QUERIES) as path:
            compared = compare(ours, QueryFigures.read(path))
        if compared.better:
            registry.crown(version, {"over": champion.number} | asdict(compared))
    return facts | {"champion": compared.better, "was": champion.number, "compared": asdict(compared)}


def _said(found: dict[str, Any]) -> str:
    name = f"version {found['version']} of {found['name']}"
    compared = found["compared"]
    if compared is None:
        return f"{name} is champion already" if found["was"] == found["version"] else f"{name} is champion, the first"
    figure = compared["figure"].replace("precision_at_", "P@").replace("recall_at_", "recall@")
    difference = (
        f"{figure} {compared['ours']:.4f} against {compared['theirs']:.4f} of version {found['was']} over "
        f"{compared['queries']:,} queries: {compared['difference']:+.4f} "
        f"({compared['low']:+.4f} to {compared['high']:+.4f})"
    )
    verdict = "is champion now" if found["champion"] else "stays candidate: it is not better for certain"
    return f"{name} {verdict}\n{difference}"
