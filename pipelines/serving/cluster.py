"""The same application on a Ray cluster: replicas that encode and answer, and actors that share out the segments.

Every actor finds the best of its own segments, and a replica merges what they found by exact score and row, as one
process merges its segments. So the answers are the same.
"""

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.artifact import Artifact
from pipelines.connection import cluster
from pipelines.encoder import Encoder
from pipelines.search import Index, Rank, nearest_of, require_model
from pipelines.searching.opened import Opened
from pipelines.searching.scan import Candidates, Queries
from pipelines.serving.answers import Searcher, Unavailable
from pipelines.serving.config import ServeConfig
from vae_core.errors import LatentbitsError, Misuse

APPLICATION, ROUTES = "latentbits", "search"
EVERYWHERE = "0.0.0.0"
VERSIONS_KEPT = 3
"""An actor may be a version ahead of a replica, or two; what is open is mapped and costs little."""
ATTEMPTS = 5
logger = logging.getLogger("latentbits.service")


@dataclass(frozen=True, slots=True)
class Serving:
    """What is served, and where; what every process of the application is told."""

    index: Path
    model: Path
    encoder_folder: Path | None
    host: str
    port: int
    config: ServeConfig


def serving(
    index: Path, model: Path | None, encoder_folder: Path | None, host: str, port: int, config: ServeConfig
) -> Serving:
    """What is to be served, looked at before a cluster is. Raises Misuse, Stale or Damaged where it cannot be."""
    opened = Index.open(index)
    folder = Artifact.open(model or opened.model_path(), "model")
    require_model(opened, folder.fingerprint)
    if port == 0:
        raise Misuse("on a cluster every node listens on the same port; give --port")
    place = encoder_folder.absolute() if encoder_folder else None
    return Serving(opened.artifact.path, folder.path, place, host, port, config)


class Share:
    """The segments number, number + of, number + 2 of, ... of an index."""

    def __init__(self, index: Path, number: int, of: int) -> None:
        self.index = Index.open(index)
        self.number = number
        self.of = of
        self._versions: dict[int, Opened] = {}

    def nearest(self, version: int, queries: Queries, k: int, rank: Rank, where: str | None, exact: bool) -> "Found":
        """The k best of these segments in one version of the index, or None where it is not the one that is there.

        An error in what was asked is returned, since Ray would raise something else in its place.
        """
        opened = self._open(version)
        if opened is None:
            return None
        try:
            return nearest_of(opened, queries, k, rank, where, exact, (self.number, self.of))
        except LatentbitsError as error:
            return error

    def _open(self, version: int) -> Opened | None:
        if version not in self._versions:
            self.index.refresh()
            self._versions[self.index.version] = self.index.opened
            while len(self._versions) > VERSIONS_KEPT:
                del self._versions[min(self._versions)]
        return self._versions.get(version)


Found = Candidates | LatentbitsError | None


class SpreadIndex(Index):
    """An index whose segments are searched elsewhere; documents and ids are read here, where its files are mapped too.

    `ask` sends the arguments of `Share.nearest` to every share and returns what they found.
    """

    def __init__(self, artifact: Artifact, ask: Callable[..., Sequence[Found]]) -> None:
        super().__init__(artifact)
        self.ask = ask

    def _found(
        self, queries: Queries, k: int, rank: Rank, where: str | None, exact: bool
    ) -> tuple[Opened, list[Candidates]]:
        """Raises Unavailable where the shares and this process do not come to one version."""
        for _ in range(ATTEMPTS):
            opened = self.opened
            found = self.ask(opened.version.number, queries, k, rank, where, exact)
            for one in found:
                if isinstance(one, LatentbitsError):
                    raise one
            candidates = [one for one in found if isinstance(one, Candidates)]
            if len(candidates) == len(found):
                return opened, candidates
            self.refresh()
        raise Unavailable(f"{self.artifact.path} changes faster than it is read; ask again")


def serve_on_cluster(serving: Serving, ready: Callable[[str], None]) -> None:
    """Run the application on the cluster at RAY_ADDRESS, or on one started here, until SIGTERM or Ctrl-C.

    `ready` is told the address once requests are answered. Raises Misuse where the cluster has too few cores.
    """
    with cluster(), _stoppable():
        from ray import serve

        _require_cores(serving.config)
        try:
            started(serving)
            ready(f"http://{serving.host}:{serving.port}/")
            while True:
                signal.pause()
        except _ToldToStop:
            logger.info("stopping")
        except RuntimeError as error:
            raise LatentbitsError(f"the application did not start on the cluster: {error}") from error
        finally:
            serve.delete(APPLICATION)
            serve.shutdown()


def started(serving: Serving) -> None:
    """Start the application on the cluster that is open; returns once it answers."""
    from ray import serve

    serve.start(http_options={"host": serving.host, "port": serving.port}, logging_config=_quiet())
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.run(application(serving), name=APPLICATION, route_prefix="/", logging_config=_quiet())


def application(serving: Serving) -> Any:
    """The Ray Serve application: the replicas of the routes, and an actor for each share of the segments."""
    from ray import serve

    config = serving.config
    options = {"num_cpus": config.cluster.cores}
    waits = {"max_ongoing_requests": 2 * config.waiting, "graceful_shutdown_timeout_s": config.drain_s}
    shares = [
        serve.deployment(name=_share(number), ray_actor_options=options, **waits)(Share).bind(
            serving.index, number, config.cluster.spread
        )
        for number in range(config.cluster.spread)
    ]
    replicas = {"num_replicas": config.cluster.replicas, "ray_actor_options": options, **waits}
    routes = serve.deployment(name=ROUTES, **replicas)(serve.ingress(lambda: _app(serving))())
    return routes.bind(*shares)


def build(arguments: dict[str, Any]) -> Any:
    """The application for a Serve config file: `import_path: pipelines.serving.cluster:build`, `args: {index: ...}`."""
    model, folder = (Path(arguments[name]) if name in arguments else None for name in ("model", "encoder_folder"))
    config = ServeConfig.model_validate(arguments.get("serve", {}))
    return application(serving(Path(arguments["index"]), model, folder, EVERYWHERE, 8000, config))


def _app(serving: Serving) -> Any:
    """The application of one replica, made where it runs."""
    from ray import serve
    from ray.exceptions import RayError

    from pipelines.service import make_app
    from pipelines.serving.host import required_token
    from pipelines.serving.log import log_as_json

    log_as_json()
    handles = [serve.get_deployment_handle(_share(one), APPLICATION) for one in range(serving.config.cluster.spread)]

    def ask(*arguments: Any) -> list[Found]:
        try:
            waiting = [handle.nearest.remote(*arguments) for handle in handles]
            return [one.result(timeout_s=serving.config.timeout_s) for one in waiting]
        except (RayError, TimeoutError) as error:
            raise Unavailable(f"a share of the index does not answer ({type(error).__name__}); ask again") from error

    index = SpreadIndex(Artifact.open(serving.index, "index"), ask)
    encoder = Encoder.load(serving.model, serving.encoder_folder)
    require_model(index, encoder.fingerprint)
    searcher = Searcher(index, encoder, serving.config.refresh_s)
    return make_app(searcher, serving.config, required_token(serving.host))


def _share(number: int) -> str:
    return f"segments-{number}"


def _require_cores(config: ServeConfig) -> None:
    import ray

    wanted = config.cluster.cores * (config.cluster.replicas + config.cluster.spread)
    there = ray.cluster_resources().get("CPU", 0)
    if wanted > there:
        raise Misuse(
            f"{config.cluster.replicas} replicas and {config.cluster.spread} shares of {config.cluster.cores:g} cores "
            f"need {wanted:g} cores, and the cluster has {there:g}; lower serve.cluster.replicas, spread or cores"
        )


def _quiet() -> Any:
    from ray.serve.schema import LoggingConfig

    return LoggingConfig(enable_access_log=False, log_level="WARNING")


class _ToldToStop(Exception):
    """SIGTERM or Ctrl-C."""


@contextmanager
def _stoppable() -> Iterator[None]:
    """The first SIGTERM or Ctrl-C in this block raises _ToldToStop, and later ones do nothing."""

    def stop(*_: object) -> None:
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, signal.SIG_IGN)
        raise _ToldToStop

    before = {one: signal.signal(one, stop) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
