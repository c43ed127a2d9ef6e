"""What the graph loses by what keeps it small: the documents of 20 Newsgroups by date that are learned from.

The figure is purity, the share of a document's neighbours that have its label. In a walk the largest entries of a row
are kept, against all of them; and documents are joined among candidates, as in a large corpus, against among all.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pipelines.artifact import Artifact
from pipelines.evaluation.references import unit_rows
from pipelines.files.arrow import record_batches
from pipelines.graph import GraphConfig, graph
from pipelines.lsi import fit_lsi
from pipelines.neighbours.diffusion import NEAR, neighbours, reach_among, transitions
from pipelines.neighbours.similar import Similarity
from pipelines.neighbours.word_matrix import WordMatrix
from pipelines.scatter import cluster
from tests.bench.quality import Study, available

CONFIG = GraphConfig()
NEIGHBOURS = 100


def main() -> Iterator[dict[str, object]]:
    """Two lines for the walk and one for the candidates."""
    for protocol in available():
        if protocol.name == "newsgroups by date":
            with cluster(), tempfile.TemporaryDirectory() as folder:
                shards = Study(protocol, Path(folder)).shards()
                labels = _column(shards, "labels")
                yield from _walks(shards, labels, Path(folder))
                yield _candidates(shards, labels, Path(folder))


def _walks(shards: Artifact, labels: list[list[str]], folder: Path) -> Iterator[dict[str, object]]:
    usual = reach_among(len(labels), NEIGHBOURS)
    reaches = {"all": usual._replace(kept=len(labels)), "usual": usual, "large corpora": NEAR}
    walk, rows = _transitions(shards, folder), np.arange(len(labels))
    found, seconds = {}, {}
    for name, reach in reaches.items():
        began = time.monotonic()
        found[name] = neighbours(walk, rows, NEIGHBOURS, reach)
        seconds[name] = round(time.monotonic() - began, 1)
    for name in ("usual", "large corpora"):
        steps, kept = reaches[name]
        what = f"walk of {steps} steps, {kept} entries of a row kept ({name}), against {usual.steps} and all"
        yield _line(what, found[name], found["all"], labels) | {"seconds": [seconds[name], seconds["all"]]}


def _candidates(shards: Artifact, labels: list[list[str]], folder: Path) -> dict[str, object]:
    theirs = _column(graph(shards.path, folder / "whole", CONFIG), "neighbours")
    with patch("pipelines.graph.COMPARED_WITH_ALL", 0):
        ours = _column(graph(shards.path, folder / "among", CONFIG), "neighbours")
    return _line("joined among candidates against among all", ours, theirs, labels)


def _transitions(shards: Artifact, folder: Path) -> csr_matrix:
    words = WordMatrix.write(shards, folder)
    vectors_VD, _ = fit_lsi(words.blocks, words.terms, CONFIG.lsi, CONFIG.seed)
    topics_ND = np.vstack([unit_rows(block @ vectors_VD) for block in words.blocks()])
    similarity = Similarity(words, topics_ND, CONFIG.words_weight)
    return transitions(similarity.of(np.arange(len(words)), CONFIG.joined))


def _line(
    what: str, ours: Sequence[NDArray[np.int64]], theirs: Sequence[NDArray[np.int64]], labels: list[list[str]]
) -> dict[str, object]:
    purity, whole = _purity(ours, labels), _purity(theirs, labels)
    pairs = zip(ours, theirs, strict=True)
    shared = np.mean([len(set(some) & set(others)) / max(1, len(others)) for some, others in pairs])
    return {
        "bench": f"graph, 20 Newsgroups by date: {what}",
        "ours": round(purity, 4),
        "theirs": round(whole, 4),
        "unit": "purity of neighbours",
        "ratio": round(purity / whole, 4),
        "at_least": 0.98,
        "shared": round(float(shared), 3),
    }


def _purity(found: Sequence[NDArray[np.int64]], labels: list[list[str]]) -> float:
    own = np.array([names[0] for names in labels])
    return float(np.mean([np.mean(own[others] == own[row]) for row, others in enumerate(found) if len(others)]))


def _column(artifact: Artifact, name: str) -> list[Any]:
    batches = [batch for path in artifact.files(".arrow") for batch in record_batches(path)]
    return pa.Table.from_batches(batches).column(name).to_pylist()
