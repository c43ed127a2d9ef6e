"""Which checkpoint counts, on files as DeepSpeed and a kill leave them."""

import hashlib
import json
from pathlib import Path

import pytest
import torch.distributed as dist

from pipelines.training import checkpoint
from pipelines.training.checkpoint import Checkpoint, latest, restore, save
from vae_core.errors import Misuse


class Engine:
    """Writes and reads a file for each worker, as a DeepSpeed engine does; test_pretrain runs the real one."""

    def __init__(self, stage: int = 0) -> None:
        self.stage = stage
        self.state = b"first"
        self.beside: dict[str, int] = {}

    def zero_optimization_stage(self) -> int:
        return self.stage

    def save_checkpoint(self, folder: str, tag: str, *, client_state: dict[str, int], save_latest: bool) -> None:
        assert not save_latest
        self.beside = client_state
        (Path(folder) / tag / "nested").mkdir(parents=True, exist_ok=True)
        (Path(folder) / tag / "nested" / "optimizer.pt").write_bytes(b"moments")
        (Path(folder) / tag / "model.pt").write_bytes(self.state)

    def load_checkpoint(self, folder: str, tag: str) -> tuple[str, dict[str, int]]:
        self.state = (Path(folder) / tag / "model.pt").read_bytes()
        return tag, self.beside


@pytest.fixture(autouse=True)
def _one_worker(tmp_path: Path) -> object:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def test_a_checkpoint_is_found_and_gives_back_what_was_saved(folder: Path) -> None:
    engine = Engine()
    save(engine, folder, 10, {"phase": 3})
    engine.state = b"later"
    found = latest(folder)
    assert found is not None
    assert (found.step, found.world_size, found.zero_stage) == (10, 1, 0)
    assert found.files["model.pt"] == hashlib.sha256(b"first").hexdigest()
    assert restore(engine, folder, found) == {"phase": 3}
    assert engine.state == b"first"


def test_no_folder_and_no_receipt_are_no_checkpoint(folder: Path) -> None:
    assert latest(folder) is None
    Engine().save_checkpoint(str(folder), "step-000000010", client_state={}, save_latest=False)
    assert latest(folder) is None


@pytest.mark.parametrize("name", ["model.pt", "nested/optimizer.pt", checkpoint.RECEIPT])
@pytest.mark.parametrize("harm", ["truncated", "altered", "gone"])
def test_a_checkpoint_that_lost_a_byte_is_passed_over_for_the_one_before(folder: Path, name: str, harm: str) -> None:
    for step in (10, 20):
        save(Engine(), folder, step, {})
    broken = folder / "step-000000020" / name
    match harm:
        case "truncated":
            broken.write_bytes(broken.read_bytes()[:-1])
        case "altered":
            broken.write_bytes(broken.read_bytes()[:-1] + b"?")
        case _:
            broken.unlink()
    found = latest(folder)
    assert found is not None
    assert found.step == 10


def test_the_newest_two_stay(folder: Path) -> None:
    for step in (90, 100, 1000, 20_000):
        save(Engine(), folder, step, {})
    assert sorted(path.name for path in folder.iterdir()) == ["step-000001000", "step-000020000"]


def test_a_broken_checkpoint_of_a_later_step_does_not_outlive_the_good_one(folder: Path) -> None:
    for step in (10, 20):
        save(Engine(), folder, step, {})
    (folder / "step-000000020" / "model.pt").write_bytes(b"")
    save(Engine(), folder, 15, {})
    assert sorted(path.name for path in folder.iterdir()) == ["step-000000010", "step-000000015"]
    found = latest(folder)
    assert found is not None
    assert found.step == 15


def test_state_cut_for_other_workers_is_refused_with_the_number_to_set(folder: Path) -> None:
    old = Checkpoint(step=10, world_size=4, zero_stage=2, files={})
    with pytest.raises(Misuse, match=r"step-000000010 was written by 4 workers .* there are 1 now; .*workers to 4"):
        restore(Engine(stage=2), folder, old)


def test_whole_state_can_be_loaded_by_any_number_of_workers(folder: Path) -> None:
    engine = Engine()
    save(engine, folder, 10, {})
    receipt = folder / "step-000000010" / checkpoint.RECEIPT
    receipt.write_text(json.dumps(json.loads(receipt.read_text()) | {"world_size": 4}))
    engine.state = b"later"
    found = latest(folder)
    assert found is not None
    assert restore(engine, folder, found) == {}
    assert engine.state == b"first"
