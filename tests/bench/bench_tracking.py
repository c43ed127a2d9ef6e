"""An MLflow server that is stopped for a minute in mid-training: what that costs the steps, and what it loses.

A real server process, killed and started again. First beside steps that sleep 20 ms: the time that logging takes of
theirs. Then beside a real training that logs every step: a document's time while the server is away, by its time
before and after. A logged step that has no point at the server in the end fails the benchmark.
"""

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mlflow import MlflowClient

from tests.bench.bench_scale import write_corpus
from tests.pipelines.outage import free_port, outage, server

OUTAGE_S, BESIDE_S, WARM_UP_S = 60.0, 30.0, 10.0
DOCUMENTS = 4000
PATIENCE_S = 300.0


def main() -> Iterator[dict[str, object]]:
    """The share of the steps' time, of which under a hundredth is promised; then of a training's."""
    with tempfile.TemporaryDirectory() as folder:
        found = outage(Path(folder), OUTAGE_S)
    if found.lost:
        raise AssertionError(f"{found.lost} of {found.steps} points are lost")
    yield {
        "bench": f"tracking, {OUTAGE_S:.0f} s without a server",
        "ours": round(found.share, 5),
        "theirs": 1,
        "unit": "share of step time",
        "ratio": round(found.share, 5),
        "at_most": 0.01,
        "steps": found.steps,
        "lost": found.lost,
        "longest_ms": round(1e3 * found.longest_s, 2),
    }
    with tempfile.TemporaryDirectory() as folder:
        yield _training(Path(folder))


def _training(folder: Path) -> dict[str, object]:
    write_corpus(folder / "corpus.parquet", DOCUMENTS, length=80)
    port, metrics = free_port(), folder / "run" / "model" / ".unfinished" / "metrics.jsonl"
    with server(folder, port):
        training = subprocess.Popen(_command(folder, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _wait_for(metrics, training)
        time.sleep(WARM_UP_S)
        first = _steps(metrics)
        time.sleep(BESIDE_S)
        gone = _steps(metrics)
    time.sleep(OUTAGE_S)
    back = _steps(metrics)
    waiting = len(_logged(metrics) - _points(folder))
    with server(folder, port):
        time.sleep(WARM_UP_S)  # the server's own start takes the cores
        again = _steps(metrics)
        time.sleep(BESIDE_S)
        training.send_signal(signal.SIGTERM)
        training.wait(PATIENCE_S)
    if waiting < max(1, 0.9 * (back - gone)):
        raise AssertionError(f"of {back - gone} steps in its outage the server lacked {waiting}: it was not away")
    lost = len(_logged(metrics) - _points(folder))
    if lost:
        raise AssertionError(f"{lost} of {_steps(metrics)} points of a real training are lost")
    ours, theirs = _seconds(metrics, [(gone, back)]), _seconds(metrics, [(first, gone), (again, _steps(metrics))])
    return {
        "bench": f"tracking, {OUTAGE_S:.0f} s without a server in a real training",
        "ours": round(1e3 * ours, 4),
        "theirs": round(1e3 * theirs, 4),
        "unit": "ms a document",
        "ratio": round(ours / theirs, 4),
        "at_most": 1.01,
        "steps": _steps(metrics),
        "steps_in_outage": back - gone,
        "steps_waiting": waiting,
        "lost": lost,
    }


def _command(folder: Path, port: int) -> list[str]:
    """A training that would go on for an hour."""
    command = [str(Path(sys.executable).with_name("latentbits")), "run", "default", "--until", "pretrain"]
    settings = {
        "corpus.files": f"[{folder / 'corpus.parquet'}]",
        "corpus.id": "id",
        "graph": "null",
        "model.encoder.layers": "0",
        "pretrain.epochs": "10000",
        "pretrain.patience": "10000",
        "pretrain.log_every": "1",
        "tracking.uri": f"http://127.0.0.1:{port}",
    }
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return [*command, "--out", str(folder / "run"), *given]


def _wait_for(metrics: Path, training: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not (metrics.exists() and metrics.stat().st_size):
        if training.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"training wrote no {metrics}; it ended with {training.poll()}")
        time.sleep(0.5)


def _lines(metrics: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in metrics.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _steps(metrics: Path) -> int:
    return len(_lines(metrics))


def _logged(metrics: Path) -> set[int]:
    return {int(line["step"]) for line in _lines(metrics)}


def _seconds(metrics: Path, spans: list[tuple[int, int]]) -> float:
    """Mean seconds a document over the lines of `spans`."""
    lines = _lines(metrics)
    return statistics.mean(1 / line["documents_per_second"] for first, end in spans for line in lines[first:end])


def _points(folder: Path) -> set[int]:
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("latentbits").experiment_id
    (run,) = client.search_runs([experiment], "attributes.run_name = 'pretrain'")
    return {point.step for point in client.get_metric_history(run.info.run_id, "loss")}
