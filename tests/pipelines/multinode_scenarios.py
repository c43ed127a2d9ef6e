"""What happens to a cluster while stages run on it; each scenario is a process in a network of its own."""

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.config import RunConfig
from jobs.run import run
from pipelines.artifact import Artifact
from pipelines.progress import Silent
from pipelines.storage import Store
from pipelines.tokenizing import slices
from tests.nodes import HEAD, Nodes, driver
from tests.s3_server import S3Server, s3_server

WORDS = ["".join(random.Random(number).choices("abcdefghijklmnopqrstuvwxyz", k=7)) for number in range(3000)]


class Killer(Silent):
    """Watches a stage, and does something in the midst of it, once."""

    def __init__(self, stage: str, act: Callable[[], None], after: int = 1) -> None:
        self.stage, self.act, self.after = stage, act, after
        self.inside = self.acted = False

    def start(self, stage: str, total: float, unit: str) -> None:
        del total, unit
        self.inside = stage == self.stage

    def advance(self, amount: int, note: str = "", metrics: object = None) -> None:
        del note, metrics
        self.after -= bool(self.inside and amount)
        if self.inside and self.after == 0 and not self.acted:
            self.acted = True
            threading.Thread(target=self.act).start()


def write_corpus(path: Path, documents: int) -> None:
    dice = random.Random(0)
    weights = [1 / (rank + 10) for rank in range(len(WORDS))]
    with path.open("w") as file:
        for number in range(documents):
            text = " ".join(dice.choices(WORDS, weights, k=60))
            file.write(json.dumps({"id": f"d{number}", "text": text, "topic": str(number % 3)}) + "\n")


def config(out: str, corpus: str, workers: int = 1, **pretrain: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "out": out,
            "corpus": {"files": [corpus], "id": "id", "labels": "topic"},
            "tokenize": {"subwords": 2000, "sample": 1000},
            "model": {
                "encoder": {"kind": "transformer", "width": 16, "hidden": 32},
                "latent": {"kind": "bernoulli_mixture", "bits": 16, "components": 4},
            },
            "graph": None,
            "pretrain": {"epochs": 1, "batch_size": 64, "workers": workers, **pretrain},
            "tracking": {"enabled": False},
        }
    )


class Place:
    """A cluster of two nodes with a core each, a store with a corpus of some parts, and this process as its driver."""

    def __init__(
        self, folder: Path, s3: S3Server, documents: int, nodes: tuple[str, ...] = ("a", "b"), parts: int = 8
    ) -> None:
        os.environ.update(s3.environment)
        self.folder, self.s3, self.bucket = folder, s3, s3.bucket()
        write_corpus(folder / "docs.jsonl", documents)
        slices.SMALLEST = (folder / "docs.jsonl").stat().st_size // parts
        Store.at(f"{self.bucket}/corpus").upload(folder / "docs.jsonl", "docs.jsonl")
        self.corpus = f"{self.bucket}/corpus/*.jsonl"
        self.nodes = Nodes(folder, s3.environment)
        self.nodes.start_head()
        for name in nodes:
            self.nodes.add(name)

    def run(self, name: str, last: str, progress: Silent | None = None, first: str = "tokenize", **how: Any) -> None:
        with driver(self.folder, f"driver-{name}"):
            run(
                config(f"{self.bucket}/{name}", self.corpus, **how),
                first=first,
                last=last,
                progress=progress or Silent(),
            )

    def parts(self, name: str, kind: str) -> dict[str, str]:
        """Name and checksum of the parts of an artifact, all of whose bytes have been compared."""
        with driver(self.folder, "reader"):
            artifact = Artifact.open(Path(f"{self.bucket}/{name}/{kind}"), kind)
            artifact.verify()
        return {part.name: part.checksum for part in artifact.manifest.parts}

    def metrics(self, name: str) -> list[dict[str, object]]:
        content = Store.at(f"{self.bucket}/{name}/model").read("metrics.jsonl")
        assert content is not None
        return [json.loads(line) for line in content.splitlines()]


def whole_run(place: Place) -> None:
    """All stages over two nodes that share no disk, and both of them worked."""
    place.run("run", "evaluate")
    for name in ("a", "b"):
        made = {path.name for path in place.nodes.cache(name).rglob("part-*.parquet")}
        assert made, f"node {name} encoded nothing"
        assert len(made) < len([part for part in place.parts("run", "codes") if part.endswith(".parquet")])
    assert place.parts("run", "index")
    assert place.parts("run", "report")


def node_killed_in_tokenize(place: Place) -> None:
    place.run("undisturbed", "tokenize")
    killer = Killer("tokenize", lambda: place.nodes.kill("b"))
    place.run("disturbed", "tokenize", killer)
    assert killer.acted
    assert place.parts("disturbed", "shards") == place.parts("undisturbed", "shards")


def node_killed_in_encode(place: Place) -> None:
    """And the index of these codes is the same, too."""
    place.run("undisturbed", "index")
    for kind in ("shards", "model"):
        source = Store.at(f"{place.bucket}/undisturbed/{kind}")
        for name in source.sizes():
            source.copy(name, Store.at(f"{place.bucket}/disturbed/{kind}"), name)
    killer = Killer("encode", lambda: place.nodes.kill("b"))
    place.run("disturbed", "index", killer, first="encode")
    assert killer.acted
    for kind in ("codes", "index"):
        assert place.parts("disturbed", kind) == place.parts("undisturbed", kind)


def node_killed_in_pretrain(place: Place) -> None:
    """Two workers on two nodes; a third node takes the place of the one that is lost with its disk."""
    training: dict[str, Any] = {"workers": 2, "checkpoint_every": 20, "log_every": 1, "epochs": 6.0}
    place.run("undisturbed", "pretrain", **training)
    place.nodes.add("spare")
    lost: list[str] = []

    def lose_a_node() -> None:
        checkpoints = Store.at(f"{place.bucket}/disturbed/model/.unfinished/checkpoints")
        while not any(name.endswith("complete.json") for name in checkpoints.sizes()):
            time.sleep(0.2)
        first = next(
            name for name in ("a", "b", "spare") if list(place.nodes.cache(name).rglob("disturbed/**/metrics.jsonl"))
        )
        lost.append(first)
        place.nodes.kill(first)

    killer = Killer("pretrain", lose_a_node)
    place.run("disturbed", "pretrain", killer, **training)
    assert lost, "no node was lost"
    rows = [{line["step"]: line["rows"] for line in place.metrics(name)} for name in ("undisturbed", "disturbed")]
    assert len(rows[0]) > 50
    assert rows[0] == rows[1]
    processes = {line["process"] for line in place.metrics("disturbed")}
    assert len(processes) == 2, "training did not go on in a second process"


def head_restarted(place: Place) -> None:
    """The driver is told; after a restart the same command goes on with what is in the store."""
    place.run("undisturbed", "tokenize")
    command = [
        sys.executable, "-m", "tests.pipelines.multinode_scenarios", "tokenize_again", str(place.folder), place.bucket,
    ]  # fmt: skip
    import subprocess

    environment = os.environ | {"RAY_ADDRESS": HEAD, "LATENTBITS_CACHE": str(place.folder / "disks" / "second")}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    shards = Store.at(f"{place.bucket}/disturbed/shards")
    while not any(name.endswith("arrow.json") for name in shards.sizes()):
        assert first.poll() is None
        time.sleep(0.1)
    for name in ("head", "a", "b"):
        place.nodes.kill(name)
    _, said = first.communicate(timeout=120)
    assert first.returncode != 0
    assert "does not answer any more; if it does not come back within a minute this ends" in said
    done = [name for name in shards.sizes() if name.endswith(".arrow.json")]
    place.nodes.start_head()
    place.nodes.add("c")
    again = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert done
    assert place.parts("disturbed", "shards") == place.parts("undisturbed", "shards")


def tokenize_again(folder: Path, bucket: str) -> None:
    """What `head_restarted` runs in processes of their own."""
    slices.SMALLEST = (folder / "docs.jsonl").stat().st_size // 8
    run(config(f"{bucket}/disturbed", f"{bucket}/corpus/*.jsonl"), last="tokenize")


def two_jobs_at_once(place: Place) -> None:
    """Each has its own folders, and both come to their end."""
    import subprocess

    module = "import sys; from tests.pipelines.multinode_scenarios import job; job(*sys.argv[1:])"
    jobs = []
    for name in ("one", "two"):
        environment = os.environ | {"RAY_ADDRESS": HEAD, "LATENTBITS_CACHE": str(place.folder / "disks" / name)}
        command = [sys.executable, "-c", module, str(place.folder), place.bucket, name]
        jobs.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for job_ in jobs:
        _, said = job_.communicate(timeout=250)
        assert job_.returncode == 0, said
    assert place.parts("one", "codes") == place.parts("two", "codes")


def job(folder: str, bucket: str, name: str) -> None:
    """One of two jobs."""
    slices.SMALLEST = (Path(folder) / "docs.jsonl").stat().st_size // 8
    run(config(f"{bucket}/{name}", f"{bucket}/corpus/*.jsonl"), last="encode")


SCENARIOS: dict[str, tuple[Callable[[Place], None], int]] = {
    "whole_run": (whole_run, 3000),
    "node_killed_in_tokenize": (node_killed_in_tokenize, 60_000),
    "node_killed_in_encode": (node_killed_in_encode, 20_000),
    "node_killed_in_pretrain": (node_killed_in_pretrain, 2000),
    "head_restarted": (head_restarted, 60_000),
    "two_jobs_at_once": (two_jobs_at_once, 2000),
}


def main(name: str, folder: Path, *more: str) -> None:
    if name == "tokenize_again":
        tokenize_again(folder, *more)
        return
    scenario, documents = SCENARIOS[name]
    with s3_server() as s3:
        started = time.monotonic()
        place = Place(folder, s3, documents)
        sys.stdout.write(f"cluster after {time.monotonic() - started:.1f} s\n")
        scenario(place)
        sys.stdout.write(f"{name} after {time.monotonic() - started:.1f} s\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
