"""Checkpoints and what training leaves, in an S3 server: carried up in the background, fetched where nothing is."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from pipelines.artifact import Draft, begin
from pipelines.files.working_folder import root
from pipelines.storage import Store
from pipelines.training import carrier, checkpoint
from pipelines.training.checkpoint import Checkpoint, latest, restore, save
from tests.pipelines.test_artifact import plan
from tests.pipelines.test_checkpoint import Engine
from tests.s3_server import bucket, s3

__all__ = ["bucket", "s3"]


@pytest.fixture(autouse=True)
def _one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    monkeypatch.setattr(checkpoint, "_carrier", carrier.Carrier())
    yield
    dist.destroy_process_group()


@pytest.fixture
def draft(bucket: str) -> Draft:
    draft = begin(Path(f"{bucket}/run/model"), plan("m", "model"))
    assert isinstance(draft, Draft)
    return draft


def saved(draft: Draft, *steps: int) -> Path:
    """Checkpoints after these steps, each carried up before the next; with metrics and the best model beside."""
    folder = draft.scratch / "checkpoints"
    metrics, best = draft.scratch / "metrics.jsonl", draft.scratch / "best-000000010"
    best.mkdir(exist_ok=True)
    (best / "model.safetensors").write_bytes(b"the best weights")
    for step in steps:
        metrics.write_text("".join(json.dumps({"step": number}) + "\n" for number in range(step)))
        save(Engine(), folder, step, {"phase": step}, [metrics, best])
        arrived()
    return folder


def arrived() -> None:
    end = time.monotonic() + 30
    while not checkpoint._carrier.is_free:
        assert time.monotonic() < end
        time.sleep(0.01)


def lose_this_disk() -> None:
    shutil.rmtree(root())


def in_store(bucket: str) -> Store:
    return Store.at(f"{bucket}/run/model/.unfinished/checkpoints")


def test_a_machine_that_has_nothing_goes_on_from_the_newest_with_what_was_beside_it(bucket: str, draft: Draft) -> None:
    folder = saved(draft, 10, 20, 30)
    assert {name.split("/")[0] for name in in_store(bucket).sizes()} == {"step-000000020", "step-000000030"}
    lose_this_disk()
    found = latest(folder)
    assert found is not None
    assert found.step == 30
    engine = Engine()
    engine.state = b"other"
    restore(engine, folder, found)
    assert engine.state == b"first"
    assert len((draft.scratch / "metrics.jsonl").read_text().splitlines()) == 30
    assert (draft.scratch / "best-000000010" / "model.safetensors").read_bytes() == b"the best weights"


@pytest.mark.parametrize("harm", ["cut short", "gone", "without a receipt"])
def test_one_that_is_not_whole_in_the_store_is_passed_over(bucket: str, draft: Draft, harm: str) -> None:
    folder, store = saved(draft, 10, 20), in_store(bucket)
    match harm:
        case "cut short":
            store.write("step-000000020/model.pt", b"fir")
        case "gone":
            store.delete("step-000000020/nested/optimizer.pt")
        case _:
            store.delete("step-000000020/complete.json")
    lose_this_disk()
    found = latest(folder)
    assert found is not None
    assert found.step == 10


def test_a_newer_one_on_this_disk_is_taken_before_the_stores(draft: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(draft, 10)
    monkeypatch.setattr(carrier.Carrier, "carry", lambda *_: None)
    save(Engine(), folder, 20, {})
    found = latest(folder)
    assert found is not None
    assert found.step == 20


def test_a_slow_store_delays_no_step_and_one_that_is_down_ends_nothing(
    bucket: str, draft: Draft, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = Store.upload

    def slow(store: Store, path: Path, name: str) -> None:
        time.sleep(1.0)
        upload(store, path, name)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "upload", slow)
        started = time.monotonic()
        for step in (10, 20, 30):  # the first is on its way; the others are newer than what can be carried
            save(Engine(), draft.scratch / "checkpoints", step, {})
        assert time.monotonic() - started < 1.0
        arrived()
    assert {name.split("/")[0] for name in in_store(bucket).sizes()} == {"step-000000010"}
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        save(Engine(), draft.scratch / "checkpoints", 40, {})
        arrived()
    saved(draft, 50)
    assert "step-000000050/complete.json" in in_store(bucket).sizes()


def test_what_training_left_is_fetched_whole_or_not_at_all(bucket: str, draft: Draft) -> None:
    (draft.scratch / "export").mkdir()
    (draft.scratch / "export" / "model.safetensors").write_bytes(b"weights")
    (draft.scratch / "metrics.jsonl").write_text('{"step": 0}\n')
    assert not carrier.fetch_left(draft.scratch)
    carrier.leave(draft.scratch, "export", "metrics.jsonl")
    lose_this_disk()
    assert carrier.fetch_left(draft.scratch)
    assert (draft.scratch / "export" / "model.safetensors").read_bytes() == b"weights"
    lose_this_disk()
    Store.at(f"{bucket}/run/model/.unfinished/export").write("model.safetensors", b"weig")
    assert not carrier.fetch_left(draft.scratch)


def test_metrics_are_seen_elsewhere_while_training_writes_them(draft: Draft) -> None:
    metrics, seen = draft.scratch / "metrics.jsonl", draft.scratch / "watched-metrics.jsonl"
    with carrier.carried_up(metrics):
        metrics.write_text('{"step": 0}\n')
        end = time.monotonic() + 20
        while not seen.exists():
            assert time.monotonic() < end
            carrier.refresh(seen, "metrics.jsonl")
        with metrics.open("a") as file:
            file.write('{"step": 1}\n')
    carrier.refresh(seen, "metrics.jsonl")
    assert seen.read_text() == metrics.read_text()


def test_a_receipt_of_other_files_is_no_checkpoint(draft: Draft) -> None:
    folder = draft.scratch / "checkpoints"
    (folder / "step-000000010").mkdir(parents=True)
    receipt = Checkpoint(step=10, world_size=1, zero_stage=0, files={"model.pt": "0" * 64})
    (folder / "step-000000010" / "complete.json").write_text(receipt.model_dump_json())
    assert latest(folder) is None
