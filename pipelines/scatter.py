"""The door to Ray: run one worker over many items on every core of the cluster, with retries.

A path in the working folder of a stored artifact arrives in a worker as the path of the same thing on its machine.
"""

import errno
import io
import logging
import pickle
import socket
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipelines.connection import SHARE, Waiting, cluster, cores, shared_cluster
from pipelines.files.published import Published, arrive, fetch_published, put_up
from pipelines.files.working_folder import working_folder_of
from vae_core.errors import LatentbitsError, Misuse

__all__ = ["cluster", "cores", "packed", "scatter", "shared_cluster", "unpacked"]
Item = TypeVar("Item")
Result = TypeVar("Result")
RETRIES = 3
"""How often an item is tried again after the process or the node that held it died."""
LONGEST_NAME = 200
LOOKED_EVERY_S = 1.0
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
logger = logging.getLogger("latentbits.cluster")


def scatter(
    make_worker: Callable[[], Callable[[Item], Result]],
    items: Iterable[Item],
    *,
    workers: int | None = None,
    running_stages: bool = False,
    given_up: Callable[[Item, LatentbitsError], Result] | None = None,
) -> Iterator[Result]:
    """Results of a pool of one-core workers over `items`, as they come.

    `make_worker` runs once in each process and returns the function that is called with each item: load a model
    there, not for each item. An item whose process or node was lost is tried again in another, RETRIES times. Where
    cores are held by others, those that are free work, and what is waited for is told.
    Of an item that is lost once more the result is `given_up` of it and the reason; without that, the reason is raised.
    Workers `running_stages` hold no core themselves: each has an equal share of the cluster's for its stages.
    Raises what the worker raised where that is a LatentbitsError, and otherwise one that names the item; Misuse where
    workers that run stages are more than the cores.
    """
    items = list(items)
    if not items:
        return
    with cluster():
        count = min(len(items), _asked(workers, running_stages), SHARE.get() or len(items))
        share = _share_of(count) if running_stages else None
        pool = _Pool(packed(make_worker), share, count, given_up)
        try:
            yield from pool.results(items)
        finally:  # an error's traceback would keep them, and with them the cores that the next call waits for
            pool.end()


def packed(value: Any) -> bytes:
    """`value` as bytes for a process on any machine of the cluster."""
    from ray import cloudpickle

    class Packer(cloudpickle.CloudPickler):  # type: ignore[misc]
        def reducer_override(self, part: Any) -> Any:
            return _travelling(part) if isinstance(part, Path) else super().reducer_override(part)

    file = io.BytesIO()
    Packer(file).dump(value)
    return file.getvalue()


def unpacked(content: bytes) -> Any:
    """What was packed. Raises Misuse for a path that is not on this machine, and what fetching raises."""
    return pickle.loads(content)


def _travelling(path: Path) -> tuple[Callable[..., Path], tuple[Any, ...]]:
    found = working_folder_of(path)
    if found is not None:
        return arrive, (found[0].uri, found[0].fingerprint, found[1])
    return _shared, (str(path), path.is_absolute() and path.exists())


def _shared(path: str, was_there: bool) -> Path:
    """A path that all machines are to see. Raises Misuse where this one does not."""
    if was_there and not Path(path).exists():
        raise Misuse(
            f"{path} is not on the machine {socket.gethostname()}, which works on it too; give a folder that all "
            f"machines of the cluster share, or an address such as s3://bucket/run"
        )
    return Path(path)


def _asked(workers: int | None, running_stages: bool) -> int:
    have = cores()
    if workers is not None and workers > have and not running_stages:
        logger.warning("%d workers are asked for, and the cluster has %d cores: so many work at a time", workers, have)
    return workers or have


def _share_of(count: int) -> int:
    share = cores() // count
    if share == 0:
        raise Misuse(f"{count} workers that run stages need a core each, and there are {cores()}; ask for fewer")
    return share


class _Pool:
    """Actors, of which some work and some are still to be placed; what one of them loses, another does."""

    def __init__(
        self,
        make_worker: bytes,
        share: int | None,
        count: int,
        given_up: Callable[[Any, LatentbitsError], Any] | None,
    ) -> None:
        import ray

        self.actor = ray.remote(num_cpus=0 if share else 1)(_Worker)
        self.arguments = (make_worker, share)
        self.given_up = given_up
        self.starting: dict[Any, Any] = {}
        self.busy: dict[Any, tuple[Any, int]] = {}
        self.idle: list[Any] = []
        self.lost: Counter[int] = Counter()
        for _ in range(count):
            self._start()

    def results(self, items: Sequence[Any]) -> Iterator[Any]:
        """The items' results as they come."""
        import ray

        waiting, told = deque(range(len(items))), Waiting("a core")
        while waiting or self.busy:
            while self.idle and waiting:
                self._hand(self.idle.pop(), waiting.popleft(), items)
            done, _ = ray.wait([*self.busy, *self.starting], timeout=LOOKED_EVERY_S)
            if not done and not self.busy:
                told.tell()
            for reference in done:
                if reference in self.starting:
                    self._placed(reference)
                else:
                    yield from self._ended(reference, items, waiting)

    def end(self) -> None:
        """End all of them."""
        import ray

        for actor in [*self.idle, *self.starting.values(), *(actor for actor, _ in self.busy.values())]:
            ray.kill(actor)

    def _start(self) -> None:
        actor = self.actor.remote(*self.arguments)
        self.starting[actor.ready.remote()] = actor

    def _hand(self, actor: Any, number: int, items: Sequence[Any]) -> None:
        self.busy[actor.run.remote(packed(items[number]))] = (actor, number)

    def _placed(self, reference: Any) -> None:
        import ray

        actor = self.starting.pop(reference)
        try:
            ray.get(reference)
        except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as death:
            self.lost[-1] += 1
            if self.lost[-1] > RETRIES:
                raise LatentbitsError(f"workers cannot start on the cluster: {_last_line(death)}") from death
            self._start()
        else:
            self.idle.append(actor)

    def _ended(self, reference: Any, items: Sequence[Any], waiting: deque[int]) -> Iterator[Any]:
        import ray

        actor, number = self.busy.pop(reference)
        try:
            result, error, published = ray.get(reference)
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.NodeDiedError) as death:
            ray.kill(actor)
            self._start()
            yield from self._lost(number, items, waiting, death)
            return
        self.idle.append(actor)
        if error is not None:
            raise error
        fetch_published(published)
        yield result

    def _lost(self, number: int, items: Sequence[Any], waiting: deque[int], death: Exception) -> Iterator[Any]:
        """Have the item done again, or give it up."""
        self.lost[number] += 1
        if self.lost[number] <= RETRIES:
            logger.warning("a worker was lost on %s, which is done again", _shortened(items[number]))
            waiting.appendleft(number)
            return
        reason = LatentbitsError(
            f"a worker process died {RETRIES + 1} times on the same item, most often for lack of memory: "
            f"{_shortened(items[number])}: {_last_line(death)}"
        )
        if self.given_up is None:
            raise reason from death
        yield self.given_up(items[number], reason)


class _Worker:
    """Runs in its own process. What the work raises is returned, since Ray would raise something else in its place."""

    def __init__(self, make_worker: bytes, share: int | None) -> None:
        self.make_worker = make_worker
        self.share = share
        self.work: Callable[[Any], Any] | None = None

    def ready(self) -> None:
        """Returns once this process has its place."""

    def run(self, content: bytes) -> tuple[Any, LatentbitsError | None, list[Published]]:
        SHARE.set(self.share)
        item = None
        try:
            self.work = self.work or unpacked(self.make_worker)()
            item = unpacked(content)
            return self.work(item), None, put_up()
        except LatentbitsError as error:
            return None, error, []
        except Exception as error:  # whatever a worker raises, the caller is to hear of it in a form that pickles
            wrapped = LatentbitsError(_failure(item, error))
            wrapped.add_note(traceback.format_exc())
            return None, wrapped, []


def _failure(item: Any, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in FULL:
        place = f" {error.filename}" if error.filename else ""
        return f"cannot write{place}: {error.strerror}; make room on that disk, and the same command again goes on"
    return f"a worker failed on {_shortened(item)}: {type(error).__name__}: {error}"


def _shortened(item: Any) -> str:
    words = repr(item)
    return words if len(words) <= LONGEST_NAME else f"{words[:LONGEST_NAME]}..."


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
