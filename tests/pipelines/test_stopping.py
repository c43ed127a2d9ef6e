"""SIGTERM in training: a checkpoint of the step that it was in, and the rest is done from there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.jobs.tiny_run import write_config, write_corpus

ROOT = Path(__file__).parent.parent.parent


def run(config: Path, workers: int) -> "subprocess.Popen[str]":
    settings = ["epochs=60", "log_every=1", "checkpoint_every=100000", "patience=1000", f"workers={workers}"]
    command = [sys.executable, "-m", "jobs", "run", str(config), "--until", "pretrain"]
    command += [word for setting in settings for word in ("--set", f"pretrain.{setting}")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_is_told_to_stop_writes_a_checkpoint_first(tmp_path: Path, workers: int) -> None:
    """Checkpoints are set so seldom that none is written but for the signal."""
    write_corpus(tmp_path / "docs.jsonl")
    config = write_config(tmp_path, tmp_path / "docs.jsonl", tmp_path / "run")
    driver = run(config, workers)
    metrics = tmp_path / "run" / "model" / ".unfinished" / "metrics.jsonl"
    until = time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 20:
        assert driver.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    driver.send_signal(signal.SIGTERM)
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == 130, said
    assert "the same command again goes on where this one was" in said
    (complete,) = (metrics.parent / "checkpoints").glob("step-*/complete.json")
    step = int(complete.parent.name.removeprefix("step-"))
    assert step >= 20
    assert run(config, workers).wait(timeout=200) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "model" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(len(lines)))
    assert len(lines) > step
    assert len({line["process"] for line in lines[:step]}) == 1
    assert lines[step]["process"] != lines[step - 1]["process"]
