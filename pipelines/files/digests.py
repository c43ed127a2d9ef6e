"""SHA-256 of files, remembered by path, inode, size and times, so that large ones are not read again."""

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from pipelines.files.durable import write_text
from pipelines.storage import file_checksum, file_facts, uri_of
from pipelines.tokenizing.readers import refused_if_unreadable

REMEMBERED_FROM = 1 << 20
"""Bytes from which on a digest is worth remembering."""
SETTLED = 2.0
"""Seconds after which a file's time of change is trusted: two writes may fall into one tick of the clock."""


def digests(files: Sequence[Path]) -> dict[Path, str]:
    """Each file's digest in hex."""
    memory = _read()
    found, fresh = {}, {}
    for path in files:
        with refused_if_unreadable(path):
            key = _key(path)
            found[path] = memory.get(key) or file_checksum(path)
            if key not in memory and key == _key(path) and _settled(path):
                fresh[key] = found[path]
    if fresh:
        _write(memory | fresh)
    return found


def _key(path: Path) -> str:
    if uri := uri_of(path):
        return f"{uri} {file_facts(path)}"
    facts = path.stat()
    return f"{path} {facts.st_ino} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"


def _settled(path: Path) -> bool:
    size, written = file_facts(path)
    return size >= REMEMBERED_FROM and time.time() - written > SETTLED


def _place() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "latentbits" / "digests.json"


def _read() -> dict[str, str]:
    try:
        memory = json.loads(_place().read_bytes())
    except (OSError, ValueError):
        return {}
    return memory if isinstance(memory, dict) else {}


def _write(memory: dict[str, str]) -> None:
    # A memory that cannot be kept costs time, not correctness.
    with contextlib.suppress(OSError):
        _place().parent.mkdir(parents=True, exist_ok=True)
        write_text(_place(), json.dumps(dict(list(memory.items())[-10_000:]), indent=0))
