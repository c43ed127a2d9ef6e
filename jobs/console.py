"""What a person sees: progress on standard error, and results, alone, on standard output."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from jobs.events import Events, LogLines
from jobs.pace import Pace
from vae_core.errors import LatentbitsError

LOG = "LATENTBITS_LOG"
"""Environment variable: `json` makes every line of progress and logs a JSON object."""
STOPPED = "stopped; the same command again goes on where this one was"
PLAIN_EVERY_S = 10.0
PLAIN_WIDTH = 160
"""Columns of a result that goes to a file or another program."""


class Stopped(LatentbitsError):
    """Ctrl-C, while stages worked."""

    exit_status = 130


@contextmanager
def working() -> "Iterator[Bar | Lines | Events]":
    """Progress for the stages that run in the block; what they or their workers print goes to standard error.

    Where LATENTBITS_LOG is json, progress, logs and a failure are one JSON line each. Raises Stopped for Ctrl-C and
    for SIGTERM.
    """
    before = _end_on_sigterm()
    try:
        with _stdout_for_results_alone():
            if os.environ.get(LOG) == "json":
                with _in_json() as events:
                    yield events
            else:
                progress = progress_to(Console(stderr=True))
                try:
                    yield progress
                finally:
                    progress.close()
    except (KeyboardInterrupt, SystemExit) as end:
        # Ray Train answers Ctrl-C with sys.exit(0).
        if getattr(end, "said", False):
            raise
        raise Stopped(STOPPED) from None
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def progress_to(stream: Console) -> "Bar | Lines":
    """The way to show progress that suits where standard error goes."""
    return Bar(stream) if stream.is_terminal else Lines()


def results() -> Console:
    """Standard output, as wide as the terminal, or wide enough for whole names where it is none."""
    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)


class Bar:
    """One rich progress bar a stage, and a spinner before and between them."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.note = ""
        self.pace = Pace(0, time.monotonic())
        self.spinner = console.status("starting")
        self.spinner.start()

    def start(self, stage: str, total: int, unit: str) -> None:
        self.finish()
        self.spinner.stop()
        self.note = f"{total:,} {unit}"
        self.pace = Pace(total, time.monotonic())
        columns = (TextColumn("{task.description:>9}"), BarColumn(30), TextColumn("{task.percentage:>3.0f}%"))
        times = (TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
        self.bar = Progress(*columns, *times, TextColumn("{task.fields[note]}"), console=self.console)
        self.task = self.bar.add_task(stage, total=total, note=self.note, left="")
        self.bar.start()

    def advance(self, amount: int, note: str = "", metrics: Mapping[str, float] | None = None) -> None:
        del metrics
        self.note = note or self.note
        now = time.monotonic()
        self.pace.advance(amount, now)
        if self.bar is not None:
            self.bar.update(self.task, advance=amount, note=self.note, left=time_left(self.pace.left(now)))

    def finish(self) -> None:
        if self.bar is not None:
            self.bar.update(self.task, left="")
            self.bar.stop()
            self.bar = None
            self.spinner.start()

    def close(self) -> None:
        """Leave the terminal as it was, whatever the stages did."""
        self.finish()
        self.spinner.stop()


class Lines:
    """A line at once, one when a stage begins, at most one every PLAIN_EVERY_S seconds, and one at its end.

    A stage that ends before all is done, as by Ctrl-C, is not said to be done.
    """

    def __init__(self) -> None:
        self.stage, self.unit, self.note = "", "", ""
        self.pace = Pace(0, 0.0)
        self.printed = 0.0
        self._print("starting")

    def start(self, stage: str, total: int, unit: str) -> None:
        self.finish()
        self.stage, self.unit, self.note = stage, unit, ""
        self.printed = time.monotonic()
        self.pace = Pace(total, self.printed)
        self._print(f"{total:,} {unit}")

    def advance(self, amount: int, note: str = "", metrics: Mapping[str, float] | None = None) -> None:
        del metrics
        self.note = note or self.note
        now = time.monotonic()
        self.pace.advance(amount, now)
        if now - self.printed >= PLAIN_EVERY_S and self.pace.done:
            self.printed = now
            parts = (
                f"{self.pace.done:,} of {self.pace.total:,} {self.unit}",
                time_left(self.pace.left(now)),
                self.note,
            )
            self._print("  ".join(filter(None, parts)))

    def finish(self) -> None:
        if self.stage:
            seconds = time.monotonic() - self.pace.started
            word = "done" if self.pace.done >= self.pace.total else "ended"
            self._print(f"{word} in {seconds:.1f} s  {self.note}".rstrip())
            self.stage = ""

    def close(self) -> None:
        """A stage that did not finish says nothing."""
        self.stage = ""

    def _print(self, text: str) -> None:
        sys.stderr.write(f"{self.stage:>9}  {text}\n")
        sys.stderr.flush()


def time_left(seconds: float | None) -> str:
    """A time that is left, for people; nothing where it is not known."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s left" if minutes else f"{rest} s left"


@contextmanager
def _stdout_for_results_alone() -> Iterator[None]:
    """Let what this process and its children print go to standard error: Ray prints notices when a worker dies."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


class Said(SystemExit):
    """The command ends with this status, and why was said already."""

    said = True


@contextmanager
def _in_json() -> Iterator[Events]:
    events = Events()
    handler = LogLines(events)
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield events
    except (KeyboardInterrupt, SystemExit, Stopped):
        events.stopped(STOPPED)
        raise Said(Stopped.exit_status) from None
    except Exception as error:  # whatever ends the run is to be in its log, in one line
        events.failed(error)
        raise Said(getattr(error, "exit_status", 1)) from None
    else:
        events.close()
    finally:
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(handler)


def _end_on_sigterm() -> Any:
    """End as by Ctrl-C when told to; returns what was done before, None where that is not ours to change."""
    if threading.current_thread() is not threading.main_thread():
        return None

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    return signal.signal(signal.SIGTERM, end)
