"""The door to a cluster's job server: Ray's Jobs API, and what its dashboard tells of nodes and logs."""

import asyncio
import json
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import requires
from pathlib import Path
from typing import Any, Self

from packaging.requirements import Requirement
from packaging.version import Version

from vae_core.errors import LatentbitsError, Misuse

ADDRESS = "RAY_API_SERVER_ADDRESS"
TOKEN, TOKEN_PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
ANSWER_S = 5.0
"""How long a job server has to answer before it counts as unreachable."""
SLOW_ANSWER_S, STARTING_S = 60.0, 60.0
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
MARK = "latentbits"
"""The key in a job's metadata that tells our jobs from those of others."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as Ray knows it; `status` is Ray's own word."""

    id: str
    status: str
    message: str
    started: datetime | None
    ended: datetime | None
    exit_status: int | None
    entrypoint: str
    driver: str | None = None
    ray_id: str | None = None
    node: str | None = None
    package: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return self.status in ENDED


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is there, and what it has: CPU, GPU, memory in bytes, and resources of its own."""

    address: str
    head: bool
    resources: Mapping[str, float]


class Cluster:
    """A job server that answered, knows us, and runs a Ray that latentbits works with."""

    def __init__(self, address: str, token: str | None, version: str) -> None:
        from ray.job_submission import JobSubmissionClient

        self.address, self.version = address, version
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        for chatty in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        with _environment_without(ADDRESS, "RAY_ADDRESS"), self._asking():  # they would win over the address
            self._client = JobSubmissionClient(address, headers=dict(self._headers))

    @classmethod
    def connect(cls, address: str | None = None) -> Self:
        """The cluster whose job server is at `address`, or where RAY_API_SERVER_ADDRESS says.

        Raises Misuse within seconds where nothing answers there, where it asks for another token than RAY_AUTH_TOKEN
        or RAY_AUTH_TOKEN_PATH give, and where it runs a Ray that latentbits does not work with.
        """
        place = _checked(address or os.environ.get(ADDRESS))
        token = _token()
        version = _ray_version(place, token)
        _require_version(place, version)
        return cls(place, token, version)

    def submit(self, job: str, entrypoint: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]) -> bool:
        """Send a job; False where one of that name was there already, which then stays as it is.

        A head that started just now takes none for some seconds; so long is waited.
        """
        until = time.monotonic() + STARTING_S
        with self._asking():
            while True:
                try:
                    self._client.submit_job(
                        entrypoint=entrypoint,
                        submission_id=job,
                        runtime_env=dict(runtime_env),
                        metadata=dict(metadata),
                    )
                    return True
                except RuntimeError as error:
                    if "already exists" in str(error):
                        return False
                    if "No available agent" not in str(error) or time.monotonic() > until:
                        raise
                time.sleep(1.0)

    def job(self, name: str) -> Job:
        """The job of that name. Raises Misuse where there is none."""
        with self._asking(name):
            return _job(self._client.get_job_info(urllib.parse.quote(name, safe="")))

    def jobs(self) -> list[Job]:
        """Our jobs, the newest first."""
        with self._asking():
            found = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        ours = [job for job in found if MARK in job.metadata]
        return sorted(ours, key=lambda job: job.started or datetime.max.replace(tzinfo=UTC), reverse=True)

    def stop(self, name: str) -> bool:
        """Ask a job to stop; False where it had ended already."""
        with self._asking(name):
            return self._client.stop_job(name)

    def log(self, name: str) -> str:
        """All that a job wrote."""
        with self._asking(name):
            return self._client.get_job_logs(name)

    def last_lines(self, job: Job, lines: int) -> list[str]:
        """The end of what a job wrote; nothing where it wrote nothing yet, or where its node is gone."""
        if job.node is None:
            return []
        query = urllib.parse.urlencode({"node_id": job.node, "filename": f"job-driver-{job.id}.log", "lines": lines})
        status, body = self._get(f"/api/v0/logs/file?{query}")
        return body.decode(errors="replace").splitlines() if status == 200 else []

    def follow(self, name: str) -> Iterator[str]:
        """What a job writes, from its first line to its last, as it comes."""
        chunks = self._client.tail_job_logs(name)
        loop = asyncio.new_event_loop()
        try:
            while True:
                with self._asking(name):
                    chunk = loop.run_until_complete(anext(chunks, None))
                if chunk is None:
                    return
                yield chunk
        finally:
            loop.run_until_complete(chunks.aclose())
            loop.close()

    def has_package(self, uri: str) -> bool:
        """Whether the cluster still holds the code that was sent under `uri`."""
        status, _ = self._get(f"/api/packages/{uri.replace('://', '/')}")
        return status == 200

    def nodes(self) -> list[Node]:
        """The nodes that are alive."""
        found = self._state("nodes?detail=1&limit=10000")
        return [
            Node(node["node_ip"], node["is_head_node"], node["resources_total"])
            for node in found
            if node["state"] == "ALIVE"
        ]

    def demands(self, job: Job) -> list[Mapping[str, float]]:
        """What workers of the job wait for: the resources of each that has no place yet."""
        if job.ray_id is None:
            return []
        actors = self._state("actors?detail=1&limit=1000")
        groups = self._state("placement_groups?detail=1&limit=1000")
        waiting = [
            actor["required_resources"]
            for actor in actors
            if actor["state"] == "PENDING_CREATION" and actor["job_id"] == job.ray_id
        ]
        bundles = [
            group["bundles"]
            for group in groups
            if group["state"] in ("PENDING", "RESCHEDULING") and group["creator_job_id"] == job.ray_id
        ]
        waiting += [bundle["unit_resources"] for each in bundles for bundle in each]
        return [demand for demand in waiting if demand]

    def _state(self, query: str) -> list[dict[str, Any]]:
        status, body = self._get(f"/api/v0/{query}")
        if status != 200:
            raise LatentbitsError(f"{self.address} answered {status} when asked for {query.partition('?')[0]}")
        return json.loads(body)["data"]["result"]["result"]

    def _get(self, path: str) -> tuple[int, bytes]:
        try:
            return _answer(self.address + path, self._headers, SLOW_ANSWER_S)
        except OSError as error:
            raise _lost(self.address, error) from None

    @contextmanager
    def _asking(self, job: str = "") -> Iterator[None]:
        """What can go wrong on the way, as errors that say what to do."""
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise _refused(self.address, 403) from error
        except RuntimeError as error:
            if job and "status code 404" in str(error):
                raise Misuse(f"no job {job} on {self.address}; `latentbits list` shows the jobs there") from None
            raise LatentbitsError(_said(error, self.address)) from error
        except OSError as error:  # what requests and aiohttp raise where the connection broke
            raise _lost(self.address, error) from error


def _checked(address: str | None) -> str:
    if not address:
        raise Misuse(f"which cluster? give --address http://HEAD:8265, or set {ADDRESS}")
    if address.startswith("ray://"):
        raise Misuse(f"{address} is the port of Ray Client; jobs go to the dashboard's: --address http://HEAD:8265")
    place = address if "://" in address else f"http://{address}"
    try:
        parts = urllib.parse.urlsplit(place)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise Misuse(f"{address} is no address: {error}; write it as http://HEAD:8265") from None
    if parts.scheme not in ("http", "https") or not host:
        raise Misuse(f"{address} is no address of a job server; write it as http://HEAD:8265")
    return place.rstrip("/")


def _token() -> str | None:
    """The token as Ray looks for it: in the environment, in the file named there, in ~/.ray/auth_token."""
    if token := os.environ.get(TOKEN):
        return token.strip()
    named = os.environ.get(TOKEN_PATH)
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text().strip() or None
    except OSError as error:
        if named:
            raise Misuse(f"{TOKEN_PATH} is {named}, which cannot be read: {error.strerror}") from None
        return None


def _ray_version(address: str, token: str | None) -> str:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        status, body = _answer(f"{address}/api/version", headers, ANSWER_S)
    except OSError as error:
        raise Misuse(
            f"no Ray job server answers at {address}: {_reason(error)}; start the cluster, forward its port 8265 to "
            f"this machine, or give another --address"
        ) from None
    if status in (401, 403):
        raise _refused(address, status)
    try:
        return str(json.loads(body)["ray_version"])
    except (ValueError, KeyError, TypeError):
        raise Misuse(f"what answers at {address} is no Ray job server; give the address of Ray's dashboard") from None


def _require_version(address: str, version: str) -> None:
    needed = next(one for one in map(Requirement, requires("latentbits") or []) if one.name == "ray").specifier
    if Version(version) not in needed:
        raise Misuse(
            f"the cluster at {address} runs Ray {version}, and latentbits needs ray{needed}; start it from an image "
            f"that infra/Dockerfile builds, or install latentbits on its nodes"
        )


def _refused(address: str, status: int) -> Misuse:
    if status == 401:
        return Misuse(f"{address} asks for a token; put the cluster's into a file and set {TOKEN_PATH} to it")
    return Misuse(f"{address} does not take this token; set {TOKEN_PATH} (or {TOKEN}) to the one of its nodes")


def _lost(address: str, error: OSError) -> LatentbitsError:
    return LatentbitsError(f"{address} does not answer any more: {_reason(error)}; jobs go on there; ask again later")


def _reason(error: OSError) -> str:
    inner = getattr(error, "reason", error)
    return str(getattr(inner, "strerror", None) or inner or type(error).__name__).lower()


def _said(error: RuntimeError, address: str) -> str:
    """The last line of what the server answered: above it stands its traceback."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{address} refused: {lines[-1].strip() if lines else type(error).__name__}"


def _answer(url: str, headers: Mapping[str, str], timeout: float) -> tuple[int, bytes]:
    """Status and body. Raises OSError where there is no answer."""
    request = urllib.request.Request(url, headers=dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@contextmanager
def _environment_without(*names: str) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id or details.job_id,
        status=str(details.status.value),
        message=details.message or "",
        started=_moment(details.start_time),
        ended=_moment(details.end_time),
        exit_status=details.driver_exit_code,
        entrypoint=details.entrypoint,
        driver=details.driver_info.node_ip_address if details.driver_info else None,
        ray_id=details.job_id,
        node=details.driver_node_id,
        package=(details.runtime_env or {}).get("working_dir"),
        metadata=details.metadata or {},
    )


def _moment(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None
