"""Training state that survives a kill: DeepSpeed's files, and a receipt that makes them count.

A checkpoint without its receipt, or whose files differ from it, does not exist: the one before is taken.
"""

import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from pydantic import ValidationError

from pipelines.artifact import checksum, write_text
from vae_core.config import Config
from vae_core.errors import Misuse

RECEIPT = "complete.json"
KEPT = 2


class Checkpoint(Config):
    """A complete checkpoint: `step` optimiser steps are done."""

    step: int
    world_size: int
    zero_stage: int
    files: dict[str, str]

    @property
    def tag(self) -> str:
        return _tag(self.step)


def save(engine: Any, folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write a checkpoint from all workers, then its receipt, then remove all but the newest KEPT. Collective.

    `state` is what training knows beside the engine; `restore` gives it back.
    """
    engine.save_checkpoint(str(folder), tag=_tag(step), client_state=state, save_latest=False)
    dist.barrier()
    if dist.get_rank() == 0:
        written = folder / _tag(step)
        files = {str(path.relative_to(written)): checksum(path) for path in _data_files(written)}
        stage = engine.zero_optimization_stage()
        receipt = Checkpoint(step=step, world_size=dist.get_world_size(), zero_stage=stage, files=files)
        write_text(written / RECEIPT, receipt.model_dump_json(indent=1))
        _prune(folder, written)
    dist.barrier()


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in `folder` that is whole."""
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        checkpoint = _receipt(candidate / RECEIPT)
        if checkpoint and all(_holds(candidate / name, digest) for name, digest in checkpoint.files.items()):
            return checkpoint
    return None


def restore(engine: Any, folder: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """Load model and optimiser, and return the state saved beside them.

    Raises Misuse where ZeRO cut the state for another number of workers.
    """
    if engine.zero_optimization_stage() and checkpoint.world_size != dist.get_world_size():
        raise Misuse(
            f"{folder / checkpoint.tag} was written by {checkpoint.world_size} workers with ZeRO stage "
            f"{checkpoint.zero_stage}, and there are {dist.get_world_size()} now; set pretrain.workers to "
            f"{checkpoint.world_size}, or start over with --overwrite"
        )
    _, state = engine.load_checkpoint(str(folder), tag=checkpoint.tag)
    return dict(state)


def _tag(step: int) -> str:
    return f"step-{step:09d}"


def _prune(folder: Path, newest: Path) -> None:
    """Remove what is older than KEPT checkpoints, and what was passed over because it was broken."""
    every = sorted(folder.glob("step-*"))
    place = every.index(newest)
    for needless in every[: max(0, place + 1 - KEPT)] + every[place + 1 :]:
        shutil.rmtree(needless)


def _receipt(path: Path) -> Checkpoint | None:
    try:
        return Checkpoint.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECEIPT)


def _holds(path: Path, digest: str) -> bool:
    return path.exists() and checksum(path) == digest
