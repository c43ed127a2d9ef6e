"""What a training worker leaves on its machine, carried to the store of its model while training goes on."""

import logging
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.files.durable import checksum
from pipelines.files.published import fetch_file, keep
from pipelines.files.working_folder import working_folder_of
from vae_core.config import Config
from vae_core.errors import LatentbitsError

LEFT = "left.json"
"""Names and checksums of what training left, put up after it."""
EVERY_S = 2.0
logger = logging.getLogger("latentbits.storage")


class Left(Config):
    """The files that training left, below `.unfinished/`."""

    files: dict[str, str]


class Carrier:
    """Carries one folder at a time up, in a thread; a store that is slow or down delays nothing."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._before: str | None = None

    @property
    def is_free(self) -> bool:
        """Whether the last folder has arrived, or was given up."""
        return self._thread is None or not self._thread.is_alive()

    def carry(self, folder: Path, names: Sequence[str]) -> None:
        """Put these files of a folder of `.unfinished/` into the store, in this order, and then delete older ones.

        Of the folders that were carried before, the last is kept there.
        """
        linked = folder.with_name(f".carried-{folder.name}")
        shutil.rmtree(linked, ignore_errors=True)
        for name in names:  # linked, so that they stay until they have arrived
            (linked / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(folder / name, linked / name)
        self._thread = threading.Thread(
            target=_carry, args=(folder, linked, list(names), self._before), daemon=True, name=f"carry {folder.name}"
        )
        self._before = folder.name
        self._thread.start()


@contextmanager
def carried_up(*paths: Path) -> Iterator[None]:
    """While the block runs, each change of these small files of `.unfinished/` goes to the store soon after."""
    if working_folder_of(paths[0]) is None:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(paths, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def leave(scratch: Path, *names: str) -> None:
    """Put what training left, files and folders of `.unfinished/`, into the store, and last what makes it count."""
    found = working_folder_of(scratch)
    if found is None:
        return
    roots = [scratch / name for name in names]
    files = [path for root in roots for path in ([root] if root.is_file() else sorted(root.rglob("*")))]
    left = {path.relative_to(scratch).as_posix(): checksum(path) for path in files if path.is_file()}
    for name in left:
        found[0].store.upload(scratch / name, f"{found[1]}/{name}")
    found[0].store.write(f"{found[1]}/{LEFT}", Left(files=left).model_dump_json().encode())


def fetch_left(scratch: Path) -> bool:
    """Bring what training left here, if it is done; whether it is."""
    found = working_folder_of(scratch)
    if found is None:
        return False
    content = found[0].store.read(f"{found[1]}/{LEFT}")
    if content is None:
        return False
    left = Left.model_validate_json(content)
    return all(
        fetch_file(found[0].store, f"{found[1]}/{name}", scratch / name, digest) for name, digest in left.files.items()
    )


def refresh(path: Path, name: str) -> None:
    """Write to `path` what the store has now of the small file `name` beside it; without a store nothing is done."""
    found = working_folder_of(path.with_name(name))
    if found is not None:
        with suppress(LatentbitsError):  # of the next time it is asked
            content = found[0].store.read(found[1])
            if content is not None and not (path.exists() and path.stat().st_size == len(content)):
                keep(path, content)


def withdraw(path: Path) -> None:
    """Delete a file of `.unfinished/` here and in the store."""
    path.unlink(missing_ok=True)
    found = working_folder_of(path)
    if found is not None:
        found[0].store.delete(found[1])


def mirror(path: Path) -> None:
    """Make a small file of `.unfinished/` here what the store says: its content, or nothing."""
    found = working_folder_of(path)
    if found is None:
        return
    content = found[0].store.read(found[1])
    if content is None:
        path.unlink(missing_ok=True)
    else:
        keep(path, content)


def _carry(folder: Path, linked: Path, names: list[str], before: str | None) -> None:
    found = working_folder_of(folder)
    assert found is not None
    store, place = found[0].store, found[1]
    try:
        for name in names:
            store.upload(linked / name, f"{place}/{name}")
        keep_in_store = {folder.name, before}
        parent = place.rpartition("/")[0]
        others = {name.removeprefix(f"{parent}/").partition("/")[0] for name in store.sizes(parent)}
        for older in sorted(others):
            if older < folder.name and older not in keep_in_store:
                store.delete_folder(f"{parent}/{older}")
    except (LatentbitsError, OSError) as error:
        logger.warning("%s was not carried to the store: %s", folder.name, error)
    finally:
        shutil.rmtree(linked, ignore_errors=True)


def _watch(paths: Sequence[Path], ended: threading.Event) -> None:
    sizes: dict[Path, int] = {}
    while True:
        last = ended.wait(EVERY_S)
        for path in paths:
            if path.exists() and path.stat().st_size != sizes.get(path):
                content = path.read_bytes()
                with suppress(LatentbitsError):
                    _put(path, content)
                    sizes[path] = len(content)
        if last:
            return


def _put(path: Path, content: bytes) -> None:
    found = working_folder_of(path)
    if found is not None:
        found[0].store.write(found[1], content)
