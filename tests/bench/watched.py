"""A command as a person runs it: how long it takes, and how much memory all its processes have at once."""

import subprocess
import time

import psutil


def watched(command: list[str]) -> tuple[float, int]:
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
