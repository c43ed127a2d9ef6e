"""The command line with addresses in place of folders, against a real S3 server, each command a process of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.artifact import Artifact
from pipelines.storage import Store
from tests.jobs.tiny_run import Said, Tiny
from tests.s3_server import S3Server, bucket, s3

__all__ = ["bucket", "s3"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def latentbits(*arguments: object) -> Said:
    """A command in a process of its own, which knows of the store by its environment alone."""
    command = [sys.executable, "-m", "jobs", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"RAY_ADDRESS": ""})
    return Said(result.returncode, result.stdout, result.stderr)


def checksums(place: object) -> dict[str, str]:
    """The parts of an artifact but those that hold times."""
    parts = Artifact.open(Path(str(place))).manifest.parts
    return {part.name: part.checksum for part in parts if not part.name.endswith(("metrics.jsonl", "README.md"))}


def test_a_run_in_a_store_is_the_run_in_a_folder(tiny: Tiny, s3: S3Server, bucket: str) -> None:
    Store.at(f"{bucket}/docs").upload(tiny.corpus, "docs.jsonl")
    corpus = f"corpus.files=[{bucket}/docs/*.jsonl]"
    done = latentbits("run", tiny.config, "--set", corpus, "--out", f"{bucket}/run")
    assert done.status == 0, done.err
    for kind in ("shards", "codes", "index"):
        assert checksums(f"{bucket}/run/{kind}") == checksums(tiny.folder / kind), kind
    assert not any(".unfinished" in name or ".new" in name for name in s3.tree(f"{bucket}/run"))

    shutil.rmtree(os.environ["LATENTBITS_CACHE"])  # another machine
    again = latentbits("run", tiny.config, "--set", corpus, "--out", f"{bucket}/run", "--json")
    assert again.status == 0, again.err
    assert all(stage["skipped"] for stage in json.loads(again.out)["stages"])

    found = latentbits("query", f"{bucket}/run/index", "storm in the harbour", "-k", 3, "--json")
    here = latentbits("query", tiny.folder / "index", "storm in the harbour", "-k", 3, "--json")
    assert found.status == 0, found.err
    assert json.loads(found.out)["hits"] == json.loads(here.out)["hits"]

    seen = latentbits("inspect", f"{bucket}/run", "--json", "--verify")
    assert {one["path"] for one in json.loads(seen.out)["artifacts"]} == {
        f"{bucket}/run/{kind}" for kind in ("shards", "graph", "model", "codes", "index", "report")
    }
    Store.at(f"{bucket}/run/codes").write("part-00000.parquet", b"?")
    seen = latentbits("inspect", f"{bucket}/run/codes", "--verify")
    assert seen.status == 1
    assert f"{bucket}/run/codes/part-00000.parquet has 1 bytes and was written with" in seen.err


def test_stages_one_by_one_from_one_address_to_the_next(tiny: Tiny, bucket: str) -> None:
    run = f"{bucket}/steps"
    quiet = ("--set", "tracking.enabled=false")
    fields = ("--id", "id", "--labels", "topic")
    for command in (
        ("tokenize", tiny.corpus, *fields, "--out", f"{run}/shards"),
        ("encode", tiny.folder / "model", f"{run}/shards", "--out", f"{run}/codes"),
        ("index", f"{run}/codes", "--out", f"{run}/index"),
    ):
        said = latentbits(*command, *quiet)
        assert said.status == 0, said.err
        assert f"{run}/" in said.out
    for kind in ("shards", "codes", "index"):
        assert checksums(f"{run}/{kind}") == checksums(tiny.folder / kind), kind
