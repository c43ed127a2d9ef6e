"""The door to Ray: run one worker over many items on every core of the cluster, with retries."""

import errno
import logging
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import psutil

from vae_core.errors import LatentbitsError, Misuse

Item = TypeVar("Item")
Result = TypeVar("Result")
RETRIES = 3
"""How often an item is tried again after the process or the node that held it died."""
LONGEST_NAME = 200
MEMORY_BYTES = 1_500_000_000
"""Free memory below which a local Ray is not started: its daemons and two workers with torch take about as much."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SHARED: ContextVar[ExitStack | None] = ContextVar("shared", default=None)
_SHARE: ContextVar[int | None] = ContextVar("share", default=None)


def scatter(
    make_worker: Callable[[], Callable[[Item], Result]],
    items: Iterable[Item],
    *,
    workers: int | None = None,
    running_stages: bool = False,
) -> Iterator[Result]:
    """Results of a pool of one-core workers over `items`, as they come.

    `make_worker` runs once in each process and returns the function that is called with each item: load a model
    there, not for each item. An item whose process was killed is tried again in a new one, RETRIES times.
    Workers `running_stages` hold no core themselves: each has an equal share of the cluster's for its stages.
    Raises what the worker raised where that is a LatentbitsError, and otherwise one that names the item; Misuse where
    workers that run stages are more than the cores.
    """
    items = list(items)
    if not items:
        return
    import ray
    from ray.util import ActorPool

    with cluster():
        count = min(len(items), workers or cores(), _SHARE.get() or len(items))
        share = _share_of(count) if running_stages else None
        options = {"num_cpus": 0 if running_stages else 1, "max_restarts": -1, "max_task_retries": RETRIES}
        remote = ray.remote(**options)(_Worker)
        actors = [remote.remote(make_worker, share) for _ in range(count)]
        try:
            pool = ActorPool(actors)
            for item in items:
                pool.submit(lambda actor, value: actor.run.remote(value), item)
            while pool.has_next():
                yield _reported(pool)
        finally:  # an error's traceback would keep them, and with them the cores that the next call waits for
            for actor in actors:
                ray.kill(actor)


def cores() -> int:
    """Cores that stages of this process may hold: all of the open cluster, or its share in a worker that runs stages.

    Two stages at once that each waited for more would wait for each other.
    """
    import ray

    return _SHARE.get() or max(1, int(ray.cluster_resources().get("CPU", 1)))


@contextmanager
def cluster() -> Iterator[None]:
    """A connection to Ray: the one that is open, the cluster at RAY_ADDRESS, or one started here and ended after.

    Raises Misuse where this machine has too little free memory to start one.
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


@contextmanager
def _started() -> Iterator[None]:
    import ray

    if not os.environ.get("RAY_ADDRESS"):
        _require_memory()
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    # At its usual 15 a worker gets a thirtieth of a core that any other program wants.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except ConnectionError as error:
        address = os.environ.get("RAY_ADDRESS", "this machine")
        raise Misuse(
            f"no Ray cluster answers at {address}; start it, or unset RAY_ADDRESS to use this machine"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _share_of(count: int) -> int:
    share = cores() // count
    if share == 0:
        raise Misuse(f"{count} workers that run stages need a core each, and there are {cores()}; ask for fewer")
    return share


def _require_memory() -> None:
    free = psutil.virtual_memory().available
    if free < MEMORY_BYTES:
        raise Misuse(
            f"{free / 1e9:.1f} GB of memory is free, and Ray with its workers needs {MEMORY_BYTES / 1e9:.1f} GB; "
            f"end other programs, or name a cluster in RAY_ADDRESS"
        )


class _Worker:
    """Runs in its own process. What the work raises is returned, since Ray would raise something else in its place."""

    def __init__(self, make_worker: Callable[[], Callable[[Any], Any]], share: int | None) -> None:
        self.make_worker = make_worker
        self.share = share
        self.work: Callable[[Any], Any] | None = None

    def run(self, item: Any) -> tuple[Any, LatentbitsError | None]:
        _SHARE.set(self.share)
        try:
            self.work = self.work or self.make_worker()
            return self.work(item), None
        except LatentbitsError as error:
            return None, error
        except Exception as error:  # whatever a worker raises, the caller is to hear of it in a form that pickles
            wrapped = LatentbitsError(_failure(item, error))
            wrapped.add_note(traceback.format_exc())
            return None, wrapped


def _reported(pool: Any) -> Any:
    import ray

    try:
        result, error = pool.get_next_unordered()
    except ray.exceptions.RayActorError as death:
        raise LatentbitsError(
            f"a worker process died {RETRIES + 1} times on the same item, most often for lack of memory: {death}"
        ) from death
    if error is not None:
        raise error
    return result


def _failure(item: Any, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in FULL:
        place = f" {error.filename}" if error.filename else ""
        return f"cannot write{place}: {error.strerror}; make room on that disk, and the same command again goes on"
    return f"a worker failed on {_shortened(item)}: {type(error).__name__}: {error}"


def _shortened(item: Any) -> str:
    words = repr(item)
    return words if len(words) <= LONGEST_NAME else f"{words[:LONGEST_NAME]}..."
