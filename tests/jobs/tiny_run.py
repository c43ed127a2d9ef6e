"""A tiny corpus and its settings, and what a command said."""

import json
import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import yaml

TOPICS = {
    "sea": "ship wave harbour sail captain storm anchor tide crew island",
    "kitchen": "bread oven flour butter recipe salt pan onion soup knife",
    "space": "star rocket orbit planet moon comet gravity telescope launch dust",
}
SETTINGS: dict[str, Any] = {
    "corpus": {"id": "id", "labels": "topic"},
    "model": {
        "encoder": {"kind": "transformer", "width": 16, "hidden": 32},
        "latent": {"kind": "bernoulli_mixture", "bits": 16, "components": 4},
    },
    "pretrain": {"epochs": 1, "batch_size": 64},
    "tracking": {"enabled": False},
}


class Said(NamedTuple):
    """What a command left: its exit status, and what it wrote."""

    status: int
    out: str
    err: str


class Tiny(NamedTuple):
    """A finished run over 300 short documents."""

    config: Path
    corpus: Path
    folder: Path

    def copy(self, place: Path) -> "Tiny":
        """The same run elsewhere, to be damaged."""
        shutil.copytree(self.folder, place / "run")
        return self._replace(folder=place / "run")


def write_corpus(path: Path, documents: int = 300) -> None:
    chance = random.Random(0)
    topics = list(TOPICS)
    with path.open("w") as file:
        for number in range(documents):
            topic = topics[number % len(topics)]
            text = " ".join(chance.choices(TOPICS[topic].split(), k=30))
            file.write(json.dumps({"id": f"{topic}-{number}", "text": text, "topic": topic}) + "\n")


def write_config(folder: Path, corpus: Path, out: Path) -> Path:
    settings = SETTINGS | {"out": str(out), "corpus": {**SETTINGS["corpus"], "files": [str(corpus)]}}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path
