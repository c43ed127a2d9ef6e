"""Run the benchmarks and print one JSON line a figure: `python -m tests.bench [NAME]`, or `make bench ONLY=NAME`.

A benchmark is a module `bench_<name>.py` in this folder whose `main()` yields its figures: {"bench", "ours", "theirs",
"unit", "ratio"} and, where the project promises something, "at_least" or "at_most", the bound on the ratio.
Figures are also appended to bench.jsonl. The exit status is 1 if a figure misses its bound or a benchmark fails.
"""

import importlib
import json
import platform
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
RECORD = ROOT / "bench.jsonl"
Figure = dict[str, object]


def main(only: str | None = None) -> int:
    """Run every benchmark, or the one called `only`; returns the exit status."""
    names = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    if only is not None and only not in names:
        print(f"there is no benchmark {only!r}; there are: {', '.join(names)}", file=sys.stderr)
        return 2
    circumstances: Figure = {"commit": _commit(), "device": _device()}
    held = True
    with RECORD.open("a") as record:
        for name in names if only is None else [only]:
            for figure in _figures(name):
                held = held and within_bound(figure)
                line = json.dumps(figure | circumstances)
                print(line, flush=True)
                record.write(line + "\n")
    return 0 if held else 1


def within_bound(figure: Figure) -> bool:
    """Whether the figure's ratio keeps what the project promises of it; a benchmark that failed keeps nothing."""
    if "error" in figure:
        return False
    ratio = float(str(figure["ratio"]))
    return float(str(figure.get("at_least", ratio))) <= ratio <= float(str(figure.get("at_most", ratio)))


def _figures(name: str) -> Iterator[Figure]:
    """The figures of one benchmark; one that fails yields its error as the last, so that the others still run."""
    try:
        yield from importlib.import_module(f"tests.bench.bench_{name}").main()
    except Exception as error:  # whatever a benchmark raises, the next one is to run
        traceback.print_exc()
        yield {"bench": name, "error": f"{type(error).__name__}: {error}"}


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def _device() -> str:
    """The processor and the accelerator that the figures were measured on."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return " + ".join([f"{torch.get_num_threads()} threads of {_processor()}", *gpus])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
