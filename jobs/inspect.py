"""What an artifact is: whole or not, how large, from what, and how healthy its codes are."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from pipelines.artifact import MANIFEST, UNFINISHED, Artifact, Plan
from pipelines.files.working_folder import working_folder_of
from pipelines.indexing.code_files import packed_bytes
from pipelines.indexing.facts import facts as index_facts
from pipelines.indexing.facts import verify as verify_index
from pipelines.storage import Store, exists, shown, uri_of
from vae_core.codes import PackedCodes
from vae_core.diagnostics.code_health import CodeHealth
from vae_core.errors import Misuse, Unfinished


def describe(path: Path, *, verify: bool = False) -> dict[str, Any]:
    """Everything known of the artifact, or of each artifact of the run folder, at `path`.

    With `verify` every byte is compared with its checksum. Raises Misuse where nothing of ours is there, and Damaged.
    """
    if uri := uri_of(path):
        return _in_store(uri, verify=verify)
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
    return _verified(artifact, verify=verify)


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


def _in_store(uri: str, *, verify: bool) -> dict[str, Any]:
    """The same of an address: an artifact, or each one right below it."""
    store, marks = Store.at(uri), (MANIFEST, f"{UNFINISHED}/plan.json")
    names = store.sizes()
    if not any(mark in names for mark in marks):
        folders = {name.removesuffix(f"/{mark}") for name in names for mark in marks if name.endswith(f"/{mark}")}
        inside = sorted(name for name in folders if "/" not in name and not name.startswith("."))
        if not inside:
            raise Misuse(f"{uri} is neither an artifact nor a run; give an address that latentbits wrote to")
        found = [_in_store(f"{uri}/{name}", verify=verify) for name in inside]
        return {"path": uri, "kind": "run", "artifacts": found}
    if plan := store.read(f"{UNFINISHED}/plan.json") if MANIFEST not in names else None:
        receipts = [name for name in names if name.startswith(f"{UNFINISHED}/") and name.endswith(".json")]
        return _begun(uri, Plan.model_validate_json(plan), receipts)
    return _verified(Artifact.open(Path(uri)), verify=verify)


def _verified(artifact: Artifact, *, verify: bool) -> dict[str, Any]:
    if verify:
        artifact.verify()
        if artifact.manifest.kind == "index":
            verify_index(artifact)
    return _whole(artifact, verified=verify)


def _is_ours(folder: Path) -> bool:
    return (folder / MANIFEST).exists() or (folder / UNFINISHED / "plan.json").exists()


def _whole(artifact: Artifact, *, verified: bool) -> dict[str, Any]:
    manifest = artifact.manifest
    facts = {
        "path": artifact.place,
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
    return _begun(str(path), plan, [str(file) for file in (path / UNFINISHED).glob("*.json")])


def _begun(place: str, plan: Plan, records: list[str]) -> dict[str, Any]:
    """An artifact that is not complete; of the `records` beside its plan, those of parts are receipts."""
    receipts = [name for name in records if not name.endswith(("plan.json", "writer.json"))]
    return {
        "path": place,
        "kind": plan.kind,
        "whole": False,
        "fingerprint": plan.fingerprint,
        "parts": len(receipts),
        "made_from": [{"name": item.name, "path": item.uri} for item in plan.inputs],
    }


def _origin(artifact: Artifact, name: str) -> dict[str, Any]:
    path = artifact.input_path(name)
    stored = working_folder_of(path)
    place = stored[0].uri if stored else shown(path)
    facts: dict[str, Any] = {"name": name, "path": place, "fingerprint": artifact.input(name).fingerprint[:16]}
    if not exists(path):
        return facts | {"state": "gone"}
    if not (path / MANIFEST).exists():
        return facts
    found = Artifact.open(path)
    same = found.fingerprint == artifact.input(name).fingerprint
    return facts | ({} if same else {"state": "changed since"}) | {"made_from": lineage(found)}
