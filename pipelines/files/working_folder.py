"""The folder of this machine in which an artifact of a store is made and read.

It lies under LATENTBITS_CACHE (by default ~/.cache/latentbits/stores) and is named after the URI and the artifact's
fingerprint, so that either name can be told from the other, on any machine. Whatever is in it can be fetched again.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.storage import Store, uri_of

FINGERPRINT = re.compile(r"@[0-9a-f]{16}")
NUMBERED = re.compile(r"-\d{5,}")


@dataclass(frozen=True, slots=True)
class WorkingFolder:
    """Where the artifact `fingerprint` of the store's folder `uri` lies on this machine."""

    uri: str
    fingerprint: str

    @property
    def path(self) -> Path:
        return home(self.uri) / f"@{self.fingerprint}"

    @property
    def store(self) -> Store:
        return Store.at(self.uri)


def home(uri: str) -> Path:
    """The folder of this machine that stands for `uri`."""
    scheme, _, rest = uri.partition("://")
    return root() / scheme / rest


def root() -> Path:
    """Where working folders lie: LATENTBITS_CACHE, or a folder of the user's cache."""
    given = os.environ.get("LATENTBITS_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "latentbits" / "stores"


def working_folder_of(path: Path) -> tuple[WorkingFolder, str] | None:
    """The working folder that `path` is, or is in, and its name below it; None for any other path."""
    base = root()
    if not path.is_relative_to(base):
        return None
    parts = path.relative_to(base).parts
    marks = [place for place, part in enumerate(parts) if FINGERPRINT.fullmatch(part)]
    if not marks or marks[-1] < 2:
        return None
    uri = uri_of(f"{parts[0]}://{'/'.join(parts[1 : marks[-1]])}")
    return (WorkingFolder(uri, parts[marks[-1]][1:]), "/".join(parts[marks[-1] + 1 :])) if uri else None


def is_numbered(name: str) -> bool:
    """Whether a file is one of many, such as part-00007.arrow: those are fetched one by one, by who needs them."""
    return bool(NUMBERED.search(name.rpartition("/")[2]))
