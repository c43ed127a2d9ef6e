"""The connection to Ray: the cluster at RAY_ADDRESS, or one of this machine that is started and ended here."""

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path

import psutil

from vae_core.errors import LatentbitsError, Misuse

MEMORY_BYTES = 1_500_000_000
"""Free memory below which a local Ray is not started: its daemons and two workers with torch take about as much."""
ANSWER_S = 5.0
"""How long an address has to answer."""
TOLD_AFTER_S, TOLD_EVERY_S = 15.0, 30.0
"""When a wait for resources is first told of, and how often then."""
ADDRESS = re.compile(r"(?:ray://)?(?:https?://)?\[?([^/\]]+?)\]?:(\d+)/?")
TO_WORKERS = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")
"""What the processes of a cluster are told of storage; keys they have of their own, from their machines."""
SHARE: ContextVar[int | None] = ContextVar("share", default=None)
"""The cores that stages in a worker that runs stages may hold."""
logger = logging.getLogger("latentbits.cluster")
_SHARED: ContextVar[ExitStack | None] = ContextVar("shared", default=None)


@contextmanager
def cluster() -> Iterator[None]:
    """A connection to Ray: the one that is open, the cluster at RAY_ADDRESS, or one started here and ended after.

    Raises Misuse where no cluster answers at RAY_ADDRESS, where it refuses this process or has another version of Ray,
    and where this machine has too little free memory to start one.
    """
    import ray

    shared = _SHARED.get()
    if ray.is_initialized():
        yield
    elif shared is not None:
        shared.enter_context(_started())
        yield
    else:
        with _started():
            yield


@contextmanager
def shared_cluster() -> Iterator[None]:
    """What `cluster` opens first in this block stays open to its end; where nothing needs Ray, none is started."""
    if _SHARED.get() is not None:
        yield
        return
    with ExitStack() as stack:
        token = _SHARED.set(stack)
        try:
            yield
        finally:
            _SHARED.reset(token)


def cores() -> int:
    """Cores that stages of this process may hold: all of the open cluster, or its share in a worker that runs stages.

    Two stages at once that each waited for more would wait for each other.
    """
    import ray

    return SHARE.get() or max(1, int(ray.cluster_resources().get("CPU", 1)))


class Waiting:
    """Tells, some seconds after it was made and then now and again, what a stage waits for."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._next = time.monotonic() + TOLD_AFTER_S

    def tell(self) -> None:
        """Say it where it is time to."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + TOLD_EVERY_S
            logger.warning("waiting for %s; %s", self.what, free_resources())


def wait_for(what: str, there: Callable[[], bool]) -> None:
    """Return once the cluster has what is wanted, and tell what is missing until then."""
    waiting = Waiting(what)
    while not there():
        waiting.tell()
        time.sleep(0.5)


def free_resources() -> str:
    """What the cluster has of cores and GPUs, and what of it is free."""
    import ray

    every, free = ray.cluster_resources(), ray.available_resources()
    kinds = {"CPU": "cores", **({"GPU": "GPUs"} if every.get("GPU") else {})}
    counts = ", ".join(f"{free.get(key, 0):g} of {every.get(key, 0):g} {name}" for key, name in kinds.items())
    if not every.get("CPU"):
        return "the cluster has no cores yet: start a worker node"
    return f"{counts} of the cluster are free: end other work on it, or add a node"


@contextmanager
def _started() -> Iterator[None]:
    import ray

    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    # At its usual 15 a worker gets a thirtieth of a core that any other program wants.
    os.environ.setdefault("RAY_worker_niceness", "0")
    if address:
        _require_token()
        _require_answer(address)
    else:
        _require_memory()
    told = {name: os.environ[name] for name in TO_WORKERS if address and name in os.environ}
    with _refusals(address or "this machine"):
        ray.init(
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": told} if told else None,
            # Without an address Ray takes the cluster that was last started on this machine, also one long killed.
            **({} if address else {"address": "local", "include_dashboard": False}),
        )
    ended = threading.Event()
    if found := ADDRESS.fullmatch(address or ""):
        threading.Thread(target=_watch_head, args=(found[1], int(found[2]), ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        ray.shutdown()


def _watch_head(host: str, port: int, ended: threading.Event) -> None:
    """Tell when the head is lost: Ray ends this process a minute later, with words that no user knows."""
    silent = 0
    while not ended.wait(ANSWER_S):
        try:
            socket.create_connection((host, port), timeout=ANSWER_S).close()
            silent = 0
        except OSError:
            silent += 1
            if silent == 2:
                logger.error(
                    "the head of the cluster at %s:%d does not answer any more; if it does not come back within a "
                    "minute this ends: start the cluster again, and the same command goes on",
                    host,
                    port,
                )


@contextmanager
def _refusals(address: str) -> Iterator[None]:
    """Say why a cluster does not take this process, and what to do."""
    import ray

    try:
        yield
    except ConnectionError as error:
        raise _no_answer(address) from error
    except ray.exceptions.AuthenticationError as error:
        raise _refused(address) from error
    except RuntimeError as error:
        if "ersion mismatch" not in str(error):
            raise LatentbitsError(f"cannot connect to the cluster at {address}: {_first_line(error)}") from error
        theirs, ours = (" with ".join(pair) for pair in _versions(str(error)))
        raise Misuse(
            f"the cluster at {address} runs {theirs}, and this process {ours}; install the cluster's versions here, or "
            f"start the cluster with these"
        ) from error


def _require_answer(address: str) -> None:
    """Raise Misuse unless something answers at `address` soon: Ray itself would try for a minute."""
    found = ADDRESS.fullmatch(address)
    if found is None:
        if address not in ("auto", "local"):
            raise Misuse(f"RAY_ADDRESS is {address!r}; give HOST:PORT of the cluster's head, such as 10.0.0.5:6379")
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=ANSWER_S).close()
    except OSError as error:
        raise _no_answer(address) from error
    if address.startswith("http"):
        raise Misuse(f"RAY_ADDRESS is {address}, which is for `submit`; give HOST:PORT of the head, usually 6379")
    if not address.startswith("ray://"):
        _require_head(f"{found[1]}:{found[2]}")


def _require_head(address: str) -> None:
    """Raise Misuse where what answers is no Ray head, or refuses this process; connecting itself tells the rest."""
    import ray

    said: list[Exception] = []

    def ask() -> None:
        try:
            ray._raylet.GcsClient(address=address)
        except Exception as error:  # of many kinds
            said.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(2 * ANSWER_S)
    if asking.is_alive():
        raise Misuse(f"what answers at {address} is no head of a Ray cluster; give RAY_ADDRESS its HOST:PORT")
    looks_for_one = "RAY_AUTH_MODE" not in os.environ and _token()  # Ray itself does, before it connects
    if said and isinstance(said[0], ray.exceptions.AuthenticationError) and not looks_for_one:
        raise _refused(address) from said[0]


def _require_token() -> None:
    """Raise Misuse where there is to be a token and is none: Ray would end the process without a word."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" and not _token():
        raise Misuse(
            "RAY_AUTH_MODE is token, and there is no token; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to its file"
        )


def _token() -> str:
    """The token that Ray would find."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    return os.environ.get("RAY_AUTH_TOKEN") or (file.read_text().strip() if file.is_file() else "")


def _refused(address: str) -> Misuse:
    return Misuse(
        f"the cluster at {address} refuses the token; set RAY_AUTH_MODE=token and its own RAY_AUTH_TOKEN (or "
        f"RAY_AUTH_TOKEN_PATH)"
    )


def _no_answer(address: str) -> Misuse:
    return Misuse(f"no Ray cluster answers at {address}; start it, or unset RAY_ADDRESS to use this machine")


def _versions(said: str) -> tuple[list[str], list[str]]:
    """The versions of Ray and Python on the cluster, and here, of Ray's message about them."""
    found = re.findall(r"(Ray|Python): ?(\S+)", said)
    pairs = [f"{name} {version.rstrip('.,')}" for name, version in found] or ["another version"]
    return pairs[: len(pairs) // 2 or 1], pairs[len(pairs) // 2 :]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _require_memory() -> None:
    free = psutil.virtual_memory().available
    if free < MEMORY_BYTES:
        raise Misuse(
            f"{free / 1e9:.1f} GB of memory is free, and Ray with its workers needs {MEMORY_BYTES / 1e9:.1f} GB; "
            f"end other programs, or name a cluster in RAY_ADDRESS"
        )
