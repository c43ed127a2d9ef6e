"""The evaluate stage: how well an index finds what belongs to a query, beside codes and vectors made without training.

Shapes: N documents of the database, Q queries, K bits.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.artifact import Artifact, Draft, Input, Plan, begin, record_part, replacing, write_text
from pipelines.corpus import CorpusConfig, corpus_inputs
from pipelines.embeddings import Embeddings
from pipelines.encoder import Encoder
from pipelines.evaluation.code_figures import code_figures
from pipelines.evaluation.database import Database, shards_of
from pipelines.evaluation.drift import drift
from pipelines.evaluation.figures import CUTS, label_figures, label_free_figures, precision_figures
from pipelines.evaluation.measure import measure
from pipelines.evaluation.precision import Labels
from pipelines.evaluation.protocol import beaten, protocol, warnings
from pipelines.evaluation.queries import Queries, read_queries
from pipelines.evaluation.query_figures import QUERIES, QueryFigures
from pipelines.evaluation.rankings import rankings
from pipelines.evaluation.report import html_report
from pipelines.progress import Progress, Silent
from pipelines.search import Index, require_model
from pipelines.text_encoder import TextEncoder, folder_fingerprint
from vae_core.config import Config
from vae_core.errors import Damaged, Misuse

QUERIES_AT_ONCE = 256
SCALARS = (int, float)
INTERVALS = tuple(f"precision_at_{k}" for k in CUTS)


class EvaluateConfig(Config):
    """What is asked, and what the codes are compared with beside what the documents' words give."""

    sample: int = Field(default=1000, ge=1, description="queries taken from the database where none are given")
    most: int = Field(default=20_000, ge=1, description="queries that are asked at most; of more a sample is taken")
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="of samples, of the baselines' random numbers, and of the bootstrap"
    )
    embeddings: Path | None = Field(
        default=None,
        description="folder that `embed` wrote for the database: its encoder's neighbours and codes are compared with",
    )
    compare_codes: Path | None = Field(
        default=None, description="other codes of the same documents: how far these have drifted from them"
    )


def evaluate(
    index: Path,
    model: Path | None,
    out: Path,
    config: EvaluateConfig,
    *,
    queries: CorpusConfig | None,
    shards: Path | None,
    encoder_folder: Path | None = None,
    overwrite: bool = False,
    progress: Progress = Silent(),
) -> Artifact:
    """Measure `index` and write report.json and report.html to `out`.

    Queries are documents of `queries`, encoded with `model` (None: the one the index was made with), or a sample of
    the database's own, each left out of its own answer; with a label, where the database has any. The baselines need
    the `shards` the database was made from (None: found through the lineage). `encoder_folder` is where the sentence
    encoder lies now, for a model that reads its embeddings. Raises Misuse, Stale or Damaged where these do not fit
    together.
    """
    opened = Index.open(index)
    trained = Artifact.open(model or opened.model_path(), "model")
    tokenized = shards_of(opened, shards)
    embedded = _embeddings(config, tokenized, opened)
    other = Artifact.open(config.compare_codes, "codes") if config.compare_codes else None
    inputs = [opened.artifact.as_input("index"), trained.as_input("model")]
    inputs += [one.as_input(name) for name, one in (("shards", tokenized), ("compared codes", other)) if one]
    inputs += [embedded.artifact.as_input("embeddings")] if embedded else []
    draft = begin(out, _plan(inputs, queries, config), overwrite=overwrite)
    if isinstance(draft, Artifact):
        return draft
    encoder = Encoder.load(trained.path, encoder_folder)
    require_model(opened, encoder.fingerprint)
    database = Database(opened, encoder, tokenized, embedded)
    report, figures = _report(database, queries, config, encoder_folder, progress)
    if other is not None:
        report["drift"] = drift(opened, other, config.seed)
    return _write(draft, report, figures)


def _report(
    database: Database,
    corpus: CorpusConfig | None,
    config: EvaluateConfig,
    encoder_folder: Path | None,
    progress: Progress,
) -> tuple[dict[str, Any], QueryFigures]:
    queries, labelled = _queries(database, corpus, config, progress)
    embedded_QD = _embedded(database, queries, encoder_folder, progress) if database.embeddings else None
    log_odds_QK = _log_odds(database, queries, embedded_QD, progress)
    compared = rankings(database, queries, log_odds_QK, embedded_QD, config.seed)
    asked = Labels.of(queries.table.column("labels"), database.labels.names)
    labels = (database.labels, asked) if labelled else None
    measured = measure(compared, queries, len(database), labels, progress)
    ids = queries.table.column("id").to_pylist()
    figures = QueryFigures.of(ids, database.index.column("id").chunks, measured)
    precision = precision_figures(measured, compared, config.seed)
    report = {
        "bits": database.index.bits,
        "documents": len(database),
        "queries": len(queries) if labelled else 0,
        "asked": len(queries),
        "warnings": [*warnings(database, queries, corpus, labelled=labelled), *beaten(precision)],
        **precision,
        "labels": label_figures(measured, compared, database.labels, asked),
        "label_free": label_free_figures(measured, compared),
        "code_health": code_figures(database, queries.table),
        "protocol": protocol(compared, corpus, labelled=labelled),
    }
    return report, figures


def _queries(
    database: Database, corpus: CorpusConfig | None, config: EvaluateConfig, progress: Progress
) -> tuple[Queries, bool]:
    """What is asked, and whether it is labelled: labelled documents where there are any, else all."""
    held = database.labels.labelled
    if corpus is None:
        rows = held if len(held) else np.arange(len(database))
        chosen = np.random.default_rng(config.seed).choice(rows, min(config.sample, len(rows)), replace=False)
        own = np.sort(chosen)
        return Queries(database.take(own), own), bool(len(held))
    tokenizer = database.encoder.tokenizer
    for labelled in (True, False) if len(held) else (False,):
        found = read_queries(corpus, tokenizer, config.most, config.seed, labelled=labelled, progress=progress)
        if len(found):
            return found, labelled
    raise Misuse(f"no document of {', '.join(corpus.files)} is left to ask with; look at queries.where and corpus.text")


def _log_odds(
    database: Database, queries: Queries, embedded_QD: NDArray[np.float32] | None, progress: Progress
) -> NDArray[np.float32]:
    """The queries' unrounded codes, (Q, K); a model that reads the same encoder's vectors is given these."""
    beside_QD = embedded_QD if _reads_the_same(database) else None
    parts: list[NDArray[np.float32]] = []
    progress.start("evaluate", len(queries), "queries")
    for start, batch in zip(range(0, len(queries), QUERIES_AT_ONCE), queries.batches(QUERIES_AT_ONCE), strict=True):
        vectors = None if beside_QD is None else beside_QD[start : start + QUERIES_AT_ONCE]
        parts.append(database.encoder.ask(batch.table, vectors))
        progress.advance(len(batch))
    progress.finish()
    log_odds_QK = np.concatenate(parts)
    if np.isnan(log_odds_QK).any():
        query = int(np.isnan(log_odds_QK).any(axis=1).argmax())
        raise Damaged(f"the model gives query {query} log-odds that are not numbers (nan); train it again")
    return log_odds_QK


def _reads_the_same(database: Database) -> bool:
    reads, held = database.encoder.text_encoder, database.embeddings
    if reads is None or held is None:
        return False
    return folder_fingerprint(reads.folder) == held.artifact.input("encoder").fingerprint


def _embedded(
    database: Database, queries: Queries, encoder_folder: Path | None, progress: Progress
) -> NDArray[np.float32]:
    """The queries' vectors, (Q, D): those of the database for its own documents, else of the same encoder."""
    assert database.embeddings is not None
    if (queries.own >= 0).all():
        return database.embeddings.rows(queries.own)
    encoder, parts = TextEncoder.of_model(database.embeddings.artifact, encoder_folder), []
    progress.start("embed", len(queries), "queries")
    for batch in queries.batches(QUERIES_AT_ONCE):
        parts.append(encoder.embed_documents(database.encoder.tokenizer, batch.table).astype(np.float32))
        progress.advance(len(batch))
    progress.finish()
    return np.concatenate(parts)


def _embeddings(config: EvaluateConfig, shards: Artifact | None, index: Index) -> Embeddings | None:
    if config.embeddings is None:
        return None
    if shards is None:
        raise Misuse(
            f"evaluate.embeddings needs the shards that {index.artifact.path} was made from, and they are gone"
        )
    return Embeddings.open(config.embeddings, shards)


def _plan(inputs: list[Input], queries: CorpusConfig | None, config: EvaluateConfig) -> Plan:
    settings = config.model_dump(mode="json", exclude={"embeddings", "compare_codes"})
    if queries is not None:
        inputs = [*inputs, *corpus_inputs(queries)]
        settings["queries"] = queries.model_dump(mode="json", exclude={"files"})
    return Plan(kind="report", config=settings, inputs=tuple(inputs))


def _write(draft: Draft, report: dict[str, Any], figures: QueryFigures) -> Artifact:
    write_text(draft.path / "report.json", json.dumps(report, indent=1) + "\n")
    write_text(draft.path / "report.html", html_report(report))
    with replacing(draft.path / QUERIES) as temporary:
        figures.write(temporary)
    parts = [record_part(draft.path, name, 1) for name in ("report.json", "report.html", QUERIES)]
    return draft.finish(parts, _statistics(report))


def _statistics(report: dict[str, Any]) -> dict[str, Any]:
    """The report's single numbers, which are what tracking takes: lists stay in the report."""
    numbers = {
        name: _numbers(value) if isinstance(value, dict) else value
        for name, value in report.items()
        if isinstance(value, (*SCALARS, dict)) and name not in ("intervals", "curves")
    }
    return numbers | {"intervals": {name: _ends(report["intervals"].get(name, {})) for name in INTERVALS}}


def _numbers(figures: dict[str, Any]) -> dict[str, Any]:
    nested = {name: _numbers(value) for name, value in figures.items() if isinstance(value, dict)}
    return {name: value for name, value in figures.items() if isinstance(value, SCALARS)} | nested


def _ends(intervals: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {name: {"low": low, "high": high} for name, (low, high) in intervals.items()}
