"""Two ways of doing one thing, timed by turns, so that both meet the same machine."""

import time
from collections.abc import Callable
from typing import Any

ROUNDS = 5


def by_turns(ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of each at its best, after one call of each to warm up."""
    ours(), theirs()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for call, times in zip((ours, theirs), seconds, strict=True):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
    return min(seconds[0]), min(seconds[1])
