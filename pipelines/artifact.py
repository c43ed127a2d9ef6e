"""An artifact: a folder whose parts are written first and whose manifest.json is written last.

A folder with a manifest is complete; one without is unfinished, and running its stage again finishes it.
While a stage works, the folder holds `.unfinished/plan.json` (what is being made, from what) and one receipt
for each part that is done, so that a part whose checksum holds is never made twice.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from pipelines.files import durable
from pipelines.files.durable import checksum
from pipelines.files.published import fetch_parts, publish, publish_part
from pipelines.files.stored_artifact import (
    begin_in,
    begin_stored,
    complete,
    find_stored_part,
    open_stored,
    verify_stored,
)
from pipelines.files.working_folder import root, working_folder_of
from pipelines.files.writer_lock import LOCK, Lease, WriterLock
from pipelines.plan import (
    FORMAT_VERSION,
    MANIFEST,
    PLAN,
    UNFINISHED,
    Input,
    Manifest,
    Model,
    Part,
    Plan,
    flat,
    read_model,
    receipt_name,
    stale,
)
from pipelines.storage import is_folder, local_path, shown, uri_of
from vae_core.errors import Damaged, Misuse, Unfinished

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "UNFINISHED",
    "Artifact",
    "Draft",
    "Input",
    "Manifest",
    "Part",
    "Plan",
    "begin",
    "checksum",
    "find_part",
    "flat",
    "record_part",
    "replacing",
    "require_disk",
    "write_text",
]
VERSIONED = ("latentbits", "torch", "ray", "deepspeed", "pyarrow", "faiss-cpu", "tokenizers")


class Artifact:
    """A complete artifact, open for reading. `path` is a folder of this machine, also where it lies in a store."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path, kind: str | None = None) -> Self:
        """The artifact at `path`, a folder or a URI. Raises Misuse (missing, of another kind), Unfinished, Damaged."""
        if uri := uri_of(path):
            folder, manifest = open_stored(uri)
            artifact = cls(folder.path, manifest)
        else:
            path = local_path(path).absolute()  # workers have other working folders
            _finish_swap(path)
            if not path.is_dir():
                raise Misuse(f"{path} is not a folder; give the folder that a latentbits stage wrote")
            if not (path / MANIFEST).exists():
                raise _not_whole(path)
            artifact = cls(path, _read(path / MANIFEST, Manifest))
        if kind is not None and artifact.manifest.kind != kind:
            raise Misuse(f"{shown(path)} holds {artifact.manifest.kind}, and {kind} is needed here")
        return artifact

    @property
    def place(self) -> str:
        """Where it lies for everybody: its URI, or its folder."""
        found = working_folder_of(self.path)
        return found[0].uri if found else str(self.path)

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def as_input(self, name: str) -> Input:
        """This artifact as the input of another one."""
        uri = self.place if working_folder_of(self.path) else str(self.path.resolve())
        return Input(name=name, uri=uri, fingerprint=self.fingerprint)

    def files(self, suffix: str = "") -> list[Path]:
        """The parts' paths, in order, of those whose name ends in `suffix`; what lies in a store is brought here."""
        return fetch_parts(self.path, [part for part in self.manifest.parts if part.name.endswith(suffix)])

    def input(self, name: str) -> Input:
        """The input called `name`."""
        for item in self.manifest.inputs:
            if item.name == name:
                return item
        raise Misuse(f"{self.path} was not made from {name}; its inputs: {[i.name for i in self.manifest.inputs]}")

    def input_path(self, name: str) -> Path:
        """Where the input `name` lies now: where it was, or beside this artifact if the run folder was moved.

        One in a store is opened, and its folder on this machine given; a place where nothing is, is given as it was.
        """
        recorded, place = Path(self.input(name).uri), self.place
        parent = Path(place).parent if uri_of(place) else self.path.resolve().parent
        beside = parent / recorded.name
        found = next((one for one in (recorded, beside) if is_folder(one) or one.exists()), recorded)
        try:
            return Artifact.open(found).path if uri_of(found) else found
        except Misuse:
            return found

    def verify(self) -> None:
        """Compare every byte with its recorded checksum. Raises Damaged, naming the first file that differs."""
        stored = working_folder_of(self.path)
        if stored:
            verify_stored(stored[0], self.manifest.parts)
        for part in [] if stored else self.manifest.parts:
            if reason := _part_damage(self.path, part):
                raise Damaged(f"{self.path / part.name} {reason}; run the stage that wrote it with --overwrite")


class Draft:
    """An artifact under construction: parts and receipts, no manifest yet. `path` is a folder of this machine."""

    def __init__(
        self, path: Path, target: Path, plan: Plan, lock: WriterLock | None = None, lease: Lease | None = None
    ) -> None:
        self.path = path
        self.target = target
        self.plan = plan
        self._lock = lock
        self._lease = lease

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
        if self._lease is not None:
            self._lease.end()
        path = self._put_in_place(manifest)
        if self._lock is not None:
            self._lock.release()
        return Artifact(path, manifest)

    def _put_in_place(self, manifest: Manifest) -> Path:
        if stored := working_folder_of(self.path):
            return complete(stored[0], shown(self.target), manifest).path
        write_text(self.path / MANIFEST, manifest.model_dump_json(indent=1))
        shutil.rmtree(self.scratch, ignore_errors=True)
        if self.path != self.target:
            _finish_swap(self.target)
        return self.target


def begin(path: Path, plan: Plan, *, overwrite: bool = False) -> Artifact | Draft:
    """The artifact that `plan` describes if `path` holds it already, else a draft in which to make it.

    `path` is a folder or a URI. With `overwrite`, an artifact of another plan stays as it is until the new one is
    complete, and of the artifact of this plan every byte is checked, so that damaged parts are made again.
    Raises Stale where `path` holds, or began, an artifact of another plan, and Misuse where it holds something else or
    another process is writing it.
    """
    if uri := uri_of(path):
        return _begin_stored(uri, plan, overwrite)
    path = local_path(path).absolute()
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
        raise stale(path, found, plan)
    if found is None and path.exists() and any(item.name != UNFINISHED for item in path.iterdir()):
        raise Misuse(f"{path} holds files that latentbits did not write; give an empty or a new folder")
    return _draft(path, plan, beside=isinstance(found, Manifest))


def write_text(path: Path, text: str) -> None:
    """Put `text` at `path`: afterwards, and after a kill at any moment, the old or the new text is there whole."""
    with replacing(path) as temporary:
        temporary.write_text(text)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, flushed to disk, when the block ends without an error.

    What belongs to the unfinished artifact of a store is then there as well.
    """
    with durable.replacing(path) as temporary:
        yield temporary
    publish(path)


def find_part(folder: Path, name: str) -> Part | None:
    """The part `name` if it was written to this unfinished artifact and its checksum still holds."""
    if stored := working_folder_of(folder):
        return find_stored_part(stored[0], name)
    receipt = folder / receipt_name(name)
    if not receipt.exists():
        return None
    part = _read(receipt, Part)
    return None if _part_damage(folder, part) else part


def record_part(folder: Path, name: str, rows: int, statistics: Mapping[str, Any] | None = None) -> Part:
    """Give the file `name`, already in its place, a receipt."""
    path = folder / name
    part = Part(name=name, rows=rows, bytes=path.stat().st_size, checksum=checksum(path), statistics=statistics or {})
    publish_part(folder, part)
    write_text(folder / receipt_name(name), part.model_dump_json())
    return part


def require_disk(path: Path, needed: int) -> None:
    """Raise Misuse unless the disk that holds `path`, or for a URI the working folders, has `needed` bytes free."""
    elsewhere = "set LATENTBITS_CACHE to a folder on another disk" if uri_of(path) else "give another --out"
    path = root() if uri_of(path) else path
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    if free < needed:
        raise Misuse(
            f"{path} has {free / 1e9:.1f} GB free and this stage writes about {needed / 1e9:.1f} GB; "
            f"free some space or {elsewhere}"
        )


def _begin_stored(uri: str, plan: Plan, overwrite: bool) -> Artifact | Draft:
    folder, manifest = begin_stored(uri, plan, overwrite=overwrite)
    if manifest is not None:
        return Artifact(folder.path, manifest)
    (folder.path / UNFINISHED).mkdir(parents=True, exist_ok=True)
    lock = WriterLock.take(folder.path / UNFINISHED, uri)
    lease = Lease.take(folder.store)
    begin_in(folder, plan)
    return Draft(folder.path, Path(uri), plan, lock, lease)


def _found(path: Path) -> Plan | None:
    for place, model in ((path / MANIFEST, Manifest), (path / PLAN, Plan)):
        if place.exists():
            return _read(place, model)
    return None


def _draft(path: Path, plan: Plan, *, beside: bool) -> Draft:
    place = _beside(path, "new") if beside else path
    (place / UNFINISHED).mkdir(parents=True, exist_ok=True)
    lock = WriterLock.take(place / UNFINISHED, str(path))
    known = _found(place)
    if known is not None and known.fingerprint != plan.fingerprint:
        _discard(place)
    write_text(place / PLAN, plan.model_dump_json(indent=1))
    return Draft(place, path, plan, lock)


def _discard(folder: Path) -> None:
    """Delete an unfinished artifact, its plan last: none of its parts may be left for another plan after a kill."""
    scratch = folder / UNFINISHED
    for item in [*folder.iterdir(), *scratch.iterdir()]:
        if item.is_dir() and item != scratch:
            shutil.rmtree(item)
        elif item not in (scratch, folder / PLAN, scratch / LOCK):
            item.unlink()
    (folder / PLAN).unlink()


def _reopen(path: Path, plan: Plan, manifest: Manifest) -> Draft:
    """Make a complete artifact that lost parts unfinished again, so that only those are made anew."""
    (path / UNFINISHED).mkdir(exist_ok=True)
    lock = WriterLock.take(path / UNFINISHED, str(path))
    write_text(path / PLAN, plan.model_dump_json(indent=1))
    for part in manifest.parts:
        write_text(path / receipt_name(part.name), part.model_dump_json())
    (path / MANIFEST).unlink()
    return Draft(path, path, plan, lock)


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
    if (path / PLAN).exists():
        kind = _read(path / PLAN, Plan).kind
        return Unfinished(f"{path} holds unfinished {kind}; run the same command again to finish it")
    if (path / UNFINISHED).is_dir():
        return Unfinished(f"{path} was begun, and nothing is in it yet; run the same command again to finish it")
    return Misuse(f"{path} has no {MANIFEST}: it is not a latentbits artifact")


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
    return read_model(path.read_bytes(), path, model)


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
