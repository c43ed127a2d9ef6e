"""The evaluate stage: how well an index finds documents of the query's label, beside codes made without training.

Shapes: N documents of the database, Q queries, K bits, k hits.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import Field

from pipelines.artifact import Artifact, Draft, Input, Plan, begin, record_part, write_text
from pipelines.corpus import CorpusConfig, Document, corpus_inputs, plan_slices, read_slice
from pipelines.database import Database, shards_of
from pipelines.encoder import Encoder
from pipelines.precision import Labels, precision, precision_over_ties, without_own
from pipelines.progress import Progress, Silent
from pipelines.report import html_report
from pipelines.search import Hits, Index, nearest_codes, require_model
from vae_core.codes import PackedCodes
from vae_core.config import Config
from vae_core.diagnostics.code_health import CodeHealth
from vae_core.errors import Misuse

CUTS = (100, 10)
"""Precision is measured over this many nearest documents."""
OURS = ("log_odds", "hamming", "hamming_ties_averaged")
QUERIES_AT_ONCE = 256
CODES_AT_ONCE = 1 << 20
Measured = dict[str, NDArray[np.float64]]
"""For each ranking the precision of each query at each of CUTS: (Q, 2)."""


class EvaluateConfig(Config):
    """How many labelled documents of the database are asked for, where no other queries are given; and the seed."""

    sample: int = Field(default=1000, ge=1, description="queries taken from the database where none are given")
    seed: int = Field(default=0, description="of that sample, and of sign random projection")


def evaluate(
    index: Path,
    model: Path | None,
    out: Path,
    config: EvaluateConfig,
    *,
    queries: CorpusConfig | None,
    shards: Path | None,
    overwrite: bool = False,
    progress: Progress = Silent(),
) -> Artifact:
    """Measure `index` and write report.json and report.html to `out`.

    Queries are the labelled documents of `queries`, encoded with `model` (None: the one the index was made with), or
    a sample of the database's own, each left out of its own answer. The baselines need the `shards` the database was
    made from (None: found through the lineage). Raises Misuse, Stale or Damaged where these do not fit together.
    """
    opened = Index.open(index)
    trained = Artifact.open(model or opened.model_path(), "model")
    tokenized = shards_of(opened, shards)
    draft = begin(out, _plan(opened, trained, tokenized, queries, config), overwrite=overwrite)
    if isinstance(draft, Artifact):
        return draft
    encoder = Encoder.load(trained.path)
    require_model(opened, encoder.fingerprint)
    report = _report(Database(opened, tokenized, encoder, config.seed), queries, config, progress)
    return _write(draft, report)


@dataclass(frozen=True, slots=True, eq=False)
class _Queries:
    table: pa.Table  # in the shard schema, every row labelled
    own: NDArray[np.int64]  # (Q,) the query's row in the database, or -1


def _report(
    database: Database, queries: CorpusConfig | None, config: EvaluateConfig, progress: Progress
) -> dict[str, Any]:
    measured: Measured = {}
    if len(database.labels.labelled):
        batches = _sampled(database, config, progress) if queries is None else _read(database, queries, progress)
        found = [_measure(database, batch) for batch in batches]
        measured = {name: np.concatenate([one[name] for one in found]) for name in found[0]} if found else {}
        progress.finish()
    at_100, at_10 = ({name: float(values[:, cut].mean()) for name, values in measured.items()} for cut in range(2))
    return {
        "bits": database.index.bits,
        "documents": len(database.index),
        "queries": len(measured["hamming"]) if measured else 0,
        "precision_at_100": {name: at_100.get(name) for name in OURS},
        "precision_at_10": {name: at_10.get(name) for name in OURS},
        "baselines": {name: at_100[name] for name in database.baselines if name in at_100},
        "baselines_at_10": {name: at_10[name] for name in database.baselines if name in at_10},
        "code_health": _code_health(database),
        "protocol": _protocol(database, queries, measured),
    }


def _measure(database: Database, queries: _Queries) -> Measured:
    """Precision of every ranking for one batch of queries."""
    encoded = database.encoder.encode(queries.table)
    labels = Labels.of(queries.table.column("labels"), database.labels.names)
    most = max(CUTS) + 1
    by_log_odds = database.index.search(encoded.log_odds, most)
    by_hamming = database.index.search(encoded.log_odds, most, "hamming")
    measured = {
        "log_odds": _at_cuts(database, by_log_odds.rows, queries.own, labels),
        "hamming": _at_cuts(database, by_hamming.rows, queries.own, labels),
        "hamming_ties_averaged": _ties_averaged(database, encoded.codes, by_hamming, queries.own, labels),
    }
    for name, (projection, codes) in database.baselines.items():
        rows = nearest_codes(codes, projection.encode([queries.table]).bytes_NC.numpy(), most)
        measured[name] = _at_cuts(database, rows, queries.own, labels)
    return measured


def _at_cuts(
    database: Database, rows: NDArray[np.int64], own: NDArray[np.int64], labels: Labels
) -> NDArray[np.float64]:
    rows = without_own(rows, own)
    relevant = database.labels.relevant(rows, labels)
    return np.stack([precision(relevant, rows >= 0, cut) for cut in CUTS], axis=1)


def _ties_averaged(
    database: Database, codes: PackedCodes, nearest: Hits, own: NDArray[np.int64], labels: Labels
) -> NDArray[np.float64]:
    radii = nearest.distances.max(axis=1)
    shares = np.empty((len(codes), len(CUTS)))
    for query, code in enumerate(codes.bytes_NC.numpy()):
        rows, distances = database.index.within(code, int(radii[query]))
        rows, distances = rows[rows != own[query]], distances[rows != own[query]]
        relevant = database.labels.relevant(rows[None], labels[query])[0]
        shares[query] = [precision_over_ties(relevant, distances, cut) for cut in CUTS]
    return shares


def _sampled(database: Database, config: EvaluateConfig, progress: Progress) -> Iterator[_Queries]:
    """A sample of the labelled documents of the database, always the same for one seed."""
    if database.shards is None:
        raise Misuse(
            f"{database.index.artifact.path} was not made from shards, so its documents cannot be asked for again; "
            f"name queries: in the run's config, and give it with --config"
        )
    labelled = database.labels.labelled
    count = min(config.sample, len(labelled))
    rows = np.sort(np.random.default_rng(config.seed).choice(labelled, count, replace=False))
    table = database.take(rows)
    progress.start("evaluate", count, "queries")
    for start in range(0, count, QUERIES_AT_ONCE):
        batch = table.slice(start, QUERIES_AT_ONCE)
        yield _Queries(batch, rows[start : start + QUERIES_AT_ONCE])
        progress.advance(len(batch))


def _read(database: Database, queries: CorpusConfig, progress: Progress) -> Iterator[_Queries]:
    """The labelled documents of a corpus; rows that hold no document are passed over."""
    slices = plan_slices(queries)
    progress.start("evaluate", sum(piece.bytes for piece in slices), "bytes")
    for piece in slices:
        documents = (row for row in read_slice(queries, piece) if isinstance(row, Document) and row.labels)
        while batch := list(islice(documents, QUERIES_AT_ONCE)):
            yield _Queries(database.encoder.tokenizer.table(batch), np.full(len(batch), -1))
        progress.advance(piece.bytes)


def _code_health(database: Database) -> dict[str, Any]:
    health = CodeHealth(database.index.bits, database.encoder.model.latent.components)
    components = database.index.column("component")
    confidence = _confidence(database.index)
    start = 0
    for segment in database.index.codes():
        for first in range(0, len(segment), CODES_AT_ONCE):
            codes = torch.from_numpy(segment[first : first + CODES_AT_ONCE].copy())
            chosen = torch.from_numpy(components.slice(start, len(codes)).to_numpy().astype(np.int64))
            sure = None if confidence is None else torch.from_numpy(confidence[start : start + len(codes)].copy())
            health.update(PackedCodes(codes), chosen, sure)
            start += len(codes)
    return health.as_dict()


def _confidence(index: Index) -> NDArray[np.float32] | None:
    """The confidence of every code; the index does not hold it, and its codes may be gone."""
    codes = index.artifact.input_path("codes")
    if not codes.exists():
        return None
    files = Artifact.open(codes, "codes").files(".parquet")
    columns = [pq.read_table(file, columns=["confidence"])["confidence"] for file in files]
    return np.concatenate([column.to_numpy() for column in columns])


def _protocol(database: Database, queries: CorpusConfig | None, measured: Measured) -> list[str]:
    """What the figures mean, for whoever reads the report without this file."""
    if not len(database.labels.labelled):
        return ["No document has a label, so precision was not measured; code health needs none."]
    if not measured:
        return ["No query has a label, so precision was not measured; code health needs none."]
    source = "documents of other files" if queries else "a sample of the database, each left out of its own answer"
    lines = [
        f"Queries: {source}; those without a label are left out.",
        "Precision at k: mean over queries of the share of the k nearest documents that share a label with the query.",
        "Ties are broken by database row order; hamming_ties_averaged is what random orders of tied documents give.",
        "log_odds weighs each bit by the query's log-odds; hamming counts the bits that differ.",
    ]
    if database.baselines:
        lines.append("Baselines: codes of as many bits from tf-idf vectors of the same documents, ranked by Hamming.")
    else:
        lines.append("No baselines: the shards that the documents came from were not given and are not in the lineage.")
    return lines


def _plan(
    index: Index, model: Artifact, shards: Artifact | None, queries: CorpusConfig | None, config: EvaluateConfig
) -> Plan:
    inputs: list[Input] = [index.artifact.as_input("index"), model.as_input("model")]
    inputs += [shards.as_input("shards")] if shards else []
    settings = config.model_dump(mode="json")
    if queries is not None:
        inputs += corpus_inputs(queries)
        settings["queries"] = queries.model_dump(mode="json", exclude={"files"})
    return Plan(kind="report", config=settings, inputs=tuple(inputs))


def _write(draft: Draft, report: dict[str, Any]) -> Artifact:
    write_text(draft.path / "report.json", json.dumps(report, indent=1) + "\n")
    write_text(draft.path / "report.html", html_report(report))
    parts = [record_part(draft.path, name, 1) for name in ("report.json", "report.html")]
    return draft.finish(parts, {name: report[name] for name in ("bits", "documents", "queries")})
