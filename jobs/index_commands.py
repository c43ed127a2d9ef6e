"""The commands of an index: build one, change it, choose its kind."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from jobs.options import Json, Out, Overwrite, Set, print_json, report, working
from vae_core.errors import Misuse

FIRST = "build"


class BuildUnlessTold(TyperGroup):
    """`latentbits index CODES` builds; where the first word is a command's name, that command runs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the first command's name before arguments that name none."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = [FIRST, *args]
        return super().parse_args(ctx, args)


index = typer.Typer(
    cls=BuildUnlessTold,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Codes to an index that answers queries; and changes to it.\n\n"
    "Example: `latentbits index runs/mine/codes --out runs/mine/index`",
)
IndexFolder = Annotated[Path, typer.Argument(metavar="INDEX", help="Folder that `index` wrote.")]


@index.command(FIRST)
def build(
    codes: Annotated[Path, typer.Argument(help="Folder that `encode` wrote.")],
    out: Out,
    settings: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Build an index; the word `build` may be left out.

    Example: `latentbits index runs/mine/codes --out runs/mine/index`
    """
    with working() as progress:
        from jobs.config import load_config
        from jobs.run import run_stage
        from pipelines.index import index as build_index

        config = load_config(None, settings or [])
        made = run_stage(
            "index",
            out,
            config.tracking,
            lambda _: build_index(codes, out, config.index, overwrite=overwrite, progress=progress),
        )
    report(made, as_json)


@index.command()
def add(
    index: IndexFolder,
    codes: Annotated[Path, typer.Argument(help="Folder that `encode` wrote with the index's own model.")],
    upsert: Annotated[bool, typer.Option("--upsert", help="Replace documents whose ids are there already.")] = False,
    as_json: Json = False,
) -> None:
    """Add documents to an index while it is in use.

    Example: `latentbits index add runs/mine/index more/codes --upsert`
    """
    with working() as progress:
        from pipelines.index_changes import add as add_codes

        version = add_codes(index, codes, upsert=upsert, progress=progress)
    _say(index, version, as_json)


@index.command()
def delete(
    index: IndexFolder,
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of documents.")] = None,
    ids_file: Annotated[Path | None, typer.Option("--ids", help="File with one id a line.")] = None,
    as_json: Json = False,
) -> None:
    """Delete documents by id; `compact` frees the room they took.

    Example: `latentbits index delete runs/mine/index doc-17 doc-18`
    """
    from pipelines.index_changes import delete as delete_ids

    _say(index, delete_ids(index, [*(ids or []), *_listed(ids_file, "--ids")]), as_json)


@index.command()
def compact(index: IndexFolder, as_json: Json = False) -> None:
    """Write the documents that are left to as few segments as may be, and remove the old ones.

    Example: `latentbits index compact runs/mine/index`
    """
    with working() as progress:
        from pipelines.index_changes import compact as compact_segments

        version = compact_segments(index, progress=progress)
    _say(index, version, as_json)


@index.command()
def tune(
    index: IndexFolder,
    input_file: Annotated[
        Path | None, typer.Option("--input", help="File of queries, one text a line; unless given, held-out documents.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Hits that are to be found.")] = 10,
    documents: Annotated[int, typer.Option(min=1000, help="Documents to measure on at most.")] = 1_000_000,
    as_json: Json = False,
) -> None:
    """Measure the kinds of index on your own codes, recall against exact and time, and say which to take.

    Example: `latentbits index tune runs/mine/index`
    """
    with working() as progress:
        from pipelines.searching.tuning import tune as measure

        texts = _listed(input_file, "--input") if input_file else None
        found = measure(index, texts=texts, k=k, documents=documents, progress=progress)
    if as_json:
        print_json(found.as_dict())
    else:
        from jobs.tables import print_tuning

        print_tuning(found)


@index.command()
def repair(index: IndexFolder, as_json: Json = False) -> None:
    """Make files whose checksum fails anew from the codes that the index was made from.

    Example: `latentbits index repair runs/mine/index`
    """
    with working() as progress:
        from pipelines.indexing.repair import repair as repair_files

        made = repair_files(index, progress=progress)
    if as_json:
        print_json({"path": str(index), "made": made})
    else:
        typer.echo("\n".join(f"{index / name}: made anew" for name in made) or f"{index}: every file is whole")


def _listed(file: Path | None, option: str) -> list[str]:
    if file is None:
        return []
    if not file.is_file():
        raise Misuse(f"{option} {file}: there is no such file; it has one a line")
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line]


def _say(path: Path, version: int, as_json: bool) -> None:
    from pipelines.indexing.facts import facts

    known = facts(path)
    if as_json:
        print_json(known)
    else:
        typer.echo(
            f"{path}: version {version:,} ({known['documents']:,} documents, {known['deleted']:,} deleted rows, "
            f"{known['segments']:,} segments, {known['bytes']:,} bytes)"
        )
