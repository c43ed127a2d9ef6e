"""What an evaluation measured of each query, kept so that two models can be compared query by query."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.evaluation.bootstrap import interval, resampled_means
from pipelines.evaluation.measure import AVERAGED, Measured
from vae_core.errors import Damaged, Misuse

QUERIES = "queries.parquet"
RANKING = "log_odds" + AVERAGED
PRECISION, RECALL = "precision_at_100", "recall_at_100"
MEANING = {
    PRECISION: "share of documents with a label of the query's among the 100 nearest",
    RECALL: "share of the 100 exact neighbours among the 100 nearest",
}


@dataclass(frozen=True, slots=True, eq=False)
class QueryFigures:
    """The figures of Q queries of one model's codes over one database, ties averaged; nan where there is none."""

    database: str
    ids: list[str]
    figures: dict[str, NDArray[np.float64]]

    @classmethod
    def of(cls, ids: list[str], database_ids: Iterable[pa.Array], measured: Measured) -> "QueryFigures":
        """Those of the ranking by log-odds; `database_ids` are hashed, to tell another database from this one."""
        nothing = np.full(len(ids), np.nan)
        precision = measured.precision(RANKING, 100) if RANKING in measured.hits else nothing
        return cls(_digest(database_ids), ids, {PRECISION: precision, RECALL: measured.recall.get("log_odds", nothing)})

    @classmethod
    def read(cls, path: Path) -> "QueryFigures":
        """The figures at `path`. Raises Damaged."""
        try:
            table = pq.read_table(path)
            figures = {name: table[name].to_numpy() for name in MEANING}
            return cls(table.schema.metadata[b"database"].decode(), table["id"].to_pylist(), figures)
        except (OSError, KeyError, TypeError, pa.ArrowInvalid) as error:
            raise Damaged(f"{path} cannot be read ({error}); run evaluate with --overwrite") from error

    def write(self, path: Path) -> None:
        """Write the figures to `path`."""
        table = pa.table({"id": pa.array(self.ids, pa.string()), **self.figures})
        pq.write_table(table.replace_schema_metadata({b"database": self.database.encode()}), path)


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far one model's mean figure is above another's, over the queries that both have a figure of."""

    figure: str
    queries: int
    ours: float
    theirs: float
    difference: float
    low: float
    high: float

    @property
    def better(self) -> bool:
        """Whether all of the interval of the difference lies above 0."""
        return self.low > 0


def compare(ours: QueryFigures, theirs: QueryFigures, seed: int = 0) -> Comparison:
    """A paired bootstrap over queries: by precision where there are labels, else by recall of exact neighbours.

    Raises Misuse unless both were asked the same queries of the same documents.
    """
    if ours.database != theirs.database:
        raise Misuse("the two models were evaluated over other documents; evaluate both on one corpus")
    if ours.ids != theirs.ids:
        raise Misuse("the two models were asked other queries; evaluate both with the same queries and evaluate.seed")
    for figure in MEANING:
        known = ~np.isnan(ours.figures[figure]) & ~np.isnan(theirs.figures[figure])
        if known.any():
            pair = np.stack([ours.figures[figure][known], theirs.figures[figure][known]], axis=1)
            drawn = resampled_means(pair, seed)
            low, high = interval(drawn[:, 0] - drawn[:, 1])
            mean = pair.mean(axis=0)
            return Comparison(
                figure, int(known.sum()), float(mean[0]), float(mean[1]), float(mean[0] - mean[1]), low, high
            )
    raise Misuse("neither labels nor exact neighbours were measured for these queries, so nothing can be compared")


def _digest(ids: Iterable[pa.Array]) -> str:
    digest = hashlib.sha256()
    for chunk in ids:
        digest.update("\n".join([*chunk.to_pylist(), ""]).encode())
    return digest.hexdigest()[:16]
