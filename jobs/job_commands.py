"""The commands for jobs on a cluster: `submit`, `status`, `logs`, `stop`, `list`, `resume`, `top`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.options import Json, Overwrite, Set, print_json

if TYPE_CHECKING:
    from jobs.cluster import Cluster
    from jobs.submit import Submitted

Address = Annotated[
    str | None,
    typer.Option("--address", metavar="URL", help="Of the cluster's dashboard; default: RAY_API_SERVER_ADDRESS."),
]
JobName = Annotated[str, typer.Argument(metavar="ID", help="The job's name, as `submit` and `list` print it.")]
Wheel = Annotated[
    Path | None,
    typer.Option("--wheel", help="Run this wheel, or this checkout, instead of what the nodes have installed."),
]
Wait = Annotated[bool, typer.Option("--wait", help="Follow the job to its end; Ctrl-C leaves it running.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (submit, status, logs, stop, resume, top):
        app.command()(command)
    app.command("list")(list_jobs)


def submit(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe.")],
    address: Address = None,
    settings: Set = None,
    wheel: Wheel = None,
    wait: Wait = False,
    again: Annotated[bool, typer.Option("--again", help="A new job, even if the same run was sent before.")] = False,
    patience: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Wait so long for nodes that the run still lacks.")
    ] = 0.0,
    first: Annotated[str, typer.Option("--from", help="First stage.")] = "tokenize",
    last: Annotated[str, typer.Option("--until", help="Last stage.")] = "evaluate",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Run a config on a Ray cluster: `run`, elsewhere. The same run is sent once; its name tells what it is.

    Paths and s3:// addresses of the config must mean the same on all nodes; relative ones are taken from here.

    Example: `latentbits submit news.yaml --address http://head:8265 --set out=s3://bucket/news --wait`
    """
    from jobs.cluster import Cluster
    from jobs.config import load_config
    from jobs.submit import Request
    from jobs.submit import submit as send

    cluster = Cluster.connect(address)
    request = Request(load_config(config, settings or []), first, last, overwrite, wheel)
    sent = send(request, cluster, again=again, patience=patience, say=_say)
    if not sent.new:
        _say(f"{sent.job.id} was sent before and is {sent.job.status}; {_next(sent)}")
    _ended(sent, cluster, wait, as_json)


def resume(
    name: JobName, address: Address = None, wheel: Wheel = None, wait: Wait = False, as_json: Json = False
) -> None:
    """Send a job that failed or was stopped once more; it goes on from its last part or checkpoint.

    Example: `latentbits resume news-3f2a9c81d0e4 --wait`
    """
    from jobs.cluster import Cluster
    from jobs.submit import resume as send

    cluster = Cluster.connect(address)
    _ended(send(name, cluster, code=wheel), cluster, wait, as_json)


def status(name: JobName, address: Address = None, as_json: Json = False) -> None:
    """How far a job is: its stages, their pace, the time left, the last metrics, and why it failed.

    Example: `latentbits status news-3f2a9c81d0e4`
    """
    from jobs.cluster import Cluster
    from jobs.console import results
    from jobs.job_status import status_of
    from jobs.job_views import job_view

    cluster = Cluster.connect(address)
    found = status_of(cluster.job(name), cluster)
    if as_json:
        print_json(found.facts())
    else:
        results().print(job_view(found))


def logs(
    name: JobName,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job is over.")] = False,
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="The lines as the job wrote them, JSON where it is.")] = False,
) -> None:
    """What a job wrote: progress in words, and everything else as it is.

    Example: `latentbits logs news-3f2a9c81d0e4 -f`
    """
    from jobs.cluster import Cluster
    from jobs.job_views import log_lines

    cluster = Cluster.connect(address)
    for chunk in cluster.follow(name) if follow else [cluster.log(name)]:
        for line in chunk.splitlines() if as_json else log_lines(chunk):
            typer.echo(line)


def stop(name: JobName, address: Address = None, wait: Wait = False, as_json: Json = False) -> None:
    """Tell a job to end. Parts and checkpoints that it wrote are kept; it is killed where ending takes two minutes.

    Example: `latentbits stop news-3f2a9c81d0e4 --wait`
    """
    from jobs.cluster import Cluster

    cluster = Cluster.connect(address)
    asked = cluster.stop(name)
    job = cluster.job(name)
    if wait:
        from jobs.watch import each

        for _ in each(name, cluster):
            pass
        job = cluster.job(name)
    if as_json:
        print_json({"id": name, "status": job.status, "asked": asked})
    elif not asked:
        typer.echo(f"{name} had ended already: {job.status}")
    else:
        typer.echo(f"{name} {'is ' + job.status if job.over else 'was told to stop'}; resume {name} goes on")


def list_jobs(
    address: Address = None,
    running: Annotated[bool, typer.Option("--running", help="Only those that are not over.")] = False,
    as_json: Json = False,
) -> None:
    """The cluster's jobs that latentbits sent, the newest first.

    Example: `latentbits list --address http://head:8265`
    """
    from jobs.cluster import Cluster
    from jobs.console import results
    from jobs.job_views import jobs_table

    found = [job for job in Cluster.connect(address).jobs() if not (running and job.over)]
    if as_json:
        print_json({"jobs": [_facts(job) for job in found]})
    else:
        results().print(jobs_table(found) if found else "no jobs")


def top(
    name: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="One job; without it, all that are running.")
    ] = None,
    address: Address = None,
) -> None:
    """Live rates of running jobs, until they are over or Ctrl-C.

    Example: `latentbits top --address http://head:8265`
    """
    from jobs.cluster import Cluster
    from jobs.console import results
    from jobs.job_views import job_view
    from jobs.watch import watch, watch_all

    cluster = Cluster.connect(address)
    console = results()
    if name is None:
        watch_all(cluster, console)
    else:
        console.print(job_view(watch(name, cluster, console, typer.echo)))


def _ended(sent: "Submitted", cluster: "Cluster", wait: bool, as_json: bool) -> None:
    """Print the job; with `wait` once it is over. The exit status is 1 where it did not end well."""
    facts, good = _facts(sent.job) | {"new": sent.new}, sent.job.status not in ("FAILED", "STOPPED")
    if wait and not sent.job.over:
        from rich.console import Console

        from jobs.console import results
        from jobs.job_views import job_view
        from jobs.watch import watch

        if not as_json:
            typer.echo(sent.job.id)
        try:
            last = watch(sent.job.id, cluster, Console(stderr=True), _say)
        except KeyboardInterrupt:
            _say(f"{sent.job.id} goes on; `latentbits status {sent.job.id}` shows how far it is")
            raise
        facts, good = last.facts() | {"new": sent.new}, last.status == "SUCCEEDED"
        if not as_json:
            results().print(job_view(last))
    elif not as_json:
        typer.echo(sent.job.id)
    if as_json:
        print_json(facts)
    if not good:
        raise typer.Exit(1)


def _next(sent: "Submitted") -> str:
    job = sent.job
    if not job.over:
        return f"`latentbits top {job.id}` shows how far it is"
    if job.status == "SUCCEEDED":
        return "--again --overwrite runs it anew"
    return f"`latentbits resume {job.id}` goes on where it ended"


def _facts(job: Any) -> dict[str, Any]:
    facts = {"id": job.id, "status": job.status, "out": job.metadata.get("out"), "exit_status": job.exit_status}
    moments = {"started": job.started, "ended": job.ended if job.over else None}
    return facts | {name: moment.isoformat(timespec="seconds") if moment else None for name, moment in moments.items()}


def _say(message: str) -> None:
    typer.echo(message, err=True)
