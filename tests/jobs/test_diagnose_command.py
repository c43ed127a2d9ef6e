"""`latentbits diagnose` as its user meets it."""

import json
from collections.abc import Callable
from pathlib import Path

from tiny_run import Said, Tiny

from pipelines.artifact import Artifact

Cli = Callable[..., Said]
QUICK = ("--set", "diagnose.documents=60", "--set", "diagnose.permutations=19", "--set", "tracking.enabled=false")


def test_a_diagnosis_lies_beside_the_model_and_its_figures_are_printed(
    latentbits: Cli, tiny: Tiny, tmp_path: Path
) -> None:
    run = tiny.copy(tmp_path).folder
    said = latentbits("diagnose", run / "model", run / "shards", *QUICK)
    assert said.status == 0, said.err
    assert str(run / "diagnosis" / "diagnosis.html") in said.out
    assert "tfidf" in said.out
    found = json.loads((run / "diagnosis" / "diagnosis.json").read_text())
    assert f"{found['rate']:.4g}" in said.out
    assert f"{found['active_units']} of 16" in said.out
    assert Artifact.open(run / "diagnosis", "diagnosis").manifest.statistics["rate"] == found["rate"]
    again = latentbits("diagnose", run / "model", run / "shards", *QUICK, "--json")
    assert json.loads(again.out) == found


def test_other_models_stand_beside_it(latentbits: Cli, tiny: Tiny, tmp_path: Path) -> None:
    model, shards = tiny.folder / "model", tiny.folder / "shards"
    other = tiny.copy(tmp_path).folder / "model"
    said = latentbits("diagnose", model, shards, "--out", tmp_path / "out", "--compare", other, *QUICK, "--json")
    rows = json.loads(said.out)["compared"]
    assert len(rows) == 2
    assert rows[0]["rate"] == rows[1]["rate"]


def test_what_is_no_model_is_refused(latentbits: Cli, tiny: Tiny, tmp_path: Path) -> None:
    said = latentbits("diagnose", tiny.folder / "shards", tiny.folder / "shards", "--out", tmp_path / "out", *QUICK)
    assert said.status == 2
    assert "holds shards, and model is needed" in said.err
    assert not (tmp_path / "out").exists()
