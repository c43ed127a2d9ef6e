"""Look at jobs again and again until they are over."""

import time
from collections.abc import Callable, Iterator

from rich.console import Console, Group
from rich.live import Live

from jobs.cluster import Cluster
from jobs.job_status import JobStatus, status_of
from jobs.job_views import duration, job_view
from vae_core.errors import LatentbitsError, Misuse

EVERY_S = 2.0
PLAIN_EVERY_S, OVER_EVERY_S = 10.0, 0.25
GIVEN_UP_S = 300.0
"""A head that starts again is away for a while; so long is waited for it."""


def watch(job: str, cluster: Cluster, console: Console, progress: Callable[[str], None]) -> JobStatus:
    """Show the job until it is over, and return how it ended: a live view on a terminal, else a line now and then."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            return _last(each(job, cluster), lambda status: live.update(job_view(status)))
    said: list[str] = []

    def say(status: JobStatus) -> None:
        if (line := _line(status)) not in said[-1:]:
            said.append(line)
            progress(line)

    return _last(each(job, cluster, PLAIN_EVERY_S), say)


def watch_all(cluster: Cluster, console: Console) -> None:
    """Show all jobs that are not over until none is."""
    with Live(console=console, refresh_per_second=4) as live:
        while True:
            running = [status_of(job, cluster) for job in cluster.jobs() if not job.over]
            live.update(Group(*map(job_view, running)) if running else Group("no job is running"))
            if not running:
                return
            time.sleep(EVERY_S)


def each(job: str, cluster: Cluster, pause: float = EVERY_S) -> Iterator[JobStatus]:
    """How far the job is, now and every so often, until it is over; a head that is away for minutes is waited for."""
    heard = time.monotonic()
    while True:
        try:
            status = status_of(cluster.job(job), cluster)
            heard = time.monotonic()
            yield status
            if status.over:
                return
        except Misuse:
            raise
        except LatentbitsError:
            if time.monotonic() - heard > GIVEN_UP_S:
                raise
        _sleep_until_over(job, cluster, pause)


def _sleep_until_over(job: str, cluster: Cluster, pause: float) -> None:
    """Lines come seldom, the end of a job at once."""
    until = time.monotonic() + pause
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(OVER_EVERY_S, left))
        try:
            if cluster.job(job).over:
                return
        except LatentbitsError:
            continue


def _last(statuses: Iterator[JobStatus], show: Callable[[JobStatus], None]) -> JobStatus:
    for status in statuses:
        show(status)
    return status


def _line(job: JobStatus) -> str:
    """How far it is, in one line."""
    if job.waiting_for:
        return f"{job.status}  waiting for {job.waiting_for}"
    now = next((stage for stage in job.stages if stage.state == "working"), None)
    if now is None:
        done = [stage.stage for stage in job.stages if stage.state in ("done", "up to date")]
        return f"{job.status}  {'after ' + done[-1] if done else 'starting'}" if not job.over else job.status
    share = f"{now.done / now.total:.0%} of {now.total:,} {now.unit}" if now.total else ""
    left = f"{duration(now.left_s)} left" if now.left_s is not None else ""
    return "  ".join(word for word in (f"{now.stage:>9}", share, left, now.note) if word)
