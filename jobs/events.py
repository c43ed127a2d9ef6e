"""What a run says of itself, one JSON line each: for logs that programs read, and for `latentbits status`.

A line holds all that was done before it, so that the last one is enough to know how far the run is.
"""

import json
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from pydantic import Field, ValidationError

from jobs.pace import Pace
from vae_core.config import Config
from vae_core.errors import LatentbitsError

RUN = "LATENTBITS_RUN"
"""Environment variable that names the run in its lines; a job sets it to its own name."""
EVERY_S = 2.0
State = Literal["starting", "working", "done", "failed", "stopped"]


class StageDone(Config):
    """A stage that ended, and how much it did."""

    stage: str
    done: int
    total: int
    unit: str
    seconds: float


class Event(Config):
    """One line: what is going on now, and what was done before."""

    time: str
    level: Literal["info", "warning", "error"]
    run: str
    stage: str = ""
    state: State
    message: str
    done: int = 0
    total: int = 0
    unit: str = ""
    rate: float | None = None
    left_s: float | None = None
    note: str = ""
    metrics: dict[str, float] = Field(default_factory=dict)
    finished: tuple[StageDone, ...] = ()
    error: str | None = None
    traceback: str | None = None


class Events:
    """Progress as events, at most one every EVERY_S seconds while a stage works."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.run = run_name()
        self.stage, self.unit, self.note = "", "", ""
        self.metrics: dict[str, float] = {}
        self.pace = Pace(0, time.monotonic())
        self.finished: tuple[StageDone, ...] = ()
        self.working = False
        self.written = 0.0
        self._write("starting", "starting")

    def start(self, stage: str, total: int, unit: str) -> None:
        self.finish()
        self.stage, self.unit, self.note, self.metrics = stage, unit, "", {}
        self.pace = Pace(total, time.monotonic())
        self.working = True
        self._write("working", f"{total:,} {unit}")

    def advance(self, amount: int, note: str = "", metrics: Mapping[str, float] | None = None) -> None:
        self.note = note or self.note
        self.metrics |= metrics or {}
        now = time.monotonic()
        self.pace.advance(amount, now)
        if now - self.written >= EVERY_S:
            self._write("working", f"{self.pace.done:,} of {self.pace.total:,} {self.unit}")

    def finish(self) -> None:
        if not self.working:
            return
        self.working = False
        seconds = time.monotonic() - self.pace.started
        done, total = self.pace.done, self.pace.total
        this = StageDone(stage=self.stage, done=done, total=total, unit=self.unit, seconds=round(seconds, 2))
        self.finished = (*self.finished, this)
        self._write("working", f"{'done' if done >= total else 'ended'} in {seconds:.1f} s")

    def close(self) -> None:
        """The stages ended well."""
        self._between_stages()
        self._write("done", "the run is done")

    def failed(self, error: BaseException) -> None:
        """The run ends with `error`; one that a user cannot put right goes along with its traceback."""
        self._between_stages()
        known = isinstance(error, LatentbitsError | OSError)
        trace = None if known else "".join(traceback.format_exception(error))
        notes = "\n".join(getattr(error, "__notes__", ()))
        self._write("failed", str(error) or type(error).__name__, error=type(error).__name__, trace=trace or notes)

    def stopped(self, message: str) -> None:
        """The run was told to stop."""
        self._write("stopped", message)

    def _between_stages(self) -> None:
        """Where the last stage did all it had to do, what comes now is not about it."""
        if not self.working and self.pace.done >= self.pace.total:
            self.stage, self.unit, self.note, self.metrics = "", "", "", {}
            self.pace = Pace(0, time.monotonic())

    def _write(self, state: State, message: str, *, error: str | None = None, trace: str | None = None) -> None:
        now = self.written = time.monotonic()
        event = Event(
            time=_now(),
            level="error" if state == "failed" else "warning" if state == "stopped" else "info",
            run=self.run,
            stage=self.stage,
            state=state,
            message=message,
            done=self.pace.done,
            total=self.pace.total,
            unit=self.unit,
            rate=self.pace.rate(now),
            left_s=self.pace.left(now),
            note=self.note,
            metrics=self.metrics,
            finished=self.finished,
            error=error,
            traceback=trace or None,
        )
        _write_line(self.stream, event.model_dump(mode="json", exclude_defaults=True))


class LogLines(logging.Handler):
    """What Python's loggers say, in lines of the same form."""

    def __init__(self, events: Events) -> None:
        super().__init__()
        self.events = events

    def emit(self, record: logging.LogRecord) -> None:
        facts = {"time": _now(), "level": record.levelname.lower(), "run": self.events.run, "stage": self.events.stage}
        facts |= {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            facts["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        _write_line(self.events.stream, facts)


def events_in(lines: Iterable[str]) -> Iterator[Event]:
    """The events among the lines of a log; other lines are passed over."""
    for line in lines:
        if line.startswith("{") and '"state"' in line:
            try:
                yield Event.model_validate_json(line)
            except ValidationError:
                continue


def run_name() -> str:
    """The name of this run in its lines: what LATENTBITS_RUN says, or where and when it began."""
    return os.environ.get(RUN) or f"{socket.gethostname()}-{os.getpid()}-{datetime.now(UTC):%Y%m%dT%H%M%S}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _write_line(stream: TextIO, facts: Mapping[str, Any]) -> None:
    stream.write(json.dumps(facts, ensure_ascii=False) + "\n")
    stream.flush()
