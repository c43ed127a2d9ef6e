"""The demo as a person runs it: minutes and memory of the whole process tree, and its P@10 against same-bit codes."""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench.watched import watched

SECONDS, GIGABYTES, CLEARLY = 300.0, 6.0, 1.5


def main() -> Iterator[dict[str, object]]:
    """Run `latentbits demo` in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        seconds, peak = watched([str(Path(sys.executable).with_name("latentbits")), "demo", "--out", str(out)])
        report = json.loads((out / "report" / "report.json").read_text())
    yield _at_most("demo, seconds", seconds, SECONDS, "s")
    yield _at_most("demo, peak memory", peak / 1e9, GIGABYTES, "GB")
    ours = report["precision_at_10"]["log_odds"]
    for name, theirs in report["baselines_at_10"].items():
        figure = {"bench": f"demo, P@10 against {name}", "ours": ours, "theirs": theirs, "unit": "P@10"}
        yield figure | {"ratio": ours / theirs, "at_least": 1.0 if name.startswith("lsi") else CLEARLY}


def _at_most(bench: str, ours: float, allowed: float, unit: str) -> dict[str, object]:
    return {"bench": bench, "ours": ours, "theirs": allowed, "unit": unit, "ratio": ours / allowed, "at_most": 1.0}
