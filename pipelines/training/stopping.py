"""Training that is told to stop: the driver leaves a word, the workers write a checkpoint in the same step and end."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.distributed as dist

from pipelines.artifact import write_text
from pipelines.files.working_folder import working_folder_of
from pipelines.training.carrier import mirror, withdraw
from vae_core.errors import LatentbitsError

WORD = "stop"
LOOK_EVERY_S = 1.0


@contextmanager
def stopped_in_order(scratch: Path) -> Iterator[None]:
    """While the block runs, SIGTERM asks the workers to stop instead of ending this process; a second one ends it.

    Raises KeyboardInterrupt at the end of a block whose workers were asked.
    """
    word = scratch / WORD
    withdraw(word)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = threading.Event()

    def ask(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        _leave(word)

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        withdraw(word)
    if asked.is_set():
        raise KeyboardInterrupt


class Told:
    """Whether the workers are to stop. Collective: all hear it in the same step, so that none waits for another."""

    def __init__(self, scratch: Path, device: torch.device) -> None:
        self.word, self.device = scratch / WORD, device
        self._next = 0.0

    def __call__(self) -> bool:
        here = dist.get_rank() == 0 and self._look()
        if dist.get_world_size() == 1:
            return here
        word = torch.tensor(float(here), device=self.device)
        dist.broadcast(word, 0)
        return bool(word.item())

    def _look(self) -> bool:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LOOK_EVERY_S
            with suppress(LatentbitsError):  # a store that is down is asked again later
                mirror(self.word)
        return self.word.exists()


def _leave(word: Path) -> None:
    write_text(word, "")
    if found := working_folder_of(word):
        found[0].store.write(found[1], b"stop")
