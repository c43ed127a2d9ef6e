"""What the figures of a report mean, for whoever reads it without this program, and what to beware of."""

from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipelines.corpus import CorpusConfig
from pipelines.evaluation.database import Database
from pipelines.evaluation.measure import AVERAGED
from pipelines.evaluation.queries import Queries
from pipelines.evaluation.rankings import Rankings

UNTRAINED = {"log_odds": "lsi_itq_asymmetric", "hamming": "lsi_itq"}
"""What ranks in the same way by as many bits that nobody trained."""


def protocol(compared: Rankings, corpus: CorpusConfig | None, *, labelled: bool) -> list[str]:
    """How it was measured, one sentence a line."""
    source = "documents of other files" if corpus else "a sample of the database, each left out of its own answer"
    lines = [f"Queries: {source}{'; those without a label are left out' if labelled else ''}."]
    if labelled:
        lines += [
            "Precision at k: mean over queries of the share of the k nearest documents that share a label with the "
            "query. Recall at k: the share of all such documents that are among the k nearest.",
            "Documents of one score: their own order is the database's; ties averaged is what random orders give on "
            f"average, exactly. Baselines are compared with ties averaged. {AVERAGED.strip('_')} says which it is.",
            "Intervals: percentiles of 1,000 bootstrap resamples of the queries; differences are paired.",
        ]
    lines.append("log_odds weighs each bit by the query's log-odds; hamming counts the bits that differ.")
    if not compared.exact:
        lines.append("No baselines: the shards that the documents came from were not given and are not in the lineage.")
        return lines
    lines += [
        "Baselines: codes of as many bits from tf-idf vectors of the same documents, ranked by Hamming; asymmetric: "
        "the query keeps its numbers and only the documents are rounded, as with log_odds. References keep numbers on "
        "both sides.",
        "Without labels: recall and nDCG of the 100 exact nearest documents by "
        f"{'the cosine of the encoder' if compared.exact == 'encoder' else 'tf-idf cosine'}, ties averaged.",
    ]
    return lines


def warnings(database: Database, queries: Queries, corpus: CorpusConfig | None, *, labelled: bool) -> list[str]:
    """What makes figures say less than they seem to, with the remedy."""
    found = []
    if not len(database.labels.labelled):
        found.append("No document has a label, so precision was not measured; set corpus.labels to the field of one.")
    elif not labelled:
        found.append("No query has a label, so precision was not measured; corpus.labels names the field of labels.")
    elif (name := _shared_by_all(database)) is not None:
        found.append(
            f"Every labelled document has the label {name!r}: any ranking is right, and precision says nothing."
        )
    elif labelled and _strange(database, queries):
        found.append("No query has a label that is in the database: no ranking can be right, and precision is 0.")
    if len(database) - (corpus is None) < 100:
        found.append(f"There are only {len(database):,} documents: precision at 100 is over all of them.")
    empty = pc.sum(pc.equal(pc.list_value_length(queries.table.column("term_ids")), 0)).as_py() or 0
    if empty:
        found.append(f"{empty:,} of {len(queries):,} queries have no known word: their answers mean nothing.")
    return found


def beaten(figures: dict[str, Any]) -> list[str]:
    """A warning, with the remedy, where bits that nobody trained have a higher precision at 100 than ours."""
    averaged = figures["ties_averaged"]
    lost = {ours: other for ours, other in UNTRAINED.items() if other in averaged and averaged[other] > averaged[ours]}
    if not lost:
        return []
    pairs = ", ".join(f"{averaged[other]:.3f} against {averaged[ours]:.3f} by {ours}" for ours, other in lost.items())
    return [
        f"LSI + ITQ finds more in as many bits, without training: precision at 100 is {pairs}. See with "
        "`latentbits sweep` whether fewer pretrain.epochs, or model.encoder.word_vectors=lsi of the Transformer, "
        "serve these labels better."
    ]


def _shared_by_all(database: Database) -> str | None:
    """The label that every labelled document has, if there is one."""
    counts = np.asarray(database.labels.matrix.sum(axis=0)).ravel()
    most = int(counts.argmax())
    return str(database.labels.names[most]) if counts[most] == len(database.labels.labelled) else None


def _strange(database: Database, queries: Queries) -> bool:
    labels = queries.table.column("labels").combine_chunks()
    flat = labels.flatten() if len(labels) else labels
    return not pc.any(pc.is_in(flat, value_set=database.labels.names)).as_py()
