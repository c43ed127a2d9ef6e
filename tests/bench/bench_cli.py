"""How long a person waits for the command line: for help, and for the first answer of a query in a new process.

The index is that of a small run made here, so the second figure is start-up: imports, model and index.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from jobs.config import load_config
from jobs.run import run

HELP_S, QUERY_S = 0.5, 6.0
REPEATS = 3
TOPICS = ("ship wave harbour sail captain storm", "bread oven flour butter recipe salt", "star rocket orbit moon comet")
SETTINGS = ("corpus.id=id", "pretrain.epochs=1", "model.encoder.width=16", "model.encoder.hidden=32")


def main() -> Iterator[dict[str, object]]:
    """Seconds of each command ("ours") and the longest that they may take ("theirs")."""
    yield _figure("help", ["--help"], HELP_S)
    with tempfile.TemporaryDirectory() as folder:
        index = _index(Path(folder))
        yield _figure("query", ["query", str(index), "ship in a storm"], QUERY_S)


def _figure(name: str, arguments: list[str], longest: float) -> dict[str, object]:
    seconds = min(_seconds(arguments) for _ in range(REPEATS))
    return {
        "bench": name,
        "ours": round(seconds, 3),
        "theirs": longest,
        "unit": "s",
        "ratio": round(seconds / longest, 3),
        "at_most": 1.0,
    }


def _seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("latentbits"), *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def _index(folder: Path) -> Path:
    corpus = folder / "docs.jsonl"
    with corpus.open("w") as file:
        for number in range(300):
            text = f"{TOPICS[number % len(TOPICS)]} {TOPICS[number // 7 % len(TOPICS)]}"
            file.write(json.dumps({"id": str(number), "text": text}) + "\n")
    places = (f"corpus.files=[{json.dumps(str(corpus))}]", f"out={json.dumps(str(folder / 'run'))}")
    config = load_config(None, [*SETTINGS, *places, "tracking.enabled=false"])
    return run(config, last="index").artifact("index").path
