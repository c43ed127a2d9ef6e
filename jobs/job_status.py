"""How far a job is: what Ray knows of it, and the last line that it wrote of itself."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from jobs.cluster import Cluster, Job
from jobs.events import Event, StageDone, events_in

LAST_LINES = 200
SIGNAL_KILLED = -9
WAITING = "waiting for "
"""How a stage's warning begins that it cannot go on for lack of resources."""
StageState = Literal["waiting", "working", "done", "up to date", "failed", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """One stage: `done` of `total` units, `rate` of them a second, `left_s` seconds to its end."""

    stage: str
    state: StageState
    done: int = 0
    total: int = 0
    unit: str = ""
    seconds: float | None = None
    rate: float | None = None
    left_s: float | None = None
    note: str = ""
    metrics: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a job failed, in the line that matters; `more` is the traceback or what stood around it."""

    message: str
    stage: str = ""
    more: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """A job for people and programs; `status` is Ray's own word."""

    id: str
    status: str
    out: str
    started: datetime | None
    ended: datetime | None
    last_heard: datetime | None
    stages: tuple[StageStatus, ...]
    waiting_for: str = ""
    failure: Failure | None = None

    @property
    def over(self) -> bool:
        return self.ended is not None

    @property
    def seconds(self) -> float:
        """How long it has run, or ran."""
        return ((self.ended or datetime.now(UTC)) - self.started).total_seconds() if self.started else 0.0

    def facts(self) -> dict[str, Any]:
        """The same for JSON: times in ISO format, only what is known."""
        moments = {
            name: value.isoformat(timespec="seconds")
            for name in ("started", "ended", "last_heard")
            if (value := getattr(self, name))
        }
        known = {key: value for key, value in asdict(self).items() if value not in (None, "")}
        known["stages"] = [{k: v for k, v in stage.items() if v not in (None, "")} for stage in known["stages"]]
        return known | moments | {"seconds": round(self.seconds, 1)}


def status_of(job: Job, cluster: Cluster) -> JobStatus:
    """How far the job is."""
    lines = [] if job.status == "PENDING" else cluster.last_lines(job, LAST_LINES)
    event = next(iter(reversed(list(events_in(lines)))), None)
    return JobStatus(
        id=job.id,
        status=job.status,
        out=job.metadata.get("out", ""),
        started=job.started,
        ended=job.ended if job.over else None,
        last_heard=datetime.fromisoformat(event.time) if event else None,
        stages=_stages(job, event),
        waiting_for=_waiting_for(job, cluster, lines),
        failure=_failure(job, event, lines),
    )


def _stages(job: Job, event: Event | None) -> tuple[StageStatus, ...]:
    """Every stage of the job, in order; what it has told nothing of is up to date if a later one was reached."""
    names = [name for name in job.metadata.get("stages", "").split(",") if name]
    done = {stage.stage: stage for stage in event.finished} if event else {}
    names += [name for name in done if name not in names]
    now = event.stage if event else ""
    over = job.status == "SUCCEEDED"
    reached = [index for index, name in enumerate(names) if name in done or name == now]
    last = len(names) if over else max(reached, default=-1)
    return tuple(_stage(name, index < last, done.get(name), event, job) for index, name in enumerate(names))


def _stage(name: str, passed: bool, done: StageDone | None, event: Event | None, job: Job) -> StageStatus:
    if event and event.stage == name and (done is None or event.state in ("failed", "stopped")):
        return StageStatus(
            stage=name,
            state=_ended(job, event) or "working",
            done=event.done,
            total=event.total,
            unit=event.unit,
            rate=event.rate,
            left_s=event.left_s,
            note=event.note,
            metrics=event.metrics or None,
        )
    if done is not None:
        last = event if event and event.stage == name else None
        return StageStatus(
            stage=name,
            state="done",
            done=done.done,
            total=done.total,
            unit=done.unit,
            seconds=done.seconds,
            rate=done.done / done.seconds if done.seconds else None,
            note=last.note if last else "",
            metrics=(last.metrics if last else None) or None,
        )
    return StageStatus(stage=name, state="up to date" if passed else "waiting")


def _ended(job: Job, event: Event) -> StageState | None:
    """How the stage that was at work ended with its job; None where it did not."""
    if event.state == "failed" or job.status == "FAILED":
        return "failed"
    return "stopped" if event.state == "stopped" or job.status == "STOPPED" else None


def _waiting_for(job: Job, cluster: Cluster, lines: Sequence[str]) -> str:
    """What keeps a job from going on, in words; empty where nothing does."""
    if job.status == "PENDING":
        return job.message
    if job.status == "RUNNING" and (told := _told(lines)):
        return told
    demands = cluster.demands(job) if job.status == "RUNNING" else []
    if not demands:
        return ""
    counted = Counter(_shape(demand) for demand in demands)
    total: Counter[str] = Counter()
    nodes = cluster.nodes()
    for node in nodes:
        total.update({name: int(amount) for name, amount in node.resources.items() if name in ("CPU", "GPU")})
    wanted = " and ".join(f"{count} of {shape}" for shape, count in counted.items())
    size = f"{len(nodes)} node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    return f"room for workers, {wanted}; the cluster has {_shape(total) or 'no core'} on {size}, in use or too small"


def _told(lines: Sequence[str]) -> str:
    """What the run itself says that it waits for, in the last line that it wrote."""
    last = next((line for line in reversed(lines) if line.startswith("{")), "")
    if f'"message": "{WAITING}' not in last:
        return ""
    return str(json.loads(last)["message"]).removeprefix(WAITING)


def _shape(resources: Mapping[str, float]) -> str:
    named = {name: amount for name, amount in resources.items() if not name.startswith(("node:", "bundle_"))}
    return ", ".join(f"{amount:g} {name}" for name, amount in named.items())


def _failure(job: Job, event: Event | None, lines: Sequence[str]) -> Failure | None:
    """The line that matters: the run's own if it wrote one, else the last it wrote and how it ended."""
    if job.status != "FAILED":
        return None
    if event and event.state == "failed":
        return Failure(message=event.message, stage=event.stage, more=event.traceback or "")
    stage = event.stage if event else ""
    said = [line for line in lines if line.strip() and not line.startswith("{")]
    if job.exit_status == 127 or (job.exit_status == 1 and any("No module named jobs" in line for line in said)):
        why = "the cluster's nodes have no latentbits; start them from the image of infra/Dockerfile, or add --wheel"
        return Failure(message=why, more="\n".join(said[-3:]))
    if job.exit_status in (SIGNAL_KILLED, 137):
        why = "the driver was killed, most often for lack of memory on the node it ran on"
        return Failure(message=f"{why} ({job.driver or 'unknown'}); `latentbits resume {job.id}` goes on", stage=stage)
    return Failure(
        message=job.message.strip().splitlines()[0] if job.message else "", stage=stage, more="\n".join(said[-10:])
    )
