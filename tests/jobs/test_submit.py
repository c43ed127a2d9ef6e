"""Jobs on a real Ray head with a job server and token authentication, on loopback."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from ray.dashboard.modules.reporter import reporter_agent
from ray_head import Head, ray_head
from tiny_run import Said, write_config, write_corpus

from jobs.cluster import Cluster
from jobs.config import load_config
from jobs.job_status import JobStatus, status_of
from jobs.submit import Request, resume, submit
from jobs.watch import each
from pipelines.artifact import Artifact
from vae_core.errors import Misuse

ROOT = Path(__file__).parent.parent.parent
Command = Callable[..., Said]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as running:
        yield running


@pytest.fixture
def token(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process knows the cluster's token."""
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token_path))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.address)


@pytest.fixture
def cluster(head: Head, token: None) -> Cluster:
    del token
    return Cluster.connect(head.address)


def tiny_config(folder: Path, documents: int = 300) -> Path:
    write_corpus(folder / "docs.jsonl", documents)
    return write_config(folder, folder / "docs.jsonl", folder / "run")


def until(condition: Callable[[JobStatus], bool], name: str, cluster: Cluster, seconds: float = 120) -> JobStatus:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status = status_of(cluster.job(name), cluster)
        if condition(status):
            return status
        assert not status.over, status
        time.sleep(0.2)
    raise AssertionError(f"{name} is still {status}")


def wait(name: str, cluster: Cluster) -> JobStatus:
    return list(each(name, cluster))[-1]


@pytest.mark.usefixtures("token")
def test_a_run_that_is_submitted_twice_is_one_job_with_a_status_and_a_log(latentbits: Command, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    first = latentbits("submit", config, "--until", "tokenize", "--wait", "--json")
    assert first.status == 0, first.err
    job = json.loads(first.out)
    assert job["id"].startswith("run-")
    assert (job["status"], job["new"]) == ("SUCCEEDED", True)
    shards = Artifact.open(tmp_path / "run" / "shards", "shards")
    assert shards.manifest.statistics["documents"] == 300

    second = latentbits("submit", config, "--until", "tokenize", "--json")
    assert second.status == 0
    assert json.loads(second.out)["id"] == job["id"]
    assert json.loads(second.out)["new"] is False
    assert "was sent before and is SUCCEEDED; --again --overwrite runs it anew" in second.err
    jobs = json.loads(latentbits("list", "--json").out)["jobs"]
    assert [one["id"] for one in jobs if one["out"] == str(tmp_path / "run")] == [job["id"]]

    facts = json.loads(latentbits("status", job["id"], "--json").out)
    (stage,) = facts["stages"]
    assert (stage["stage"], stage["state"], stage["unit"]) == ("tokenize", "done", "bytes")
    assert stage["done"] == stage["total"] > 10_000
    assert stage["rate"] > 0
    assert "tokenize" in latentbits("status", job["id"]).out
    log = latentbits("logs", job["id"]).out
    assert "tokenize  done in" in log
    assert log == latentbits("logs", job["id"], "-f").out
    assert all(json.loads(line)["run"] == job["id"] for line in log_events(latentbits, job["id"]))


def log_events(latentbits: Command, name: str) -> list[str]:
    return [line for line in latentbits("logs", name, "--json").out.splitlines() if '"state"' in line]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_makes_the_artifacts_of_the_same_run_on_this_machine(
    cluster: Cluster, head: Head, tmp_path: Path
) -> None:
    """Tokens, codes of the same model, and index are equal byte for byte; training is a run of its own."""
    config = tiny_config(tmp_path)
    sent = submit(Request(load_config(str(config))), cluster)
    status = wait(sent.job.id, cluster)
    assert status.status == "SUCCEEDED", status
    assert {stage.state for stage in status.stages} == {"done"}
    here = ["-m", "jobs", "run", str(config), "--set", f"out={tmp_path / 'here'}"]
    subprocess.run([sys.executable, *here], env=head.environment, cwd=ROOT, check=True, capture_output=True)
    for name in ("shards", "graph", "model", "codes", "index", "report"):
        ours, theirs = (Artifact.open(tmp_path / place / name) for place in ("here", "run"))
        assert ours.fingerprint == theirs.fingerprint, name
    ours, theirs = (Artifact.open(tmp_path / place / "shards") for place in ("here", "run"))
    assert [part.checksum for part in ours.manifest.parts] == [part.checksum for part in theirs.manifest.parts]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_is_stopped_in_training_is_resumed_and_ends(cluster: Cluster, tmp_path: Path) -> None:
    config = load_config(
        str(tiny_config(tmp_path)), ["pretrain.epochs=100", "pretrain.log_every=1", "pretrain.patience=1000"]
    )
    request = Request(config, last="pretrain")
    name = submit(request, cluster).job.id
    seen = until(lambda status: status.stages[-1].done > 60, name, cluster)
    assert seen.stages[-1].state == "working"
    assert "loss" in seen.stages[-1].note
    with pytest.raises(Misuse, match=f"job {name} is RUNNING and writes to the same folder"):
        submit(request, cluster, again=True)
    with pytest.raises(Misuse, match="is RUNNING and writes to the same folder"):
        resume(name, cluster)
    assert cluster.stop(name)
    stopped = wait(name, cluster)
    assert (stopped.status, stopped.stages[-1].state) == ("STOPPED", "stopped")
    assert not cluster.stop(name)
    assert submit(request, cluster).job.id == name

    again = resume(name, cluster)
    assert again.job.id == f"{name}-2"
    ended = wait(again.job.id, cluster)
    assert ended.status == "SUCCEEDED", ended
    metrics = [json.loads(line) for line in (tmp_path / "run" / "model" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == list(range(len(metrics)))
    assert len({line["process"] for line in metrics}) == 2, "the second attempt goes on, it does not begin anew"
    with pytest.raises(Misuse, match="is done; to run its stages anew"):
        resume(again.job.id, cluster)


@pytest.mark.slow
@pytest.mark.usefixtures("token")
def test_a_job_with_code_of_its_own_runs_that_code(latentbits: Command, cluster: Cluster, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT],
        check=True,
    )
    (wheel,) = tmp_path.glob("latentbits-*.whl")
    said = latentbits("submit", config, "--wheel", wheel, "--until", "tokenize", "--wait", "--json")
    assert json.loads(said.out)["status"] == "SUCCEEDED", said
    job = cluster.job(json.loads(said.out)["id"])
    assert job.entrypoint.startswith("exec python -m jobs run run.yaml")
    assert cluster.job(job.id).metadata["code"] == wheel.name


@pytest.mark.slow
@pytest.mark.usefixtures("token")
def test_a_job_that_fails_says_the_line_that_matters(latentbits: Command, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    (tmp_path / "docs.jsonl").write_text('{"id": "a", "text": "sea", "topic": "s"}\n' + "no json\n" * 200)
    said = latentbits("submit", config, "--until", "tokenize", "--wait")
    assert said.status == 1
    name = said.out.splitlines()[0]
    facts = json.loads(latentbits("status", name, "--json").out)
    assert facts["status"] == "FAILED"
    assert "docs.jsonl:2 invalid JSON" in facts["failure"]["message"]
    assert facts["failure"]["stage"] == "tokenize"
    assert f"latentbits resume {name} goes on" in " ".join(latentbits("status", name).out.split())
    again = latentbits("submit", config, "--until", "tokenize")
    assert again.status == 1
    assert f"is FAILED; `latentbits resume {name}` goes on" in again.err


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["pretrain.gpus=true"], r"lacks 1 more GPU \(pretrain.workers is 1, with a GPU each; its 1 node has 0\)"),
        (["pretrain.workers=64"], r"lacks 62 more CPU \(pretrain.workers is 64; its 1 node has 2\); add nodes, lower"),
    ],
)
def test_more_than_the_cluster_has_is_said_at_once_and_nothing_is_sent(
    settings: list[str], said: str, cluster: Cluster, tmp_path: Path
) -> None:
    config = load_config(str(tiny_config(tmp_path)), settings)
    before = [job.id for job in cluster.jobs()]
    with pytest.raises(Misuse, match=said):
        submit(Request(config), cluster)
    heard: list[str] = []
    with pytest.raises(Misuse, match=said):
        submit(Request(config), cluster, patience=0.5, say=heard.append)
    assert len(heard) == 1
    assert heard[0].startswith("waiting for ")
    assert [job.id for job in cluster.jobs()] == before


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("command", ["status", "logs", "stop", "resume"])
def test_a_job_that_is_not_there_is_said_so(latentbits: Command, head: Head, command: str) -> None:
    said = latentbits(command, "nothing-123")
    assert said.status == 2
    assert said.err == f"error: no job nothing-123 on {head.address}; `latentbits list` shows the jobs there\n"


def test_a_cluster_that_asks_for_a_token_is_told_from_one_that_takes_another(
    head: Head, latentbits: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    said = latentbits("list", "--address", head.address)
    assert (said.status, said.out) == (2, "")
    assert "asks for a token; put the cluster's into a file and set RAY_AUTH_TOKEN_PATH to it" in said.err
    monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
    said = latentbits("list", "--address", head.address)
    assert said.status == 2
    assert "does not take this token; set RAY_AUTH_TOKEN_PATH" in said.err
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "gone"))
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    said = latentbits("list", "--address", head.address)
    assert f"RAY_AUTH_TOKEN_PATH is {tmp_path / 'gone'}, which cannot be read" in said.err


@pytest.mark.slow
def test_a_run_that_waits_for_cores_says_so(cluster: Cluster, head: Head, tmp_path: Path) -> None:
    """Another program holds both cores, and nothing is done until it lets go."""
    program = (
        "import ray, time\nray.init()\nheld = ray.remote(num_cpus=2)(lambda: time.sleep(600)).remote()\n"
        "print('held', flush=True)\nray.get(held)"
    )
    environment = head.environment | {"RAY_ADDRESS": head.gcs}
    other = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        time.sleep(5)
        name = submit(Request(load_config(str(tiny_config(tmp_path))), last="tokenize"), cluster).job.id
        status = until(lambda status: status.status == "RUNNING" and bool(status.waiting_for), name, cluster)
        assert "0 of 2 cores" in status.waiting_for or "the cluster has 2 CPU on 1 node" in status.waiting_for
    finally:
        other.kill()
        other.wait()
    assert wait(name, cluster).status == "SUCCEEDED"


def test_the_settings_of_a_job_are_those_that_were_given(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny_config(tmp_path)
    sent = submit(Request(load_config(str(config), ["model.latent.bits=8"]), last="tokenize"), cluster)
    assert yaml.safe_load(sent.job.metadata["config"])["model"]["latent"]["bits"] == 8
    wait(sent.job.id, cluster)


ONLY_WITH_GPUS = {"ray_node_gpus_utilization", "ray_node_gram_used"}


def test_the_dashboard_asks_for_figures_that_ray_exports_by_labels_that_they_have(head: Head) -> None:
    """Of GPUs there are none here; their names stand in Ray's own list."""
    panels = json.loads((ROOT / "infra/grafana/latentbits.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    wanted = {name for query in queries for name in re.findall(r"ray_\w+", query)}
    until_s = time.monotonic() + 60
    exported: dict[str, str] = {}
    while not wanted - ONLY_WITH_GPUS <= set(exported) and time.monotonic() < until_s:
        with urllib.request.urlopen(f"{head.metrics}/metrics", timeout=10) as page:
            lines = [line for line in page.read().decode().splitlines() if not line.startswith("#")]
        exported = {line.partition("{")[0]: line for line in lines}
        time.sleep(0.5)
    assert wanted - ONLY_WITH_GPUS <= set(exported)
    names = set(re.findall(r'"(\w+)"', Path(reporter_agent.__file__).read_text()))
    assert {name.removeprefix("ray_") for name in ONLY_WITH_GPUS} <= names
    for query in queries:
        for name, labels in re.findall(r"(ray_\w+)\{(.*?)\}", query):
            for label in re.findall(r"(\w+)=", labels):
                assert f'{label}="' in exported[name], (name, label)
        for labels in re.findall(r"by \(([\w, ]+)\) \((ray_\w+)\)", query):
            assert f'{labels[0]}="' in exported[labels[1]], labels
