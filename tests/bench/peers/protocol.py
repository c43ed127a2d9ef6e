"""One protocol for all peers: which documents are searched, which ask, and P@100.

The database is what was trained on; a hit shares a label with the query. The validation part is 15 % of the training
part, so that nothing of the test part is read before it is asked for; of the random 60/20/20 split it is the second
part. Shapes: Q queries, N documents, K bits, R places.
"""

import os
from typing import Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from pipelines.corpus import BLANK_LINE
from pipelines.evaluation.precision import Labels
from pipelines.evaluation.ranking import Ties, best, rank_keys, ranked
from tests.bench.corpora import corpus_file
from tests.bench.peers.network import Encoder

Corpus = Literal["ng20 by date", "ng20 random", "reuters"]
CORPORA: tuple[Corpus, ...] = get_args(Corpus)
Part = Literal["validation", "test"]
HELD_OUT = 0.15
PLACES, ASKED_AT_ONCE = 100, 200


class Task(NamedTuple):
    """TF-IDF rows of the documents that are searched (N, V) and that ask (Q, V), and which of them share a label."""

    database: csr_matrix
    queries: csr_matrix
    shared_QN: NDArray[np.bool_]


class Precision(NamedTuple):
    """P@100, ties averaged: both sides rounded, and the query's numbers against the documents' bits."""

    hamming: float
    log_odds: float


def asked_part() -> Part:
    """What LATENTBITS_SPLIT says, or validation. Raises ValueError at any other word."""
    match os.environ.get("LATENTBITS_SPLIT", "validation"):
        case "validation":
            return "validation"
        case "test":
            return "test"
        case other:
            raise ValueError(f"LATENTBITS_SPLIT is {other!r}; set it to validation or to test")


def task(corpus: Corpus, part: Part = "validation") -> Task | None:
    """The documents as 10,000 words' TF-IDF; None where this machine does not have the corpus."""
    documents = _documents(corpus, part)
    if documents is None:
        return None
    held, asked = documents
    vectorizer = TfidfVectorizer(max_features=10_000, stop_words="english", sublinear_tf=True, dtype=np.float32)
    rows = vectorizer.fit_transform(_texts(held, corpus))
    labels = Labels.of(held.column("labels"))
    shared_QN = labels.shared_with(Labels.of(asked.column("labels"), labels.names))
    return Task(rows, vectorizer.transform(_texts(asked, corpus)), shared_QN)


def precision(encode: Encoder, of: Task, places: int = PLACES) -> Precision:
    """P@100, or at other places, of an encoder's codes by Hamming distance and by sum_k l_k(q) (2 b_k(d) - 1)."""
    signs_NK, values_QK = signs(encode(of.database)), encode(of.queries)
    rankings = (signs(values_QK), values_QK)
    return Precision(*(expected_precision(weights, signs_NK, of.shared_QN, places) for weights in rankings))


def expected_precision(
    weights_QK: NDArray[np.float32], signs_NK: NDArray[np.float32], shared_QN: NDArray[np.bool_], places: int
) -> float:
    """Of the documents of the largest weights @ signs, the share of hits expected if ties come in random order."""
    found = []
    for at in range(0, len(weights_QK), ASKED_AT_ONCE):
        hits_qN = shared_QN[at : at + ASKED_AT_ONCE].astype(np.float32)
        scores_qN = weights_QK[at : at + ASKED_AT_ONCE] @ signs_NK.T
        top = ranked(best(rank_keys(scores_qN), places))
        last_qN = scores_qN == top.scores[:, -1:]
        tied_q = (last_qN * hits_qN).sum(axis=1, dtype=np.float64)
        own_qR = np.take_along_axis(hits_qN, top.rows, axis=1)
        found.append(Ties(top.scores, last_qN.sum(axis=1)).averaged(own_qR, tied_q).mean(axis=1))
    return float(np.concatenate(found).mean())


def signs(values_NK: NDArray[np.float32]) -> NDArray[np.float32]:
    """A code as 1 and -1."""
    return np.where(values_NK > 0, np.float32(1), np.float32(-1))


def _documents(corpus: Corpus, part: Part) -> tuple[pa.Table, pa.Table] | None:
    """Those that are searched and those that ask."""
    path = corpus_file("reuters.parquet" if corpus == "reuters" else "ng20.parquet")
    if path is None:
        return None
    if corpus == "ng20 random":
        documents = pq.read_table(path)
        order = np.random.RandomState(0).permutation(len(documents))
        first, second = int(0.6 * len(order)), int(0.8 * len(order))
        asked = order[first:second] if part == "validation" else order[second:]
        return documents.take(order[:first]), documents.take(asked)
    documents = pq.read_table(path, filters=[("split", "==", "train")])
    if part == "test":
        return documents, pq.read_table(path, filters=[("split", "==", "test")])
    order = np.random.RandomState(1).permutation(len(documents))
    first = int(np.ceil(HELD_OUT * len(order)))
    return documents.take(order[first:]), documents.take(order[:first])


def _texts(documents: pa.Table, corpus: Corpus) -> list[str]:
    """A message of a newsgroup begins after the first blank line: its header would tell its topic."""
    texts = documents.column("text").to_pylist()
    if corpus == "reuters":
        return texts
    return [text[blank.end() :] if (blank := BLANK_LINE.search(text)) else text for text in texts]
