"""The encode stage against a bare loop: how much of the same model's speed over the same shards is left in the end.

Ours is the whole stage on two workers of a Ray cluster that runs already: it starts the workers, loads the model in
each, reads shards, writes and checksums parquet. Theirs is a loop in each of two processes that have loaded the model
and the shards' rows before the clock starts: batches of 256 documents in order, forward, bits, nothing written.
"""

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from pipelines.artifact import Artifact
from pipelines.corpus import CorpusConfig
from pipelines.encode import EncodeConfig, encode
from pipelines.files.arrow import record_batches
from pipelines.scatter import cluster, scatter
from pipelines.shards import batch_of
from pipelines.tokenize import TokenizeConfig, tokenize
from pipelines.tokenizing import slices
from tests.pipelines.model_files import write_model
from vae_core.model import VAE, Composition

DOCUMENTS, WORDS, VOCABULARY = 60_000, 60, 20_000
BATCH = 256
AT_LEAST = 0.8


def main() -> Iterator[dict[str, object]]:
    """Documents a second of the stage ("ours") and of the bare loops ("theirs")."""
    with tempfile.TemporaryDirectory() as name, cluster():
        folder = Path(name)
        shards = _shards(folder)
        model = write_model(folder / "model", shards.path, Composition()).path
        bare = max(scatter(partial(_bare_loop, model), _halves(shards), workers=2))
        started = time.perf_counter()
        codes = encode(model, shards.path, folder / "codes", EncodeConfig(workers=2))
        seconds = time.perf_counter() - started
        assert codes.manifest.statistics["documents"] == DOCUMENTS
    yield {
        "bench": "encode",
        "ours": round(DOCUMENTS / seconds),
        "theirs": round(DOCUMENTS / bare),
        "unit": "documents/s",
        "ratio": round(bare / seconds, 3),
        "at_least": AT_LEAST,
    }


def _halves(shards: Artifact) -> list[list[Path]]:
    parts = shards.files(".arrow")
    return [parts[0::2], parts[1::2]]


def _bare_loop(model: Path) -> Callable[[list[Path]], float]:
    torch.set_num_threads(1)
    vae = VAE.from_pretrained(model)

    def loop(parts: list[Path]) -> float:
        rows = [batch for part in parts for batch in record_batches(part)]
        started = time.perf_counter()
        for batch in rows:
            for start in range(0, batch.num_rows, BATCH):
                _ = vae.encode(batch_of(batch.slice(start, BATCH), tokens=False)).log_odds > 0
        return time.perf_counter() - started

    return loop


def _shards(folder: Path) -> Artifact:
    """Documents of 20 to 100 words, whose frequencies fall as in language."""
    dice = random.Random(0)
    words = ["".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(VOCABULARY)]
    weights = [1 / (rank + 30) for rank in range(VOCABULARY)]
    path = folder / "corpus.txt"
    with path.open("w") as file:
        for _ in range(DOCUMENTS):
            count = dice.randint(WORDS // 3, WORDS * 5 // 3)
            file.write(" ".join(dice.choices(words, weights, k=count)) + "\n")
    slices.SMALLEST = path.stat().st_size // 8
    corpus = CorpusConfig(files=(str(path),))
    return tokenize(corpus, folder / "shards", TokenizeConfig(sample=5000, max_tokens=64))
