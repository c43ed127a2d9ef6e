"""The application on one machine: uvicorn, from the first request to the last one when told to stop."""

import ipaddress
import os
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from pipelines.service import Service
from pipelines.serving.config import ServeConfig
from pipelines.serving.log import log_as_json, tell
from vae_core.errors import Misuse

TOKEN = "LATENTBITS_TOKEN"
QUEUED_CONNECTIONS = 2048


def required_token(host: str) -> str | None:
    """The bearer token that clients must send. Raises Misuse where others can reach `host` and there is none."""
    token = os.environ.get(TOKEN, "")
    if token.strip() != token or not token.isascii():
        raise Misuse(f"{TOKEN} holds blanks or letters that no header can carry; set it to ASCII letters and digits")
    if not token and not is_loopback(host):
        raise Misuse(
            f"{host} can be reached from other machines, and {TOKEN} is not set; set it to a secret that clients send "
            f"(export {TOKEN}=$(openssl rand -hex 32)), or listen on 127.0.0.1"
        )
    return token or None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises Misuse where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=QUEUED_CONNECTIONS)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise Misuse(f"cannot listen on {host}:{port}: {reason}; choose another --host or --port") from None
    return listening


def run(app: FastAPI, listening: socket.socket, config: ServeConfig) -> None:
    """Serve `app` on `listening` until SIGTERM or Ctrl-C; requests that run then are answered first."""
    log_as_json()
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=config.drain_s,
    )
    server = _Server(settings, app.state.service)
    # uvicorn raises the signal again when it is done, and to have been told to stop is no failure.
    before = {one: signal.signal(one, _done) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listening])
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _done(signal_number: int, frame: FrameType | None) -> None:
    del signal_number, frame


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.service.stopping:
            tell("stopping", {"signal": signal.Signals(sig).name})
        self.service.stopping = True
        super().handle_exit(sig, frame)
