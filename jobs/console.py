"""What a person sees: progress on standard error, and results, alone, on standard output."""

import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vae_core.errors import LatentbitsError

PLAIN_EVERY_S = 10.0
RECENT_S, SURE_AFTER_S, SURE_AFTER_SHARE = 30.0, 5.0, 0.03
"""The pace is that of the last so many seconds; nothing is said of the time left before so much is done."""
WARM_UP_S = 2.0
"""What is done by then was mostly there from an earlier run, and says nothing of the pace."""
PLAIN_WIDTH = 160
"""Columns of a result that goes to a file or another program."""


class Stopped(LatentbitsError):
    """Ctrl-C, while stages worked."""

    exit_status = 130


@contextmanager
def working() -> "Iterator[Bar | Lines]":
    """Progress for the stages that run in the block; what they or their workers print goes to standard error.

    Raises Stopped for Ctrl-C.
    """
    progress = progress_to(Console(stderr=True))
    try:
        with _stdout_for_results_alone():
            yield progress
    except (KeyboardInterrupt, SystemExit):
        # Ray Train answers Ctrl-C with sys.exit(0).
        raise Stopped("stopped; the same command again goes on where this one was") from None
    finally:
        progress.close()


def progress_to(stream: Console) -> "Bar | Lines":
    """The way to show progress that suits where standard error goes."""
    return Bar(stream) if stream.is_terminal else Lines()


def results() -> Console:
    """Standard output, as wide as the terminal, or wide enough for whole names where it is none."""
    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)


class Pace:
    """How long the rest will take, at the pace of the last seconds."""

    def __init__(self, total: int, now: float) -> None:
        self.total = total
        self.started = now
        self.done = 0
        self.recent: deque[tuple[float, int]] = deque([(now, 0)])

    def advance(self, amount: int, now: float) -> None:
        """`amount` more is done at the time `now`, in seconds."""
        if amount == 0:
            return
        first = self.done == 0
        self.done += amount
        if first or now - self.started < WARM_UP_S:
            self.recent.clear()
        self.recent.append((now, self.done))
        while len(self.recent) > 2 and now - self.recent[1][0] >= RECENT_S:
            self.recent.popleft()

    def left(self, now: float) -> float | None:
        """Seconds to the end; None while too little is known."""
        since, done = self.recent[0]
        sure = now - since >= SURE_AFTER_S and self.done >= SURE_AFTER_SHARE * self.total
        return (now - since) / (self.done - done) * (self.total - self.done) if sure and self.done > done else None


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

    def advance(self, amount: int, note: str = "") -> None:
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

    def advance(self, amount: int, note: str = "") -> None:
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
