"""What inspect says, compared with the files themselves."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_run import Tiny

from jobs.inspect import describe
from vae_core.errors import Damaged, Misuse


def test_a_run_folder_is_all_its_artifacts(tiny: Tiny) -> None:
    facts = describe(tiny.folder)
    assert facts["kind"] == "run"
    kinds = {Path(inner["path"]).name: inner["kind"] for inner in facts["artifacts"]}
    assert kinds == {name: "report" if name == "report" else name for name in kinds}
    assert set(kinds) == {"shards", "graph", "model", "codes", "index", "report"}


def test_an_artifact_leads_back_to_its_files(tiny: Tiny) -> None:
    (codes,) = describe(tiny.folder / "index")["made_from"]
    origins = {origin["name"]: origin for origin in codes["made_from"]}
    assert codes["path"] == str(tiny.folder / "codes")
    (corpus,) = origins["shards"]["made_from"]
    assert corpus["path"] == str(tiny.corpus)
    assert hashlib.sha256(tiny.corpus.read_bytes()).hexdigest().startswith(corpus["fingerprint"])
    assert origins["model"]["made_from"][0]["fingerprint"] == origins["shards"]["fingerprint"]


def test_code_health_is_that_of_the_codes(tiny: Tiny) -> None:
    health = describe(tiny.folder / "codes")["code_health"]
    column = pq.read_table(tiny.folder / "codes/part-00000.parquet").column("code").to_pylist()
    bits = np.unpackbits(np.array([list(code) for code in column], np.uint8), axis=1, bitorder="little")
    assert health["bit_means"] == pytest.approx(bits.mean(axis=0))
    assert health["distinct_codes"] == len(set(column))


def test_bytes_are_those_on_disk(tiny: Tiny) -> None:
    facts = describe(tiny.folder / "index", verify=True)
    files = [path for path in (tiny.folder / "index").rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert facts["bytes"] == sum(path.stat().st_size for path in files)
    assert facts["parts"] == len(files)
    assert facts["verified"]


@pytest.mark.parametrize("name", ["shards/part-00000.arrow", "model/model.safetensors", "report/report.json"])
def test_one_flipped_byte_is_found_with_verify(tiny: Tiny, tmp_path: Path, name: str) -> None:
    copied = tiny.copy(tmp_path)
    path = copied.folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match=f"{path.name} .*--overwrite"):
        describe(copied.folder, verify=True)


def test_an_unfinished_artifact_is_described_as_such(tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny.copy(tmp_path).folder / "codes"
    manifest = json.loads((folder / "manifest.json").read_text())
    plan = {name: manifest[name] for name in ("kind", "format_version", "config", "inputs")}
    (folder / ".unfinished").mkdir()
    (folder / ".unfinished/plan.json").write_text(json.dumps(plan))
    (folder / "manifest.json").unlink()
    facts = describe(folder)
    assert (facts["whole"], facts["kind"], facts["fingerprint"]) == (False, "codes", manifest["fingerprint"])
    assert [origin["name"] for origin in facts["made_from"]] == ["model", "shards"]


def test_an_artifact_that_was_only_begun_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".unfinished").mkdir()
    with pytest.raises(Misuse, match="was begun, and nothing is in it yet"):
        describe(tmp_path)


def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="is neither an artifact nor a run folder"):
        describe(tmp_path)
    (tmp_path / "file").touch()
    for name in ("file", "nowhere"):
        with pytest.raises(Misuse, match=f"{name} is not a folder"):
            describe(tmp_path / name)


def test_inputs_that_are_gone_or_changed_are_marked(tiny: Tiny, tmp_path: Path) -> None:
    copied = tiny.copy(tmp_path)
    path = copied.folder / "codes" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["inputs"][0]["uri"] = str(tmp_path / "nowhere")
    manifest["inputs"][1]["fingerprint"] = "0" * 16
    path.write_text(json.dumps(manifest))
    states = {origin["name"]: origin.get("state") for origin in describe(copied.folder / "codes")["made_from"]}
    assert states == {"model": "gone", "shards": "changed since"}
