"""The command `sweep`."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.options import Json, Overwrite, Set, print_json, working


def sweep(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe.")],
    vary: Annotated[
        list[str],
        typer.Option("--vary", metavar="a.b=c,d", help="Values of a setting; with several, every combination is run."),
    ],
    settings: Set = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the sweep; each trial's run goes into it.")] = Path(
        "runs/sweep"
    ),
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Number of report.json by which trials are told, the higher the better; without it "
            "precision_at_100.log_odds, or label_free.recall_at_100.log_odds where there are no labels.",
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Run so many of the combinations, chosen at random.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of that choice.")] = 0,
    parallel: Annotated[int, typer.Option(min=1, help="Trials at once; each has its share of the cores.")] = 1,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """A run for every combination of some settings, and which is best. What is up to date is skipped.

    Example: `latentbits sweep newsgroups --set corpus.files=[ng20.parquet] --vary model.latent.bits=16,32,64`
    """
    with working() as progress:
        from jobs.sweep import PAGE
        from jobs.sweep import sweep as run_trials
        from jobs.sweep_grid import Sweep
        from jobs.sweep_report import print_sweep

        asked = Sweep(
            config=config,
            vary=tuple(vary),
            out=out,
            settings=tuple(settings or ()),
            objective=objective,
            trials=trials,
            seed=seed,
            parallel=parallel,
            overwrite=overwrite,
        )
        found = run_trials(asked, progress)
    if as_json:
        print_json(found)
    else:
        print_sweep(found, str(out / PAGE))
    if any(row["error"] for row in found["trials"]):
        raise typer.Exit(1)
