"""The command `serve`: an index over HTTP, and a page to search it in a browser."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.options import EncoderFolder, Set


def serve(
    index: Annotated[Path, typer.Argument(help="Folder that `index` wrote.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; other than loopback needs LATENTBITS_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    model: Annotated[Path | None, typer.Option("--model", help="The model of the index, if it was moved.")] = None,
    encoder_folder: EncoderFolder = None,
    on_cluster: Annotated[
        bool, typer.Option("--cluster", help="Run on the Ray cluster at RAY_ADDRESS, or one started here.")
    ] = False,
    settings: Set = None,
) -> None:
    """Answer queries over HTTP, and in a browser at the same address, until Ctrl-C or SIGTERM.

    On a cluster, `serve.cluster.replicas` processes answer, and `serve.cluster.spread` share the segments out.

    Example: `latentbits serve runs/demo/index --port 8000`
    """
    from jobs.config import load_config
    from pipelines.service import make_app
    from pipelines.serving.answers import Searcher
    from pipelines.serving.host import listen, required_token, run

    config = load_config(None, settings or []).serve
    token = required_token(host)
    if on_cluster:
        from pipelines.serving.cluster import serve_on_cluster, serving

        serve_on_cluster(serving(index, model, encoder_folder, host, port, config), ready=typer.echo)
        return
    searcher = Searcher.open(index, model, encoder_folder, config.refresh_s)
    listening = listen(host, port)
    address, number = listening.getsockname()[:2]
    place = f"[{address}]" if ":" in address else address
    typer.echo(f"http://{place}:{number}/")
    run(make_app(searcher, config, token), listening, config)
