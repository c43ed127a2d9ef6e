"""A run's configuration as it travels to a cluster: one YAML file, whole, with no place relative to this folder."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from jobs.config import RunConfig
from pipelines.storage import shown, uri_of
from vae_core.errors import Misuse

PLACES = (
    "out",
    "corpus.files",
    "queries.files",
    "tokenize.tokenizer",
    "embed.folder",
    "model.encoder.folder",
    "pretrain.start_from",
    "evaluate.embeddings",
    "evaluate.compare_codes",
)
"""The settings that say where something lies."""
SQLITE = "sqlite:///"


def shipped(config: RunConfig) -> dict[str, Any]:
    """The settings as a tree of plain values. Raises Misuse where they hold a password: others can read a job's."""
    tree = config.model_dump(mode="json")
    for place in PLACES:
        *sections, last = place.split(".")
        branch: Any = tree
        for section in sections:
            branch = branch.get(section) or {}
        if branch.get(last):
            branch[last] = _placed(branch[last])
    if uri := config.tracking.uri:
        tree["tracking"]["uri"] = _tracking_uri(uri)
    return tree


def as_yaml(tree: dict[str, Any]) -> str:
    """The tree as the YAML file that `latentbits run` reads."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _placed(value: Any) -> Any:
    if isinstance(value, list):
        return [_placed(one) for one in value]
    return shown(value) if uri_of(value) or str(value).startswith("file:") else str(Path(value).absolute())


def _tracking_uri(uri: str) -> str:
    if uri.startswith(SQLITE):
        return SQLITE + str(Path(uri.removeprefix(SQLITE)).absolute())
    if urlsplit(uri).password:
        raise Misuse(
            "tracking.uri holds a password, and whoever sees the cluster's jobs would see it; set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the cluster's nodes instead"
        )
    return uri if "://" in uri else str(Path(uri).absolute())
