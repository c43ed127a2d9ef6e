"""MLflow, off the hot path: stages append lines to a spool file, and one thread carries them to the server.

The spool is the truth. What was sent is an offset into it, kept for each server and moved after the server took a
batch; a batch that is sent again after a kill changes nothing, since every point carries the time it was logged at.
So a server that is slow, down or wrong costs a run nothing, and the next start with the same spool sends the rest.
"""

import contextlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

from pydantic import ValidationError

from pipelines.artifact import write_text
from pipelines.mlflow_client import without_password
from pipelines.mlflow_runs import Sent, Server
from vae_core.errors import Damaged

log = logging.getLogger(__name__)
RECORDS = "records.jsonl"
LINGER_S, LONGEST_PAUSE_S = 0.2, 30.0
BATCH_LINES = 500


class Tracker(Protocol):
    """What a stage calls; nothing here waits for a server or raises because of one."""

    def log(self, stage: str, metrics: Mapping[str, float], step: int) -> None:
        """Points of curves, all at `step`."""

    def params(self, stage: str, values: Mapping[str, Any]) -> None:
        """Settings; a stage whose settings differ from those it logged before gets a new run."""

    def tags(self, stage: str, values: Mapping[str, Any]) -> None:
        """Facts that may be overwritten."""

    def artifact(self, stage: str, path: Path) -> None:
        """A file or a folder to copy to the server, as it is when the copy is made."""

    def model(self, stage: str, model: Mapping[str, Any]) -> None:
        """Register the stage's model as candidate, or its card and figures anew: see `registration` in cards.py."""

    def run_id(self, stage: str) -> str | None:
        """The stage's MLflow run; None before anything of the stage was sent."""

    def close(self, timeout: float, *, failed: bool = False) -> int:
        """Wait at most `timeout` seconds for the rest to be sent; returns the number of records that were not.

        The runs end as FINISHED, or with `failed` as FAILED.
        """


class NoTracking:
    """A tracker that keeps nothing."""

    def log(self, stage: str, metrics: Mapping[str, float], step: int) -> None:
        del stage, metrics, step

    def params(self, stage: str, values: Mapping[str, Any]) -> None:
        del stage, values

    def tags(self, stage: str, values: Mapping[str, Any]) -> None:
        del stage, values

    def artifact(self, stage: str, path: Path) -> None:
        del stage, path

    def model(self, stage: str, model: Mapping[str, Any]) -> None:
        del stage, model

    def run_id(self, stage: str) -> None:
        del stage

    def close(self, timeout: float, *, failed: bool = False) -> int:
        del timeout, failed
        return 0


class Tracking:
    """A tracker that spools to a file and sends from it: one MLflow run, with a nested one for each stage."""

    def __init__(self, spool: Path, sender: "_Sender") -> None:
        self._records = spool / RECORDS
        self._sender = sender
        self._file: BinaryIO | None = None

    @classmethod
    def start(cls, uri: str, experiment: str, run_name: str, spool: Path) -> Self:
        """Begin, or continue, the run whose records are in the folder `spool`; what was left there is sent first.

        Raises Damaged where the note of what was sent cannot be read.
        """
        spool.mkdir(parents=True, exist_ok=True)
        _end_last_line(spool / RECORDS)
        sender = _Sender(spool, Server(uri, experiment, run_name))
        sender.start()
        return cls(spool, sender)

    def log(self, stage: str, metrics: Mapping[str, float], step: int) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        self._append({"stage": stage, "metrics": values, "step": step})

    def params(self, stage: str, values: Mapping[str, Any]) -> None:
        self._append({"stage": stage, "params": {name: str(value) for name, value in values.items()}})

    def tags(self, stage: str, values: Mapping[str, Any]) -> None:
        self._append({"stage": stage, "tags": {name: str(value) for name, value in values.items()}})

    def artifact(self, stage: str, path: Path) -> None:
        self._append({"stage": stage, "artifact": str(path.resolve())})

    def model(self, stage: str, model: Mapping[str, Any]) -> None:
        self._append({"stage": stage, "model": dict(model)})

    def run_id(self, stage: str) -> str | None:
        run = self._sender.sent.runs.get(stage)
        return run.id if run else None

    def close(self, timeout: float, *, failed: bool = False) -> int:
        if self._file is not None:
            self._append({"end": "FAILED" if failed else "FINISHED"})
            self._file.close()
            self._file = None
        unsent = self._sender.close(timeout)
        if not self._records.exists():
            with contextlib.suppress(OSError):  # what else is in the folder stays
                self._records.parent.rmdir()
        return unsent

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps({"time": int(time.time() * 1000)} | record) + "\n"
        if self._file is None:
            self._file = self._records.open("ab", buffering=0)
        self._file.write(line.encode())
        if not self._sender.wake.is_set():
            self._sender.wake.set()


def sqlite_uri(folder: Path) -> str:
    """The URI of the database `mlflow.db` in `folder`."""
    return f"sqlite:///{folder.resolve()}/mlflow.db"


class _Sender(threading.Thread):
    """Carries records from the spool to one server until it is closed."""

    def __init__(self, spool: Path, server: Server) -> None:
        super().__init__(name="tracking", daemon=True)
        self.records = spool / RECORDS
        self.server = server
        self.note = spool / f"sent-{server.digest}.json"
        self.sent = _read_note(self.note)
        self.wake = threading.Event()
        self.closing = threading.Event()
        self.warned = False

    def run(self) -> None:
        pause = LINGER_S
        while not self.closing.is_set():
            if self._send_all():
                pause = LINGER_S
                self.wake.wait()
                self.wake.clear()
            else:
                pause = min(max(1.0, 2 * pause), LONGEST_PAUSE_S)
            self.closing.wait(pause)
        self._send_all()

    def close(self, timeout: float) -> int:
        """Send what is left, for at most `timeout` seconds; returns the number of records that are not sent."""
        self.closing.set()
        self.wake.set()
        self.join(timeout)
        return sum("end" not in record for record, _ in _unsent(self.records, self.sent.offset))

    def _send_all(self) -> bool:
        """Send every whole line there is; False where the server could not be reached or used."""
        try:
            while batch := list(_batch(self.records, self.sent.offset)):
                sent = self.server.send([record for record, _ in batch], self.sent)
                self.sent = sent.model_copy(update={"offset": batch[-1][1]})
                write_text(self.note, self.sent.model_dump_json())
        except Exception as error:  # whatever fails between here and the server, the run goes on
            if not self.warned:
                reason = without_password(str(error))
                log.warning("MLflow at %s takes nothing now; %s waits: %s", self.server.name, self.records, reason)
            self.warned = True
            return False
        return True


def _batch(records: Path, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    for count, item in enumerate(_unsent(records, offset), start=1):
        yield item
        if count == BATCH_LINES:
            return


def _unsent(records: Path, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Each whole record after `offset` with the offset of its end; a line torn by a kill counts as empty."""
    if not records.exists():
        return
    with records.open("rb") as file:
        file.seek(offset)
        while (line := file.readline()).endswith(b"\n"):
            try:
                yield json.loads(line), file.tell()
            except ValueError:
                yield {}, file.tell()


def _end_last_line(records: Path) -> None:
    if not records.exists():
        return
    with records.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _read_note(note: Path) -> Sent:
    if not note.exists():
        write_text(note, Sent(key=uuid.uuid4().hex).model_dump_json())
    try:
        return Sent.model_validate_json(note.read_bytes())
    except ValidationError as error:
        raise Damaged(f"{note} cannot be read; delete it, and everything in {RECORDS} is sent again") from error
