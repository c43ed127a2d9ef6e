"""Training state that survives a kill: DeepSpeed's files, and a receipt that makes them count.

A checkpoint without its receipt, or whose files differ from it, does not exist: the one before is taken. Where the
model is made in a store, checkpoints are carried up while training goes on, with what training needs beside them, so
that it can go on on a machine that has nothing.
"""

import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from pydantic import ValidationError

from pipelines.files.durable import checksum, write_text
from pipelines.files.published import fetch_file
from pipelines.files.working_folder import working_folder_of
from pipelines.training.carrier import Carrier
from vae_core.config import Config
from vae_core.errors import Misuse

RECEIPT = "complete.json"
BESIDE = "beside"
KEPT = 2
_carrier = Carrier()


class Checkpoint(Config):
    """A complete checkpoint: `step` optimiser steps are done."""

    step: int
    world_size: int
    zero_stage: int
    files: dict[str, str]

    @property
    def tag(self) -> str:
        return _tag(self.step)


def save(engine: Any, folder: Path, step: int, state: dict[str, Any], beside: Sequence[Path] = ()) -> None:
    """Write a checkpoint from all workers, then its receipt, then remove all but the newest KEPT. Collective.

    `state` is what training knows beside the engine; `restore` gives it back. `beside` are files and folders of the
    first worker that go with the checkpoint where it goes to a store.
    """
    engine.save_checkpoint(str(folder), tag=_tag(step), client_state=state, save_latest=False)
    written, stored = folder / _tag(step), working_folder_of(folder) is not None
    if stored and dist.get_rank() == 0:
        _keep_beside(written / BESIDE, beside)
    dist.barrier()
    leads = _leads(folder)
    mine = {str(path.relative_to(written)): checksum(path) for path in _data_files(written)} if leads else {}
    files = {name: digest for found in _of_all(mine) for name, digest in found.items()}
    stage = engine.zero_optimization_stage()
    receipt = Checkpoint(step=step, world_size=dist.get_world_size(), zero_stage=stage, files=files)
    if leads:
        write_text(written / RECEIPT, receipt.model_dump_json(indent=1))
        _prune(folder, written)
    if stored and all(_of_all(_carrier.is_free)) and leads:
        _carrier.carry(written, [*mine, *([RECEIPT] if dist.get_rank() == 0 else [])])
    dist.barrier()


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in `folder` that is whole; of a store, the newest that all workers can have. Collective."""
    found = _here(folder)
    if working_folder_of(folder) is None:
        return next((found[tag] for tag in sorted(found, reverse=True) if _is_whole(folder, found[tag])), None)
    found |= _in_store(folder)
    for tag in sorted(set.intersection(*_of_all(set(found))), reverse=True):
        if all(_of_all(_brought(folder, found[tag]))):
            return found[tag]
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
    if dist.get_rank() == 0:
        _put_back(folder / checkpoint.tag / BESIDE, folder.parent)
    dist.barrier()
    return dict(state)


def _tag(step: int) -> str:
    return f"step-{step:09d}"


def _of_all(mine: Any) -> list[Any]:
    """What every worker says. Collective."""
    if not dist.is_initialized():
        return [mine]
    said: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(said, mine)
    return said


def _leads(folder: Path) -> bool:
    """Whether this worker is the first of those that share its disk. Collective."""
    places = _of_all((socket.gethostname(), str(folder)))
    return places.index(places[dist.get_rank()]) == dist.get_rank()


def _prune(folder: Path, newest: Path) -> None:
    """Remove what is older than KEPT checkpoints, and what was passed over because it was broken."""
    every = sorted(folder.glob("step-*"))
    place = every.index(newest)
    for needless in every[: max(0, place + 1 - KEPT)] + every[place + 1 :]:
        shutil.rmtree(needless, ignore_errors=True)  # machines that share a disk do it both


def _here(folder: Path) -> dict[str, Checkpoint]:
    found = {path.name: _receipt(path / RECEIPT) for path in folder.glob("step-*")}
    return {tag: checkpoint for tag, checkpoint in found.items() if checkpoint}


def _in_store(folder: Path) -> dict[str, Checkpoint]:
    """Checkpoints in the store all of whose files are there; their checksums are compared when they are fetched."""
    place = working_folder_of(folder)
    assert place is not None
    below = place[1]
    there = set(place[0].store.sizes(below))
    found = {}
    for name in sorted(there):
        if name.endswith(f"/{RECEIPT}"):
            place_of = name.removesuffix(f"/{RECEIPT}")
            checkpoint = _parsed(place[0].store.read(name) or b"")
            if checkpoint and all(f"{place_of}/{file}" in there for file in checkpoint.files):
                found[place_of.rpartition("/")[2]] = checkpoint
    return found


def _brought(folder: Path, checkpoint: Checkpoint) -> bool:
    """Whether every file of the checkpoint is on this machine now."""
    place = working_folder_of(folder / checkpoint.tag)
    assert place is not None
    return all(
        fetch_file(place[0].store, f"{place[1]}/{name}", folder / checkpoint.tag / name, digest)
        for name, digest in checkpoint.files.items()
    )


def _is_whole(folder: Path, checkpoint: Checkpoint) -> bool:
    return all(_holds(folder / checkpoint.tag / name, digest) for name, digest in checkpoint.files.items())


def _keep_beside(folder: Path, beside: Sequence[Path]) -> None:
    for path in beside:
        if path.is_dir():
            shutil.copytree(path, folder / path.name, copy_function=os.link, dirs_exist_ok=True)
        elif path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / path.name)


def _put_back(folder: Path, scratch: Path) -> None:
    for path in folder.iterdir() if folder.exists() else []:
        target = scratch / path.name
        if path.is_file():
            write_text(target, path.read_text())
        elif not target.exists():
            shutil.copytree(path, target)


def _receipt(path: Path) -> Checkpoint | None:
    try:
        return _parsed(path.read_bytes())
    except FileNotFoundError:
        return None


def _parsed(content: bytes) -> Checkpoint | None:
    try:
        return Checkpoint.model_validate_json(content)
    except ValidationError:
        return None


def _data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECEIPT)


def _holds(path: Path, digest: str) -> bool:
    return path.exists() and checksum(path) == digest
