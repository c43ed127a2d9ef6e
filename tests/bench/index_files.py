"""An index of random codes and texts with a model of random weights: the size of a real one, made in a minute."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.artifact import Artifact, Draft, Plan, begin, record_part
from pipelines.index import IndexConfig, index
from pipelines.tokenizer import Tokenizer, learn_bpe
from pipelines.vocabulary import Vocabulary
from tests.pipelines.model_files import write_model
from vae_core.model import Composition

BITS, VOCABULARY, COMPONENTS = 128, 20_000, 32
PART, SNIPPET_WORDS, QUERY_WORDS = 100_000, 30, 6


def write_random_index(folder: Path, documents: int, queries: int) -> list[str]:
    """Write `folder`/model, codes and index; returns texts to ask with, of six words each."""
    dice = random.Random(0)
    words = sorted({"".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(VOCABULARY)})
    shards = folder / "shards"
    shards.mkdir(parents=True)
    Tokenizer(learn_bpe(words[:2000], 2000), Vocabulary.of(dict.fromkeys(words, 50), documents), 512).save(shards)
    parts = {"latent": {"bits": BITS, "components": COMPONENTS}}
    model = write_model(folder / "model", shards, Composition.model_validate(parts))
    index(_codes(folder / "codes", model, documents, words).path, folder / "index", IndexConfig())
    return [" ".join(dice.choices(words, k=QUERY_WORDS)) for _ in range(queries)]


def _codes(folder: Path, model: Artifact, documents: int, words: list[str]) -> Artifact:
    facts = {"bits": str(BITS), "bit_order": "little", "model": model.fingerprint, "source": "random"}
    draft = begin(folder, Plan(kind="codes", config={}, inputs=(model.as_input("model"),)))
    assert isinstance(draft, Draft)
    dice, parts = np.random.default_rng(0), []
    for number, start in enumerate(range(0, documents, PART)):
        rows = np.arange(start, min(start + PART, documents))
        table = _documents(dice, rows, words).replace_schema_metadata(facts)
        pq.write_table(table, draft.path / f"part-{number:05d}.parquet")
        parts.append(record_part(draft.path, f"part-{number:05d}.parquet", len(rows)))
    return draft.finish(parts, {"documents": documents, "bits": BITS})


def _documents(dice: np.random.Generator, rows: np.ndarray, words: list[str]) -> pa.Table:
    codes = dice.integers(0, 256, (len(rows), BITS // 8), dtype=np.uint8)
    chosen = np.array(words)[dice.integers(0, len(words), (len(rows), SNIPPET_WORDS))]
    years = pa.StructArray.from_arrays([pa.array(2000 + rows % 25)], names=["year"])
    return pa.table(
        {
            "id": [f"document-{row:07d}" for row in rows],
            "code": pa.array([code.tobytes() for code in codes], pa.binary(BITS // 8)),
            "component": pa.array(rows % COMPONENTS, pa.uint16()),
            "confidence": pa.array(np.full(len(rows), 0.75), pa.float32()),
            "labels": pa.array([["even" if row % 2 == 0 else "odd"] for row in rows.tolist()], pa.list_(pa.string())),
            "text": [" ".join(some) for some in chosen.tolist()],
            "metadata": years,
        }
    )
