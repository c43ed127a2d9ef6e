"""KubeRay's own schemas, made strict: a key that they do not know is an error, as it is for the API server's users."""

import gzip
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

FOLDER = Path(__file__).parent / "schemas"
FILES = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}


def problems(thing: dict[str, Any]) -> list[str]:
    """What is wrong with an object of KubeRay's; nothing where nothing is."""
    return [f"{error.json_path}: {error.message}" for error in _validator(thing["kind"]).iter_errors(thing)]


@cache
def _validator(kind: str) -> Draft202012Validator:
    with gzip.open(FOLDER / f"ray.io_{FILES[kind]}.yaml.gz") as file:
        definition = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    schema["properties"] |= {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}, "metadata": METADATA}
    return Draft202012Validator(schema)


METADATA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    made = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if made.pop("nullable", False) and "type" in made:
        made["type"] = [made["type"], "null"]
    if "properties" in made and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return {key: _below(key, value) for key, value in made.items()}


def _below(key: str, value: Any) -> Any:
    if key in ("allOf", "anyOf", "oneOf"):
        return [_strict(one) for one in value]
    if key == "properties":
        return {name: _strict(one) for name, one in value.items()}
    return _strict(value) if key in ("items", "additionalProperties") and isinstance(value, dict) else value
