"""Texts with planted topics: words, and which topic each document is of."""

import json
import random
from pathlib import Path
from typing import NamedTuple

from pipelines.artifact import Artifact
from pipelines.corpus import CorpusConfig
from pipelines.tokenize import TokenizeConfig, tokenize


class Text(NamedTuple):
    """A document of `words`, of the topic by this number."""

    words: str
    topic: int


def planted_texts(documents: int, topics: int, seed: int = 0, purity: float = 0.6) -> list[Text]:
    """Documents of 5 to 30 words; a share `purity` of them from the 60 words of their topic, the others from all."""
    dice = random.Random(seed)
    words = ["".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(60 * topics)]
    texts = []
    for number in range(documents):
        topic = number % topics
        own = words[60 * topic : 60 * (topic + 1)]
        chosen = [dice.choice(own if dice.random() < purity else words) for _ in range(dice.randint(5, 30))]
        texts.append(Text(" ".join(chosen), topic))
    return texts


def planted_shards(folder: Path, texts: list[Text]) -> Artifact:
    """The shards of these texts, labelled with their topics."""
    rows = ({"id": f"d{n}", "text": text.words, "topic": str(text.topic)} for n, text in enumerate(texts))
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = CorpusConfig(files=(str(folder / "a.jsonl"),), id="id", labels="topic")
    return tokenize(corpus, folder / "shards", TokenizeConfig(subwords=300))
