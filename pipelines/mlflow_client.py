"""The way into MLflow: a client of a server or a database, and what its errors mean."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vae_core.errors import LatentbitsError

REFUSED = frozenset({"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE"})
"""What a server answers when it will never take a record; every other failure is tried again."""

QUIET = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def connect(uri: str) -> Any:
    """MLflow's client of the server or database `uri`; imports mlflow, which takes a second."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    artifact_place(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def reachable(uri: str) -> Iterator[None]:
    """Turn what MLflow raises for a server that cannot be reached or used into a message that names it."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        reason = without_password(str(error).splitlines()[0][:200])
        raise LatentbitsError(
            f"MLflow at {without_password(uri)} cannot be used: {reason}; see that the server runs, "
            f"or give another --set tracking.uri"
        ) from error


def without_password(text: str) -> str:
    """`text`, fit to be printed: the URIs in it without what stands before an @."""
    return re.sub("//[^/@ ]*@", "//", text)


def artifact_place(uri: str) -> str | None:
    """Where a database of our own keeps copied files: beside it; a server has its own place."""
    if not uri.startswith("sqlite:///"):
        return None
    folder = Path(uri.removeprefix("sqlite:///")).parent.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / "mlflow-artifacts").as_uri()
