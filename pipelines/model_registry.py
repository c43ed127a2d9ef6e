"""MLflow's model registry: a version for each trained model, with its card, figures and signature.

The newest version is the `candidate`; `champion` is what `latentbits promote` found to be the best.
"""

import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.mlflow_client import connect
from vae_core.errors import Misuse

log = logging.getLogger(__name__)
CANDIDATE, CHAMPION = "candidate", "champion"
FINGERPRINT = "latentbits.fingerprint"
MODEL, EVALUATION = "model", "evaluation"
"""Folders of a run's files: the model, and what a comparison with another one needs."""
LOADER = "pipelines.mlflow_flavor"


@dataclass(frozen=True, slots=True)
class Version:
    """A registered model: its number, the run it is of, and its fingerprint."""

    number: str
    run: str
    fingerprint: str


class Registry:
    """The models of one name."""

    def __init__(self, client: Any, name: str) -> None:
        self._client, self.name = client, name

    @classmethod
    def at(cls, uri: str, name: str) -> "Registry":
        """The registry of the server or database `uri`."""
        return cls(connect(uri), name)

    def register(self, run: str, model: dict[str, Any]) -> None:
        """A version for the model of the record `model`, as candidate, or its figures and card anew if it has one.

        What is copied was there when it was trained; a model that is gone since is passed over.
        """
        folder = Path(model["folder"])
        version = self.version_of(model["fingerprint"])
        if version is None:
            if not folder.is_dir():
                log.warning("%s was to be registered as %s, and is gone", folder, self.name)
                return
            version = self._created(run, folder, model)
        self._describe(version, model)

    def version_of(self, fingerprint: str) -> Version | None:
        """The version of the model with this fingerprint."""
        found = self._client.search_model_versions(f"name = '{self.name}'")
        return next((_version(one) for one in found if one.tags.get(FINGERPRINT) == fingerprint), None)

    def holder(self, alias: str) -> Version | None:
        """The version that is candidate or champion."""
        from mlflow.exceptions import MlflowException

        try:
            return _version(self._client.get_model_version_by_alias(self.name, alias))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def crown(self, version: Version, facts: dict[str, Any]) -> None:
        """Make `version` the champion; `facts` say why."""
        for name, value in facts.items():
            self._client.set_model_version_tag(self.name, version.number, f"promotion.{name}", str(value))
        self._client.set_registered_model_alias(self.name, CHAMPION, version.number)

    @contextmanager
    def evaluation(self, version: Version, file: str) -> Iterator[Path]:
        """A copy of a file that the version was evaluated with. Raises Misuse where there is none."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = Path(self._client.download_artifacts(version.run, f"{EVALUATION}/{file}", folder))
            except Exception as error:  # stores of artifacts raise what they like
                raise Misuse(
                    f"version {version.number} of {self.name} has no {EVALUATION}/{file}; evaluate its run again first"
                ) from error
            yield path

    def _created(self, run: str, folder: Path, model: dict[str, Any]) -> Version:
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory() as temporary:
            described = Path(temporary) / MODEL
            described.mkdir()
            _write_signature(described / "MLmodel", run)
            self._client.log_artifacts(run, str(folder), f"{MODEL}/files")
            self._client.log_artifacts(run, str(described), MODEL)
        try:
            self._client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self._client.get_run(run).info.artifact_uri}/{MODEL}"
        tags = {FINGERPRINT: model["fingerprint"], **{name: str(value) for name, value in model["tags"].items()}}
        made = self._client.create_model_version(self.name, source, run, tags=tags)
        self._client.set_registered_model_alias(self.name, CANDIDATE, made.version)
        return _version(made)

    def _describe(self, version: Version, model: dict[str, Any]) -> None:
        card = Path(model["card"])
        if card.exists():
            self._client.update_model_version(self.name, version.number, card.read_text())
        for name, value in model["figures"].items():
            self._client.set_model_version_tag(self.name, version.number, name, str(value))
        for path in map(Path, model["evaluation"]):
            if path.exists():
                self._client.log_artifact(version.run, str(path), EVALUATION)


def _version(found: Any) -> Version:
    return Version(str(found.version), str(found.run_id), str(found.tags.get(FINGERPRINT, "")))


def _write_signature(path: Path, run: str) -> None:
    """MLflow's own description of a model: texts go in, codes come out, and who loads it."""
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    texts = Schema([ColSpec("string", "text")])
    codes = Schema([ColSpec("string", "code"), ColSpec("long", "component"), ColSpec("double", "confidence")])
    described = Model(artifact_path=MODEL, run_id=run, signature=ModelSignature(inputs=texts, outputs=codes))
    python = ".".join(map(str, sys.version_info[:3]))
    described.add_flavor("python_function", loader_module=LOADER, data="files", python_version=python)
    described.save(str(path))
    shutil.copymode(__file__, path)
