"""The rankings that an evaluation compares: ours, codes of as many bits without training, and float references.

Shapes: N documents of the database, Q queries, K bits, V terms, D dimensions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pipelines.evaluation.baselines import sign_random_projection, simhash
from pipelines.evaluation.code_sets import CodeSet, signs
from pipelines.evaluation.database import Database
from pipelines.evaluation.itq import quantise
from pipelines.evaluation.queries import Queries
from pipelines.evaluation.references import Reference, bm25_rows, counts_rows, tfidf_rows, unit_rows
from pipelines.lsi import fit_lsi
from pipelines.tfidf import inverse_document_frequencies, term_counts, unit_tfidf
from vae_core.codes import MAX_LOG_ODDS, PackedCodes

LSI_DIMENSIONS = 128
"""Of the float reference; LSI + ITQ has as many as there are bits."""


class CodeRanking(NamedTuple):
    """A ranking of codes by the sum of the query's weights at their ones."""

    codes: CodeSet
    weights: NDArray[np.float32]
    """(Q, K)"""


@dataclass(frozen=True, slots=True)
class Rankings:
    """By name: ours, baselines, and references, of which the exact neighbours are taken from `exact`."""

    ours: dict[str, CodeRanking]
    baselines: dict[str, CodeRanking]
    references: dict[str, Reference]
    exact: str | None


def rankings(
    database: Database,
    queries: Queries,
    log_odds_QK: NDArray[np.float32],
    embedded_QD: NDArray[np.float32] | None,
    seed: int,
) -> Rankings:
    """All that this database allows: without shards there are only ours, with embeddings also the encoder's."""
    codes = CodeSet(database.codes)
    ours = {
        "log_odds": CodeRanking(codes, np.clip(log_odds_QK, -MAX_LOG_ODDS, MAX_LOG_ODDS)),
        "hamming": CodeRanking(codes, _signs_of(log_odds_QK)),
    }
    if database.shards is None:
        return Rankings(ours, {}, {}, None)
    baselines = _projected(database, queries, seed)
    references = _of_terms(database, queries)
    _add_lsi(database, queries, seed, baselines, references)
    if embedded_QD is None:
        return Rankings(ours, baselines, references, "tfidf")
    _add_encoder(database, embedded_QD, seed, baselines, references)
    return Rankings(ours, baselines, references, "encoder")


def _projected(database: Database, queries: Queries, seed: int) -> dict[str, CodeRanking]:
    bits, found = database.index.bits, {}
    projections = {
        "simhash": simhash(database.vocabulary, bits),
        "sign_random_projection": sign_random_projection(database.vocabulary, bits, seed),
    }
    for name, projection in projections.items():
        codes = CodeSet(projection.encode(database.batches()).bytes_NC.numpy())
        found[name] = CodeRanking(codes, signs(projection.encode([queries.table]).bytes_NC.numpy()))
    return found


def _of_terms(database: Database, queries: Queries) -> dict[str, Reference]:
    vocabulary = database.vocabulary
    idf_V = inverse_document_frequencies(vocabulary)
    lengths = [term_counts(batch).weights.sum(dtype=np.float64) for batch in database.batches()]
    mean_length = sum(lengths) / max(1, len(database))
    return {
        "tfidf": Reference(unit_tfidf(queries.table, idf_V), lambda: tfidf_rows(database.batches(), idf_V)),
        "bm25": Reference(
            counts_rows(queries.table, len(vocabulary)), lambda: bm25_rows(database.batches(), vocabulary, mean_length)
        ),
    }


def _add_lsi(
    database: Database,
    queries: Queries,
    seed: int,
    baselines: dict[str, CodeRanking],
    references: dict[str, Reference],
) -> None:
    bits = database.index.bits
    idf_V = inverse_document_frequencies(database.vocabulary)

    def documents() -> Iterator[csr_matrix]:
        return tfidf_rows(database.batches(), idf_V)

    vectors_VD, _ = fit_lsi(documents, len(idf_V), max(bits, LSI_DIMENSIONS), seed)
    asked = unit_tfidf(queries.table, idf_V)

    def placed(dimensions: int) -> Callable[[], Iterator[NDArray[np.float32]]]:
        return lambda: (unit_rows(rows @ vectors_VD[:, :dimensions]) for rows in documents())

    references["lsi"] = Reference(unit_rows(asked @ vectors_VD[:, :LSI_DIMENSIONS]), placed(LSI_DIMENSIONS))
    of_queries = unit_rows(asked @ vectors_VD[:, :bits])
    _add_quantised("lsi_itq", placed(bits), of_queries, database, seed, baselines)


def _add_encoder(
    database: Database,
    asked_QD: NDArray[np.float32],
    seed: int,
    baselines: dict[str, CodeRanking],
    references: dict[str, Reference],
) -> None:
    embeddings = database.embeddings
    assert embeddings is not None
    references["encoder"] = Reference(asked_QD, embeddings.blocks)
    _add_quantised("encoder_itq", embeddings.blocks, asked_QD, database, seed, baselines)
    own = np.concatenate([_packed(block) for block in embeddings.blocks()])
    baselines["encoder_signs"] = CodeRanking(CodeSet(own), signs(_packed(asked_QD)))


def _add_quantised(
    name: str,
    blocks: Callable[[], Iterator[NDArray[np.float32]]],
    asked: NDArray[np.float32],
    database: Database,
    seed: int,
    baselines: dict[str, CodeRanking],
) -> None:
    """Both ways to ask codes of rotated vectors: by the query's signs, and by its own values."""
    rotation, packed = quantise(blocks, len(database), database.index.bits, seed)
    codes, values = CodeSet(packed), rotation.values(asked)
    baselines[name] = CodeRanking(codes, _signs_of(values))
    baselines[f"{name}_asymmetric"] = CodeRanking(codes, values)


def _signs_of(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(values > 0, np.float32(1), np.float32(-1))


def _packed(vectors_nD: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The signs of vectors; where their width is no multiple of 8, with zeros behind that no query differs in."""
    ones = np.pad(vectors_nD > 0, ((0, 0), (0, -vectors_nD.shape[1] % 8)))
    return PackedCodes.pack(torch.from_numpy(ones)).bytes_NC.numpy()
