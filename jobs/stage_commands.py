"""The commands of single stages, from files to codes: `tokenize`, `embed`, `graph`, `pretrain`, `encode`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.options import Embeddings, Graph, Json, Out, Overwrite, Set, report, working
from vae_core.errors import Misuse

if TYPE_CHECKING:
    from pipelines.artifact import Artifact
    from pipelines.tracking import Tracker

Id = Annotated[str | None, typer.Option("--id", help="Field that names a document.")]
Text = Annotated[str | None, typer.Option("--text", help="Field that holds the text, if it is not 'text'.")]
Labels = Annotated[str | None, typer.Option("--labels", help="Field that holds labels.")]
Metadata = Annotated[list[str] | None, typer.Option("--metadata", help="Field to keep for display; may be repeated.")]


def tokenize(
    files: Annotated[list[str], typer.Argument(help="parquet, jsonl, csv, txt (.gz, .zst); globs.")],
    out: Out,
    id_field: Id = None,
    text: Text = None,
    labels: Labels = None,
    metadata: Metadata = None,
    settings: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Corpus files to shards: subword tokens, bags of words, and a vocabulary.

    Example: `latentbits tokenize 'docs/*.jsonl' --id url --out runs/mine/shards`
    """
    with working() as progress:
        from jobs.config import load_config
        from jobs.run import run_stage
        from pipelines.tokenize import tokenize as tokenize_files

        config = load_config(None, settings or [])
        corpus = config.corpus.model_copy(update=_fields(files, id_field, text, labels, metadata))
        made = run_stage(
            "tokenize",
            out,
            config.tracking,
            lambda _: tokenize_files(corpus, out, config.tokenize, overwrite=overwrite, progress=progress),
        )
    report(made, as_json)


def embed(
    shards: Annotated[Path, typer.Argument(help="Folder that `tokenize` wrote.")],
    folder: Annotated[Path, typer.Argument(help="Folder of a Hugging Face sentence encoder, with model.safetensors.")],
    out: Out,
    settings: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """A sentence encoder's vector of every document, for a model or a graph to read beside the words.

    Example: `latentbits embed runs/mine/shards ./all-MiniLM-L6-v2 --out runs/mine/embeddings`
    """
    with working() as progress:
        from jobs.config import load_config
        from jobs.run import run_stage
        from pipelines.embed import embed as embed_documents

        config = load_config(None, settings or [])
        how = config.embed.model_copy(update={"folder": folder})
        made = run_stage(
            "embed",
            out,
            config.tracking,
            lambda _: embed_documents(shards, out, how, overwrite=overwrite, progress=progress),
        )
    report(made, as_json)


def graph(
    shards: Annotated[Path, typer.Argument(help="Folder that `tokenize` wrote.")],
    out: Out,
    embeddings: Embeddings = None,
    settings: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """The neighbours of every document, whose words `pretrain --graph` lends it.

    Example: `latentbits graph runs/mine/shards --out runs/mine/graph`
    """
    with working() as progress:
        from jobs.config import load_config
        from jobs.run import run_stage
        from pipelines.graph import graph as find_neighbours

        config = load_config(None, settings or [])
        how = config.graph
        made = run_stage(
            "graph",
            out,
            config.tracking,
            lambda _: find_neighbours(shards, out, how, embeddings=embeddings, overwrite=overwrite, progress=progress),
        )
    report(made, as_json)


def pretrain(
    shards: Annotated[Path, typer.Argument(help="Folder that `tokenize` wrote.")],
    out: Out,
    embeddings: Embeddings = None,
    graph: Graph = None,
    settings: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Shards to a model. Killed and called again, it goes on from its last checkpoint.

    Without `--graph` the model learns from each document's own words alone, which costs precision.

    Example: `latentbits pretrain runs/mine/shards --graph runs/mine/graph --out runs/mine/model`
    """
    with working() as progress:
        from jobs.config import load_config
        from jobs.run import run_stage
        from pipelines.pretrain import pretrain as train_model

        config = load_config(None, settings or [])

        def train(tracking: "Tracker") -> "Artifact":
            how, parts = config.pretrain, config.model
            return train_model(
                shards,
                out,
                parts,
                how,
                embeddings=embeddings,
                graph=graph,
                overwrite=overwrite,
                progress=progress,
                tracking=tracking,
            )

        made = run_stage("pretrain", out, config.tracking, train)
    report(made, as_json)


def encode(
    model: Annotated[Path, typer.Argument(help="Folder that `pretrain` wrote.")],
    files: Annotated[list[str], typer.Argument(help="Raw files, or one shards folder.")],
    out: Out,
    id_field: Id = None,
    text: Text = None,
    labels: Labels = None,
    metadata: Metadata = None,
    embeddings: Embeddings = None,
    settings: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Documents to binary codes, from shards or straight from raw files.

    Example: `latentbits encode runs/mine/model 'more/*.jsonl.zst' --id url --out more/codes`
    """
    with working() as progress:
        from jobs.config import load_config
        from jobs.run import run_stage
        from pipelines.encode import encode as encode_documents
        from pipelines.storage import is_folder

        config = load_config(None, settings or [])
        fields = _fields(files, id_field, text, labels, metadata)
        if len(files) == 1 and is_folder(Path(files[0])):
            if len(fields) > 1:
                given = list(fields)[1]
                raise Misuse(f"{files[0]} is a folder, and shards have their fields already; leave out --{given}")
            source: Path | Any = Path(files[0])
        else:
            source = config.corpus.model_copy(update=fields)
        made = run_stage(
            "encode",
            out,
            config.tracking,
            lambda _: encode_documents(
                model,
                source,
                out,
                config.encode,
                embeddings=embeddings,
                encoder_folder=config.embed.folder,
                overwrite=overwrite,
                progress=progress,
            ),
        )
    report(made, as_json)


def _fields(
    files: list[str], id_field: str | None, text: str | None, labels: str | None, metadata: list[str] | None
) -> dict[str, Any]:
    """The corpus settings that options gave; the others stay as --set, or the defaults, have them."""
    given = {"files": tuple(files), "id": id_field, "text": text, "labels": labels}
    return {name: value for name, value in given.items() if value} | ({"metadata": tuple(metadata)} if metadata else {})
