"""One tiny finished run that all tests of the command line share, and the command line as a function."""

import sys
from collections.abc import Callable

import pytest
from tiny_run import Said, Tiny, write_config, write_corpus

from jobs.cli import main
from jobs.config import load_config
from jobs.run import run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Tiny:
    """Made once; tests read it, and copy it to change it."""
    del ray_cluster
    folder = tmp_path_factory.mktemp("tiny")
    write_corpus(folder / "docs.jsonl")
    config = write_config(folder, folder / "docs.jsonl", folder / "run")
    run(load_config(str(config)))
    return Tiny(config, folder / "docs.jsonl", folder / "run")


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
