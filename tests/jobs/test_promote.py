"""Cards, registration and promotion of a real run, read back with MLflow's own client."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from tiny_run import Said, Tiny

from jobs.config import TrackingConfig
from jobs.promote import promoted
from pipelines.artifact import Artifact, write_text
from pipelines.cards import write_cards
from pipelines.evaluation.query_figures import PRECISION, QUERIES, QueryFigures
from pipelines.model_registry import CANDIDATE, CHAMPION, Registry
from pipelines.tracking import sqlite_uri
from vae_core.errors import LatentbitsError, Misuse

CONFIG = TrackingConfig()


def client_of(run: Tiny) -> MlflowClient:
    uri = sqlite_uri(run.folder.parent)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def test_every_run_has_a_model_card_and_a_data_card(tiny: Tiny) -> None:
    card = (tiny.folder / "cards/model-card.md").read_text()
    model = Artifact.open(tiny.folder / "model")
    report = json.loads((tiny.folder / "report/report.json").read_text())
    assert model.fingerprint in card
    assert f"{report['ties_averaged']['log_odds']:.3f}" in card
    assert f"{model.manifest.statistics['steps']:,} steps" in card
    for warning in report["warnings"]:
        assert warning in card
    data = (tiny.folder / "cards/data-card.md").read_text()
    shards = Artifact.open(tiny.folder / "shards")
    assert "300 documents" in data
    assert shards.manifest.inputs[0].fingerprint[:16] in data
    assert json.loads((tiny.folder / "cards/samples.json").read_text())[0]["hits"]
    assert (tiny.folder / "cards/training.svg").read_text().startswith("<svg xmlns=")


def test_cards_say_what_is_so_when_parts_of_the_run_are_gone(tiny: Tiny, tmp_path: Path) -> None:
    copied = tiny.copy(tmp_path)
    for name in ("report", "index"):
        (copied.folder / name / "manifest.json").unlink()
    card = (write_cards(copied.folder) / "model-card.md").read_text()
    assert "Not measured yet: run `latentbits evaluate`." in card
    assert "What a search gives" not in card


def test_the_server_holds_the_run_as_a_whole_and_the_model_as_candidate(tracked: Tiny) -> None:
    client = client_of(tracked)
    experiment = client.get_experiment_by_name(CONFIG.experiment).experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    parent = runs[tracked.folder.name]
    stages = {"tokenize", "graph", "pretrain", "encode", "index", "evaluate"}
    assert stages <= runs.keys()
    assert {runs[stage].data.tags["mlflow.parentRunId"] for stage in stages} == {parent.info.run_id}
    assert parent.data.params["model.latent.bits"]
    assert {"git_revision", "data", "version.torch", "version.latentbits"} <= parent.data.tags.keys()
    copied = {file.path for file in client.list_artifacts(parent.info.run_id, "cards")}
    assert {"cards/model-card.md", "cards/data-card.md", "cards/samples.json", "cards/training.svg"} <= copied
    assert {file.path for file in client.list_artifacts(runs["evaluate"].info.run_id)} == {"report.html", "report.json"}

    model = Artifact.open(tracked.folder / "model")
    version = client.get_model_version_by_alias(CONFIG.experiment, CANDIDATE)
    assert version.tags["latentbits.fingerprint"] == model.fingerprint
    assert version.run_id == runs["pretrain"].info.run_id
    assert version.description == (tracked.folder / "cards/model-card.md").read_text()
    assert float(version.tags["precision_at_100"]) > 0


def test_mlflow_loads_the_registered_model_and_it_gives_the_codes_of_the_run(tracked: Tiny) -> None:
    from pipelines.corpus import Document
    from pipelines.encoder import Encoder

    texts = ["ship storm", "bread oven"]
    mlflow.set_tracking_uri(sqlite_uri(tracked.folder.parent))
    loaded = mlflow.pyfunc.load_model(f"models:/{CONFIG.experiment}@{CANDIDATE}")
    assert loaded.metadata.signature.inputs.input_names() == ["text"]
    pandas = pytest.importorskip("pandas")
    found = loaded.predict(pandas.DataFrame({"text": texts}))
    encoder = Encoder.load(tracked.folder / "model")
    table = encoder.tokenizer.table([Document(text, text, [], {}, "", 0) for text in texts])
    expected = [bytes(row).hex() for row in encoder.encode(table).codes.bytes_NC.numpy()]
    assert list(found["code"]) == expected


def test_the_first_model_is_champion_and_a_second_time_says_so(
    tracked: Tiny, latentbits: Callable[..., Said], tmp_path: Path
) -> None:
    del tmp_path
    said = latentbits("promote", tracked.folder)
    assert said.status == 0
    assert said.out.endswith(("is champion, the first\n", "is champion already\n"))
    again = json.loads(latentbits("promote", tracked.folder, "--json").out)
    assert again["champion"]
    champion = client_of(tracked).get_model_version_by_alias(CONFIG.experiment, CHAMPION)
    assert again["was"] == again["version"] == str(champion.version)


@pytest.mark.parametrize(("gain", "better"), [(0.05, True), (0.0, False), (-0.05, False)])
def test_only_a_model_that_beats_the_champion_takes_its_place(
    tracked: Tiny, latentbits: Callable[..., Said], tmp_path: Path, gain: float, better: bool
) -> None:
    """The champion is given other figures of the same queries; what the run measured stays as it is."""
    promoted(tracked.folder, CONFIG)
    other = TrackingConfig(experiment=f"rivals {gain}")
    registry = Registry.at(sqlite_uri(tracked.folder.parent), other.experiment)
    ours = client_of(tracked).get_model_version_by_alias(CONFIG.experiment, CHAMPION)
    card, figures = tmp_path / "card.md", tmp_path / QUERIES
    write_text(card, "# A rival")
    measured = QueryFigures.read(tracked.folder / "report" / QUERIES)
    worse = {name: values - gain for name, values in measured.figures.items()}
    replace(measured, figures=worse).write(figures)
    record = {
        "name": other.experiment,
        "folder": str(tracked.folder / "model"),
        "card": str(card),
        "tags": {},
        "figures": {},
    }
    rival = record | {"fingerprint": "rival", "evaluation": [str(figures)]}
    # The rival's files are of a run of its own.
    run = client_of(tracked).create_run(client_of(tracked).get_experiment_by_name(CONFIG.experiment).experiment_id)
    registry.register(run.info.run_id, rival)
    rival_version = registry.version_of("rival")
    assert rival_version is not None
    registry.crown(rival_version, {"over": "none"})
    model = Artifact.open(tracked.folder / "model").fingerprint
    registry.register(ours.run_id, record | {"fingerprint": model, "evaluation": []})

    said = latentbits("promote", tracked.folder, "--set", f"tracking.experiment={other.experiment}", "--json")

    assert said.status == (0 if better else 1)
    found = json.loads(said.out)
    assert found["champion"] == better
    assert found["compared"]["difference"] == pytest.approx(gain, abs=1e-9)
    champion = registry.holder(CHAMPION)
    assert champion is not None
    assert champion.fingerprint == (model if better else "rival")
    shown = latentbits("promote", tracked.folder, "--set", f"tracking.experiment={other.experiment}")
    assert ("champion already" if better else "stays candidate: it is not better for certain") in shown.out


def test_what_cannot_be_compared_is_said(tracked: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="holds no model with its report"):
        promoted(tmp_path, CONFIG)
    with pytest.raises(Misuse, match="no version of another is this model"):
        promoted(tracked.folder, TrackingConfig(experiment="another"))
    with pytest.raises(
        LatentbitsError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be used: .*see that the server runs"
    ):
        promoted(tracked.folder, TrackingConfig(uri="http://127.0.0.1:9"))


def test_queries_of_the_report_are_those_of_the_evaluation(tracked: Tiny) -> None:
    report = json.loads((tracked.folder / "report/report.json").read_text())
    found = QueryFigures.read(tracked.folder / "report" / QUERIES)
    assert len(found.ids) == report["asked"]
    assert np.mean(found.figures[PRECISION]) == pytest.approx(report["ties_averaged"]["log_odds"])
