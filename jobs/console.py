"""What a person sees while a stage works: a bar with rate and time left on a terminal, plain lines elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_EVERY_S = 10.0


def progress_to(stream: Console) -> "Bar | Lines":
    """The way to show progress that suits where standard error goes."""
    return Bar(stream) if stream.is_terminal else Lines()


class Bar:
    """One rich progress bar a stage."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.note = ""

    def start(self, stage: str, total: int, unit: str) -> None:
        self.finish()
        self.note = f"{total:,} {unit}"
        columns = (TextColumn("{task.description:>9}"), BarColumn(30), TextColumn("{task.percentage:>3.0f}%"))
        times = (TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn())
        self.bar = Progress(*columns, *times, TextColumn("{task.fields[note]}"), console=self.console)
        self.task = self.bar.add_task(stage, total=total, note=self.note)
        self.bar.start()

    def advance(self, amount: int, note: str = "") -> None:
        self.note = note or self.note
        if self.bar is not None:
            self.bar.update(self.task, advance=amount, note=self.note)

    def finish(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class Lines:
    """A line when a stage begins, at most one every PLAIN_EVERY_S seconds, and one at its end."""

    def __init__(self) -> None:
        self.stage, self.unit, self.note = "", "", ""
        self.total = self.done = 0
        self.started = self.printed = 0.0

    def start(self, stage: str, total: int, unit: str) -> None:
        self.finish()
        self.stage, self.total, self.unit, self.done, self.note = stage, total, unit, 0, ""
        self.started = self.printed = time.monotonic()
        self._print(f"{total:,} {unit}")

    def advance(self, amount: int, note: str = "") -> None:
        self.done += amount
        self.note = note or self.note
        now = time.monotonic()
        if now - self.printed >= PLAIN_EVERY_S and self.done:
            self.printed = now
            left = (now - self.started) / self.done * (self.total - self.done)
            self._print(f"{self.done:,} of {self.total:,} {self.unit}, {left:.0f} s left  {self.note}")

    def finish(self) -> None:
        if self.stage:
            seconds = time.monotonic() - self.started
            self._print(f"done in {seconds:.1f} s  {self.note}")
            self.stage = ""

    def _print(self, text: str) -> None:
        sys.stderr.write(f"{self.stage:>9}  {text}\n")
        sys.stderr.flush()
