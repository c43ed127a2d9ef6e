"""The tracker against real MLflow databases: what a server holds afterwards is read with MLflow's own client."""

import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines.mlflow_runs import Server
from pipelines.tracking import RECORDS, NoTracking, Tracker, Tracking, sqlite_uri
from vae_core.errors import Damaged

NOWHERE = "http://user:secret@127.0.0.1:9"
PATIENCE_S = 60.0


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take seconds to make."""
    folder = tmp_path_factory.mktemp("mlflow")
    MlflowClient(tracking_uri=sqlite_uri(folder)).search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return sqlite_uri(tmp_path)


def start(uri: str, tmp_path: Path) -> Tracking:
    return Tracking.start(uri, "letters", "first run", tmp_path / "spool")


def runs(uri: str) -> dict[str, Run]:
    """The runs of the experiment by name; fails where two have the same."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("letters")
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def points(uri: str, run: Run, name: str) -> list[tuple[int, float]]:
    history = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.value) for point in history)


def test_everything_that_was_logged_arrives_in_one_run_with_a_nested_one_for_each_stage(
    uri: str, tmp_path: Path
) -> None:
    tracking = start(uri, tmp_path)
    (tmp_path / "report.txt").write_text("fine")
    tracking.params("pretrain", {"bits": 64, "rate": {"kind": "free"}})
    for step in range(250):
        tracking.log("pretrain", {"loss": 1 / (step + 1), "rate": float(step)}, step)
    tracking.tags("encode", {"documents": 12})
    tracking.artifact("encode", tmp_path / "report.txt")

    assert tracking.close(PATIENCE_S) == 0

    found = runs(uri)
    assert found.keys() == {"first run", "pretrain", "encode"}
    parent = found["first run"].info.run_id
    assert {found[stage].data.tags["mlflow.parentRunId"] for stage in ("pretrain", "encode")} == {parent}
    assert found["pretrain"].data.params == {"bits": "64", "rate": "{'kind': 'free'}"}
    assert points(uri, found["pretrain"], "loss") == [(step, 1 / (step + 1)) for step in range(250)]
    assert found["encode"].data.tags["documents"] == "12"
    copied = MlflowClient(tracking_uri=uri).list_artifacts(found["encode"].info.run_id)
    assert [file.path for file in copied] == ["report.txt"]
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert tracking.run_id("encode") == found["encode"].info.run_id
    assert tracking.run_id("index") is None


def test_values_that_are_no_numbers_and_names_that_mlflow_refuses_hold_nothing_up(uri: str, tmp_path: Path) -> None:
    tracking = start(uri, tmp_path)
    tracking.log("pretrain", {"loss": math.nan, "rate": math.inf, "low": -math.inf, "P@10 {test}": 0.5}, 0)
    tracking.log("pretrain", {"x" * 300: 1.0, "loss": 2.0}, 1)
    tracking.log("pretrain", {"loss": 1.0}, 2)

    assert tracking.close(PATIENCE_S) == 0

    run = runs(uri)["pretrain"]
    assert points(uri, run, "loss")[1:] == [(1, 2.0), (2, 1.0)]
    assert math.isnan(points(uri, run, "loss")[0][1])
    assert points(uri, run, "rate")[0][1] > 1e300
    assert points(uri, run, "P_10 _test_") == [(0, 0.5)]


def test_a_batch_that_is_sent_again_after_a_kill_leaves_each_point_once(uri: str, tmp_path: Path) -> None:
    """Killed after the server took the batch and before the note of it was written: the note is still the first."""
    tracking = start(uri, tmp_path)
    note = tmp_path / "spool" / f"sent-{Server(uri, 'letters', '').digest}.json"
    before = note.read_bytes()
    tracking.params("pretrain", {"bits": 64})
    for step in range(20):
        tracking.log("pretrain", {"loss": float(step)}, step)
    assert tracking.close(PATIENCE_S) == 0
    first = runs(uri)
    note.write_bytes(before)

    again = start(uri, tmp_path)
    again.log("pretrain", {"loss": 20.0}, 20)
    assert again.close(PATIENCE_S) == 0

    second = runs(uri)
    assert {run.info.run_id for run in second.values()} == {run.info.run_id for run in first.values()}
    assert points(uri, second["pretrain"], "loss") == [(step, float(step)) for step in range(21)]


def test_a_killed_process_leaves_what_it_logged_and_the_next_one_sends_the_rest(uri: str, tmp_path: Path) -> None:
    program = f"""
import itertools, time
from pathlib import Path
from pipelines.tracking import Tracking
tracking = Tracking.start({uri!r}, "letters", "first run", Path({str(tmp_path / "spool")!r}))
for step in itertools.count():
    tracking.log("pretrain", {{"loss": float(step)}}, step)
    time.sleep(0.002)
"""
    child = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + PATIENCE_S
    while "pretrain" not in runs(uri) and time.monotonic() < deadline:
        time.sleep(0.3)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    logged = (tmp_path / "spool" / RECORDS).read_bytes().count(b"\n")

    assert start(uri, tmp_path).close(PATIENCE_S) == 0

    assert logged > 0
    assert points(uri, runs(uri)["pretrain"], "loss") == [(step, float(step)) for step in range(logged)]


def test_a_server_that_is_down_delays_nobody_and_the_records_reach_another(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = start(NOWHERE, tmp_path)
    begun = time.monotonic()
    for step in range(1000):
        tracking.log("pretrain", {"loss": float(step)}, step)
    assert time.monotonic() - begun < 1.0
    time.sleep(3)
    begun = time.monotonic()
    assert tracking.close(0.5) == 1000
    assert time.monotonic() - begun < 1.0
    assert tracking.run_id("pretrain") is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "secret" not in caplog.text

    assert start(uri, tmp_path).close(PATIENCE_S) == 0
    assert points(uri, runs(uri)["pretrain"], "loss") == [(step, float(step)) for step in range(1000)]


def test_a_stage_that_is_run_again_with_other_params_gets_a_run_of_its_own(uri: str, tmp_path: Path) -> None:
    tracking = start(uri, tmp_path)
    for bits in (64, 64, 128):
        tracking.params("pretrain", {"bits": bits})
        tracking.log("pretrain", {"loss": float(bits)}, 0)
    assert tracking.close(PATIENCE_S) == 0

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("letters").experiment_id
    found = client.search_runs([experiment], "attributes.run_name = 'pretrain'")
    assert sorted((run.data.params["bits"], run.data.metrics["loss"]) for run in found) == [
        ("128", 128.0),
        ("64", 64.0),
    ]


def test_a_run_that_failed_is_marked_as_failed(uri: str, tmp_path: Path) -> None:
    tracking = start(uri, tmp_path)
    tracking.log("pretrain", {"loss": 1.0}, 0)
    assert tracking.close(PATIENCE_S, failed=True) == 0
    assert {run.info.status for run in runs(uri).values()} == {"FAILED"}


def test_a_line_that_a_kill_tore_is_passed_over(uri: str, tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / RECORDS).write_text('{"time": 1, "stage": "pretr')
    tracking = start(uri, tmp_path)
    tracking.log("pretrain", {"loss": 1.0}, 0)

    assert tracking.close(PATIENCE_S) == 0

    assert points(uri, runs(uri)["pretrain"], "loss") == [(0, 1.0)]


def test_a_tracker_that_nobody_used_makes_no_run(uri: str, tmp_path: Path) -> None:
    assert start(uri, tmp_path).close(PATIENCE_S) == 0
    assert runs(uri) == {}


def test_a_note_that_cannot_be_read_says_what_to_do(uri: str, tmp_path: Path) -> None:
    start(uri, tmp_path).close(PATIENCE_S)
    (note,) = (tmp_path / "spool").glob("sent-*.json")
    note.write_text("{")
    with pytest.raises(Damaged, match="delete it, and everything in"):
        start(uri, tmp_path)


def test_no_tracking_takes_what_tracking_takes() -> None:
    tracker: Tracker = NoTracking()
    tracker.params("pretrain", {"bits": 64})
    tracker.log("pretrain", {"loss": 1.0}, 0)
    tracker.tags("pretrain", {"a": 1})
    tracker.artifact("pretrain", Path("nowhere"))
    assert tracker.run_id("pretrain") is None
    assert tracker.close(1.0) == 0
