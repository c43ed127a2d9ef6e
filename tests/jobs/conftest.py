"""One tiny finished run that all tests of the command line share, and the command line as a function."""

import json
import sys
from collections.abc import Callable

import pytest
from tiny_run import Said, Tiny, write_config, write_corpus

from jobs.cli import main
from jobs.config import load_config
from jobs.run import run
from jobs.tracked import track_run, track_stage
from pipelines.artifact import Artifact
from pipelines.tracking import Tracking, sqlite_uri


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Tiny:
    """Made once; tests read it, and copy it to change it."""
    del ray_cluster
    folder = tmp_path_factory.mktemp("tiny")
    write_corpus(folder / "docs.jsonl")
    config = write_config(folder, folder / "docs.jsonl", folder / "run")
    run(load_config(str(config)))
    return Tiny(config, folder / "docs.jsonl", folder / "run")


@pytest.fixture(scope="session")
def tracked(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A copy of the tiny run, tracked in a database beside it as `run` tracks one."""
    copied = tiny.copy(tmp_path_factory.mktemp("tracked"))
    config = load_config(str(tiny.config), [f"out={json.dumps(str(copied.folder))}"])
    folders = {"tokenize": "shards", "graph": "graph", "pretrain": "model", "encode": "codes", "index": "index"}
    made = {stage: Artifact.open(copied.folder / name) for stage, name in (folders | {"evaluate": "report"}).items()}
    uri = sqlite_uri(copied.folder.parent)
    tracking = Tracking.start(uri, config.tracking.experiment, copied.folder.name, copied.folder / ".tracking")
    for stage, artifact in made.items():
        track_stage(stage, artifact, 1.0, tracking)
    track_run(config, list(made.values()), tracking)
    assert tracking.close(120) == 0
    return copied


@pytest.fixture
def latentbits(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The command line in this process: `latentbits("query", index, "words")`."""

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["latentbits", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        said = capfd.readouterr()
        assert "Traceback" not in said.err
        return Said(status, said.out, said.err)

    return call
