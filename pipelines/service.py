"""The search service as one application: routes over an index, its model and what changes it."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib import resources
from importlib.metadata import version
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from starlette.responses import Response

from pipelines.search import Index
from pipelines.serving.answers import Outcome, Searcher
from pipelines.serving.batches import Batches
from pipelines.serving.config import ServeConfig
from pipelines.serving.documents import Writer
from pipelines.serving.facts import facts_of, health_of
from pipelines.serving.gate import Gate
from pipelines.serving.log import tell
from pipelines.serving.metrics import Metrics
from pipelines.serving.problems import PROBLEMS, add_problems, json_response
from pipelines.serving.requests import (
    Additions,
    Answer,
    Answers,
    Changed,
    Codes,
    Deletions,
    Queries,
    Query,
    SearchBody,
    ShownDocument,
    State,
    Texts,
)
from vae_core.errors import LatentbitsError, Misuse

Result = TypeVar("Result")
PAGE = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
ABOUT = "Search a corpus by binary codes. A bearer token is needed where the service was started with one."


class Service:
    """What the routes share. One thread answers queries and reads the index, another one writes changes."""

    def __init__(self, searcher: Searcher, config: ServeConfig) -> None:
        self.searcher = searcher
        self.config = config
        self.writer = Writer(searcher.index.artifact.path, searcher.encoder)
        self.metrics = Metrics()
        self.reading = ThreadPoolExecutor(1, "search")
        self.writing = ThreadPoolExecutor(1, "change")
        self.batches = Batches[Query, Outcome](self._answer, self.reading, at_most=config.batch, waiting=config.waiting)
        self.stopping = False
        self._health: dict[int, dict[str, Any]] = {}
        self._measuring = asyncio.Lock()

    async def read(self, work: Callable[[], Result]) -> Result:
        """Call `work` in the thread that reads the index."""
        return await asyncio.get_running_loop().run_in_executor(self.reading, work)

    async def change(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Call `work` in the thread that changes the index; a client that goes away does not stop it."""
        done = await asyncio.shield(asyncio.get_running_loop().run_in_executor(self.writing, work))
        await self.read(lambda: self.searcher.refresh(now=True))
        for change in ("added", "replaced", "deleted"):
            self.metrics.changed.labels(change).inc(done[change])
        return done

    async def health(self) -> dict[str, Any]:
        """The codes' health, measured beside the searches."""
        async with self._measuring:
            number = self.searcher.index.version
            if number not in self._health:
                index = await self.read(lambda: Index.open(self.searcher.index.artifact.path))
                self._health = {number: await asyncio.to_thread(health_of, index)}
            return self._health[number]

    def _answer(self, queries: list[Query]) -> list[Outcome]:
        self.metrics.batch.observe(len(queries))
        with self.metrics.batch_seconds.time():
            outcomes = self.searcher.answer(queries)
        for query in queries:
            self.metrics.queries.labels(query.rank).inc()
        return outcomes


def make_app(searcher: Searcher, config: ServeConfig, token: str | None) -> FastAPI:
    """The application. Without a `token` it answers only requests that were addressed to this machine by name."""
    service = Service(searcher, config)
    app = FastAPI(
        title="latentbits",
        version=version("latentbits"),
        description=ABOUT,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        lifespan=_lifespan(service),
        responses={code: PROBLEMS[code] for code in (401, 413, 429, 503, 504)},
    )
    app.state.service = service
    app.add_middleware(Gate, config=config, token=token, metrics=service.metrics)
    add_problems(app)
    _add_search(app, service)
    _add_documents(app, service)
    _add_state(app, service)
    _add_page(app)
    return app


def _lifespan(service: Service) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Model and vocabulary are never garbage: to look through them again and again would hold up some requests.
        gc.collect()
        gc.freeze()
        service.batches.start()
        tell("started", {"index": str(service.searcher.index.artifact.path), "documents": len(service.searcher.index)})
        try:
            yield
        finally:
            service.stopping = True
            await service.batches.stop()
            for thread in (service.reading, service.writing):
                thread.shutdown(wait=True)
            tell("stopped", {})

    return lifespan


def _add_search(app: FastAPI, service: Service) -> None:
    config = service.config

    @app.post("/search", responses={200: {"model": Answer | Answers}, 400: PROBLEMS[400], 404: PROBLEMS[400]})
    async def search(body: SearchBody, request: Request) -> Response:
        """The nearest documents to a text, to a document, or to a code; to many at once with `queries`."""
        queries = body.queries if isinstance(body, Queries) else [body]
        _require_at_most(len(queries), config.max_queries, "queries")
        for query in queries:
            _require_at_most(query.k, config.max_k, "hits", "k")
        _note(request, service, queries)
        outcomes = await service.batches.ask(queries)
        for outcome in outcomes:
            if isinstance(outcome, LatentbitsError):
                raise outcome
        return json_response({"answers": outcomes} if isinstance(body, Queries) else outcomes[0])

    @app.post("/encode", responses={200: {"model": Codes}})
    async def encode(body: Texts) -> Response:
        """The codes of texts."""
        _require_at_most(len(body.texts), config.max_queries, "texts")
        return json_response(await service.read(lambda: service.searcher.encode(body.texts)))


def _note(request: Request, service: Service, queries: list[Query]) -> None:
    request.state.facts["queries"] = len(queries)
    if service.config.log_text:
        request.state.facts["asked"] = [query.asked for query in queries]


def _add_documents(app: FastAPI, service: Service) -> None:
    writer, most = service.writer, service.config.max_documents

    @app.post("/documents", responses={200: {"model": Changed}, 400: PROBLEMS[400], 409: PROBLEMS[400]})
    async def additions(body: Additions) -> Response:
        """Add documents, or replace those with the same ids. They are on disk, and found, when this is answered."""
        _require_at_most(len(body.documents), most, "documents")
        return json_response(await service.change(lambda: writer.add(body.documents, upsert=body.upsert)))

    @app.delete("/documents", responses={200: {"model": Changed}, 404: PROBLEMS[400]})
    async def deletions(body: Deletions) -> Response:
        """Delete documents, all of them or none."""
        _require_at_most(len(body.ids), most, "documents")
        return json_response(await service.change(lambda: writer.delete(body.ids)))

    @app.delete("/documents/{id:path}", responses={200: {"model": Changed}, 404: PROBLEMS[400]})
    async def deletion(id: str) -> Response:
        """Delete one document."""
        return json_response(await service.change(lambda: writer.delete([id])))

    @app.get("/documents/{id:path}", responses={200: {"model": ShownDocument}, 404: PROBLEMS[400]})
    async def document(id: str) -> Response:
        """One document, as the index keeps it."""
        return json_response(await service.read(lambda: service.searcher.document(id)))


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", response_model=State)
    async def healthz() -> Response:
        """Whether the process lives."""
        return json_response({"status": "ok"})

    @app.get("/readyz", response_model=State)
    async def readyz() -> Response:
        """Whether it takes requests: 200, or 503 while it stops."""
        if service.stopping:
            return json_response({"status": "stopping"}, 503)
        return json_response({"status": "ready"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Figures for Prometheus."""
        service.metrics.waiting.set(service.batches.waiting)
        service.metrics.documents.set(len(service.searcher.index))
        service.metrics.version.set(service.searcher.index.version)
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4")

    @app.get("/facts")
    async def facts() -> Response:
        """The index, its model and its codes in figures."""
        return json_response(await service.read(lambda: facts_of(service.searcher)))

    @app.get("/facts/codes")
    async def codes() -> Response:
        """Health of the codes, measured once for each version of the index."""
        return json_response(await service.health())


def _add_page(app: FastAPI) -> None:
    files = {path: (resources.files("pipelines.serving") / "page" / name).read_bytes() for path, name in PAGE.items()}

    def page(path: str) -> Callable[[], Any]:
        async def answer() -> Response:
            kind = KINDS[PAGE[path].rsplit(".", 1)[1]]
            return Response(files[path], media_type=kind, headers={"cache-control": "no-cache"})

        return answer

    for path in PAGE:
        app.get(path, include_in_schema=False)(page(path))


def _require_at_most(count: int, most: int, what: str, name: str = "") -> None:
    if count > most:
        asked = f"{name} = {count}" if name else f"{count} {what}"
        raise Misuse(f"{asked} is more than the {most} {what} that this service allows at once")
