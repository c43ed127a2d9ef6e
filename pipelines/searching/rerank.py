"""Put hits in another order by their kept texts: BM25 of the query's words in each, or the cosine of float vectors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.corpus import Document
from pipelines.encoder import Encoder
from pipelines.evaluation.references import bm25_rows, counts_rows
from pipelines.text_encoder import TextEncoder
from vae_core.errors import Misuse

CANDIDATES = 100
"""Hits that are looked at again, where fewer are asked for."""


@dataclass(frozen=True, slots=True)
class Reranker:
    """Hits in the order of how like the query their kept texts are; a hit says how much under `name`."""

    name: str
    likeness: Callable[[str, Sequence[str]], np.ndarray]
    """Of a query with each of n texts, (n,)."""

    def best(self, query: str, found: list[dict[str, Any]], k: int) -> list[dict[str, Any]]:
        """The k that are most like it; equals stay in their order. Raises Misuse where no text was kept."""
        if found and not any(hit["text"] for hit in found):
            raise Misuse("the index keeps no texts to rank again; leave out --rerank")
        scores = self.likeness(query, [hit["text"] for hit in found])
        order = np.argsort(-scores, kind="stable")[:k]
        return [found[place] | {self.name: round(float(scores[place]), 4)} for place in order]


def reranker(by: str, encoder: Encoder) -> Reranker:
    """By `bm25`, with word frequencies of the model's corpus; or by cosine, of the sentence encoder in the folder `by`.

    Raises Misuse where there is no such folder, or none with a sentence encoder, and Damaged for a broken one.
    """
    if by == "bm25":
        return Reranker("bm25", partial(bm25, encoder))
    if not Path(by).is_dir():
        raise Misuse(f"--rerank {by}: there is no such folder; give bm25, or the folder of a sentence encoder")
    return Reranker("cosine", partial(cosine, TextEncoder.load(Path(by))))


def bm25(encoder: Encoder, query: str, texts: Sequence[str]) -> np.ndarray:
    """BM25 of the query in each text, (n,); the mean length is that of these texts."""
    if not texts:
        return np.empty(0)
    vocabulary = encoder.tokenizer.vocabulary
    asked, documents = (_table(encoder, some) for some in ([query], texts))
    counted = counts_rows(documents, len(vocabulary))
    (weights,) = bm25_rows([documents], vocabulary, float(counted.sum()) / len(texts))
    terms = np.unique(counts_rows(asked, len(vocabulary)).indices)
    return np.asarray(weights[:, terms].sum(axis=1), np.float64).ravel()


def cosine(sentences: TextEncoder, query: str, texts: Sequence[str]) -> np.ndarray:
    """The cosine of the query's vector with that of each text, (n,)."""
    vectors = sentences.embed([query, *texts])
    return vectors[1:] @ vectors[0]


def _table(encoder: Encoder, texts: Sequence[str]) -> Any:
    made = [Document(str(number), text, [], {}, "text", number) for number, text in enumerate(texts)]
    return encoder.table(made).combine_chunks().to_batches()[0]
