"""An MLflow server that is stopped for a minute in mid-training: what logging takes of the time of steps of 20 ms.

A real server process, killed and started again; `lost` are the points that are not there in the end.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.pipelines.outage import outage

OUTAGE_S = 60.0


def main() -> Iterator[dict[str, object]]:
    """The share of the steps' time, of which under a hundredth is promised."""
    with tempfile.TemporaryDirectory() as folder:
        found = outage(Path(folder), OUTAGE_S)
    if found.lost:
        raise AssertionError(f"{found.lost} of {found.steps} points are lost")
    yield {
        "bench": f"tracking, {OUTAGE_S:.0f} s without a server",
        "ours": round(found.share, 5),
        "theirs": 1,
        "unit": "share of step time",
        "ratio": round(found.share, 5),
        "at_most": 0.01,
        "steps": found.steps,
        "lost": found.lost,
        "longest_ms": round(1e3 * found.longest_s, 2),
    }
