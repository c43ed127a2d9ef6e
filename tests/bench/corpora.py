"""Where the evaluation corpora lie: beside the checkout, or where LATENTBITS_DATA says."""

import os
from pathlib import Path

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"


def corpus_file(name: str) -> Path | None:
    """The file, or None where this machine does not have it."""
    path = Path(os.environ.get("LATENTBITS_DATA", BESIDE)) / name
    return path if path.exists() else None
