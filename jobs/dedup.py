"""The command `dedup`: near duplicates in a collection, or of one collection in another."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.options import Json, Out, Overwrite, Set, print_json, working

if TYPE_CHECKING:
    from pipelines.artifact import Artifact

SHOWN = 5


def dedup(
    codes: Annotated[Path, typer.Argument(help="Folder that `encode` wrote.")],
    out: Out,
    against: Annotated[
        Path | None,
        typer.Option("--against", help="Codes or an index: documents near one of these are duplicates too."),
    ] = None,
    radius: Annotated[int | None, typer.Option("--radius", min=0, help="Bits in which two codes may differ.")] = None,
    precision: Annotated[
        float, typer.Option("--precision", help="Share of pairs that must be near duplicates; it decides the radius.")
    ] = 0.95,
    jaccard: Annotated[
        float, typer.Option("--jaccard", help="Jaccard similarity of two near duplicates' three-word shingles.")
    ] = 0.7,
    confirm: Annotated[
        bool | None,
        typer.Option("--confirm/--codes-alone", help="Compare texts too. Default: where codes alone are not precise."),
    ] = None,
    settings: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find near-duplicate documents, and say of each whether to keep it.

    Writes a table of id, keep, cluster, kept_id, distance, and why. Example:
    `latentbits dedup runs/demo/codes --out runs/demo/duplicates`
    """
    with working() as progress:
        from pydantic import ValidationError

        from jobs.config import load_config
        from jobs.run import run_stage
        from pipelines.dedup import DedupConfig
        from pipelines.dedup import dedup as find_duplicates
        from vae_core.errors import Misuse

        try:
            config = DedupConfig(radius=radius, precision=precision, jaccard=jaccard, confirm=confirm)
        except ValidationError as error:
            first = error.errors()[0]
            raise Misuse(f"--{first['loc'][0]} {first['input']}: {first['msg']}") from None
        made = run_stage(
            "dedup",
            out,
            load_config(None, settings or []).tracking,
            lambda _: find_duplicates(codes, out, config, against=against, overwrite=overwrite, progress=progress),
        )
    facts = _facts(made)
    if as_json:
        print_json(facts)
    else:
        _print(facts)


def _facts(made: "Artifact") -> dict[str, Any]:
    from pipelines.near_duplicates import NearDuplicates

    statistics = made.manifest.statistics
    least = [duplicate._asdict() for duplicate in NearDuplicates.open(made.path).least_similar(SHOWN)]
    return {"path": str(made.path), "fingerprint": made.fingerprint, **statistics, "least_similar": least}


def _print(facts: dict[str, Any]) -> None:
    share = facts["dropped"] / max(1, facts["documents"])
    typer.echo(
        f"keep {facts['kept']:,} of {facts['documents']:,} documents; {facts['dropped']:,} ({share:.1%}) are near "
        f"duplicates, in {facts['clusters']:,} clusters of at most {facts['largest_cluster']:,}"
    )
    typer.echo(_criterion(facts))
    if facts["without_known_word"]:
        typer.echo(f"{facts['without_known_word']:,} documents hold no word that the model knows, and are all kept")
    if facts["least_similar"]:
        typer.echo("least similar of them, and what they are near duplicates of:")
    for one in facts["least_similar"]:
        similar = "" if one["near_jaccard"] is None else f"  Jaccard {one['near_jaccard']:.2f}"
        typer.echo(f"  {one['near_distance']:>3} bits{similar}  {one['id']}  {one['near_id']}")
    typer.echo(facts["path"])


def _criterion(facts: dict[str, Any]) -> str:
    alone = facts["codes_alone"]
    measured = "which was not measured: there are no pairs or no texts"
    if alone:
        measured = f"{alone['precision']:.1%} ({alone['low']:.1%} to {alone['high']:.1%} from {alone['pairs']:,} pairs)"
    if facts["confirmed_by_text"]:
        return (
            f"near duplicates: codes at most {facts['radius']} bits apart, confirmed by a Jaccard similarity of the "
            f"texts of {facts['jaccard']} or more; precision of the codes alone: {measured}"
        )
    return f"near duplicates: codes at most {facts['radius']} bits apart; precision: {measured}"
