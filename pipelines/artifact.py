"""An artifact: a folder whose parts are written first and whose manifest.json is written last.

A folder with a manifest is complete; one without is unfinished, and running its stage again finishes it.
While a stage works, the folder holds `.unfinished/plan.json` (what is being made, from what) and one receipt
for each part that is done, so that a part whose checksum holds is never made twice.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeVar

from pydantic import ValidationError, computed_field, model_validator

from vae_core.config import Config
from vae_core.errors import Damaged, Misuse, Stale, Unfinished

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"
Model = TypeVar("Model", bound=Config)
VERSIONED = ("latentbits", "torch", "ray", "deepspeed", "pyarrow", "faiss-cpu", "tokenizers")


class Part(Config):
    """One file of an artifact, as it was when it was written; `statistics` are the stage's own sums over it."""

    name: str
    rows: int
    bytes: int
    checksum: str
    statistics: Mapping[str, Any] = MappingProxyType({})


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


class Artifact:
    """A complete artifact, open for reading."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path, kind: str | None = None) -> Self:
        """The artifact at `path`. Raises Misuse (missing, of another kind), Unfinished or Damaged."""
        path = path.absolute()  # workers have other working folders
        _finish_swap(path)
        if not path.is_dir():
            raise Misuse(f"{path} is not a folder; give the folder that a latentbits stage wrote")
        if not (path / MANIFEST).exists():
            raise _not_whole(path)
        artifact = cls(path, _read(path / MANIFEST, Manifest))
        if kind is not None and artifact.manifest.kind != kind:
            raise Misuse(f"{path} holds {artifact.manifest.kind}, and {kind} is needed here")
        return artifact

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def as_input(self, name: str) -> Input:
        """This artifact as the input of another one."""
        return Input(name=name, uri=str(self.path.resolve()), fingerprint=self.fingerprint)

    def files(self, suffix: str = "") -> list[Path]:
        """The parts' paths, in order, of those whose name ends in `suffix`."""
        return [self.path / part.name for part in self.manifest.parts if part.name.endswith(suffix)]

    def input(self, name: str) -> Input:
        """The input called `name`."""
        for item in self.manifest.inputs:
            if item.name == name:
                return item
        raise Misuse(f"{self.path} was not made from {name}; its inputs: {[i.name for i in self.manifest.inputs]}")

    def input_path(self, name: str) -> Path:
        """Where the input `name` lies now: where it was, or beside this artifact if the run folder was moved."""
        recorded = Path(self.input(name).uri)
        beside = self.path.resolve().parent / recorded.name
        return beside if not recorded.exists() and beside.exists() else recorded

    def verify(self) -> None:
        """Compare every byte with its recorded checksum. Raises Damaged, naming the first file that differs."""
        for part in self.manifest.parts:
            if reason := _part_damage(self.path, part):
                raise Damaged(f"{self.path / part.name} {reason}; run the stage that wrote it with --overwrite")


class Draft:
    """An artifact under construction: parts and receipts, no manifest yet."""

    def __init__(self, path: Path, target: Path, plan: Plan) -> None:
        self.path = path
        self.target = target
        self.plan = plan

    @property
    def scratch(self) -> Path:
        """A folder for what the stage needs until it is done; gone when the artifact is complete."""
        return self.path / UNFINISHED

    def finish(self, parts: list[Part], statistics: Mapping[str, Any], tracking_run: str | None = None) -> Artifact:
        """Write the manifest, which makes the artifact complete, and put it in its place."""
        manifest = Manifest(
            **self.plan.model_dump(),
            parts=tuple(parts),
            statistics=dict(statistics),
            versions=_versions(),
            git_revision=_git_revision(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            tracking_run=tracking_run,
        )
        for left_by_a_kill in self.path.rglob(".*.tmp"):
            left_by_a_kill.unlink(missing_ok=True)
        write_text(self.path / MANIFEST, manifest.model_dump_json(indent=1))
        shutil.rmtree(self.scratch, ignore_errors=True)
        if self.path != self.target:
            _finish_swap(self.target)
        return Artifact(self.target, manifest)


def begin(path: Path, plan: Plan, *, overwrite: bool = False) -> Artifact | Draft:
    """The artifact that `plan` describes if `path` holds it already, else a draft in which to make it.

    With `overwrite`, an artifact of another plan stays as it is until the new one is complete, and of the artifact
    of this plan every byte is checked, so that damaged parts are made again.
    Raises Stale where `path` holds, or began, an artifact of another plan, and Misuse where it holds something else.
    """
    path = path.absolute()
    _finish_swap(path)
    if path.exists() and not path.is_dir():
        raise Misuse(f"{path} is a file; give a folder to write {plan.kind} to")
    found = _found(path)
    if isinstance(found, Manifest) and found.fingerprint == plan.fingerprint:
        if any(_part_damage(path, part, thorough=overwrite) for part in found.parts):
            return _reopen(path, plan, found)
        shutil.rmtree(path / UNFINISHED, ignore_errors=True)
        return Artifact(path, found)
    if found is not None and found.fingerprint != plan.fingerprint and not overwrite:
        raise _stale(path, found, plan)
    if found is None and path.exists() and any(item.name != UNFINISHED for item in path.iterdir()):
        raise Misuse(f"{path} holds files that latentbits did not write; give an empty or a new folder")
    return _draft(path, plan, beside=isinstance(found, Manifest))


def write_text(path: Path, text: str) -> None:
    """Put `text` at `path`: afterwards, and after a kill at any moment, the old or the new text is there whole."""
    with replacing(path) as temporary:
        temporary.write_text(text)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, flushed to disk, when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def find_part(folder: Path, name: str) -> Part | None:
    """The part `name` if it was written to this unfinished artifact and its checksum still holds."""
    receipt = folder / UNFINISHED / f"{name.replace('/', '~')}.json"
    if not receipt.exists():
        return None
    part = _read(receipt, Part)
    return None if _part_damage(folder, part) else part


def record_part(folder: Path, name: str, rows: int, statistics: Mapping[str, Any] | None = None) -> Part:
    """Give the file `name`, already in its place, a receipt."""
    path = folder / name
    part = Part(name=name, rows=rows, bytes=path.stat().st_size, checksum=checksum(path), statistics=statistics or {})
    write_text(folder / UNFINISHED / f"{name.replace('/', '~')}.json", part.model_dump_json())
    return part


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys: {"a": {"b": 1}} becomes {"a.b": 1}."""
    pairs: dict[str, Any] = {}
    for key, value in config.items():
        pairs |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return pairs


def require_disk(path: Path, needed: int) -> None:
    """Raise Misuse unless the disk that holds `path` has `needed` bytes free."""
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    if free < needed:
        raise Misuse(
            f"{path} has {free / 1e9:.1f} GB free and this stage writes about {needed / 1e9:.1f} GB; "
            f"free some space or give another --out"
        )


def _found(path: Path) -> Plan | None:
    for place, model in ((path / MANIFEST, Manifest), (path / UNFINISHED / "plan.json", Plan)):
        if place.exists():
            return _read(place, model)
    return None


def _draft(path: Path, plan: Plan, *, beside: bool) -> Draft:
    place = _beside(path, "new") if beside else path
    known = _found(place)
    if known is not None and known.fingerprint != plan.fingerprint:
        _discard(place)
    (place / UNFINISHED).mkdir(parents=True, exist_ok=True)
    write_text(place / UNFINISHED / "plan.json", plan.model_dump_json(indent=1))
    return Draft(place, path, plan)


def _discard(folder: Path) -> None:
    """Delete an unfinished artifact, its plan last: none of its parts may be left for another plan after a kill."""
    scratch = folder / UNFINISHED
    for item in [*folder.iterdir(), *scratch.iterdir()]:
        if item.is_dir() and item != scratch:
            shutil.rmtree(item)
        elif item not in (scratch, scratch / "plan.json"):
            item.unlink()
    (scratch / "plan.json").unlink()


def _reopen(path: Path, plan: Plan, manifest: Manifest) -> Draft:
    """Make a complete artifact that lost parts unfinished again, so that only those are made anew."""
    (path / UNFINISHED).mkdir(exist_ok=True)
    write_text(path / UNFINISHED / "plan.json", plan.model_dump_json(indent=1))
    for part in manifest.parts:
        write_text(path / UNFINISHED / f"{part.name.replace('/', '~')}.json", part.model_dump_json())
    (path / MANIFEST).unlink()
    return Draft(path, path, plan)


def _beside(path: Path, state: str) -> Path:
    """Where the artifact's other `state` lies: on the same disk, under a name that nobody gives to a folder."""
    real = Path(os.path.realpath(path))
    return real.with_name(f".{real.name}.{state}")


def _finish_swap(path: Path) -> None:
    """Put a complete new artifact in the place of the one at `path`; also finishes a swap that was killed half-way."""
    path, new, old = Path(os.path.realpath(path)), _beside(path, "new"), _beside(path, "old")
    if (new / MANIFEST).exists():
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
        os.replace(new, path)
    if path.exists() and old.exists():
        shutil.rmtree(old)


def _not_whole(path: Path) -> Misuse:
    if (path / UNFINISHED / "plan.json").exists():
        kind = _read(path / UNFINISHED / "plan.json", Plan).kind
        return Unfinished(f"{path} holds unfinished {kind}; run the same command again to finish it")
    if (path / UNFINISHED).is_dir():
        return Unfinished(f"{path} was begun, and nothing is in it yet; run the same command again to finish it")
    return Misuse(f"{path} has no {MANIFEST}: it is not a latentbits artifact")


def _stale(path: Path, found: Plan, plan: Plan) -> Stale:
    state = "was made" if isinstance(found, Manifest) else "was begun, not finished,"
    if found.kind != plan.kind:
        return Stale(f"{path} holds {found.kind}, not {plan.kind}; give another folder, or --overwrite")
    reasons = "\n  ".join(found.differences(plan))
    return Stale(f"{path} {state} from something else:\n  {reasons}\ngive another --out, or --overwrite to replace it")


def _part_damage(folder: Path, part: Part, *, thorough: bool = True) -> str | None:
    """What is wrong with a part's file; without `thorough`, its bytes are counted and not read."""
    path = folder / part.name
    if not path.exists():
        return "is missing"
    if path.stat().st_size != part.bytes:
        return f"has {path.stat().st_size} bytes and was written with {part.bytes}"
    return (
        None
        if not thorough or checksum(path) == part.checksum
        else "has other bytes than were written (its checksum differs)"
    )


def _read(path: Path, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise Damaged(f"{path} cannot be read as a {model.__name__.lower()}: {error.errors()[0]['msg']}") from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONED}


@cache
def _git_revision() -> str | None:
    """The revision of the checkout this package runs from; None where it was installed as a wheel."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "rev-parse", "--verify", "HEAD"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None
