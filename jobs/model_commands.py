"""The commands that look at a trained model: `diagnose` and `generate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.options import EncoderFolder, Json, Overwrite, Set, print_json, working

if TYPE_CHECKING:
    from pipelines.artifact import Artifact
    from pipelines.tracking import Tracker


def diagnose(
    model: Annotated[Path, typer.Argument(help="Folder that `pretrain` wrote.")],
    shards: Annotated[Path, typer.Argument(help="Folder that `tokenize` wrote: the documents to look at.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the page; without it, `diagnosis` beside the model.")
    ] = None,
    compare: Annotated[
        list[Path] | None, typer.Option("--compare", metavar="MODEL", help="Another model; may be repeated.")
    ] = None,
    settings: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """What a model learned: likelihood, rate and distortion, information, active units, and its latent space as plots.

    Example: `latentbits diagnose runs/demo/model runs/demo/shards --compare runs/other/model`
    """
    with working() as progress:
        from jobs import tables
        from jobs.config import load_config
        from jobs.run import run_stage
        from pipelines.diagnose import diagnose as diagnose_model

        config, place, others = load_config(None, settings or []), out or model.absolute().parent / "diagnosis", compare

        def make(_: "Tracker") -> "Artifact":
            how, beside = config.diagnose, others or []
            return diagnose_model(
                model,
                shards,
                place,
                how,
                compare=beside,
                encoder_folder=config.embed.folder,
                overwrite=overwrite,
                progress=progress,
            )

        made = run_stage("diagnose", place, config.tracking, make)
    found = json.loads((made.path / "diagnosis.json").read_text())
    if as_json:
        print_json(found)
    else:
        tables.print_diagnosis(found, made.path / "diagnosis.html")


def generate(
    model: Annotated[Path, typer.Argument(help="Folder that `pretrain` wrote.")],
    count: Annotated[int | None, typer.Option("--count", min=1, help="How many samples; 5 unless given.")] = None,
    reconstruct: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Write this text's code out again; may be repeated.")
    ] = None,
    interpolate: Annotated[
        tuple[str, str] | None, typer.Option(metavar="TEXT TEXT", help="Write what lies between two texts.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=2, help="Texts on the way, both ends too; 5 unless given.")] = None,
    component: Annotated[int | None, typer.Option(help="Draw from this component of the prior alone.")] = None,
    of: Annotated[str | None, typer.Option("--class", metavar="NAME", help="Tell the model this class.")] = None,
    opening: Annotated[str | None, typer.Option(metavar="TEXT", help="Tell the model how the samples open.")] = None,
    topics: Annotated[bool, typer.Option("--topics", help="The top words of each component.")] = False,
    bits: Annotated[bool, typer.Option("--bits", help="The words that each bit raises and lowers.")] = False,
    words: Annotated[int, typer.Option(min=1, help="How many top words.")] = 10,
    sampled: Annotated[
        bool | None,
        typer.Option("--sampled/--greedy", help="Draw tokens, as samples do unless told; or take the most probable."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Below 1: safer tokens. Above: bolder ones.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(min=1e-9, max=1.0, help="Draw among the fewest tokens with this much probability.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same texts.")] = 0,
    encoder_folder: EncoderFolder = None,
    as_json: Json = False,
) -> None:
    """Texts from a model: samples, reconstructions, what lies between two texts; and its components and bits as words.

    Example: `latentbits generate runs/demo/model --reconstruct "parse a date" --reconstruct "sort a list"`
    """
    from jobs import tables
    from jobs.generate import Request, answer

    request = Request(
        count=count,
        reconstruct=tuple(reconstruct or ()),
        interpolate=interpolate,
        steps=steps,
        component=component,
        of=of,
        opening=opening,
        topics=topics,
        bits=bits,
        words=words,
        sampled=sampled,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    made = answer(model, request, encoder_folder)
    if "sampling" in made and not made["writes_text"]:
        typer.echo("this model's decoder writes no text; these are the words it finds most typical", err=True)
    if as_json:
        print_json(made)
    else:
        tables.print_generated(made)
