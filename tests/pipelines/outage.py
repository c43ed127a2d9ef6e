"""Steps that are logged to a real MLflow server, which is stopped for a while and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mlflow import MlflowClient

from pipelines.tracking import Tracking

STEP_S = 0.02
PATIENCE_S = 120.0


class Outage(NamedTuple):
    """How many steps were logged and have no point at the server, and what logging took of the steps' time."""

    steps: int
    lost: int
    share: float
    longest_s: float


def outage(folder: Path, seconds: float) -> Outage:
    """Log steps of STEP_S before, during and after an outage of so many seconds."""
    port, costs, worked = free_port(), list[float](), list[float]()
    with server(folder, port):
        tracking = Tracking.start(f"http://127.0.0.1:{port}", "letters", "outage", folder / "spool")
        _train(tracking, 5, costs, worked)
    _train(tracking, seconds, costs, worked)  # nobody listens
    with server(folder, port):
        _train(tracking, 3, costs, worked)
        tracking.close(PATIENCE_S)
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("letters").experiment_id
    (run,) = client.search_runs([experiment], "attributes.run_name = 'pretrain'")
    points = {(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")}
    lost = {(step, float(step)) for step in range(len(costs))} - points
    return Outage(len(costs), len(lost), sum(costs) / sum(worked), max(costs))


def _train(tracking: Tracking, seconds: float, costs: list[float], worked: list[float]) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        began = time.perf_counter()
        time.sleep(STEP_S)
        worked.append(time.perf_counter() - began)
        step, began = len(costs), time.perf_counter()
        tracking.log("pretrain", {"loss": float(step), "rate": 1.0}, step)
        costs.append(time.perf_counter() - began)


@contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """A server process with its database in `folder`, killed in the end."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    quiet = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("ab") as said:
        process = subprocess.Popen(command, env=quiet, stdout=said, stderr=said, start_new_session=True)
    try:
        _wait(port)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(port: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return
        except OSError:
            time.sleep(0.3)
    raise TimeoutError(f"no MLflow server on port {port} after {PATIENCE_S} s")


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
