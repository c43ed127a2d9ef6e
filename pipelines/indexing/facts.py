"""What an index holds as of its newest version, in figures; and whether every byte of it is as it was written."""

from pathlib import Path
from typing import Any

from pipelines.artifact import Artifact, checksum
from pipelines.indexing.versions import newest
from vae_core.errors import Damaged


def facts(path: Path) -> dict[str, Any]:
    """Version, documents, deleted rows, segments and bytes. Raises Misuse, Unfinished or Damaged."""
    artifact = Artifact.open(path, "index")
    version = newest(artifact)
    rows = sum(segment.rows for segment in version.segments)
    return {
        "path": str(path),
        "version": version.number,
        "change": version.change,
        "documents": version.documents,
        "deleted": rows - version.documents,
        "segments": len(version.segments),
        "bytes": sum(part.bytes for segment in version.segments for part in segment.files()),
        "bits": artifact.manifest.statistics["bits"],
    }


def damaged_files(artifact: Artifact) -> dict[str, str]:
    """Files of the newest version that are not as they were written, and what is wrong with each."""
    found: dict[str, str] = {}
    for segment in newest(artifact).segments:
        for part in segment.files():
            path = artifact.path / part.name
            if not path.exists():
                found[part.name] = "is missing"
            elif checksum(path) != part.checksum:
                found[part.name] = "has other bytes than were written (its checksum differs)"
    return found


def verify(artifact: Artifact) -> None:
    """Compare every byte that the newest version names with its checksum. Raises Damaged, naming the first file."""
    for name, reason in damaged_files(artifact).items():
        raise Damaged(f"{artifact.path / name} {reason}; make it anew with `latentbits index repair {artifact.path}`")
