"""Deduplication by codes and texts against MinHash LSH by datasketch, both told the same documents, from text.

LATENTBITS_DOCUMENTS is their number, 20,000 if it is not set. They are docstrings of this machine's packages, spliced
two by two where there are too few, at most 240 characters long; a third are copies in which up to an eighth of the
words are changed. The codes, 64 bits, are of a model that a short training on 10,000 of them made, and are there
beforehand.

Ours is the whole of `dedup` with radius 3 and texts that confirm; theirs makes a MinHash of 128 permutations of each
document's three-word shingles and puts it into an index that it asks for each. Truth are all pairs with a Jaccard
similarity of 0.7 or more, by exact counts of shared shingles. F1 is over pairs of documents in one cluster, which are
the connected components of the pairs; of theirs as they are found (`as_found`), and checked by the estimate that the
signatures give, whichever is better.
"""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from jobs.docstrings import write_docstrings
from pipelines.dedup import DedupConfig, dedup
from pipelines.near_duplicates import NearDuplicates
from pipelines.scatter import cluster

DOCUMENTS = int(os.environ.get("LATENTBITS_DOCUMENTS", "20000"))
TRAINED_ON, CHARACTERS, JACCARD, RADIUS, PERMUTATIONS = 10_000, 240, 0.7, 3, 128
WORD = re.compile(r"[^\W_]+")
AT_ONCE = 500
Labels = np.ndarray


def main() -> Iterator[dict[str, object]]:
    """Documents a second of each, and F1 of each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = _corpus(folder)
        codes = _codes(folder)
        _warm_up()
        began = time.perf_counter()
        made = dedup(codes, folder / "duplicates", DedupConfig(radius=RADIUS, confirm=True, jaccard=JACCARD))
        ours = time.perf_counter() - began
        found = NearDuplicates.open(made.path).table["cluster"].to_numpy()
    began = time.perf_counter()
    pairs, likely = _minhash(texts)
    theirs = time.perf_counter() - began
    truth = _labels(_exact(texts))
    yield {
        "bench": f"dedup, {DOCUMENTS:,} documents",
        "ours": round(DOCUMENTS / ours),
        "theirs": round(DOCUMENTS / theirs),
        "unit": "documents/s",
        "ratio": round(theirs / ours, 2),
        "at_least": 5.0,
    }
    score = _f1(found, truth)
    as_found, checked = _f1(_labels(pairs), truth), _f1(_labels(pairs[likely]), truth)
    yield {
        "bench": f"dedup, F1 of pairs in one cluster, {DOCUMENTS:,} documents",
        "ours": round(score, 4),
        "theirs": round(max(as_found, checked), 4),
        "unit": "F1",
        "ratio": round(score / max(as_found, checked), 4),
        "at_least": 1.0,
        "as_found": round(as_found, 4),
        "truth": int(_pairs_in(truth)),
    }


def _minhash(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that datasketch finds, (P, 2), and which of these its signatures estimate to be near."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=JACCARD, num_perm=PERMUTATIONS)
    signatures = []
    pairs: list[tuple[int, int]] = []
    for row, text in enumerate(texts):
        signature = MinHash(num_perm=PERMUTATIONS)
        signature.update_batch([" ".join(shingle).encode() for shingle in _shingles(text)])
        pairs += [(other, row) for other in index.query(signature)]
        index.insert(row, signature)
        signatures.append(signature)
    likely = [signatures[left].jaccard(signatures[right]) >= JACCARD for left, right in pairs]
    return np.array(pairs).reshape(-1, 2), np.array(likely, bool)


def _exact(texts: list[str]) -> np.ndarray:
    """All pairs that are near, (P, 2): the product of the matrix of shingles with itself counts what is shared."""
    known: dict[tuple[str, ...], int] = {}
    columns = [[known.setdefault(shingle, len(known)) for shingle in _shingles(text)] for text in texts]
    sizes = np.array([len(row) for row in columns])
    ends = np.concatenate([[0], np.cumsum(sizes)])
    flat = np.array([column for row in columns for column in row])
    matrix = csr_array((np.ones(len(flat), np.int32), flat, ends), shape=(len(texts), len(known)))
    turned = matrix.T.tocsr()
    found = []
    for start in range(0, len(texts), AT_ONCE):
        shared = (matrix[start : start + AT_ONCE] @ turned).tocoo()
        left, right = shared.row + start, shared.col
        near = (left < right) & (shared.data >= JACCARD * (sizes[left] + sizes[right] - shared.data))
        found.append(np.stack([left[near], right[near]], axis=1))
    return np.concatenate(found)


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    return set(zip(words, words[1:], words[2:], strict=False)) if len(words) > 2 else {tuple(words)} - {()}


def _labels(pairs: np.ndarray) -> Labels:
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(DOCUMENTS, DOCUMENTS))
    labels: Labels = connected_components(graph, directed=False)[1]
    return labels


def _f1(found: Labels, truth: Labels) -> float:
    both = np.unique(np.stack([found, truth]), axis=1, return_inverse=True)[1].ravel()
    shared, ours, theirs = _pairs_in(both), _pairs_in(found), _pairs_in(truth)
    return 2 * shared / max(1, ours + theirs)


def _pairs_in(labels: Labels) -> float:
    sizes = np.bincount(labels).astype(np.float64)
    return float((sizes * (sizes - 1) / 2).sum())


def _corpus(folder: Path) -> list[str]:
    """The documents, also in docs.jsonl, and the first of them that are trained on in train.jsonl."""
    with cluster():
        write_docstrings(folder / "docstrings.jsonl")
    base = [json.loads(line)["text"] for line in (folder / "docstrings.jsonl").read_text().splitlines()]
    dice = random.Random(0)
    vocabulary = [word for text in base[:2000] for word in text.split()]
    texts: list[str] = []
    for row in range(DOCUMENTS):
        if row % 3 == 2:
            texts.append(_edited(dice, vocabulary, texts[dice.randrange(len(texts))]))
        elif row < len(base):
            texts.append(base[row][:CHARACTERS])
        else:
            texts.append((dice.choice(base)[: CHARACTERS // 2] + " " + dice.choice(base))[:CHARACTERS])
    order = dice.sample(range(DOCUMENTS), DOCUMENTS)
    texts = [texts[row] for row in order]
    for name, count in (("docs", DOCUMENTS), ("train", TRAINED_ON)):
        lines = (json.dumps({"id": f"d{row}", "text": text}) + "\n" for row, text in enumerate(texts[:count]))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return texts


def _edited(dice: random.Random, vocabulary: list[str], text: str) -> str:
    share = dice.random() / 8
    words = [dice.choice(vocabulary) if dice.random() < share else word for word in text.split()]
    return " ".join(words)[:CHARACTERS]


def _codes(folder: Path) -> Path:
    run = folder / "run"
    _latentbits(
        ["run", "demo", "--out", run, "--until", "pretrain", "--set", f"corpus.files=[{folder / 'train.jsonl'}]"],
        {"corpus.labels": "null", "corpus.metadata": "[]", "tracking.enabled": "false", "pretrain.epochs": "2"},
    )
    _latentbits(
        ["encode", run / "model", folder / "docs.jsonl", "--id", "id", "--out", folder / "codes"],
        {"tracking.enabled": "false"},
    )
    return folder / "codes"


def _latentbits(arguments: list[Any], settings: dict[str, str]) -> None:
    sets = [text for name, value in settings.items() for text in ("--set", f"{name}={value}")]
    command = [str(Path(sys.executable).with_name("latentbits")), *map(str, arguments), *sets]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _warm_up() -> None:
    """Imports are not measured, on neither side."""
    import datasketch  # noqa: F401
    import scipy.sparse.csgraph
    import scipy.special  # noqa: F401
