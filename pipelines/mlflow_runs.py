"""The door to MLflow: a server or a database, with one run for a spool and a nested one for each of its stages."""

import hashlib
import logging
import re
from pathlib import Path
from typing import Any

from pydantic import Field

from pipelines.mlflow_client import REFUSED, artifact_place, connect, without_password
from pipelines.model_registry import Registry
from vae_core.config import Config

log = logging.getLogger(__name__)
BATCH_ENTRIES = 100
"""MLflow takes no more params or tags at a time."""

PARENT = ""
"""The stage of records about the whole job, which go to the parent run."""


class Run(Config):
    """The run of one stage; `attempt` counts the runs that it had before with other params."""

    id: str
    attempt: int = 0
    params: dict[str, str] = Field(default_factory=dict)


class Sent(Config):
    """What one server has: `key` marks this spool's runs there, `offset` is the first byte it has not got."""

    key: str
    offset: int = 0
    parent: str | None = None
    runs: dict[str, Run] = Field(default_factory=dict)


class Server:
    """One MLflow server or database; mlflow is imported, and a new database made, at the first `send`."""

    def __init__(self, uri: str, experiment: str, run_name: str) -> None:
        self.uri, self.experiment, self.run_name = uri, experiment, run_name
        self.name = without_password(uri)
        self.digest = hashlib.sha256(f"{uri} {experiment}".encode()).hexdigest()[:12]
        self._client: Any = None
        self._experiment_id = ""

    def send(self, records: list[dict[str, Any]], sent: Sent) -> Sent:
        """Send `records` to the runs that `sent` knows; returns it with the runs that were made for them."""
        self._connect()
        sent = sent.model_copy(update={"parent": sent.parent or self._run_marked(sent.key, self.run_name, None)})
        entries: dict[str, list[Any]] = {}
        for record in records:
            if "stage" in record:
                sent = self._with_run(record, sent)
                run = sent.runs[record["stage"]]
                entries.setdefault(run.id, []).extend(_entries(record, run.params))
        for run_id, group in entries.items():
            for start in range(0, len(group), BATCH_ENTRIES):
                self._log(run_id, group[start : start + BATCH_ENTRIES])
        for record in records:
            if "end" in record:
                self._end(sent, record["end"])
            elif "stage" in record:
                self._keep(sent.runs[record["stage"]].id, record)
        return sent

    def _connect(self) -> None:
        if self._client is not None:
            return
        client = connect(self.uri)
        known = client.get_experiment_by_name(self.experiment)
        place = artifact_place(self.uri)
        self._experiment_id = known.experiment_id if known else client.create_experiment(self.experiment, place)
        self._client = client

    def _with_run(self, record: dict[str, Any], sent: Sent) -> Sent:
        """`sent` with a run for the record's stage: the one it has, unless the record brings other params."""
        stage, params = record["stage"], record.get("params", {})
        if stage == PARENT:
            return self._with_parent(params, sent)
        run = sent.runs.get(stage)
        if run is None or any(run.params.get(name, value) != value for name, value in params.items()):
            attempt = run.attempt + 1 if run else 0
            run = Run(id=self._run_marked(f"{sent.key}/{stage}/{attempt}", stage, sent.parent), attempt=attempt)
        run = run.model_copy(update={"params": run.params | params})
        return sent.model_copy(update={"runs": sent.runs | {stage: run}})

    def _with_parent(self, params: dict[str, str], sent: Sent) -> Sent:
        """The run of all stages keeps the params that it was begun with."""
        run = sent.runs.get(PARENT) or Run(id=sent.parent or "")
        return sent.model_copy(
            update={"runs": sent.runs | {PARENT: run.model_copy(update={"params": params | run.params})}}
        )

    def _run_marked(self, mark: str, name: str, parent: str | None) -> str:
        """The run tagged `mark`: one that was made just before a kill, or else a new one."""
        found = self._client.search_runs([self._experiment_id], f"tags.`latentbits.spool` = '{mark}'")
        if found:
            return str(found[0].info.run_id)
        tags = {"latentbits.spool": mark} | ({"mlflow.parentRunId": parent} if parent else {})
        return str(self._client.create_run(self._experiment_id, tags=tags, run_name=name).info.run_id)

    def _log(self, run_id: str, entries: list[Any]) -> None:
        """Log a batch; where the server refuses it, each entry by itself, so that only the refused ones are lost."""
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException

        kinds = [[entry for entry in entries if isinstance(entry, kind)] for kind in (Metric, Param, RunTag)]
        try:
            self._client.log_batch(run_id, *kinds)
        except MlflowException as error:
            if error.error_code not in REFUSED:
                raise
            if len(entries) == 1:
                log.warning(
                    "MLflow at %s refuses %s and does not get it: %s",
                    self.name,
                    entries[0].key,
                    without_password(str(error)),
                )
                return
            for entry in entries:
                self._log(run_id, [entry])

    def _keep(self, run_id: str, record: dict[str, Any]) -> None:
        if "artifact" in record:
            self._copy(run_id, Path(record["artifact"]))
        if "model" in record:
            self._register(run_id, record["model"])

    def _register(self, run_id: str, model: dict[str, Any]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            Registry(self._client, model["name"]).register(run_id, model)
        except MlflowException as error:
            if error.error_code not in REFUSED:
                raise
            log.warning("MLflow at %s refuses the model %s: %s", self.name, model["name"], without_password(str(error)))

    def _copy(self, run_id: str, path: Path) -> None:
        if path.is_dir():
            self._client.log_artifacts(run_id, str(path), path.name)
        elif path.exists():
            self._client.log_artifact(run_id, str(path))
        else:  # it cannot come back, so it must not hold up what follows
            log.warning("%s was to be copied to MLflow at %s, and is gone", path, self.name)

    def _end(self, sent: Sent, status: str) -> None:
        for run_id in dict.fromkeys([*(run.id for run in sent.runs.values()), sent.parent]):
            self._client.set_terminated(run_id, status)


def _entries(record: dict[str, Any], params: dict[str, str]) -> list[Any]:
    """What MLflow takes of a record; a param that its run has with another value stays as it is there."""
    from mlflow.entities import Metric, Param, RunTag

    metrics = record.get("metrics", {}).items()
    return [
        *(Metric(_allowed(name), value, record["time"], record["step"]) for name, value in metrics),
        *(Param(_allowed(name), params.get(name, value)) for name, value in record.get("params", {}).items()),
        *(RunTag(_allowed(name), value) for name, value in record.get("tags", {}).items()),
    ]


def _allowed(name: str) -> str:
    """`name` with the characters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)
