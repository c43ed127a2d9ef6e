"""Put hits in another order by their kept texts: BM25 of the query's words in each."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.corpus import Document
from pipelines.encoder import Encoder
from pipelines.evaluation.references import bm25_rows, counts_rows
from vae_core.errors import Misuse

CANDIDATES = 100
"""Hits that are looked at again, where fewer are asked for."""


def reranked(encoder: Encoder, query: str, found: list[dict[str, Any]], k: int) -> list[dict[str, Any]]:
    """The k of these hits whose kept texts have the highest BM25, each with it as `bm25`; equals stay in their order.

    How rare a word is was counted over the corpus of the model. Raises Misuse where no text was kept.
    """
    if found and not any(hit["text"] for hit in found):
        raise Misuse("the index keeps no texts to rank by BM25; leave out --rerank")
    scores = bm25(encoder, query, [hit["text"] for hit in found])
    order = np.argsort(-scores, kind="stable")[:k]
    return [found[place] | {"bm25": round(float(scores[place]), 4)} for place in order]


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


def _table(encoder: Encoder, texts: Sequence[str]) -> Any:
    made = [Document(str(number), text, [], {}, "text", number) for number, text in enumerate(texts)]
    return encoder.table(made).combine_chunks().to_batches()[0]
