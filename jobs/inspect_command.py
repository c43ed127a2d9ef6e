"""The command `inspect`: what an artifact is, and with --lineage where it, or one document of it, is from."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.options import Json, print_json

if TYPE_CHECKING:
    from rich.tree import Tree

    from pipelines.lineage import Origin


class Drawing(StrEnum):
    """How a lineage is drawn."""

    TREE = "tree"
    MERMAID = "mermaid"
    SVG = "svg"


def inspect(
    path: Annotated[Path, typer.Argument(help="Any artifact, or a run folder.")],
    verify: Annotated[bool, typer.Option("--verify", help="Compare every byte with its checksum.")] = False,
    lineage: Annotated[bool, typer.Option("--lineage", help="Where it is from, back to files.")] = False,
    document: Annotated[
        str | None, typer.Option("--id", help="With --lineage: where the document with this id is from.")
    ] = None,
    draw: Annotated[Drawing, typer.Option("--draw", help="How to draw the lineage.")] = Drawing.TREE,
    as_json: Json = False,
) -> None:
    """What an artifact is, whether it is whole, where it came from, and how healthy its codes are.

    Example: `latentbits inspect runs/demo/codes --verify`, or, of a hit: `latentbits inspect runs/demo --lineage --id
    json.dumps --draw svg > dumps.svg`
    """
    from jobs import tables
    from jobs.inspect import describe
    from vae_core.errors import Misuse

    if (document is not None or draw is not Drawing.TREE) and not lineage:
        raise Misuse("--id and --draw go with --lineage")
    if lineage:
        _print_lineage(_found(path, document), draw, as_json)
        return
    facts = describe(path, verify=verify)
    if as_json:
        print_json(facts)
    else:
        tables.print_description(facts)


def _found(path: Path, document: str | None) -> "Origin":
    from pipelines.artifact import MANIFEST
    from pipelines.lineage import document_lineage
    from pipelines.lineage import lineage as lineage_of
    from pipelines.storage import is_folder

    if document is not None:
        return document_lineage(path, document)
    for name in ("report", "index", "codes", "model", "shards"):  # of a run folder, the last that was made
        if not (path / MANIFEST).exists() and is_folder(path / name):
            return lineage_of(path / name)
    return lineage_of(path)


def _print_lineage(origin: "Origin", draw: Drawing, as_json: bool) -> None:
    from jobs.console import results
    from pipelines.lineage_drawing import mermaid, svg

    if as_json:
        print_json(origin.as_dict())
    elif draw is Drawing.TREE:
        results().print(_tree(origin))
    else:
        typer.echo((mermaid if draw is Drawing.MERMAID else svg)(origin), nl=False)


def _tree(origin: "Origin") -> "Tree":
    from rich.markup import escape
    from rich.tree import Tree

    facts = ", ".join(f"{name} {value}" for name, value in origin.facts.items())
    state = f" [red]{origin.state}[/red]" if origin.state else ""
    tree = Tree(f"[bold]{escape(origin.name)}[/bold] {escape(origin.place)}{state}  [dim]{escape(facts)}[/dim]")
    for one in origin.made_from:
        tree.add(_tree(one))
    return tree
