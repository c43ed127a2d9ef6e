"""What this machine has for latentbits, what it lacks, and how to get it. Nothing heavy is imported but torch."""

import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil

PACKAGES = ("torch", "ray", "deepspeed", "faiss-cpu", "mlflow", "pyarrow", "tokenizers")
OLDEST_PYTHON = (3, 11)
MEMORY_GB, DISK_GB, TEMPORARY_GB, SHARED_GB = 4.0, 5.0, 2.0, 1.0
"""Below these the demo still may run, but a larger corpus will not."""

POPCOUNT = "avx512_vpopcntdq"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at; `remedy` is empty where nothing is to be done."""

    name: str
    state: Literal["ok", "warning", "missing"]
    what: str
    remedy: str = ""


def examine(folder: Path | None = None) -> list[Finding]:
    """Everything worth knowing about this machine, for work that is written to `folder` (default: the current one)."""
    return [
        _python(),
        _cores(),
        _memory(),
        _space("disk", folder or Path.cwd(), DISK_GB, "free some space, or work in a folder on another disk"),
        _temporary(),
        _shared_memory(),
        *(_package(name) for name in PACKAGES),
        _cuda(),
        _processor(Path("/proc/cpuinfo")),
        _cluster(os.environ.get("RAY_ADDRESS")),
    ]


def _python() -> Finding:
    found, oldest = platform.python_version(), ".".join(map(str, OLDEST_PYTHON))
    if sys.version_info < OLDEST_PYTHON:
        return Finding(name="python", state="missing", what=found, remedy=f"install Python {oldest} or later")
    return Finding(name="python", state="ok", what=found)


def _cores() -> Finding:
    """The cores that this process may run on, which in a container are fewer than the machine's."""
    usable = len(psutil.Process().cpu_affinity() or []) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count()
    return Finding(name="cores", state="ok", what=f"{usable} usable of {os.cpu_count()}")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    what = f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB"
    if memory.available < MEMORY_GB * 1e9:
        remedy = f"end other programs: {MEMORY_GB:.0f} GB free is enough for the demo"
        return Finding(name="memory", state="warning", what=what, remedy=remedy)
    return Finding(name="memory", state="ok", what=what)


def _space(name: str, folder: Path, needed_gb: float, remedy: str) -> Finding:
    free = shutil.disk_usage(folder).free
    what = f"{free / 1e9:.1f} GB free in {folder}"
    if free < needed_gb * 1e9:
        return Finding(name=name, state="warning", what=what, remedy=f"{remedy}: {needed_gb:.0f} GB is enough to begin")
    return Finding(name=name, state="ok", what=what)


def _temporary() -> Finding:
    """Ray keeps its sockets, logs and spilled objects in RAY_TMPDIR, else in TMPDIR, else in /tmp."""
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    remedy = "set RAY_TMPDIR to a folder that can be written to, with a short path"
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        what = f"{folder} cannot be written to: {error.strerror}"
        return Finding(name="temporary files", state="missing", what=what, remedy=remedy)
    return _space("temporary files", folder, TEMPORARY_GB, "set RAY_TMPDIR to a folder on a larger disk")


def _shared_memory() -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        what = f"no {folder}: Ray keeps objects in temporary files, which is slower"
        return Finding(name="shared memory", state="warning", what=what, remedy="in a container, mount /dev/shm")
    return _space("shared memory", folder, SHARED_GB, "in a container, start it with a larger --shm-size")


def _package(name: str) -> Finding:
    try:
        return Finding(name=name, state="ok", what=version(name))
    except PackageNotFoundError:
        return Finding(
            name=name, state="missing", what="not installed", remedy=f"run make install, or pip install {name}"
        )


def _cuda() -> Finding:
    try:
        import torch
    except ImportError as error:
        what = f"torch cannot be imported: {error}"
        return Finding(name="cuda", state="missing", what=what, remedy="run make install, or pip install torch")
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        what = ", ".join(f"{device.name} with {device.total_memory / 1e9:.0f} GB" for device in devices)
        return Finding(name="cuda", state="ok", what=what)
    if Path("/proc/driver/nvidia/version").exists():
        what = f"an NVIDIA driver is here, and torch {torch.__version__} finds no device"
        remedy = "install a CUDA build of torch that this driver can run: https://pytorch.org/get-started/locally"
        return Finding(name="cuda", state="warning", what=what, remedy=remedy)
    return Finding(name="cuda", state="ok", what="no device; everything runs on the processor")


def _processor(cpuinfo: Path) -> Finding:
    """Whether the processor counts bits eight words at a time, which is what scanning codes comes down to."""
    flags = _flags(cpuinfo)
    if flags is None:
        return Finding(name="processor", state="ok", what=f"{platform.machine()}; its instruction sets are not known")
    have = [name for name in ("avx2", "avx512f", POPCOUNT) if name in flags]
    what = f"{platform.machine()} with {', '.join(have) or 'neither AVX2 nor AVX-512'}"
    return Finding(
        name="processor", state="ok", what=what if POPCOUNT in flags else f"{what}; search is slower without {POPCOUNT}"
    )


def _flags(cpuinfo: Path) -> set[str] | None:
    """The first processor's flags; None where the system does not list them."""
    if not cpuinfo.exists():
        return None
    for line in cpuinfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return None


def _cluster(address: str | None) -> Finding:
    """Which cluster the stages would use; whether it answers is not tried."""
    if address:
        return Finding(name="cluster", state="ok", what=f"RAY_ADDRESS is {address}: stages run on that cluster")
    return Finding(name="cluster", state="ok", what="RAY_ADDRESS is not set: stages run on this machine")
