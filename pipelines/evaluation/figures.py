"""What an evaluation measured, as the figures of its report. Shapes: Q queries, M rankings, B resamples, K ranks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.agreement import NEIGHBOURS
from pipelines.evaluation.bootstrap import LEVEL, RESAMPLES, interval, resampled_means
from pipelines.evaluation.measure import AVERAGED, Measured
from pipelines.evaluation.precision import Labels
from pipelines.evaluation.rankings import Rankings

CUTS = (100, 10)
"""Precision is told over this many nearest documents."""
OURS = ("log_odds", "hamming", "log_odds_ties_averaged", "hamming_ties_averaged")
MOST_LABELS = 200
"""Labels that have a row of their own: those most asked for."""
EXACT = {"tfidf": "tf-idf cosine", "encoder": "encoder cosine"}


def precision_figures(measured: Measured, compared: Rankings, seed: int) -> dict[str, Any]:
    """Precision of every ranking, its intervals and its curves; None and nothing where no labels were measured."""
    figures: dict[str, Any] = {}
    for k in CUTS:
        at_k = {name: float(measured.precision(name, k).mean()) for name in measured.hits}
        behind = "" if k == CUTS[0] else f"_at_{k}"
        figures[f"precision_at_{k}"] = {name: at_k.get(name) for name in OURS}
        figures[f"baselines{behind}"] = {name: at_k[name] for name in compared.baselines if name in at_k}
        figures[f"references{behind}"] = {name: at_k[name] for name in compared.references if name in at_k}
        averaged = {name: at_k[name + AVERAGED] for name in compared.ours | compared.baselines if name in at_k}
        figures[f"ties_averaged{behind}"] = averaged
    figures["intervals"] = _intervals(measured, compared, seed)
    figures["curves"] = _curves(measured, compared)
    figures["ties_at_100"] = {name: float(sizes.mean()) for name, sizes in measured.tied.items()}
    return figures


def label_figures(
    measured: Measured, compared: Rankings, labels: Labels, asked: Labels
) -> list[dict[str, str | int | float]]:
    """Precision at 100 over the queries of each label, tied orders averaged; the labels most asked for first."""
    if not measured.hits:
        return []
    names = [*compared.ours, *compared.baselines, *compared.references]
    precision_QM = np.stack([_honest(measured, name, CUTS[0]) for name in names], axis=1)
    sums_LM, counts_L = asked.matrix.T @ precision_QM, np.asarray(asked.matrix.sum(axis=0)).ravel()
    documents_L = np.asarray(labels.matrix.sum(axis=0)).ravel()
    rows: list[dict[str, str | int | float]] = []
    for label in np.argsort(-counts_L, kind="stable")[:MOST_LABELS]:
        if counts_L[label]:
            shares = dict(zip(names, (sums_LM[label] / counts_L[label]).tolist(), strict=True))
            facts = {"queries": int(counts_L[label]), "documents": int(documents_L[label])}
            rows.append({"label": labels.names[int(label)].as_py()} | facts | shares)
    return rows


def label_free_figures(measured: Measured, compared: Rankings) -> dict[str, Any]:
    """How well each ranking finds the exact neighbours, over the queries that have one; ties averaged."""
    reference = EXACT.get(compared.exact or "")
    recall = {name: _mean(of) for name, of in measured.recall.items() if name != compared.exact}
    gains = {name: _mean(of) for name, of in measured.ndcg.items() if name != compared.exact}
    return {"reference": reference, f"recall_at_{NEIGHBOURS}": recall, f"ndcg_at_{NEIGHBOURS}": gains}


def _intervals(measured: Measured, compared: Rankings, seed: int) -> dict[str, Any]:
    """Bootstrap intervals of each ranking's precision, and of how far ours are above each other one."""
    intervals: dict[str, Any] = {"level": LEVEL, "resamples": RESAMPLES}
    if not measured.hits:
        return intervals
    names = [*compared.ours, *compared.baselines, *compared.references]
    for k in CUTS:
        precision_QM = np.stack([_honest(measured, name, k) for name in names], axis=1)
        drawn = dict(zip(names, resampled_means(precision_QM, seed).T, strict=True))
        means = dict(zip(names, precision_QM.mean(axis=0).tolist(), strict=True))
        intervals[f"precision_at_{k}"] = {name: interval(drawn[name]) for name in names}
        intervals[f"differences_at_{k}"] = {
            ours: {
                other: {"mean": means[ours] - means[other], "interval": interval(drawn[ours] - drawn[other])}
                for other in names
                if other != ours
            }
            for ours in compared.ours
        }
    return intervals


def _curves(measured: Measured, compared: Rankings) -> dict[str, Any]:
    """Precision and recall at each rank: over tie orders, and for codes in their own order too."""
    curves: dict[str, Any] = {"ranks": measured.ranks.tolist()}
    if not measured.hits:
        return curves
    codes = list(compared.ours | compared.baselines)
    averaged = {name: measured.hits[name + AVERAGED] for name in codes}
    averaged |= {name: measured.hits[name] for name in compared.references}
    own = {name: measured.hits[name] for name in codes}
    for kind, hits in (("", averaged), ("_in_own_order", own)):
        curves[f"precision{kind}"] = {name: (of.mean(axis=0) / measured.ranks).tolist() for name, of in hits.items()}
        curves[f"recall{kind}"] = {name: _recall(of, measured.relevant) for name, of in hits.items()}
    return curves


def _recall(hits_QK: NDArray[np.float64], relevant_Q: NDArray[np.int64]) -> list[float]:
    """Mean over the queries that have anything to find."""
    there = relevant_Q > 0
    if not there.any():
        return [0.0] * hits_QK.shape[1]
    means: list[float] = (hits_QK[there] / relevant_Q[there, None]).mean(axis=0).tolist()
    return means


def _honest(measured: Measured, name: str, k: int) -> NDArray[np.float64]:
    """The precision that owes nothing to the order of tied documents."""
    return measured.precision(name + AVERAGED if name + AVERAGED in measured.hits else name, k)


def _mean(values_Q: NDArray[np.float64]) -> float | None:
    known = values_Q[~np.isnan(values_Q)]
    return float(known.mean()) if len(known) else None
