"""From a document back to the line of its file, through everything that was made on the way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from mlflow import MlflowClient
from tiny_run import Said, Tiny

from pipelines.artifact import Artifact
from pipelines.encode import EncodeConfig, encode
from pipelines.lineage import CHANGED, GONE, Origin, document_lineage, lineage
from pipelines.tracking import sqlite_uri
from vae_core.errors import Misuse

ROW = 137


def steps(origin: Origin) -> list[Origin]:
    return [origin, *(step for one in origin.made_from for step in steps(one))]


def the_document(tiny: Tiny) -> str:
    return str(json.loads(tiny.corpus.read_text().splitlines()[ROW])["id"])


@pytest.mark.parametrize("of", ["", "index", "codes", "shards"])
def test_a_document_is_followed_to_its_line(tracked: Tiny, of: str) -> None:
    found = steps(document_lineage(tracked.folder / of if of else tracked.folder, the_document(tracked)))
    files = [step for step in found if step.name.startswith("file:")]
    assert str(ROW + 1) in {step.facts.get("position") for step in files}
    assert {step.name for step in files} == {f"file:{tracked.corpus.name}"}
    if of != "shards":
        model = next(step for step in found if step.name == "model")
        assert model.facts["fingerprint"] == Artifact.open(tracked.folder / "model").fingerprint
    client = MlflowClient(tracking_uri=sqlite_uri(tracked.folder.parent))
    stage = {"": "index", "index": "index", "codes": "encode", "shards": "tokenize"}[of]
    assert client.get_run(found[1].facts["tracking run"]).info.run_name == stage
    rows = {step.name: step.facts["row"] for step in found if "row" in step.facts}
    assert rows["shards"].isdigit()
    assert all(step.state == "" for step in found)


def test_a_document_that_was_encoded_from_a_raw_file_is_followed_too(tiny: Tiny, tmp_path: Path) -> None:
    from jobs.config import load_config

    corpus = load_config(str(tiny.config)).corpus
    encode(tiny.folder / "model", corpus, tmp_path / "codes", EncodeConfig(workers=1))
    found = steps(document_lineage(tmp_path / "codes", the_document(tiny)))
    assert str(ROW + 1) in {step.facts.get("position") for step in found if step.place == str(tiny.corpus)}


def test_what_is_gone_or_changed_is_told(tiny: Tiny, tmp_path: Path) -> None:
    copied = tiny.copy(tmp_path)
    manifest = copied.folder / "shards/manifest.json"
    facts = json.loads(manifest.read_text())
    other = tmp_path / "docs.jsonl"
    shutil.copy(tiny.corpus, other)
    facts["inputs"][0]["uri"] = str(other)
    manifest.write_text(json.dumps(facts))
    other.write_text(other.read_text() + "\n")
    assert CHANGED in {step.state for step in steps(lineage(copied.folder / "shards"))}
    other.unlink()
    found = steps(document_lineage(copied.folder / "shards", the_document(tiny)))
    assert GONE in {step.state for step in found}


def test_an_unknown_document_and_another_artifact_are_refused(tiny: Tiny) -> None:
    for place in ("index", "codes", "shards"):
        with pytest.raises(Misuse, match="has no document 'nobody'; give the id of a hit"):
            document_lineage(tiny.folder / place, "nobody")
    with pytest.raises(Misuse, match="holds model; give an index, codes or shards"):
        document_lineage(tiny.folder / "model", "nobody")


def test_the_command_draws_it(tiny: Tiny, latentbits: Callable[..., Said]) -> None:
    document = the_document(tiny)
    tree = latentbits("inspect", tiny.folder, "--lineage", "--id", document)
    assert tree.status == 0
    assert document in tree.out
    assert f"position {ROW + 1}" in " ".join(tree.out.split())
    as_json = json.loads(latentbits("inspect", tiny.folder, "--lineage", "--id", document, "--json").out)
    assert as_json["made_from"][0]["name"] == "index"
    chart = latentbits("inspect", tiny.folder / "report", "--lineage", "--draw", "mermaid").out
    assert chart.startswith("flowchart LR\n")
    boxes = [line for line in chart.splitlines() if "[" in line]
    assert len(boxes) == len({line.split("[")[1] for line in boxes})
    drawn = latentbits("inspect", tiny.folder, "--lineage", "--id", document, "--draw", "svg").out
    root = ElementTree.fromstring(drawn)
    assert len(root.findall("{http://www.w3.org/2000/svg}rect")) >= 6
    assert f"position {ROW + 1}" in drawn
    refused = latentbits("inspect", tiny.folder, "--id", document)
    assert refused.status == 2
    assert "--id and --draw go with --lineage" in refused.err
