"""Tracking, against a real MLflow store: what arrives is read with MLflow's client and with sqlite3."""

import inspect
import logging
import math
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.tracking import NoTracking, Tracking

ENOUGH = 120.0


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database whose migrations, which take seconds, have run."""
    folder = tmp_path_factory.mktemp("migrated")
    assert Tracking.start(f"sqlite:///{folder}/mlflow.db", "warm-up", "warm-up", folder / "spool").close(ENOUGH) == 0
    return folder / "mlflow.db"


@pytest.fixture
def store(migrated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(migrated, tmp_path / "mlflow.db"))


def start(store: Path, spool: str = "spool.jsonl") -> Tracking:
    return Tracking.start(f"sqlite:///{store}", "docs", "first", store.parent / spool)


def runs(store: Path) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("docs")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])} if experiment else {}


def points(store: Path) -> list[tuple[str, float, int]]:
    with sqlite3.connect(store) as database:
        return database.execute("select key, value, step from metrics order by key, step").fetchall()


def test_what_stages_report_arrives_in_one_run_for_each_below_one_parent(store: Path) -> None:
    tracking = start(store)
    (store.parent / "card.md").write_text("a card")
    tracking.params("pretrain", {"lr": 1e-3})
    tracking.log("pretrain", {"loss": 2.5}, step=1)
    tracking.log("pretrain", {"loss": 1.5}, step=2)
    tracking.tags("encode", {"model": "ab12"})
    tracking.artifact("encode", store.parent / "card.md")
    assert tracking.close(ENOUGH) == 0

    found = runs(store)
    assert set(found) == {"first", "pretrain", "encode"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    parent = found["first"].info.run_id
    assert [found[stage].data.tags["mlflow.parentRunId"] for stage in ("pretrain", "encode")] == [parent, parent]
    assert found["pretrain"].info.run_id == tracking.run_id("pretrain")
    assert found["pretrain"].data.params == {"lr": "0.001"}
    assert points(store) == [("loss", 2.5, 1), ("loss", 1.5, 2)]
    assert found["encode"].data.tags["model"] == "ab12"
    (copied,) = store.parent.joinpath("mlartifacts").rglob("card.md")
    assert copied.read_text() == "a card"


def test_metrics_that_are_no_numbers_arrive_and_hold_up_none(store: Path) -> None:
    tracking = start(store)
    tracking.log("pretrain", {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0}, step=1)
    assert tracking.close(ENOUGH) == 0
    metrics = runs(store)["pretrain"].data.metrics
    assert math.isnan(metrics["a"])
    assert (metrics["b"], metrics["c"]) == (sys.float_info.max, -sys.float_info.max)
    assert metrics["d"] == 1.0


def test_a_failure_marks_the_whole_and_the_stage_it_happened_in(store: Path) -> None:
    tracking = start(store)
    tracking.log("tokenize", {"documents": 3.0}, step=0)
    tracking.log("pretrain", {"loss": 3.0}, step=0)
    assert tracking.close(ENOUGH, failed=True) == 0
    status = {name: run.info.status for name, run in runs(store).items()}
    assert status == {"first": "FAILED", "tokenize": "FINISHED", "pretrain": "FAILED"}


def test_a_second_start_on_the_same_spool_goes_on_with_the_same_runs(store: Path) -> None:
    for step in (1, 2):
        tracking = start(store)
        tracking.log("pretrain", {"loss": float(step)}, step)
        assert tracking.close(ENOUGH) == 0
    assert len(runs(store)) == 2
    assert points(store) == [("loss", 1.0, 1), ("loss", 2.0, 2)]
    assert runs(store)["pretrain"].info.status == "FINISHED"


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from mlflow import MlflowClient
    from pipelines.tracking import Tracking

    store, call, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    real = getattr(MlflowClient, call)

    def last(self, *args, **kwargs):
        global count
        result = real(self, *args, **kwargs)
        count -= 1
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(MlflowClient, call, last)
    tracking = Tracking.start(f"sqlite:///{store}", "docs", "first", store.parent / "spool.jsonl")
    for step in range(1200):
        tracking.log("pretrain", {"loss": step / 2}, step)
    tracking.close(120)
"""


@pytest.mark.parametrize(("call", "count"), [("create_run", 1), ("create_run", 2), ("log_batch", 1), ("log_batch", 2)])
def test_a_kill_before_what_was_sent_is_ticked_off_loses_and_doubles_nothing(
    store: Path, call: str, count: int
) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(store), call, str(count)]
    assert subprocess.run(command, check=False, timeout=ENOUGH).returncode == -signal.SIGKILL
    tracking = start(store)
    tracking.log("pretrain", {"loss": 600.0}, step=1200)
    assert tracking.close(ENOUGH) == 0
    assert points(store)[-1] == ("loss", 600.0, 1200)
    with (store.parent / "spool.jsonl").open() as lines:
        written = sum('"metrics"' in line for line in lines)
    assert points(store) == [("loss", step / 2, step) for step in [*range(written - 1), 1200]]
    with sqlite3.connect(store) as database:
        assert database.execute("select count(*) from runs where name in ('first', 'pretrain')").fetchone() == (2,)


def test_a_line_that_a_kill_cut_short_is_passed_over(store: Path) -> None:
    start(store).close(ENOUGH)
    with (store.parent / "spool.jsonl").open("a") as spool:
        spool.write('{"what": "metrics", "stage": "pre')
    tracking = start(store)
    tracking.log("pretrain", {"loss": 1.0}, step=1)
    assert tracking.close(ENOUGH) == 0
    assert points(store) == [("loss", 1.0, 1)]


def test_a_server_that_is_away_costs_no_time_and_one_warning_and_gets_nothing_lost(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import mlflow  # noqa: F401  # its import is not what is timed here

    away = Tracking.start("http://127.0.0.1:9", "docs", "first", store.parent / "spool.jsonl")
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="pipelines.tracking"):
        for step in range(1000):
            away.log("pretrain", {"loss": 1.0}, step)
        logged = time.monotonic() - began
        assert away.close(0.5) == 1000
        assert time.monotonic() - began - logged < 1.0
        assert logged < 0.5
        time.sleep(1)
    assert away.run_id("pretrain") is None
    assert len(caplog.records) <= 1

    back = start(store)
    assert back.close(ENOUGH) == 0
    assert [step for _, _, step in points(store)] == list(range(1000))


def test_a_setting_that_changed_is_refused_by_mlflow_and_holds_up_nothing_else(store: Path) -> None:
    for lr, batch in ((1, 8), (2, 16)):
        tracking = start(store)
        tracking.params("pretrain", {"lr": lr, f"batch{batch}": batch})
        tracking.log("pretrain", {"loss": float(lr)}, step=lr)
        assert tracking.close(ENOUGH) == 0
    assert runs(store)["pretrain"].data.params == {"lr": "1", "batch8": "8", "batch16": "16"}
    assert points(store) == [("loss", 1.0, 1), ("loss", 2.0, 2)]


def test_a_store_that_was_emptied_gets_everything_again(store: Path) -> None:
    tracking = start(store)
    tracking.log("pretrain", {"loss": 1.0}, step=1)
    assert tracking.close(ENOUGH) == 0
    with sqlite3.connect(store) as database:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            database.execute(f"delete from {table}")
    assert points(store) == []
    assert start(store).close(ENOUGH) == 0
    assert points(store) == [("loss", 1.0, 1)]


def test_no_tracking_has_the_methods_of_tracking() -> None:
    def methods(kind: type) -> dict[str, inspect.Signature]:
        functions = inspect.getmembers(kind, inspect.isfunction)
        return {name: inspect.signature(function) for name, function in functions if not name.startswith("_")}

    assert methods(NoTracking) == methods(Tracking)
