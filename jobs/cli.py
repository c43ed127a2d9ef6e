"""The command line: each command parses, calls one function, and prints. Heavy imports live inside the commands."""

import errno
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from jobs.dedup import dedup
from jobs.index_commands import index
from jobs.inspect_command import inspect
from jobs.job_commands import register as register_job_commands
from jobs.model_commands import diagnose, generate
from jobs.options import Json, Overwrite, Set, print_json, working
from jobs.promote import promote
from jobs.query_command import query
from jobs.serve import serve
from jobs.stage_commands import embed, encode, graph, pretrain, tokenize
from jobs.sweep_command import sweep
from vae_core.errors import LatentbitsError

if TYPE_CHECKING:
    pass

CTRL_C = 130
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Train binary hash codes for your own texts, and search them.\n\n"
    "Start with `latentbits demo`; then `latentbits run newsgroups --set corpus.files=[ng20.parquet]`.",
)


def main() -> None:
    """Run the command line; errors that a user can put right are one message, without a traceback."""
    try:
        app()
    except LatentbitsError as error:
        _fail(str(error), error.exit_status)
    except SystemExit as end:
        if end.code == CTRL_C:
            typer.echo("stopped", err=True)
        raise
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "; make room on that disk, and the same command again goes on" if full else ""
        _fail(f"{error.strerror or error}{place}{remedy}", 1)
    finally:
        _let_go_of_a_closed_pipe()


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"latentbits {version('latentbits')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    del version


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("runs/demo"),
    limit: Annotated[int, typer.Option(min=100, help="Documents to collect at most.")] = 20_000,
    settings: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """The whole pipeline on text that is already on this machine: the docstrings of its Python packages.

    Example: `latentbits demo --out runs/demo`
    """
    with working() as progress:
        from jobs.demo import print_demo, run_demo

        made = run_demo(out, settings or [], limit=limit, overwrite=overwrite, progress=progress)
    print_demo(made)


@app.command()
def run(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe.")],
    settings: Set = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder, instead of the config's.")] = None,
    first: Annotated[str, typer.Option("--from", help="First stage.")] = "tokenize",
    last: Annotated[str, typer.Option("--until", help="Last stage.")] = "evaluate",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """All stages in order: tokenize, embed, graph, pretrain, encode, index, evaluate. What is up to date is skipped.

    Example: `latentbits run newsgroups --set corpus.files=[ng20.parquet] --out runs/news`
    """
    with working() as progress:
        from jobs import tables
        from jobs.config import load_config
        from jobs.run import run as run_stages

        loaded = load_config(config, [*(settings or []), *([_out(out)] if out else [])])
        result = run_stages(loaded, first=first, last=last, overwrite=overwrite, progress=progress)
    if as_json:
        print_json(tables.run_facts(result))
    else:
        tables.print_run(result, loaded.out)


for _stage in (tokenize, embed, graph, pretrain, encode):
    app.command()(_stage)


app.add_typer(index, name="index")
app.command()(query)


@app.command()
def evaluate(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run: shards, model, codes, index.")],
    config: Annotated[str | None, typer.Option(help="Its YAML file or recipe, for the queries it names.")] = None,
    compare_codes: Annotated[
        Path | None, typer.Option("--compare-codes", help="Other codes of the same documents: how far are these?")
    ] = None,
    settings: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure an index: precision and recall by label or by exact neighbours, same-bit baselines, code health.

    Writes RUN/report. Example: `latentbits evaluate runs/demo`
    """
    with working() as progress:
        from jobs import tables
        from jobs.config import load_config
        from jobs.run import run as run_stages

        others = [f"evaluate.compare_codes={json.dumps(str(compare_codes))}"] if compare_codes else []
        loaded = load_config(config, [*(settings or []), *others, _out(run_folder)])
        result = run_stages(loaded, first="evaluate", overwrite=overwrite, progress=progress)
    folder = result.artifact("evaluate").path
    report = json.loads((folder / "report.json").read_text())
    if as_json:
        print_json(report)
    else:
        tables.print_evaluation(report)
        typer.echo(f"{folder / 'report.html'}\n{folder / 'report.json'}")


app.command()(dedup)
app.command()(diagnose)
app.command()(generate)
app.command()(promote)
app.command()(serve)
app.command()(sweep)


app.command()(inspect)
register_job_commands(app)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine has, what is missing, and how to get it.

    Example: `latentbits doctor`
    """
    from dataclasses import asdict

    from jobs import tables
    from jobs.doctor import examine

    findings = examine()
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        tables.print_findings(findings)
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)


def _out(folder: Path) -> str:
    return f"out={json.dumps(str(folder))}"


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(status)


def _let_go_of_a_closed_pipe() -> None:
    """Where whoever read the output has gone, as head does, there is nobody to tell."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
