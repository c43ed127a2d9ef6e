"""Code health of an index and its model: what the codes themselves say, without any query's answer.

Shapes: N codes, K bits, C components, Q queries.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from pipelines.artifact import Artifact
from pipelines.evaluation.database import Database
from pipelines.search import Index
from pipelines.shards import batch_of
from vae_core.codes import PackedCodes
from vae_core.decoders import BagOfWordsDecoder
from vae_core.diagnostics.code_health import CodeHealth
from vae_core.diagnostics.units import UnitVariance
from vae_core.generation import MixtureLatent
from vae_core.topics import component_words

CODES_AT_ONCE = 1 << 16
WORDS = 8
"""Of each component, those that it raises most."""
RATE_DOCUMENTS, RATED_AT_ONCE = 256, 8
"""Queries that the rate and active units are of: each is encoded once more for it, padded to the longest of a few."""


def code_figures(database: Database, asked: pa.Table) -> dict[str, Any]:
    """CodeHealth's figures; `components` with words and places on a map; the rate by group, active units of queries."""
    health = CodeHealth(database.index.bits, database.encoder.model.latent.components)
    sums_CK = np.zeros((max(1, database.encoder.model.latent.components), database.index.bits))
    components = database.index.column("component")
    confidence = _confidence(database.index)
    for start in range(0, len(database), CODES_AT_ONCE):
        codes = PackedCodes(torch.from_numpy(database.codes[start : start + CODES_AT_ONCE]))
        chosen = torch.from_numpy(components.slice(start, len(codes)).to_numpy().astype(np.int64))
        sure = None if confidence is None else torch.from_numpy(confidence[start : start + len(codes)].copy())
        health.update(codes, chosen, sure)
        sums_CK += torch.zeros(sums_CK.shape).index_add_(0, chosen, codes.unpack().float()).numpy()
    figures = health.as_dict()
    counts_C = np.asarray(figures.pop("component_counts"))
    figures["components"] = _components(database, counts_C, sums_CK[: len(counts_C)])
    figures["uninformative"] = _uninformative(database)
    return figures | _of_queries(database, asked)


def _components(database: Database, counts_C: NDArray[np.int64], sums_CK: NDArray[np.float64]) -> list[dict[str, Any]]:
    """The components in use, the largest first: share of the documents, words, and place on a plane."""
    used = np.flatnonzero(counts_C)
    places = _plane(sums_CK[used] / counts_C[used, None], counts_C[used])
    words = _words(database)
    found = [
        {"component": int(one), "share": float(counts_C[one] / counts_C.sum()), "words": words.get(int(one), [])}
        | {"x": float(x), "y": float(y)}
        for one, (x, y) in zip(used, places, strict=True)
    ]
    return sorted(found, key=lambda one: -one["share"])


def _plane(means_CK: NDArray[np.float64], weights_C: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean codes on their first two principal axes, weighted by how many codes each is the mean of, (C, 2)."""
    centred_CK = means_CK - np.average(means_CK, axis=0, weights=weights_C)
    _, _, axes = np.linalg.svd(centred_CK * np.sqrt(weights_C)[:, None], full_matrices=False)
    places = np.zeros((len(means_CK), 2))
    places[:, : min(2, len(axes))] = centred_CK @ axes[:2].T
    return places


def _words(database: Database) -> dict[int, list[str]]:
    """The words of each component, where the decoder is a bag of words and the prior a mixture."""
    model = database.encoder.model
    if not isinstance(model.decoder, BagOfWordsDecoder) or not isinstance(model.latent, MixtureLatent):
        return {}
    terms = list(database.vocabulary.ids)
    found = component_words(model, WORDS).ids
    return {component: [terms[term] for term in row] for component, row in enumerate(found.tolist())}


def _uninformative(database: Database) -> float | None:
    """Share of documents without any known term, whose codes say nothing of them; None without the shards."""
    if database.shards is None:
        return None
    empty = sum(pc.sum(pc.equal(pc.list_value_length(b.column("term_ids")), 0)).as_py() for b in database.batches())
    return float(empty / max(1, len(database)))


@torch.no_grad()
def _of_queries(database: Database, asked: pa.Table) -> dict[str, Any]:
    """What only the model's posterior tells, and the codes do not hold."""
    if not len(asked):
        return {"active_units": None, "rate": None, "kl_groups": []}
    latent, units, rates = database.encoder.model.latent, UnitVariance(database.index.bits), []
    some = np.unique(np.linspace(0, len(asked) - 1, RATE_DOCUMENTS).astype(np.int64))
    for start in range(0, len(some), RATED_AT_ONCE):
        posterior = _posterior(database, asked.take(pa.array(some[start : start + RATED_AT_ONCE])))
        units.update(posterior.means)
        rates.append(latent.kl_groups(posterior).double())
    kl_G = torch.cat(rates).mean(dim=0)
    active = units.active if len(some) > 1 else None
    return {"active_units": active, "rate": float(kl_G.sum()), "kl_groups": kl_G.tolist()}


def _posterior(database: Database, documents: pa.Table) -> Any:
    model = database.encoder.model.eval()
    return model.posterior(batch_of(documents, tokens=model.reads_tokens, embeddings=_embedded(database, documents)))


def _embedded(database: Database, documents: pa.Table) -> NDArray[np.float32] | None:
    """The vectors that a joined model reads beside the words."""
    encoder = database.encoder
    if encoder.text_encoder is None:
        return None
    return encoder.text_encoder.embed_documents(encoder.tokenizer, documents).astype(np.float32)


def _confidence(index: Index) -> NDArray[np.float32] | None:
    """The confidence of every code; the index does not hold it, and its codes may be gone."""
    codes = index.artifact.input_path("codes")
    if not codes.exists():
        return None
    files = Artifact.open(codes, "codes").files(".parquet")
    columns = [pq.read_table(file, columns=["confidence"])["confidence"] for file in files]
    return np.concatenate([column.to_numpy() for column in columns])
