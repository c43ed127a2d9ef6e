"""The demo as a person runs it: minutes and memory of the whole process tree, and its P@10 against same-bit codes."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

SECONDS, GIGABYTES, CLEARLY = 300.0, 6.0, 1.5


def main() -> Iterator[dict[str, object]]:
    """Run `latentbits demo` in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        seconds, peak = _watched([str(Path(sys.executable).with_name("latentbits")), "demo", "--out", str(out)])
        report = json.loads((out / "report" / "report.json").read_text())
    yield _at_most("demo, seconds", seconds, SECONDS, "s")
    yield _at_most("demo, peak memory", peak / 1e9, GIGABYTES, "GB")
    ours = report["precision_at_10"]["log_odds"]
    for name, theirs in report["baselines_at_10"].items():
        figure = {"bench": f"demo, P@10 against {name}", "ours": ours, "theirs": theirs, "unit": "P@10"}
        yield figure | {"ratio": ours / theirs, "at_least": 1.0 if name.startswith("lsi") else CLEARLY}


def _at_most(bench: str, ours: float, allowed: float, unit: str) -> dict[str, object]:
    return {"bench": bench, "ours": ours, "theirs": allowed, "unit": unit, "ratio": ours / allowed, "at_most": 1.0}


def _watched(command: list[str]) -> tuple[float, int]:
    """Seconds, and the largest sum of private and shared memory, each page once, over all processes of the run."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _memory(psutil.Process(process.pid)))
        time.sleep(1)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit status {process.returncode}")
    return time.monotonic() - began, peak


def _memory(root: psutil.Process) -> int:
    """Proportional set size of the tree: what processes share counts once, as it does in the machine's memory."""
    total = 0
    try:
        for process in [root, *root.children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.NoSuchProcess:
        return 0
    return total
