"""How a stage tells whoever watches how far it is; the console's bars and the lines of a log live with the commands."""

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """What a stage calls while it works."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage begins that has `total` units (documents, steps, bytes) to do."""

    def advance(self, amount: int, note: str = "", metrics: Mapping[str, float] | None = None) -> None:
        """`amount` more units are done; `note` is what to show beside the bar now, `metrics` the same for programs."""

    def finish(self) -> None:
        """The stage is done."""


class Silent:
    """Progress that nobody watches."""

    def start(self, stage: str, total: int, unit: str) -> None:
        del stage, total, unit

    def advance(self, amount: int, note: str = "", metrics: Mapping[str, float] | None = None) -> None:
        del amount, note, metrics

    def finish(self) -> None:
        pass
