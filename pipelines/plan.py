"""What an artifact says of itself: the plan it is made by, its parts, and in the end its manifest."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError, computed_field, model_validator

from vae_core.config import Config
from vae_core.errors import Damaged, Stale

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"
PLAN = f"{UNFINISHED}/plan.json"
Model = TypeVar("Model", bound=Config)


class Part(Config):
    """One file of an artifact, as it was when it was written; `statistics` are the stage's own sums over it."""

    name: str
    rows: int
    bytes: int
    checksum: str
    statistics: Mapping[str, Any] = Field(default_factory=dict)


class Input(Config):
    """Something an artifact was made from: another artifact (its fingerprint) or a file (its checksum)."""

    name: str
    uri: str
    fingerprint: str


class Plan(Config):
    """What an artifact is to be: the things its fingerprint is the hash of."""

    kind: str
    format_version: int = FORMAT_VERSION
    config: dict[str, Any]
    inputs: tuple[Input, ...]

    @computed_field  # type: ignore[prop-decorator]  # pydantic computes it from a property by design
    @property
    def fingerprint(self) -> str:
        """Hash of kind, format version, config and the inputs' fingerprints (not of where the inputs lie)."""
        inputs = [(item.name, item.fingerprint) for item in self.inputs]
        facts = json.dumps([self.kind, self.format_version, self.config, inputs], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    @model_validator(mode="before")
    @classmethod
    def _derived(cls, fields: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if name != "fingerprint"}

    def differences(self, other: "Plan") -> list[str]:
        """What a reader needs to hear when two plans differ, one line a difference."""
        ours, theirs = (flat(json.loads(json.dumps(plan.config))) for plan in (self, other))
        lines = [
            f"{key} was {ours.get(key)!r} and is now {theirs.get(key)!r}"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        ]
        old = {item.name: item.fingerprint for item in self.inputs}
        new = {item.name: item.fingerprint for item in other.inputs}
        lines += [f"input {name} is new" for name in sorted(new.keys() - old.keys())]
        lines += [f"input {name} is gone" for name in sorted(old.keys() - new.keys())]
        lines += [f"input {name} has changed" for name in sorted(old.keys() & new.keys()) if old[name] != new[name]]
        if self.format_version != other.format_version:
            lines.append(f"format version was {self.format_version} and is now {other.format_version}")
        return lines or ["its inputs had another order"]


class Manifest(Plan):
    """A complete artifact's record of itself."""

    parts: tuple[Part, ...]
    statistics: dict[str, Any]
    versions: dict[str, str]
    git_revision: str | None
    created: str
    tracking_run: str | None = None


def receipt_name(part: str) -> str:
    """Where the receipt of a part lies in its artifact while that is unfinished."""
    return f"{UNFINISHED}/{part.replace('/', '~')}.json"


def read_model(content: bytes, place: str | Path, model: type[Model]) -> Model:
    """The record in `content`. Raises Damaged, naming its `place`."""
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise Damaged(f"{place} cannot be read as a {model.__name__.lower()}: {error.errors()[0]['msg']}") from error


def stale(place: str | Path, found: Plan, plan: Plan) -> Stale:
    """The error that says how what is at `place` differs from what is asked for."""
    state = "was made" if isinstance(found, Manifest) else "was begun, not finished,"
    if found.kind != plan.kind:
        return Stale(f"{place} holds {found.kind}, not {plan.kind}; give another folder, or --overwrite")
    reasons = "\n  ".join(found.differences(plan))
    return Stale(f"{place} {state} from something else:\n  {reasons}\ngive another --out, or --overwrite to replace it")


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys: {"a": {"b": 1}} becomes {"a.b": 1}."""
    pairs: dict[str, Any] = {}
    for key, value in config.items():
        pairs |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return pairs
