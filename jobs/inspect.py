"""What an artifact is: whole or not, how large, from what, and how healthy its codes are."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from pipelines.artifact import MANIFEST, UNFINISHED, Artifact, Plan
from pipelines.code_files import packed_bytes
from pipelines.index_facts import facts as index_facts
from pipelines.index_facts import verify as verify_index
from vae_core.codes import PackedCodes
from vae_core.diagnostics.code_health import CodeHealth
from vae_core.errors import Misuse, Unfinished


def describe(path: Path, *, verify: bool = False) -> dict[str, Any]:
    """Everything known of the artifact, or of each artifact of the run folder, at `path`.

    With `verify` every byte is compared with its checksum. Raises Misuse where nothing of ours is there, and Damaged.
    """
    if path.is_dir() and not (path / MANIFEST).exists() and not (path / UNFINISHED).exists():
        inside = [folder for folder in sorted(path.iterdir()) if _is_ours(folder)]
        if not inside:
            raise Misuse(f"{path} is neither an artifact nor a run folder; give a folder that latentbits wrote")
        return {"path": str(path), "kind": "run", "artifacts": [describe(folder, verify=verify) for folder in inside]}
    try:
        artifact = Artifact.open(path)
    except Unfinished:
        if not (path / UNFINISHED / "plan.json").exists():
            raise
        return _unfinished(path)
    if verify:
        artifact.verify()
        if artifact.manifest.kind == "index":
            verify_index(artifact)
    return _whole(artifact, verified=verify)


def code_health(codes: Artifact) -> dict[str, Any]:
    """Code health over all codes of a codes artifact, streamed."""
    health = CodeHealth(codes.manifest.statistics["bits"])
    for path in codes.files(".parquet"):
        for batch in pq.ParquetFile(path).iter_batches(columns=["code", "component", "confidence"]):
            packed = PackedCodes(torch.tensor(packed_bytes(batch.column("code"))))
            components = torch.tensor(batch.column("component").to_numpy().astype("int64"))
            health.update(packed, components, torch.tensor(batch.column("confidence").to_numpy()))
    return health.as_dict()


def lineage(artifact: Artifact) -> list[dict[str, Any]]:
    """What the artifact was made from, each input with its own inputs, down to files."""
    return [_origin(artifact, item.name) for item in artifact.manifest.inputs]


def _is_ours(folder: Path) -> bool:
    return (folder / MANIFEST).exists() or (folder / UNFINISHED / "plan.json").exists()


def _whole(artifact: Artifact, *, verified: bool) -> dict[str, Any]:
    manifest = artifact.manifest
    facts = {
        "path": str(artifact.path),
        "kind": manifest.kind,
        "whole": True,
        "verified": verified,
        "fingerprint": artifact.fingerprint,
        "created": manifest.created,
        "parts": len(manifest.parts),
        "bytes": sum(part.bytes for part in manifest.parts),
        "statistics": manifest.statistics,
        "versions": manifest.versions,
        "git_revision": manifest.git_revision,
        "tracking_run": manifest.tracking_run,
        "made_from": lineage(artifact),
    }
    if manifest.kind == "index":
        facts["index"] = index_facts(artifact.path)
    return facts | ({"code_health": code_health(artifact)} if manifest.kind == "codes" else {})


def _unfinished(path: Path) -> dict[str, Any]:
    plan = Plan.model_validate_json((path / UNFINISHED / "plan.json").read_bytes())
    receipts = [file for file in (path / UNFINISHED).glob("*.json") if file.name != "plan.json"]
    return {
        "path": str(path),
        "kind": plan.kind,
        "whole": False,
        "fingerprint": plan.fingerprint,
        "parts": len(receipts),
        "made_from": [{"name": item.name, "path": item.uri} for item in plan.inputs],
    }


def _origin(artifact: Artifact, name: str) -> dict[str, Any]:
    path = artifact.input_path(name)
    facts: dict[str, Any] = {"name": name, "path": str(path), "fingerprint": artifact.input(name).fingerprint[:16]}
    if not path.exists():
        return facts | {"state": "gone"}
    if not (path / MANIFEST).exists():
        return facts
    found = Artifact.open(path)
    same = found.fingerprint == artifact.input(name).fingerprint
    return facts | ({} if same else {"state": "changed since"}) | {"made_from": lineage(found)}
