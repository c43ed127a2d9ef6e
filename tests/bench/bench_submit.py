"""What sending a run to a cluster costs over running it there: `submit --wait` beside `run`, on one warm cluster.

Both tokenize the same documents on the same head, one after the other, twice; the first pair warms it. The bound is
on the seconds between them: ten.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.jobs.ray_head import Head, ray_head
from tests.jobs.tiny_run import write_config, write_corpus

ROOT = Path(__file__).parent.parent.parent

DOCUMENTS = 3000
PROMISED_S = 10.0
TRIALS = 2


def main() -> Iterator[dict[str, object]]:
    """Seconds of `submit --wait` over those of `run`, the lower of two."""
    with tempfile.TemporaryDirectory() as name, ray_head() as head:
        place = Path(name)
        write_corpus(place / "docs.jsonl", DOCUMENTS)
        over = []
        for trial in range(TRIALS + 1):
            run = _seconds(place / f"run{trial}", head, "run", {"RAY_ADDRESS": head.gcs})
            sent = _seconds(place / f"sent{trial}", head, "submit", {"RAY_API_SERVER_ADDRESS": head.address}, "--wait")
            over.append((sent - run, sent, run))
        overhead, sent, run = min(over[1:])
    yield {
        "bench": "submit",
        "ours": round(overhead, 2),
        "theirs": PROMISED_S,
        "unit": "s over run",
        "ratio": round(overhead / PROMISED_S, 3),
        "at_most": 1.0,
        "submit_s": round(sent, 2),
        "run_s": round(run, 2),
    }


def _seconds(out: Path, head: Head, command: str, cluster: dict[str, str], *more: str) -> float:
    out.mkdir()
    config = write_config(out, out.parent / "docs.jsonl", out / "run")
    program = [sys.executable, "-m", "jobs", command, str(config), "--until", "tokenize", *more]
    started = time.perf_counter()
    said = subprocess.run(
        program, env=head.environment | cluster, cwd=ROOT, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    assert said.returncode == 0, said.stdout + said.stderr
    assert os.path.exists(out / "run" / "shards" / "manifest.json")
    return seconds
