"""Jobs as people see them: how far each stage is, a table of many, and lines of a log."""

from collections.abc import Iterable, Iterator
from datetime import datetime

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from jobs.cluster import Job
from jobs.console import time_left
from jobs.events import Event, events_in
from jobs.job_status import JobStatus, StageStatus

COLOURS = {"done": "green", "up to date": "green", "working": "cyan", "failed": "red", "stopped": "yellow"}
MORE_LINES = 12


def job_view(job: JobStatus) -> Group:
    """A job: its stages with pace and time left, what it waits for, and why it failed."""
    head = Text(f"{job.id}  {job.status}", style="bold")
    head.append(f"  {_times(job)}", style="dim")
    parts: list[Text | Table] = [head]
    if job.stages:
        parts.append(_stage_table(job.stages))
    if job.waiting_for:
        parts.append(Text(f"waiting for {job.waiting_for}", style="yellow"))
    if failure := job.failure:
        place = f"failed in {failure.stage}: " if failure.stage else "failed: "
        parts.append(Text(place + failure.message, style="red"))
        parts += [Text(f"  {line}", style="dim") for line in failure.more.splitlines()[-MORE_LINES:]]
    if job.status in ("FAILED", "STOPPED"):
        parts.append(Text(f"latentbits resume {job.id} goes on where it ended"))
    return Group(*parts)


def jobs_table(jobs: Iterable[Job]) -> Table:
    """Jobs, one a line."""
    table = Table(box=None, pad_edge=False)
    for name in ("job", "status", "started", "took", "out"):
        table.add_column(name, overflow="fold")
    for job in jobs:
        took = ((job.ended or datetime.now(job.started.tzinfo)) - job.started).total_seconds() if job.started else 0
        started = f"{job.started.astimezone():%Y-%m-%d %H:%M}" if job.started else ""
        table.add_row(job.id, job.status, started, duration(took), escape(job.metadata.get("out", "")))
    return table


def log_lines(text: str) -> Iterator[str]:
    """The lines of a log, of which events are put into words."""
    for line in text.splitlines():
        event = next(events_in([line]), None)
        yield line if event is None else _event_line(event)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def _times(job: JobStatus) -> str:
    if job.started is None:
        return "not started yet"
    return f"{'took' if job.over else 'for'} {duration(job.seconds)}  {job.out}"


def _stage_table(stages: Iterable[StageStatus]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for column in ("stage", "state", "share", "amount", "rate", "left", "note"):
        table.add_column(column, justify="right" if column in ("share", "rate") else "left", overflow="fold")
    for stage in stages:
        state = Text(stage.state, style=COLOURS.get(stage.state, "dim"))
        table.add_row(f"  {stage.stage}", state, *_amounts(stage), escape(stage.note))
    return table


def _amounts(stage: StageStatus) -> tuple[str, str, str, str]:
    if not stage.unit:
        return "", "", "", ""
    share = f"{stage.done / stage.total:.0%}" if stage.total else ""
    amount = f"{stage.done:,} of {stage.total:,} {stage.unit}"
    if stage.state == "done":
        amount = f"{stage.done:,} {stage.unit}"
    rate = "" if stage.rate is None else f"{stage.rate:,.0f}/s" if stage.rate >= 10 else f"{stage.rate:.2f}/s"
    left = f"in {duration(stage.seconds)}" if stage.seconds is not None else time_left(stage.left_s)
    return share, amount, rate, left


def _event_line(event: Event) -> str:
    moment = datetime.fromisoformat(event.time).astimezone()
    words = [f"{moment:%H:%M:%S}", f"{event.stage or event.run:>9}", event.message, time_left(event.left_s), event.note]
    line = "  ".join(word for word in words if word)
    return f"{line}\n{event.traceback}" if event.traceback else line
