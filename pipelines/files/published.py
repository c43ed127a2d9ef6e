"""Files of a working folder, put into its store and fetched from there.

A part counts by its receipt or the manifest, anything else of `.unfinished/` that is no JSON by a `.sha256` beside it:
never because it is there, since an upload that breaks off may leave a file cut short.
"""

import fcntl
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.files.digests import digests
from pipelines.files.durable import checksum, replacing
from pipelines.files.working_folder import WorkingFolder, is_numbered, working_folder_of
from pipelines.plan import MANIFEST, PLAN, UNFINISHED, Manifest, Part, Plan, read_model, receipt_name
from pipelines.storage import Store
from vae_core.errors import Damaged, LatentbitsError

SUM = ".sha256"
AT_ONCE = 8
"""Files fetched at a time."""


@dataclass(frozen=True, slots=True)
class Published:
    """A file of `.unfinished/` that a worker has put into the store."""

    uri: str
    fingerprint: str
    name: str


_published: list[Published] = []


def put_up() -> list[Published]:
    """What this process has put into `.unfinished/` of stores since it was last asked."""
    found = _published.copy()
    _published.clear()
    return found


def publish(path: Path) -> None:
    """Put a file of `.unfinished/` of a working folder into the store; any other file is left where it is."""
    found = working_folder_of(path)
    if found is None or not found[1].startswith(f"{UNFINISHED}/"):
        return
    folder, name = found
    if name.endswith(".json"):
        folder.store.write(name, path.read_bytes())
    else:
        folder.store.upload(path, name)
        folder.store.write(name + SUM, checksum(path).encode())
    _published.append(Published(folder.uri, folder.fingerprint, name))


def publish_part(folder: Path, part: Part) -> None:
    """Put a part of a working folder into the store, where it is not there yet. Its receipt goes after it."""
    found = working_folder_of(folder)
    if found is not None:
        found[0].store.upload(folder / part.name, part.name)


def fetch(path: Path) -> bool:
    """Bring a file of `.unfinished/` here as the store has it; whether there is one that is whole."""
    found = working_folder_of(path)
    if found is None:
        return path.exists()
    folder, name = found
    if name.endswith(".json"):
        return _fetch_record(folder.store, name, path)
    digest = folder.store.read(name + SUM)
    return digest is not None and fetch_file(folder.store, name, path, digest.decode())


def fetch_part(folder: Path, part: Part) -> Path:
    """The file of a part, brought here if it is not here whole. Raises Damaged where the store's is another one."""
    path, found = folder / part.name, working_folder_of(folder)
    if found is not None and not fetch_file(found[0].store, part.name, path, part.checksum, part.bytes):
        raise Damaged(
            f"{found[0].uri}/{part.name} is missing or has other bytes than were written; run the stage that wrote it "
            f"with --overwrite"
        )
    return path


def fetch_parts(folder: Path, parts: Iterable[Part]) -> list[Path]:
    """The files of these parts, several fetched at a time."""
    if working_folder_of(folder) is None:
        return [folder / part.name for part in parts]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(lambda part: fetch_part(folder, part), parts))


def fetch_published(items: Iterable[Published]) -> None:
    """Bring here what workers elsewhere have put into `.unfinished/`, but for receipts."""
    for item in items:
        if not item.name.endswith(".json"):
            fetch(WorkingFolder(item.uri, item.fingerprint).path / item.name)


def arrive(uri: str, fingerprint: str, name: str) -> Path:
    """The path on this machine of what another one has in its working folder at `name`, brought here if it is there.

    With a folder come the files in it that are not one of many; those come when they are named.
    """
    folder = WorkingFolder(uri, fingerprint)
    path = folder.path / name
    if name in ("", UNFINISHED):
        bring(folder, name)
    elif name.startswith(f"{UNFINISHED}/"):
        path.parent.mkdir(parents=True, exist_ok=True)
        fetch(path)
    elif part := _part(folder, name):
        fetch_part(folder.path, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def bring(folder: WorkingFolder, name: str = "") -> None:
    """Bring here the files of a working folder, or of its `.unfinished/`, that are not one of many."""
    folder.path.mkdir(parents=True, exist_ok=True)
    manifest = manifest_of(folder)
    if manifest is not None:
        fetch_parts(folder.path, [part for part in manifest.parts if not is_numbered(part.name)])
        return
    (folder.path / UNFINISHED).mkdir(exist_ok=True)
    there = [file for file in folder.store.sizes(UNFINISHED, recursive=False) if not is_numbered(file)]
    for file in there:
        if file.endswith(SUM) or (file.endswith(".json") and file != PLAN):
            fetch(folder.path / file.removesuffix(SUM))
    if not name:
        receipts = [folder.path / file for file in there if file.endswith(".json") and file != PLAN]
        fetch_parts(folder.path, [part for receipt in receipts if (part := _as_part(receipt))])


def manifest_of(folder: WorkingFolder) -> Manifest | None:
    """The manifest of the artifact in this working folder, from here or the store; None while it is unfinished.

    Raises LatentbitsError where the store holds another artifact by now.
    """
    local = folder.path / MANIFEST
    if local.exists():
        return read_model(local.read_bytes(), local, Manifest)
    content = folder.store.read(MANIFEST)
    if content is None:
        return None
    manifest = read_model(content, f"{folder.uri}/{MANIFEST}", Manifest)
    if manifest.fingerprint != folder.fingerprint:
        raise LatentbitsError(f"{folder.uri} was replaced while it was read; run the same command again")
    keep(local, content)
    return manifest


def keep(path: Path, content: bytes) -> None:
    """Write a small file of this machine whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def unfinished_plan(store: Store) -> Plan | None:
    """The plan of what was begun in a store's folder."""
    content = store.read(PLAN)
    return None if content is None else read_model(content, f"{store.uri}/{PLAN}", Plan)


def _part(folder: WorkingFolder, name: str) -> Part | None:
    manifest = manifest_of(folder)
    if manifest is not None:
        return next((part for part in manifest.parts if part.name == name), None)
    content = folder.store.read(receipt_name(name))
    return None if content is None else read_model(content, f"{folder.uri}/{receipt_name(name)}", Part)


def _as_part(receipt: Path) -> Part | None:
    """The part that a JSON file of `.unfinished/` is the receipt of, if it is one."""
    try:
        return read_model(receipt.read_bytes(), receipt, Part)
    except (Damaged, FileNotFoundError):
        return None


def _fetch_record(store: Store, name: str, path: Path) -> bool:
    content = store.read(name)
    if content is None:
        return False
    keep(path, content)
    return True


def fetch_file(store: Store, name: str, path: Path, digest: str, size: int | None = None) -> bool:
    """Bring a file here unless it is here whole; whether it has these bytes now."""
    if _is_here(path, digest, size):
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        if _is_here(path, digest, size):
            return True
        try:
            with replacing(path) as temporary:
                if store.download(name, temporary) != digest:
                    raise _Differs
        except _Differs:
            return False
    return True


class _Differs(Exception):
    """What was fetched is not what was put there, or nothing is there."""


def _is_here(path: Path, digest: str, size: int | None) -> bool:
    """Whether the file is whole; what was compared once is compared again only after its times changed."""
    return path.exists() and (size is None or path.stat().st_size == size) and digests([path])[path] == digest


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process of this machine at a time fetches a file; the others find it here."""
    lock = path.with_name(f".{path.name}.fetching")
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        lock.unlink(missing_ok=True)  # at worst two fetch it
