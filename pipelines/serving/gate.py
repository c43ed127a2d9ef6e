"""What every request passes: size, token, rate and time limits, then the log and the figures."""

import asyncio
import hmac
import re
import time
import uuid
from collections import OrderedDict
from typing import Any

from pydantic_core import to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serving.config import ServeConfig
from pipelines.serving.log import tell, tell_failure
from pipelines.serving.metrics import Metrics

OPEN = frozenset({"/", "/page.css", "/page.js", "/icon.svg", "/favicon.ico", "/healthz", "/readyz", "/openapi.json"})
"""What may be read without a token: none of it holds a document."""
LOOPBACK_NAMES = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})
HOST_PORT = re.compile(rb":\d+$")
ADDRESSES = 10_000
"""Addresses whose rate is remembered."""
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
)


class Gate:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, config: ServeConfig, token: str | None, metrics: Metrics) -> None:
        self.app = app
        self.config = config
        self.token = token
        self.metrics = metrics
        self.rates = Rates(config.rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        passing = _Passing(scope, send)
        self.metrics.running.inc()
        try:
            await self._pass(scope, receive, passing)
        finally:
            self.metrics.running.dec()
            self._record(scope, passing)

    async def _pass(self, scope: Scope, receive: Receive, passing: "_Passing") -> None:
        try:
            headers = dict(scope["headers"])
            self._require_host(headers)
            self._require_token(scope["path"], headers)
            self._require_rate(scope)
            async with asyncio.timeout(self.config.timeout_s):
                body = await self._body(receive, headers)
                passing.read = time.perf_counter()
                scope["state"] = {**scope.get("state", {}), "facts": passing.facts}
                await self.app(scope, _replayed(body, receive), passing.send)
        except Refused as refused:
            self.metrics.refused.labels(refused.limit).inc()
            await passing.answer(refused.status, refused.message, refused.headers)
        except TimeoutError:
            self.metrics.refused.labels("time").inc()
            seconds = f"{self.config.timeout_s:g} seconds"
            if passing.read is None:
                await passing.answer(408, f"the request did not arrive within {seconds}", CLOSE)
            else:
                await passing.answer(504, f"there was no answer within {seconds}; ask for less, or again later")
        except Exception as error:
            tell_failure("failed", error, {"path": scope["path"], "request": passing.id})
            await passing.answer(500, f"the service failed; its log says where, under request {passing.id}")

    def _require_host(self, headers: dict[bytes, bytes]) -> None:
        """Without a token only this machine may ask, and another site's page must not do so under a name of its own."""
        name = HOST_PORT.sub(b"", headers.get(b"host", b""))
        if self.token is None and name not in LOOPBACK_NAMES:
            told = f"without a token this service answers to localhost only, not to {name.decode('latin-1')!r}"
            raise Refused("host", 403, told, CLOSE)

    def _require_token(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self.token is None or path in OPEN:
            return
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.token.encode()):
            words = "the token is not the service's" if given else "a token is needed"
            told = f"{words}; send the header 'Authorization: Bearer TOKEN' with what LATENTBITS_TOKEN holds there"
            raise Refused("token", 401, told, ((b"www-authenticate", b"Bearer"), *CLOSE))

    def _require_rate(self, scope: Scope) -> None:
        address = (scope.get("client") or ("unknown",))[0]
        if wait := self.rates.wait(address, time.monotonic()):
            told = f"{address} sends more than {self.config.rate:g} requests a second; slow down"
            raise Refused("rate", 429, told, ((b"retry-after", b"%d" % -(-wait // 1)), *CLOSE))

    async def _body(self, receive: Receive, headers: dict[bytes, bytes]) -> bytes:
        most = self.config.max_body_bytes
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > most:
            raise _too_large(most)
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise _too_large(most)
            more = message.get("more_body", False)
        return b"".join(parts)

    def _record(self, scope: Scope, passing: "_Passing") -> None:
        route = getattr(scope.get("route"), "path", "other")
        seconds = time.perf_counter() - (passing.read or passing.started)
        self.metrics.requests.labels(scope["method"], route, passing.status).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        facts = {"request": passing.id, "method": scope["method"], "route": route, "status": passing.status}
        client = (scope.get("client") or ("unknown",))[0]
        tell("request", {**facts, "ms": round(1000 * seconds, 2), "client": client, **passing.facts})


class Refused(Exception):
    """A request that breaks a limit."""

    def __init__(self, limit: str, status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(message)
        self.limit = limit
        self.status = status
        self.message = message
        self.headers = headers


CLOSE = ((b"connection", b"close"),)


class Rates:
    """A bucket of requests for each address that fills at `rate` a second and holds a second's worth, at least one."""

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, address: str, now: float) -> float:
        """Take one request at the time `now`: 0, or the seconds until there is one to take."""
        if self.rate is None:
            return 0.0
        full = max(1.0, self.rate)
        left, seen = self._left.pop(address, (full, now))
        left = min(full, left + (now - seen) * self.rate)
        enough = left >= 1
        self._left[address] = (left - 1 if enough else left, now)
        if len(self._left) > ADDRESSES:
            self._left.popitem(last=False)
        return 0.0 if enough else (1 - left) / self.rate


class _Passing:
    """One request on its way: its number, what is known of it, and what was answered."""

    def __init__(self, scope: Scope, send: Send) -> None:
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        text = given.decode("latin-1")
        self.id = text if 0 < len(text) <= 64 and text.isascii() and text.isprintable() else uuid.uuid4().hex[:16]
        self.started = time.perf_counter()
        self.read: float | None = None
        self.status = 499
        self.facts: dict[str, Any] = {}
        self._send = send
        self._begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun, self.status = True, message["status"]
            message["headers"] = [*message["headers"], *HEADERS, (b"x-request-id", self.id.encode())]
        await self._send(message)

    async def answer(self, status: int, problem: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        """Say what is wrong, unless an answer has begun already."""
        if self._begun:
            return
        body = to_json({"error": problem})
        kind = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
        await self.send({"type": "http.response.start", "status": status, "headers": [*kind, *headers]})
        await self._send({"type": "http.response.body", "body": body})


def _too_large(most: int) -> Refused:
    return Refused("size", 413, f"the request is larger than the {most:,} bytes allowed; send it in pieces", CLOSE)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body that was read, and then what else comes: that the client has gone."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
