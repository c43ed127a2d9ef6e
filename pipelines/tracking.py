"""MLflow, off the hot path: a stage appends a line to a file, and one thread sends the lines when it can.

The file (the spool) is the truth. `SPOOL.state` beside it holds the runs' ids and how far the spool was sent, so a
process that starts on the same spool goes on with the same runs. A line that was sent but not yet ticked off when the
process died is sent again; the tracking store keeps one copy of a point, so that nothing is lost or doubled.
"""

import fcntl
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Self

from pipelines.artifact import write_text

PARENT = ""
"""Where the parent run stands among the stages' runs."""
LINES_AT_ONCE = 500
METRICS_AT_ONCE = 1000  # MLflow's limits for one batch
OTHERS_AT_ONCE = 100
LONGEST_VALUE = 5000
PATIENCE = 60.0  # seconds between attempts at a server that stays away
QUIET = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the sender tries again by itself
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
logger = logging.getLogger(__name__)
Record = dict[str, Any]


class Tracking:
    """Where stages report what they measure; every call returns at once, whether or not MLflow answers."""

    def __init__(self, spool: Path, sender: "_Sender") -> None:
        self._sender = sender
        self._last_stage = PARENT
        self._descriptor = os.open(spool, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    @classmethod
    def start(cls, uri: str, experiment: str, run_name: str, spool: Path) -> Self:
        """Track at `uri` (sqlite:///runs/mlflow.db, http://...), going on where `spool` was left if it is there."""
        spool.parent.mkdir(parents=True, exist_ok=True)
        tracking = cls(spool, _Sender(uri, experiment, run_name, spool))
        if _ends_in_mid_line(spool):
            os.write(tracking._descriptor, b"\n")
        tracking._append("begin", PARENT, {})
        tracking._sender.start()
        return tracking

    def log(self, stage: str, metrics: Mapping[str, float], step: int) -> None:
        """One point of each metric, now."""
        self._append("metrics", stage, {key: float(value) for key, value in metrics.items()}, step)

    def params(self, stage: str, values: Mapping[str, object]) -> None:
        """Settings, which MLflow lets nobody change: the first value of each stays."""
        self._append("params", stage, {key: str(value) for key, value in values.items()})

    def tags(self, stage: str, values: Mapping[str, object]) -> None:
        self._append("tags", stage, {key: str(value) for key, value in values.items()})

    def artifact(self, stage: str, path: Path) -> None:
        """A copy of a file or folder, as it is when it is sent."""
        self._append("artifact", stage, {"path": str(path.resolve())})

    def run_id(self, stage: str) -> str | None:
        """MLflow's id of the stage's run; None until the first of its lines was sent."""
        return self._sender.runs.get(stage)

    def close(self, timeout: float, *, failed: bool = False) -> int:
        """End the runs and wait up to `timeout` seconds until all is sent. Returns how many records are left over.

        What is left over is sent by the next start on the same spool. With `failed`, the whole and its last stage
        are marked FAILED, and the stages before it FINISHED.
        """
        self._append("end", self._last_stage, {"failed": failed})
        os.close(self._descriptor)
        self._descriptor = -1  # the number may soon be another file's
        return self._sender.finish(timeout)

    def _append(self, what: str, stage: str, values: Mapping[str, object], step: int = 0) -> None:
        self._last_stage = stage
        record = {"what": what, "stage": stage, "values": values, "step": step, "time": time.time_ns() // 1_000_000}
        os.write(self._descriptor, json.dumps(record).encode() + b"\n")


class NoTracking:
    """Tracking that goes nowhere."""

    def log(self, stage: str, metrics: Mapping[str, float], step: int) -> None:
        del stage, metrics, step

    def params(self, stage: str, values: Mapping[str, object]) -> None:
        del stage, values

    def tags(self, stage: str, values: Mapping[str, object]) -> None:
        del stage, values

    def artifact(self, stage: str, path: Path) -> None:
        del stage, path

    def run_id(self, stage: str) -> str | None:
        del stage
        return None

    def close(self, timeout: float, *, failed: bool = False) -> int:
        del timeout, failed
        return 0


Tracker = Tracking | NoTracking


class _Sender(threading.Thread):
    """Reads the spool from where it was sent to, and sends what follows."""

    def __init__(self, uri: str, experiment: str, run_name: str, spool: Path) -> None:
        super().__init__(name="tracking", daemon=True)
        self._uri, self._experiment, self._run_name, self._spool = uri, experiment, run_name, spool
        self._state = spool.with_name(f"{spool.name}.state")
        self._closing = threading.Event()
        self._client: Any = None
        self._warned = False
        self._resumed: set[str] = set()
        self._identity, self._offset = uuid.uuid4().hex, 0
        self.runs: dict[str, str] = {}

    def run(self) -> None:
        pause = 0.0
        with _alone(self._spool, self._closing) as alone:
            while alone:
                closing = self._closing.is_set()
                try:
                    self._send_all()
                    pause = 1.0
                except Exception as error:  # MLflow, its database or its server: never a reason to stop a stage
                    self._warn(error)
                    self._client = None
                    pause = min(PATIENCE, 2 * pause + 1)
                if closing:
                    return
                self._closing.wait(pause)

    def finish(self, timeout: float) -> int:
        self._closing.set()
        self.join(timeout)
        with self._spool.open("rb") as file:
            file.seek(self._offset)
            return sum(record["what"] not in ("begin", "end") for record in map(_record, file) if record)

    def _send_all(self) -> None:
        if self._client is None:
            self._connect()
        while lines := self._unsent():
            self._send(record for record in map(_record, lines) if record)
            self._offset += sum(map(len, lines))
            self._save()

    def _unsent(self) -> list[bytes]:
        """The next complete lines."""
        with self._spool.open("rb") as file:
            file.seek(self._offset)
            return [line for line in islice(file, LINES_AT_ONCE) if line.endswith(b"\n")]

    def _send(self, records: Iterable[Record]) -> None:
        for (how, stage), group in groupby(records, key=_destination):
            if how == "end":
                self._end(stage, list(group))
                continue
            run = self._run(stage)
            if how == "values":
                self._send_values(run, list(group))
            elif how == "artifact":
                for record in group:
                    self._send_artifact(run, Path(record["values"]["path"]))

    def _send_values(self, run: str, records: list[Record]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        client = self._client
        metrics = [
            Metric(key, value, record["time"], record["step"])
            for record in records
            if record["what"] == "metrics"
            for key, value in record["values"].items()
        ]
        params, tags = (
            {k: v[:LONGEST_VALUE] for record in records if record["what"] == what for k, v in record["values"].items()}
            for what in ("params", "tags")
        )
        _offer(metrics, METRICS_AT_ONCE, lambda chunk: client.log_batch(run, metrics=chunk))
        _offer([Param(*p) for p in params.items()], OTHERS_AT_ONCE, lambda chunk: client.log_batch(run, params=chunk))
        _offer([RunTag(*t) for t in tags.items()], OTHERS_AT_ONCE, lambda chunk: client.log_batch(run, tags=chunk))

    def _send_artifact(self, run: str, path: Path) -> None:
        if path.exists():
            self._client.log_artifact(run, str(path))
        else:
            logger.warning("%s is gone and cannot be sent to MLflow", path)

    def _end(self, last_stage: str, records: list[Record]) -> None:
        failed = (PARENT, last_stage) if records[-1]["values"]["failed"] else ()
        for stage, run in self.runs.items():
            self._client.set_terminated(run, "FAILED" if stage in failed else "FINISHED", records[-1]["time"])
        self._resumed.clear()

    def _connect(self) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        logging.getLogger("alembic").setLevel(logging.ERROR)
        client = MlflowClient(self._uri)
        self._load()
        try:
            if PARENT in self.runs:
                client.get_run(self.runs[PARENT])
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.runs, self._offset = {}, 0  # the store was emptied: send it everything again
            self._resumed.clear()
        self._experiment_id = self._find_experiment(client)
        self._client = client

    def _find_experiment(self, client: Any) -> str:
        found = client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        # Without a location, a store in SQLite puts artifacts in the folder that the process happens to run in.
        path = self._uri.removeprefix("sqlite:///")
        location = None if path == self._uri else (Path(path).resolve().parent / "mlartifacts").as_uri()
        return str(client.create_experiment(self._experiment, artifact_location=location))

    def _run(self, stage: str) -> str:
        """The stage's run, open: the one known, the one that was made just before a kill, or a new one."""
        if stage not in self.runs:
            parent = self._run(PARENT) if stage != PARENT else None
            self.runs[stage] = self._orphan(stage) or self._create(stage, parent)
            self._save()
        if stage not in self._resumed:
            self._client.update_run(self.runs[stage], status="RUNNING")
            self._resumed.add(stage)
        return self.runs[stage]

    def _orphan(self, stage: str) -> str | None:
        where = f"tags.`latentbits.spool` = '{self._identity}' and tags.`latentbits.stage` = '{stage}'"
        found = self._client.search_runs([self._experiment_id], where, max_results=1)
        return str(found[0].info.run_id) if found else None

    def _create(self, stage: str, parent: str | None) -> str:
        tags = {"latentbits.spool": self._identity, "latentbits.stage": stage}
        if parent:
            tags["mlflow.parentRunId"] = parent
        run = self._client.create_run(self._experiment_id, tags=tags, run_name=stage or self._run_name)
        return str(run.info.run_id)

    def _load(self) -> None:
        known = json.loads(self._state.read_text()) if self._state.exists() else {}
        if known.get("uri") == self._uri:
            self._identity, self._offset, self.runs = known["identity"], known["offset"], known["runs"]
        else:
            self._save()  # before the first run is made, so that the run can be found again

    def _save(self) -> None:
        state = {"uri": self._uri, "identity": self._identity, "offset": self._offset, "runs": self.runs}
        write_text(self._state, json.dumps(state))

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            logger.warning("MLflow at %s does not answer; %s keeps the records: %s", self._uri, self._spool, reason)
        self._warned = True


@contextmanager
def _alone(spool: Path, closing: threading.Event) -> Iterator[bool]:
    """True once no other sender, of this or another process, works on the spool; False if told to close before."""
    with spool.with_name(f"{spool.name}.lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if closing.wait(0.2):
                    yield False
                    return
            else:
                yield True
                return


def _ends_in_mid_line(spool: Path) -> bool:
    """Whether a kill cut the last line short."""
    with spool.open("rb") as file:
        file.seek(max(0, spool.stat().st_size - 1))
        return file.read() not in (b"", b"\n")


def _record(line: bytes) -> Record | None:
    """A line of the spool; None for one that a kill cut short."""
    try:
        record: Record = json.loads(line)
    except ValueError:
        return None
    return record


def _destination(record: Record) -> tuple[str, str]:
    what = record["what"]
    return ("values" if what in ("metrics", "params", "tags") else what), record["stage"]


def _offer(things: list[Any], at_once: int, send: Callable[[list[Any]], object]) -> None:
    """Send `things`, leaving out with a warning those that MLflow refuses for what they are."""
    from mlflow.exceptions import MlflowException

    for start in range(0, len(things), at_once):
        chunk = things[start : start + at_once]
        try:
            send(chunk)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            if len(chunk) == 1:
                logger.warning("MLflow refuses %s: %s", chunk[0], error)
            else:
                _offer(chunk, len(chunk) // 2, send)
