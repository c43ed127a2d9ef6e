"""What of a job can be told without a cluster: its settings, what it needs, and addresses that are none."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from tiny_run import Said, write_config, write_corpus

from jobs.cluster import Job, Node
from jobs.config import RunConfig, load_config, recipes
from jobs.job_status import StageStatus, status_of
from jobs.needs import Need, lacking, needs, require
from jobs.shipped_config import PLACES, as_yaml, shipped
from jobs.submit import Request, submit
from vae_core.errors import Misuse

Command = Callable[..., Said]


@pytest.mark.parametrize("recipe", recipes())
def test_a_shipped_config_is_the_config(recipe: str, tmp_path: Path) -> None:
    config = load_config(recipe, [f"out={tmp_path / 'run'}", f'corpus.files=["{tmp_path}/*.parquet"]'])
    (tmp_path / "run.yaml").write_text(as_yaml(shipped(config)))
    assert load_config(str(tmp_path / "run.yaml")) == config


def test_places_are_whole_and_addresses_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["out=runs/x", 'corpus.files=["data/*.txt", "s3://bucket/a/*.jsonl"]', "embed.folder=encoder"]
    tree = shipped(
        load_config(None, [*settings, "pretrain.start_from=s3://bucket/model", "tracking.uri=sqlite:///m.db"])
    )
    assert tree["out"] == str(tmp_path / "runs/x")
    assert tree["corpus"]["files"] == [str(tmp_path / "data/*.txt"), "s3://bucket/a/*.jsonl"]
    assert tree["embed"]["folder"] == str(tmp_path / "encoder")
    assert tree["pretrain"]["start_from"] == "s3://bucket/model"
    assert tree["tracking"]["uri"] == f"sqlite:///{tmp_path / 'm.db'}"


def test_a_password_does_not_travel() -> None:
    with pytest.raises(Misuse, match=r"tracking\.uri holds a password.*MLFLOW_TRACKING_USERNAME"):
        shipped(load_config(None, ["tracking.uri=http://user:secret@mlflow:5000"]))


def _paths(model: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if kind is Path:
                yield above + name
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _paths(kind, f"{above}{name}.")


def test_every_setting_that_is_a_path_is_made_whole() -> None:
    assert set(_paths(RunConfig)) <= set(PLACES)


def test_what_a_run_needs_is_what_its_stages_ask_for() -> None:
    config = load_config(
        None, ["pretrain.workers=4", "pretrain.batch_size=64", "pretrain.gpus=true", "encode.workers=16"]
    )
    assert {(need.resource, need.amount) for need in needs(config, ["tokenize", "pretrain"])} == {
        ("CPU", 4),
        ("GPU", 4),
    }
    assert needs(config, ["encode"]) == [], "more workers than cores take turns"
    assert needs(load_config(None), ["tokenize", "encode", "index"]) == []


NODES = [Node("a", True, {"CPU": 2.0}), Node("b", False, {"CPU": 4.0, "GPU": 1.0})]


def test_what_a_cluster_lacks_is_counted_over_its_nodes() -> None:
    assert lacking([Need("CPU", 6, "x")], NODES) == []
    assert lacking([Need("CPU", 7, "x is 7")], NODES) == ["1 more CPU (x is 7; its 2 nodes have 6)"]
    assert lacking([Need("GPU", 4, "y is 4")], NODES[:1]) == ["4 more GPU (y is 4; its 1 node has 0)"]


def test_nodes_that_come_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.needs.ASK_AGAIN_S", 0.01)

    class Growing:
        address = "http://head:8265"
        asked = 0

        def nodes(self) -> list[Node]:
            self.asked += 1
            return NODES[: 1 + self.asked // 3]

    cluster, heard = Growing(), list[str]()
    require([Need("GPU", 1, "x")], cluster, 10.0, heard.append)
    assert cluster.asked == 3
    assert heard == ["waiting for 1 more GPU (x; its 1 node has 0)"]


class FakeCluster:
    """What `status_of` asks of a cluster, told from a list."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def last_lines(self, job: Job, lines: int) -> list[str]:
        del job
        return self.lines[-lines:]

    def demands(self, job: Job) -> list[dict[str, float]]:
        del job
        return []


def _job(status: str, exit_status: int | None = None, message: str = "") -> Job:
    facts = {"latentbits": "1", "stages": "tokenize,pretrain,encode", "out": "/runs/x"}
    return Job("x-1", status, message, None, None, exit_status, "latentbits run", metadata=facts)


def _line(**facts: Any) -> str:
    given = {"time": "2026-01-01T00:00:00+00:00", "level": "info", "run": "x-1", "state": "working", "message": "m"}
    return json.dumps(given | facts)


def _states(stages: tuple[StageStatus, ...]) -> list[str]:
    return [stage.state for stage in stages]


def test_the_last_line_of_a_job_tells_where_all_its_stages_are() -> None:
    done = {"stage": "tokenize", "done": 9, "total": 9, "unit": "bytes", "seconds": 3.0}
    line = _line(stage="pretrain", done=1, total=4, unit="steps", left_s=6.0, metrics={"loss": 2.0}, finished=[done])
    status = status_of(_job("RUNNING"), FakeCluster([line]))  # type: ignore[arg-type]
    assert _states(status.stages) == ["done", "working", "waiting"]
    assert status.stages[0].rate == 3.0
    assert status.stages[1].metrics == {"loss": 2.0}
    assert status.facts()["stages"][1]["left_s"] == 6.0
    later = _line(stage="encode", unit="documents", total=2)
    assert _states(status_of(_job("RUNNING"), FakeCluster([later])).stages) == ["up to date", "up to date", "working"]  # type: ignore[arg-type]
    assert _states(status_of(_job("SUCCEEDED"), FakeCluster([])).stages) == ["up to date"] * 3  # type: ignore[arg-type]


def test_what_the_run_waits_for_is_told_while_it_says_nothing_else() -> None:
    waits = json.dumps({"level": "warning", "message": "waiting for a core; 0 of 2 cores are free", "stage": "encode"})
    status = status_of(_job("RUNNING"), FakeCluster([_line(stage="encode"), waits]))  # type: ignore[arg-type]
    assert status.waiting_for == "a core; 0 of 2 cores are free"
    status = status_of(_job("RUNNING"), FakeCluster([waits, _line(stage="encode")]))  # type: ignore[arg-type]
    assert status.waiting_for == ""


@pytest.mark.parametrize(
    ("exit_status", "lines", "said"),
    [
        (2, [_line(state="failed", stage="encode", message="part 3, document x: odd")], "part 3, document x: odd"),
        (127, ["sh: 1: exec: latentbits: not found"], "the cluster's nodes have no latentbits; start them from the"),
        (-9, [_line(stage="encode")], "the driver was killed, most often for lack of memory on the node it ran on"),
        (1, ["something odd"], "it ended with 1"),
    ],
)
def test_a_failed_job_says_the_line_that_matters(exit_status: int, lines: list[str], said: str) -> None:
    status = status_of(_job("FAILED", exit_status, "it ended with 1\nmore"), FakeCluster(lines))  # type: ignore[arg-type]
    assert status.failure is not None
    assert status.failure.message.startswith(said)


@pytest.fixture
def answering() -> Iterator[Callable[[int, bytes], str]]:
    """A server on loopback that answers everything so."""
    servers = []

    def start(status: int, body: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (None, "which cluster? give --address http://HEAD:8265, or set RAY_API_SERVER_ADDRESS"),
        (
            "http://127.0.0.1:1",
            "no Ray job server answers at http://127.0.0.1:1: connection refused; start the cluster",
        ),
        ("http://nowhere.invalid:8265", "no Ray job server answers at http://nowhere.invalid:8265: "),
        ("ray://head:10001", "is the port of Ray Client; jobs go to the dashboard's: --address http://HEAD:8265"),
        ("http://head:port", "is no address: Port could not be cast"),
        ("ftp://head", "is no address of a job server; write it as http://HEAD:8265"),
    ],
)
def test_an_address_where_no_cluster_is_gives_one_message_within_seconds(
    latentbits: Command, monkeypatch: pytest.MonkeyPatch, address: str | None, said: str
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    started = time.monotonic()
    answer = latentbits("list", *(["--address", address] if address else []))
    assert time.monotonic() - started < 10
    assert (answer.status, answer.out) == (2, "")
    assert said in answer.err
    assert len(answer.err.splitlines()) == 1


def test_a_cluster_that_never_answers_is_given_up_within_seconds(latentbits: Command, silent: str) -> None:
    started = time.monotonic()
    answer = latentbits("list", "--address", silent)
    assert time.monotonic() - started < 10
    assert f"no Ray job server answers at {silent}: timed out" in answer.err


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b'{"ray_version": "2.9.3"}', r"runs Ray 2.9.3, and latentbits needs ray>=2.50; start it from an image"),
        (200, b"<html>", "what answers at"),
        (404, b"[]", "is no Ray job server; give the address of Ray's dashboard"),
        (401, b"", "asks for a token; put the cluster's into a file and set RAY_AUTH_TOKEN_PATH to it"),
        (403, b"", "does not take this token"),
    ],
)
def test_what_is_no_cluster_for_us_is_told_at_once(
    latentbits: Command, answering: Callable[[int, bytes], str], status: int, body: bytes, said: str
) -> None:
    answer = latentbits("list", "--address", answering(status, body))
    assert answer.status == 2
    assert said in answer.err


def test_a_run_that_cannot_be_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    write_corpus(tmp_path / "docs.jsonl", 10)
    config = load_config(str(write_config(tmp_path, tmp_path / "docs.jsonl", tmp_path / "run")))
    nobody: Any = None
    with pytest.raises(Misuse, match="no stage 'encod'"):
        submit(Request(config, first="encod"), nobody)
    with pytest.raises(Misuse, match="--from index comes after --until encode"):
        submit(Request(config, first="index", last="encode"), nobody)
    with pytest.raises(Misuse, match=r"corpus\.files is empty"):
        submit(Request(load_config(None)), nobody)
    with pytest.raises(Misuse, match=r"--wheel .*gone\.whl: no such file; give a \.whl"):
        submit(Request(config, code=tmp_path / "gone.whl"), nobody)
    with pytest.raises(Misuse, match="does not hold vae_core, pipelines, jobs"):
        submit(Request(config, code=tmp_path), nobody)


def test_a_config_is_one_yaml_file_that_people_can_read() -> None:
    text = as_yaml(shipped(load_config(None)))
    assert text.startswith("out: ")
    assert yaml.safe_load(text)["model"]["latent"]["kind"]
