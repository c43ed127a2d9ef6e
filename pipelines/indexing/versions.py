"""Versions of an index: the artifact itself is version 0, and each change publishes the next numbered file, whole.

A version file names the segments that make the index up, and which of their rows were deleted. It appears at once,
under a number that nobody else can take, after everything that it names is on the disk.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pipelines.artifact import MANIFEST, Artifact, Input, Part, replacing
from pipelines.files.durable import flush
from pipelines.files.working_folder import working_folder_of
from pipelines.searching.approximate import CandidatesConfig
from pipelines.storage import uri_of
from vae_core.config import Config
from vae_core.errors import Damaged, LatentbitsError, Misuse

VERSIONS = "versions"
LOCK = ".lock"
LEFT_BY_A_KILL = ".*.tmp"


class SegmentRecord(Config):
    """A segment of a version: its files, the file of its deleted rows, and where its codes came from."""

    name: str
    rows: int
    parts: tuple[Part, ...]
    deleted: Part | None = None
    sources: tuple[Input, ...] = ()
    start: int | None = None
    """Of its one source the row that is its first; None where it was compacted from several."""

    @property
    def live(self) -> int:
        """Documents that are not deleted."""
        return self.rows - (self.deleted.rows if self.deleted else 0)

    @property
    def key(self) -> tuple[str, ...]:
        """What no other segment has."""
        return (self.name, *(part.checksum for part in self.parts))

    def files(self) -> tuple[Part, ...]:
        """All its files."""
        return self.parts + ((self.deleted,) if self.deleted else ())


class Version(Config):
    """What an index holds, as of one change."""

    number: int
    change: str
    segments: tuple[SegmentRecord, ...]
    created: str = ""
    changed: int = 0

    @property
    def documents(self) -> int:
        """Documents that are not deleted."""
        return sum(segment.live for segment in self.segments)


def newest(artifact: Artifact) -> Version:
    """The version of the highest number. Raises Damaged where its file cannot be read."""
    number = newest_number(artifact.path)
    return _first(artifact) if number == 0 else _read(version_path(artifact.path, number))


def newest_number(path: Path) -> int:
    """The highest number of a version file of the index at `path`; 0 where it was never changed."""
    try:
        names = os.listdir(path / VERSIONS)
    except FileNotFoundError:
        return 0
    return max((int(name[:8]) for name in names if name.endswith(".json") and name[:8].isdigit()), default=0)


def stamp(path: Path) -> tuple[int, int, int]:
    """What differs once the index at `path` was changed or made anew; cheap."""
    if not (path / MANIFEST).exists():  # it lies in a store, where an index is not changed
        return 0, 0, 0
    manifest = (path / MANIFEST).stat()
    return newest_number(path), manifest.st_ino, manifest.st_mtime_ns


def candidates_of(artifact: Artifact) -> CandidatesConfig:
    """Where the index looks for hits, as its settings have it."""
    kinds: TypeAdapter[CandidatesConfig] = TypeAdapter(CandidatesConfig)
    return kinds.validate_python(artifact.manifest.config.get("candidates", {"kind": "flat"}))


def version_path(path: Path, number: int) -> Path:
    """The file of a version."""
    return path / VERSIONS / f"{number:08d}.json"


def kept(artifact: Artifact) -> list[Version]:
    """All versions whose files are there, the newest last; the artifact itself where there are none."""
    files = sorted((artifact.path / VERSIONS).glob("*.json"))
    return [_read(file) for file in files] or [_first(artifact)]


def publish(path: Path, version: Version) -> None:
    """Put the version's file in its place, at once. Raises LatentbitsError where another writer took its number."""
    folder = path / VERSIONS
    folder.mkdir(exist_ok=True)
    target = version_path(path, version.number)
    draft = folder / f".{target.name}.draft"
    dated = version.model_copy(update={"created": datetime.now(UTC).isoformat(timespec="seconds")})
    with replacing(draft) as temporary:
        temporary.write_text(dated.model_dump_json(indent=1))
    try:
        os.link(draft, target)
    except FileExistsError:
        raise LatentbitsError(f"{path} was changed by another command meanwhile; run this one again") from None
    finally:
        draft.unlink()
    flush(folder)


@contextmanager
def writing(path: Path) -> Iterator[Artifact]:
    """The index at `path`, for one writer at a time. Raises LatentbitsError where another one is at work.

    What a killed writer left is removed first.
    """
    if stored := uri_of(path) or working_folder_of(path):
        place = stored if isinstance(stored, str) else stored[0].uri
        raise Misuse(f"{place} lies in a store; change an index in a folder of this machine, and copy it there")
    artifact = Artifact.open(path, "index")
    with (artifact.path / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            who = lock.read().strip()
            raise LatentbitsError(
                f"{path} is being changed by another command{f' (process {who})' if who else ''}; "
                f"wait until it is done and run this one again"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        _sweep(artifact.path)
        yield Artifact.open(path, "index")


def _first(artifact: Artifact) -> Version:
    """The artifact as its stage wrote it."""
    folders: dict[str, list[Part]] = {}
    for part in artifact.manifest.parts:
        folders.setdefault(str(Path(part.name).parent), []).append(part)
    sources = tuple(item for item in artifact.manifest.inputs if item.name == "codes")
    segments: list[SegmentRecord] = []
    for name, parts in sorted(folders.items()):
        start = sum(segment.rows for segment in segments)
        segments.append(SegmentRecord(name=name, rows=parts[0].rows, parts=tuple(parts), sources=sources, start=start))
    return Version(number=0, change="index", segments=tuple(segments), created=artifact.manifest.created)


def _read(path: Path) -> Version:
    try:
        return Version.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise Damaged(f"{path} cannot be read as a version of an index: {error.errors()[0]['msg']}") from error


def _sweep(path: Path) -> None:
    for left in [*path.rglob(LEFT_BY_A_KILL), *(path / VERSIONS).glob(".*.draft")]:
        left.unlink(missing_ok=True)
