"""An index with its model and codes, made in a second without Ray: what a service is started on."""

import random
from pathlib import Path

import pyarrow.parquet as pq
from model_files import write_model

from pipelines.artifact import Artifact, Draft, Plan, begin, record_part
from pipelines.corpus import Document
from pipelines.encode import codes_table
from pipelines.encoder import Encoder
from pipelines.index import IndexConfig, index
from pipelines.tokenizer import Tokenizer, learn_bpe
from pipelines.vocabulary import Vocabulary, words

TOPICS = {
    "sea": "ship wave harbour sail captain storm anchor tide crew island",
    "kitchen": "bread oven flour butter recipe salt pan onion soup knife",
    "space": "star rocket orbit planet moon comet gravity telescope launch dust",
}


def documents(count: int = 300) -> list[Document]:
    """Thirty words of one topic each, with a year and a language."""
    chance, topics = random.Random(0), list(TOPICS)
    return [
        Document(
            f"{topic}/{number}",
            " ".join(chance.choices(TOPICS[topic].split(), k=30)),
            [topic],
            {"year": 2000 + number % 25, "lang": "en" if number % 2 else "de"},
            "test",
            number,
        )
        for number in range(count)
        for topic in [topics[number % len(topics)]]
    ]


def write_index(run: Path, count: int = 300, segments: int = 3, seed: int = 0) -> Artifact:
    """`run`/model, with random weights, codes and index over `count` documents in so many segments."""
    corpus = documents(count)
    shards = run / "shards"
    shards.mkdir(parents=True)
    df: dict[str, int] = {}
    for document in corpus:
        for word in set(words(document.text)):
            df[word] = df.get(word, 0) + 1
    vocabulary = Vocabulary.of(df, count)
    Tokenizer(learn_bpe((one.text for one in corpus), 300), vocabulary, 64).save(shards)
    model = write_model(run / "model", shards, seed=seed)
    codes = _codes(run / "codes", model, corpus)
    return index(codes.path, run / "index", IndexConfig(segment_documents=-(-count // segments)))


def _codes(folder: Path, model: Artifact, corpus: list[Document]) -> Artifact:
    encoder = Encoder.load(model.path)
    table = encoder.tokenizer.table(corpus)
    codes = codes_table(table, encoder.encode(table))
    facts = {"bits": str(encoder.bits), "bit_order": "little", "model": encoder.fingerprint, "source": "test"}
    draft = begin(folder, Plan(kind="codes", config={}, inputs=(model.as_input("model"),)))
    assert isinstance(draft, Draft)
    pq.write_table(codes.replace_schema_metadata(facts), draft.path / "part-00000.parquet")
    part = record_part(draft.path, "part-00000.parquet", len(codes))
    return draft.finish([part], {"documents": len(codes), "bits": encoder.bits})
