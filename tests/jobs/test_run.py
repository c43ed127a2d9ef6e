"""The stages as one run: what is skipped, what is refused, and what it leaves whole."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray
from tiny_run import Tiny

from jobs.config import RunConfig, load_config
from jobs.run import run
from jobs.stages import STAGES
from pipelines.artifact import Artifact
from pipelines.scatter import cluster, shared_cluster
from vae_core.errors import Misuse, Stale

FOLDERS = ("shards", "graph", "model", "codes", "index", "report")


def settings(tiny: Tiny, *more: str) -> RunConfig:
    return load_config(str(tiny.config), [f"out={tiny.folder}", *more])


def test_a_run_makes_every_artifact_from_the_one_before(tiny: Tiny) -> None:
    made = {name: Artifact.open(tiny.folder / name) for name in FOLDERS}
    for artifact in made.values():
        artifact.verify()
    assert made["model"].input("shards").fingerprint == made["shards"].fingerprint
    assert made["codes"].input("model").fingerprint == made["model"].fingerprint
    assert made["index"].input("codes").fingerprint == made["codes"].fingerprint
    assert made["index"].manifest.statistics["documents"] == 300


def test_a_second_run_finds_everything_done_and_starts_no_ray(tiny: Tiny) -> None:
    """RAY_ADDRESS names no cluster, so that a stage that reached for one would fail."""
    program = (
        "import sys\nfrom jobs.config import load_config\nfrom jobs.run import run\n"
        f"result = run(load_config({str(tiny.config)!r}))\n"
        "print([done.skipped for done in result.stages], 'ray' in sys.modules)"
    )
    before = {path: path.stat().st_mtime_ns for path in tiny.folder.rglob("*")}
    environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:1"}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout == "[True, True, True, True, True, True] False\n"
    assert {path: path.stat().st_mtime_ns for path in tiny.folder.rglob("*")} == before


def test_a_run_folder_that_was_moved_is_still_up_to_date(tiny: Tiny, tmp_path: Path) -> None:
    moved = tiny.copy(tmp_path)
    assert all(done.skipped for done in run(settings(moved)).stages)


def test_what_changed_decides_which_stages_are_made_again(tiny: Tiny, tmp_path: Path) -> None:
    copied = tiny.copy(tmp_path)
    result = run(settings(copied, "index.segment_documents=100"), overwrite=True)
    assert {done.stage: done.skipped for done in result.stages} == {
        "tokenize": True,
        "graph": True,
        "pretrain": True,
        "encode": True,
        "index": False,
        "evaluate": False,
    }
    assert result.artifact("index").manifest.statistics["segments"] == 3


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("pretrain.epochs=2", r"model was made from something else:\n  pretrain.epochs was 1.0 and is now 2.0"),
        (
            "tokenize.max_tokens=64",
            r"shards was made from something else:\n  tokenize.max_tokens was 512 and is now 64",
        ),
        (
            "index.segment_documents=7",
            r"index was made from something else:\n  segment_documents was 10000000",
        ),
    ],
)
def test_a_stale_artifact_is_refused_with_what_changed_and_left_whole(tiny: Tiny, setting: str, said: str) -> None:
    with pytest.raises(Stale, match=said) as caught:
        run(settings(tiny, setting))
    assert "--overwrite" in str(caught.value)
    for name in FOLDERS:
        Artifact.open(tiny.folder / name).verify()


def test_a_document_that_was_added_makes_the_shards_stale(tiny: Tiny, tmp_path: Path) -> None:
    copied = tiny.copy(tmp_path)
    corpus = tmp_path / tiny.corpus.name
    corpus.write_text(tiny.corpus.read_text() + '{"id": "new", "text": "one more", "topic": "sea"}\n')
    with pytest.raises(Stale, match=r"input file:docs\.jsonl has changed"):
        run(settings(copied, f"corpus.files=[{corpus}]"))


def test_stages_outside_the_chosen_ones_are_not_made(tiny: Tiny, tmp_path: Path) -> None:
    result = run(settings(tiny._replace(folder=tmp_path / "run")), last="tokenize")
    assert [done.stage for done in result.stages] == ["tokenize"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["cards", "shards"]


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        ("encode", "evaluate", r"encode reads .*shards, which is not there"),
        ("evaluate", "evaluate", r"evaluate reads .*index, which is not there"),
        ("encod", "evaluate", "no stage 'encod'; the stages are tokenize, embed, graph, pretrain, encode, index, eval"),
        ("embed", "embed", r"nothing asks for embed; set embed\.folder"),
        ("index", "encode", "--from index comes after --until encode"),
    ],
)
def test_a_choice_of_stages_that_cannot_be_met_writes_nothing(
    tiny: Tiny, tmp_path: Path, first: str, last: str, said: str
) -> None:
    with pytest.raises(Misuse, match=said):
        run(settings(tiny._replace(folder=tmp_path / "run"), "tracking.enabled=true"), first=first, last=last)
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_files_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"corpus\.files is empty; name the files"):
        run(load_config(None, [f"out={tmp_path / 'run'}"]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stage", "folder"), [("pretrain", "shards"), ("encode", "model"), ("index", "codes"), ("evaluate", "index")]
)
def test_an_unfinished_artifact_is_refused_by_the_next_stage(
    tiny: Tiny, tmp_path: Path, stage: str, folder: str
) -> None:
    copied = tiny.copy(tmp_path)
    artifact = copied.folder / folder
    (artifact / ".unfinished").mkdir()
    plan = Artifact.open(artifact).manifest.model_dump_json(
        include={"kind", "format_version", "config", "inputs", "fingerprint"}
    )
    (artifact / ".unfinished" / "plan.json").write_text(plan)
    (artifact / "manifest.json").unlink()
    with pytest.raises(Misuse, match=f"{folder} holds unfinished {folder}; run the same command again"):
        run(settings(copied), first=stage)


def test_too_little_disk_is_said_before_anything_is_written(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tiny.copy(tmp_path)
    shutil.rmtree(copied.folder / "index")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))  # noqa: ARG005
    with pytest.raises(Misuse, match=r"0\.0 GB free and this stage writes about .* GB; free some space"):
        run(settings(copied), first="index")
    assert not (copied.folder / "index" / "manifest.json").exists()


def test_too_little_memory_for_ray_is_said_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=700_000_000))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(Misuse, match=r"0\.7 GB of memory is free, .* needs 1\.5 GB"),
        shared_cluster(),
        cluster(),
    ):
        pass


def test_the_stages_are_those_that_the_command_line_promises() -> None:
    assert tuple(STAGES) == ("tokenize", "embed", "graph", "pretrain", "encode", "index", "evaluate")
