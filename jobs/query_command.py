"""The command that asks an index."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.options import EncoderFolder, Json, print_json
from vae_core.errors import Misuse

EXAMPLE = 'latentbits query runs/demo/index "sort a list"'


def query(
    index: Annotated[Path, typer.Argument(help="Folder that `index` wrote.")],
    text: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many hits.")] = 10,
    rank: Annotated[str, typer.Option(help="log-odds or hamming.")] = "log-odds",
    id: Annotated[str | None, typer.Option("--id", help="Instead of a text: documents like this one.")] = None,
    code: Annotated[str | None, typer.Option(metavar="HEX", help="Instead of a text: a code in hexadecimal.")] = None,
    where: Annotated[
        str | None, typer.Option("--filter", metavar="EXPR", help="Such as \"lang = 'en' and year >= 2020\".")
    ] = None,
    radius: Annotated[int | None, typer.Option(min=0, help="Only documents at most so many bits away.")] = None,
    rerank: Annotated[
        str | None,
        typer.Option(
            metavar="bm25|FOLDER",
            help="Order the best 100 by the query's words in them, or by the cosine of a sentence encoder's vectors.",
        ),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say which bits and component a hit shares.")] = False,
    model: Annotated[
        Path | None, typer.Option(help="Model folder, if it is no longer where the index knows it.")
    ] = None,
    input_file: Annotated[
        Path | None, typer.Option("--input", help="File of queries, one a line (txt or jsonl).")
    ] = None,
    output_file: Annotated[Path | None, typer.Option("--output", help="File for the answers, one JSON a line.")] = None,
    encoder_folder: EncoderFolder = None,
    as_json: Json = False,
) -> None:
    """Find the documents nearest to a text, to another document, or to a code.

    Example: `latentbits query runs/demo/index "parse a date from a string" -k 5 --filter "kind = 'function'"`
    """
    from jobs.query import Asked, Wanted, answer, answer_code, answer_file, answer_id

    _require_one(text, id, code, input_file, output_file)
    wanted = Wanted(k=k, rank=rank, where=where, radius=radius, rerank=rerank, explain=explain)
    asked = Asked(index, model, encoder_folder)
    if input_file is not None:
        count = answer_file(asked, input_file, output_file, wanted)
        typer.echo(f"{count:,} queries answered" + (f" in {output_file}" if output_file else ""), err=True)
        return
    if id is not None:
        found = answer_id(asked, id, wanted)
    else:
        found = answer_code(asked, code, wanted) if code is not None else answer(asked, [text or ""], wanted)[0]
    _say(found, as_json)


def _require_one(
    text: str | None, id: str | None, code: str | None, input_file: Path | None, output_file: Path | None
) -> None:
    if sum(given is not None for given in (text, id, code, input_file)) != 1:
        raise Misuse(f"give either a text or --input FILE, or --id, or --code, for example: {EXAMPLE}")
    if output_file is not None and input_file is None:
        raise Misuse("--output goes with --input; for one query, add > FILE")


def _say(found: dict[str, Any], as_json: bool) -> None:
    from jobs import tables

    if not found["hits"]:
        unknown = found.get("known_words") == 0
        typer.echo(
            "the model knows no word of this query: there are no hits; ask with words like those it was trained on"
            if unknown
            else "there are no hits: no document passes the filter or lies within the radius",
            err=True,
        )
    if as_json:
        print_json(found)
    elif found["hits"]:
        tables.print_hits(found)
