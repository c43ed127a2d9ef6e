"""Several Ray nodes on this machine, each a raylet with its own resources, cache and processes, to be killed.

They live in a network namespace of their own with nothing in it but loopback, and all of them end with it.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent
HEAD = "127.0.0.1:6401"
SEEN_DEAD_SOON = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""Ray would take half a minute to see that a node is gone."""
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
SOCKETS = "LATENTBITS_TEST_SOCKETS"
"""Environment variable: a folder with a short name."""


class Nodes:
    """A cluster whose head has no cores; `add` gives it nodes that have."""

    def __init__(self, folder: Path, variables: dict[str, str] | None = None) -> None:
        self.folder = folder
        os.environ.update(TOKEN)
        self.variables = SEEN_DEAD_SOON | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | (variables or {})
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.started = 0

    def start_head(self) -> None:
        """Start the head, or start it again."""
        ports = ["--port", HEAD.partition(":")[2], "--dashboard-host", "127.0.0.1", "--include-dashboard", "false"]
        self._start("head", 0, ["--head", *ports])

    def add(self, name: str, cpus: int = 1) -> None:
        """Start a node with so many cores, and wait until the cluster has it."""
        self._start(name, cpus, ["--address", HEAD])

    def kill(self, name: str) -> None:
        """End every process of a node at once, as when its machine is lost; its disk is lost too."""
        process = psutil.Process(self.nodes.pop(name).pid)
        for one in [process, *process.children(recursive=True)]:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        shutil.rmtree(self.cache(name), ignore_errors=True)

    def cache(self, name: str) -> Path:
        """Where a node has its working folders."""
        return self.folder / "disks" / name

    def _start(self, name: str, cpus: int, arguments: list[str]) -> None:
        self.started += 1
        ports = 11000 + 200 * self.started
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats",
            "--node-ip-address", "127.0.0.1", "--num-cpus", str(cpus), "--object-store-memory", str(100 << 20),
            "--temp-dir", f"{os.environ[SOCKETS]}/{self.started}",
            "--min-worker-port", str(ports), "--max-worker-port", str(ports + 99),
            "--dashboard-agent-listen-port", str(ports + 100), "--dashboard-agent-grpc-port", str(ports + 101),
            "--runtime-env-agent-port", str(ports + 102), "--metrics-export-port", str(ports + 103),
            *arguments,
        ]  # fmt: skip
        self.cache(name).mkdir(parents=True, exist_ok=True)
        environment = os.environ | self.variables | {"LATENTBITS_CACHE": str(self.cache(name))}
        environment.pop("RAY_ADDRESS", None)
        log = (self.folder / f"{name}-{self.started}.log").open("wb")
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.nodes[name] = process
        self._wait(process, self.folder / f"{name}-{self.started}.log")

    def _wait(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        end = time.monotonic() + 90
        while time.monotonic() < end and process.poll() is None:
            if "Ray runtime started" in log.read_text():
                return
            time.sleep(0.1)
        raise TimeoutError(f"the node did not start: {log.read_text()}")


@contextmanager
def driver(folder: Path, name: str = "driver") -> Iterator[None]:
    """This process as one that works on the cluster, with a cache of its own."""
    changed = {"RAY_ADDRESS": HEAD, "LATENTBITS_CACHE": str(folder / "disks" / name)}
    before = {key: os.environ.get(key) for key in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)


def in_its_own_network(module: str, scenario: str, folder: Path, *, seconds: int = 560) -> str:
    """Run `python -m MODULE SCENARIO FOLDER` in a network of its own, and return what it printed."""
    inside = f"ip link set lo up && exec timeout {seconds} {sys.executable} -m {module} {scenario} {folder}"
    command = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", inside]
    if subprocess.run([*command[:-1], "ip link set lo up"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no network namespaces")
    with tempfile.TemporaryDirectory(prefix="lb") as short:  # of a socket's path 107 bytes are read
        environment = os.environ | {SOCKETS: short, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, f"{result.stdout[-4000:]}\n{result.stderr[-6000:]}"
    return result.stdout
