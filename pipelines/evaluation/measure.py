"""Every ranking of every query, measured: what its first documents have in common with the query.

Shapes: Q queries, q of a batch, N documents, R places of a ranking, K ranks at which the figures are told.
"""

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.agreement import NEIGHBOURS, ndcg, neighbour_gains, neighbour_recall
from pipelines.evaluation.precision import RANKS, Labels, at_ranks, ranks
from pipelines.evaluation.queries import Queries
from pipelines.evaluation.ranking import Ranked, Ties, best, rank_keys, ranked
from pipelines.evaluation.rankings import CodeRanking, Rankings
from pipelines.evaluation.references import nearest
from pipelines.progress import Progress
from vae_core.errors import Misuse

CELLS, FEWEST = 1 << 19, 16
"""Pairs of a query and a document that are worked on at a time, so many that they stay in a cache; and queries, of more
documents than that."""
AVERAGED = "_ties_averaged"
ByRanking = dict[str, list[NDArray[np.float64]]]
Numbers = TypeVar("Numbers", NDArray[np.float64], NDArray[np.int64])


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Figures of each query by ranking; a ranking of codes is there twice, in its own order and over tie orders."""

    ranks: NDArray[np.int64]
    relevant: NDArray[np.int64]
    """(Q,): documents that share a label with the query; empty where no labels were measured."""
    hits: dict[str, NDArray[np.float64]]
    """(Q, K): how many of them are among the first."""
    recall: dict[str, NDArray[np.float64]]
    """(Q,): share of the exact neighbours that are found; nan where a query has none."""
    ndcg: dict[str, NDArray[np.float64]]
    """(Q,)"""
    tied: dict[str, NDArray[np.int64]]
    """(Q,): documents of the same score as the last that counts."""

    def precision(self, name: str, k: int) -> NDArray[np.float64]:
        """Share of relevant ones among each query's first `k` documents, or all where there are fewer: (Q,)."""
        place = int(np.searchsorted(self.ranks, min(k, self.ranks[-1])))
        precision: NDArray[np.float64] = self.hits[name][:, place] / self.ranks[place]
        return precision


@dataclass(slots=True)
class _Sums:
    relevant: list[NDArray[np.int64]] = field(default_factory=list)
    hits: ByRanking = field(default_factory=dict)
    recall: ByRanking = field(default_factory=dict)
    ndcg: ByRanking = field(default_factory=dict)
    tied: dict[str, list[NDArray[np.int64]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """What documents are worth to some queries: by label 1 or 0, as neighbours their cosine, or 1, or 0; (q, N)."""

    own: NDArray[np.int64]
    by_label: NDArray[np.float32] | None
    as_neighbours: NDArray[np.float32] | None
    are_neighbours: NDArray[np.float32] | None
    exact: Ranked | None


@dataclass(frozen=True, slots=True, eq=False)
class _Order:
    """A ranking of a batch, its ties, and which documents stand for those of its last score."""

    top: Ranked
    ties: Ties
    tail: NDArray[np.bool_] | None  # (q, N); None for references, where the ranking says enough
    unfound: NDArray[np.bool_] | None  # (q,): references whose last documents have nothing in common with the query

    def gains(self, worth_qN: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """What each place gains, in the ranking's own order and over tie orders, (q, R)."""
        own_qR = np.take_along_axis(worth_qN, self.top.rows, axis=1)
        if self.tail is not None:
            tied_q = np.einsum("qn,qn->q", self.tail, worth_qN, dtype=np.float64)
        else:
            assert self.unfound is not None
            last_qR = self.top.scores == self.top.scores[:, -1:]
            before_q = (own_qR * ~last_qR).sum(axis=1, dtype=np.float64)
            together_q = own_qR.sum(axis=1, dtype=np.float64)
            tied_q = np.where(self.unfound, worth_qN.sum(axis=1, dtype=np.float64), together_q) - before_q
        return own_qR, self.ties.averaged(own_qR, tied_q)


def measure(
    compared: Rankings, queries: Queries, documents: int, labels: tuple[Labels, Labels] | None, progress: Progress
) -> Measured:
    """Measure every ranking. `labels` are the database's and the queries', where precision is to be measured.

    Raises Misuse where the database holds nothing but the query itself.
    """
    others = documents - int((queries.own >= 0).any())
    if others < 1:
        raise Misuse(f"the index holds {documents} document, so there is nothing to find; index more documents")
    places = min(others, RANKS[-1])
    progress.start("references", documents * len(compared.references), "documents")
    found = {name: nearest(one, queries.own, places, progress) for name, one in compared.references.items()}
    progress.finish()
    exact = found.get(compared.exact) if compared.exact else None
    sparse = {name for name, one in compared.references.items() if not isinstance(one.queries, np.ndarray)}
    sums, at = _Sums(), ranks(others)
    step = max(FEWEST, CELLS // documents)
    progress.start("measure", len(queries), "queries")
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        batch = _batch(queries.own[rows], documents, labels, rows, exact)
        for name, ranking in (compared.ours | compared.baselines).items():
            _add(sums, name, _of_codes(ranking, batch, rows, places), batch, at, twice=True)
        for name, top in found.items():
            some = Ranked(top.rows[rows], top.scores[rows])
            _add(sums, name, _of_reference(some, others, nonnegative=name in sparse), batch, at, twice=False)
        if batch.by_label is not None:
            sums.relevant.append(batch.by_label.sum(axis=1, dtype=np.int64))
        progress.advance(len(queries.own[rows]))
    progress.finish()
    return Measured(
        ranks=at,
        relevant=np.concatenate(sums.relevant) if sums.relevant else np.empty(0, np.int64),
        hits=_joined(sums.hits),
        recall=_joined(sums.recall),
        ndcg=_joined(sums.ndcg),
        tied=_joined(sums.tied),
    )


def _joined(parts: dict[str, list[Numbers]]) -> dict[str, Numbers]:
    return {name: np.concatenate(one) for name, one in parts.items()}


def _batch(
    own: NDArray[np.int64], documents: int, labels: tuple[Labels, Labels] | None, rows: slice, exact: Ranked | None
) -> _Batch:
    by_label = None
    if labels is not None:
        by_label = labels[0].shared_with(labels[1][rows]).astype(np.float32)
        by_label[own >= 0, own[own >= 0]] = 0
    if exact is None:
        return _Batch(own, by_label, None, None, None)
    nearest_rows = Ranked(exact.rows[rows], exact.scores[rows])
    gains = neighbour_gains(nearest_rows, documents)
    return _Batch(own, by_label, gains, (gains > 0).astype(np.float32), nearest_rows)


def _of_codes(ranking: CodeRanking, batch: _Batch, rows: slice, places: int) -> _Order:
    scores_qN = ranking.codes.scores(ranking.weights[rows])
    scores_qN[batch.own >= 0, batch.own[batch.own >= 0]] = -np.inf
    top = ranked(best(rank_keys(scores_qN), places))
    tail_qN = scores_qN == top.scores[:, -1:]
    return _Order(top, Ties(top.scores, tail_qN.sum(axis=1)), tail_qN, None)


def _of_reference(top: Ranked, others: int, *, nonnegative: bool) -> _Order:
    """Documents that share nothing with the query tie at 0, and how many they are follows from those that do not."""
    last_q = top.scores[:, -1]
    unfound_q = (last_q == 0) & (nonnegative | (top.scores[:, 0] == 0))
    tied_q = (top.scores == last_q[:, None]).sum(axis=1)
    tied_q = np.where(unfound_q, others - (top.scores != 0).sum(axis=1), tied_q)
    return _Order(top, Ties(top.scores, tied_q), None, unfound_q)


def _add(sums: _Sums, name: str, order: _Order, batch: _Batch, at: NDArray[np.int64], *, twice: bool) -> None:
    if twice:
        last = min(NEIGHBOURS, order.top.rows.shape[1]) - 1
        sums.tied.setdefault(name, []).append(order.ties.sizes(last))
    if batch.by_label is not None:
        own_qR, averaged_qR = order.gains(batch.by_label)
        sums.hits.setdefault(name, []).append(at_ranks(own_qR if twice else averaged_qR, at))
        if twice:
            sums.hits.setdefault(name + AVERAGED, []).append(at_ranks(averaged_qR, at))
    if batch.exact is not None:
        assert batch.are_neighbours is not None
        assert batch.as_neighbours is not None
        sums.recall.setdefault(name, []).append(neighbour_recall(order.gains(batch.are_neighbours)[1], batch.exact))
        sums.ndcg.setdefault(name, []).append(ndcg(order.gains(batch.as_neighbours)[1], batch.exact))
