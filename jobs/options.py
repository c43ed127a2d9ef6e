"""Options that several commands have, and how all of them show work and print for programs."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipelines.artifact import Artifact
    from pipelines.progress import Progress

Out = Annotated[Path, typer.Option("--out", help="Folder to write the artifact to.")]
EncoderFolder = Annotated[
    Path | None,
    typer.Option("--encoder-folder", help="Where the sentence encoder lies that the model reads, if it was moved."),
]
Embeddings = Annotated[Path | None, typer.Option("--embeddings", help="Folder that `embed` wrote for these shards.")]
Graph = Annotated[Path | None, typer.Option("--graph", help="Folder that `graph` wrote for these shards.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Change one setting; may be repeated.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an artifact that was made from something else.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]


def working() -> "AbstractContextManager[Progress]":
    """Progress on stderr while the block runs, as a bar, as lines, or as JSON."""
    from jobs.console import working

    return working()


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def report(artifact: "Artifact", as_json: bool) -> None:
    """What was made, on stdout."""
    facts: dict[str, Any] = {
        "path": artifact.place,
        "kind": artifact.manifest.kind,
        "fingerprint": artifact.fingerprint,
        "statistics": artifact.manifest.statistics,
    }
    if as_json:
        print_json(facts)
    else:
        numbers = ", ".join(
            f"{name} {value:,}" for name, value in facts["statistics"].items() if isinstance(value, int)
        )
        typer.echo(f"{artifact.place}: {artifact.manifest.kind} {artifact.fingerprint} ({numbers})")
