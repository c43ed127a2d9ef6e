"""Encode on two nodes of a core each against one such node, over the same corpus; and the work that a lost node costs.

The nodes share no disk: model and shards come from an S3 server, and codes go there. The stage's own start is in the
figures, Ray's is not; the model is large enough for a minute or two of work. All runs begin with empty caches. The node
is killed in the midst of a third run: just the part that it was at is done twice, and the codes are the same.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pipelines.artifact import Artifact
from pipelines.encode import encode
from pipelines.progress import Silent
from pipelines.scatter import cluster
from tests.nodes import ROOT, SOCKETS, driver
from tests.pipelines.model_files import write_model
from tests.pipelines.multinode_scenarios import Killer, Place
from tests.s3_server import s3_server
from vae_core.model import Composition

DOCUMENTS, PARTS = 12_000, 24
MODEL = {"encoder": {"kind": "transformer", "width": 512, "hidden": 2048}, "latent": {"bits": 64}}
AT_LEAST = 1.8


def main() -> Iterator[dict[str, object]]:
    """Documents a second on two nodes ("ours") and on one ("theirs"); parts done twice for a node that was lost."""
    with tempfile.TemporaryDirectory(prefix="lb") as folder:
        inside = f"ip link set lo up && exec {sys.executable} -m tests.bench.bench_multinode {folder}"
        command = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", inside]
        environment = os.environ | {SOCKETS: folder, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        measured = json.loads(result.stdout.splitlines()[-1])
    yield {
        "bench": "multinode",
        "ours": round(DOCUMENTS / measured["two"]),
        "theirs": round(DOCUMENTS / measured["one"]),
        "unit": "documents/s",
        "ratio": round(measured["one"] / measured["two"], 3),
        "at_least": AT_LEAST,
    }
    yield {
        "bench": "multinode.lost",
        "ours": measured["again"],
        "theirs": 1,
        "unit": "parts done twice for a node that was lost",
        "ratio": measured["again"],
        "at_least": 1,  # or the node was lost too late to have cost anything
        "at_most": 1,
    }


def measure(folder: Path) -> dict[str, float]:
    """Seconds of encode on one node and on two, and how many parts were done twice after one of two was lost."""
    with s3_server() as s3:
        place = Place(folder, s3, DOCUMENTS, nodes=("a",), parts=PARTS)
        place.run("made", "tokenize")
        with driver(folder, "maker"):
            shards = Artifact.open(Path(f"{place.bucket}/made/shards"))
            write_model(Path(f"{place.bucket}/made/model"), shards.path, Composition.model_validate(MODEL))
        seconds = {"one": _encoded(place, "one")}
        place.nodes.add("b")
        seconds["two"] = _encoded(place, "two")
        again = Again()
        logging.getLogger("latentbits.cluster").addHandler(again)
        node, killer = place.nodes.nodes["b"], Killer("encode", lambda: place.nodes.kill("b"), after=3)
        _encoded(place, "lost", killer)
        assert killer.acted, "encode ended before the node was to be killed"
        assert node.wait(timeout=10) == -signal.SIGKILL
        assert place.parts("lost", "codes") == place.parts("two", "codes")
        return seconds | {"again": again.count}


class Again(logging.Handler):
    """Counts the parts that are begun once more."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "is done again" in record.getMessage()


def _encoded(place: Place, name: str, progress: Silent | None = None) -> float:
    """Seconds of the stage, from empty caches to codes in the store."""
    for node in place.nodes.nodes:
        shutil.rmtree(place.nodes.cache(node), ignore_errors=True)
    made, out = Path(f"{place.bucket}/made"), Path(f"{place.bucket}/{name}/codes")
    with driver(place.folder, f"driver-{name}"), cluster():
        started = time.perf_counter()
        encode(made / "model", made / "shards", out, progress=progress or Silent())
        return time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
