"""One writer at a time: a lock on the folder that an artifact is made in, and a lease where it is made in a store.

The system takes a lock from a process that dies. A lease is renewed while its holder lives, and free soon after.
"""

import fcntl
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
import weakref
from datetime import datetime
from pathlib import Path
from typing import IO

from pipelines.storage import Store
from vae_core.errors import LatentbitsError, Misuse

LOCK = "writer.lock"
LEASE = ".unfinished/writer.json"
RENEWED_S = 10.0
FREE_AFTER_S = 35.0
"""Seconds without a renewal after which the holder of a lease is taken for dead."""
logger = logging.getLogger("latentbits.storage")
_held: "weakref.WeakValueDictionary[str, WriterLock]" = weakref.WeakValueDictionary()


class WriterLock:
    """Held until `release`, or until nothing refers to it; a process that asks again for what it holds is given it."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    @classmethod
    def take(cls, scratch: Path, place: str) -> "WriterLock":
        """The lock on the folder `scratch`. Raises Misuse that names the holder where another process has it."""
        key = os.path.realpath(scratch)
        if (mine := _held.get(key)) is not None:
            return mine
        file = (scratch / LOCK).open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read()
            file.close()
            raise _held_by(place, holder) from None
        file.truncate(0)
        file.write(_holder())
        file.flush()
        lock = cls(file)
        weakref.finalize(lock, file.close)
        _held[key] = lock
        return lock

    def release(self) -> None:
        """Let others write."""
        self._file.close()


class Lease:
    """The same in a store, where nothing tells that a process has died but that it does not renew its lease."""

    def __init__(self, store: Store, holder: str) -> None:
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=_renew, args=(store, holder, self._ended), daemon=True)
        weakref.finalize(self, self._ended.set)
        self._renewing.start()

    @classmethod
    def take(cls, store: Store) -> "Lease":
        """The lease of the store's folder, after that of a dead process has run out. Raises Misuse where it is held."""
        _wait_until_free(store)
        holder = json.dumps(json.loads(_holder()) | {"lease": uuid.uuid4().hex})
        store.write(LEASE, holder.encode())
        found = store.read(LEASE)
        if found != holder.encode():
            raise _held_by(store.uri, (found or b"").decode())
        return cls(store, holder)

    def end(self) -> None:
        """Renew it no more: what is written is about to be complete, and the lease goes with `.unfinished/`."""
        self._ended.set()
        self._renewing.join()


def _renew(store: Store, holder: str, ended: threading.Event) -> None:
    while not ended.wait(RENEWED_S):
        try:
            store.write(LEASE, holder.encode())
        except LatentbitsError as error:  # whoever writes parts hears of it too
            logger.debug("lease of %s not renewed: %s", store.uri, error)


def _wait_until_free(store: Store) -> None:
    """Return once no living process holds the lease. Raises Misuse where it is renewed meanwhile."""
    first, told = store.facts(LEASE), False
    while (facts := store.facts(LEASE)) is not None:
        holder = (store.read(LEASE) or b"").decode()
        if _is_dead(holder) or _is_mine(holder) or time.time() - facts[1] > FREE_AFTER_S:
            return
        if first is not None and facts[1] > first[1]:
            raise _held_by(store.uri, holder)
        if not told:
            logger.warning("%s: waiting to see whether %s still writes it", store.uri, _described(holder))
            told = True
        time.sleep(1.0)


def _is_dead(holder: str) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    facts = _facts(holder)
    if facts.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(facts["process"]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, KeyError):
        return False
    return False


def _is_mine(holder: str) -> bool:
    facts = _facts(holder)
    return facts.get("host") == socket.gethostname() and facts.get("process") == str(os.getpid())


def _holder() -> str:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:3]])
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return json.dumps({"host": socket.gethostname(), "process": str(os.getpid()), "since": since, "command": command})


def _facts(holder: str) -> dict[str, str]:
    try:
        facts = json.loads(holder)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _described(holder: str) -> str:
    facts = _facts(holder)
    if not facts:
        return "another process"
    return f"process {facts.get('process')} on {facts.get('host')} ({facts.get('command')}, since {facts.get('since')})"


def _held_by(place: str, holder: str) -> Misuse:
    return Misuse(f"{place} is being written by {_described(holder)}; wait for it, stop it, or give another --out")
