"""A Ray head with its job server and token authentication, as a cluster has it, on loopback."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

START_S = 120.0
NODE = "127.0.0.2"
"""Ray puts the machine's own address in the place of 127.0.0.1."""


class Head(NamedTuple):
    """A running head: its job server, the file of its token, the address that drivers connect to, and its figures."""

    address: str
    token_path: Path
    gcs: str
    metrics: str
    environment: dict[str, str]


@contextmanager
def ray_head(cores: int = 2) -> Iterator[Head]:
    """A head that takes jobs; it and all that it started are ended by their process ids."""
    with tempfile.TemporaryDirectory(prefix="rh") as folder:  # the paths of Ray's sockets must be short
        token = Path(folder) / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        port, dashboard, client, metrics, agent = _free_ports(5)
        bin_folder = str(Path(sys.executable).parent)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LATENTBITS_"))
        }
        environment |= {
            "PATH": f"{bin_folder}{os.pathsep}{environment['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "OMP_NUM_THREADS": "1",
        }
        options = {
            "port": port,
            "node-ip-address": NODE,
            "dashboard-host": "127.0.0.1",
            "dashboard-port": dashboard,
            "ray-client-server-port": client,
            "metrics-export-port": metrics,
            "dashboard-agent-listen-port": agent,  # the agent takes jobs, but not where another has its port
            "num-cpus": cores,
            "object-store-memory": 200 << 20,
            "temp-dir": folder,
        }
        command = [
            f"{bin_folder}/ray",
            "start",
            "--head",
            "--block",
            *(f"--{key}={value}" for key, value in options.items()),
        ]
        with (Path(folder) / "head.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        head = Head(f"http://127.0.0.1:{dashboard}", token, f"{NODE}:{port}", f"http://{NODE}:{metrics}", environment)
        try:
            _wait(head, Path(folder) / "head.log", process)
            yield head
        finally:
            _end(process)


def _wait(head: Head, log: Path, process: "subprocess.Popen[bytes]") -> None:
    """Until a node is there that can run jobs: the dashboard is there long before it."""
    until = time.monotonic() + START_S
    header = {"Authorization": f"Bearer {head.token_path.read_text()}"}
    while time.monotonic() < until and process.poll() is None:
        try:
            request = urllib.request.Request(f"{head.address}/api/v0/nodes", headers=header)
            with urllib.request.urlopen(request, timeout=5) as answer:
                if b"ALIVE" in answer.read():
                    return
        except OSError:
            pass
        time.sleep(0.25)
    raise AssertionError(f"Ray did not start: {log.read_text()[-3000:]}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in processes:
        try:
            one.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=10)
    process.wait(timeout=10)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
