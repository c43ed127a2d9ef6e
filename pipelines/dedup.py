"""The dedup stage: codes -> duplicates. Near-duplicate documents, their clusters, and which of each to keep."""

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from pipelines.artifact import Artifact, Draft, Part, Plan, begin, find_part, record_part, replacing
from pipelines.deduplication.compared import Collection, Compared
from pipelines.deduplication.links import LINK, Links, level_of, links_of
from pipelines.deduplication.near_pairs import HammingJoin, TextJoin, as_words, distances
from pipelines.deduplication.radius import SAMPLE, Precision, measure_precision, reached, widest_radius
from pipelines.deduplication.shingles import Shingles, write_shingles
from pipelines.progress import Progress, Silent
from vae_core.config import Config
from vae_core.errors import Misuse

SAVE_EVERY_S = 5.0
PART_ROWS, ROWS_AT_ONCE = 1_000_000, 65_536
Rows = NDArray[np.int64]


class DedupConfig(Config):
    """What counts as a near duplicate."""

    radius: int | None = Field(
        default=None, ge=0, description="bits two codes may differ in; null: as many as `precision` allows"
    )
    precision: float = Field(default=0.95, gt=0, le=1, description="share of pairs that must be near duplicates")
    jaccard: float = Field(default=0.7, gt=0, le=1, description="Jaccard similarity of near duplicates' word shingles")
    confirm: bool | None = Field(
        default=None, description="compare texts too; null: where codes alone do not reach `precision`"
    )


def dedup(
    codes: Path,
    out: Path,
    config: DedupConfig = DedupConfig(),  # noqa: B008 - frozen
    *,
    against: Path | None = None,
    overwrite: bool = False,
    progress: Progress = Silent(),
) -> Artifact:
    """Find the near duplicates among the documents of `codes` and write the duplicates artifact to `out`.

    With `against`, codes or an index, documents that are near one of these are duplicates of it; those are all kept
    and not compared with one another. Raises Misuse or Stale where the codes do not fit the request.
    """
    collection = Collection.open(codes, "codes")
    known = None if against is None else Collection.open(against, "against")
    compared = Compared(collection, known)
    _require_sense(compared, config)
    inputs = tuple(one.source for one in reversed(compared.collections))
    plan = Plan(kind="duplicates", config=config.model_dump(mode="json"), inputs=inputs)
    draft = begin(out, plan, overwrite=overwrite)
    if isinstance(draft, Artifact):
        return draft
    shingles = write_shingles(_texts(compared, progress), draft.scratch / "shingles") if compared.has_text else None
    try:
        choice = _choose(compared, shingles, config)
    except Misuse:
        shutil.rmtree(draft.scratch, ignore_errors=True)
        with contextlib.suppress(OSError):  # what else is in the folder stays
            draft.path.rmdir()
        raise
    units = _Units.of(compared, shingles, choice)
    links = _join(compared, shingles, units, choice, draft, progress)
    found = _found(compared, shingles, units, links)
    return _write(compared, found, choice, draft)


@dataclass(frozen=True, slots=True)
class Choice:
    """What makes two documents near duplicates: codes within `radius`, and texts too where `confirm` is set."""

    radius: int
    jaccard: float
    confirm: bool
    measured: list[Precision]


@dataclass(frozen=True, slots=True, eq=False)
class _Units:
    """Documents that cannot be told apart are one unit: one code, and one text where texts are compared.

    `first` (U,) is the first row of each, ascending; `of_row` (N,) the unit of each row, -1 where it has none.
    """

    first: Rows
    of_row: Rows
    known: int

    @classmethod
    def of(cls, compared: Compared, shingles: Shingles | None, choice: Choice) -> "_Units":
        """Documents without a known word, and those without text where texts are compared, are in no unit."""
        eligible = compared.informative.copy()
        columns = list(as_words(compared.codes).T)
        if choice.confirm and shingles is not None:
            eligible &= shingles.sizes > 0
            columns.append(np.asarray(shingles.sums))
        rows = np.flatnonzero(eligible)
        order = rows[np.lexsort([column[rows] for column in columns])] if len(rows) else rows
        new = np.zeros(len(order), bool)
        for column in columns:
            new[1:] |= column[order][1:] != column[order][:-1]
        new[:1] = True
        first = order[new]
        rank = np.argsort(np.argsort(first))
        of_row = np.full(len(compared), -1)
        of_row[order] = rank[np.cumsum(new) - 1] if len(order) else order
        first = np.sort(first)
        return cls(first, of_row, int(np.searchsorted(first, compared.known)))


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """Of each row: the row that is kept in its stead, the one it is linked to towards that, and how near this is."""

    kept: Rows
    near: Rows
    distance: Rows
    jaccard: NDArray[np.float32]


def _texts(compared: Compared, progress: Progress) -> Iterator[pa.Array]:
    progress.start("dedup", len(compared), "texts")
    for texts in compared.texts():
        yield texts
        progress.advance(len(texts))
    progress.finish()


def _require_sense(compared: Compared, config: DedupConfig) -> None:
    """Raise Misuse for what these documents cannot be asked, before anything is written."""
    if config.radius is not None and config.radius >= compared.bits:
        raise Misuse(f"a radius of {config.radius} holds every code of {compared.bits} bits; give a smaller --radius")
    without = [one.source.uri for one in compared.collections if not one.has_text]
    if without and config.confirm:
        raise Misuse(f"{without[0]} holds no texts to compare; leave --confirm out, or encode with texts")
    if without and config.radius is None:
        raise Misuse(f"{without[0]} holds no texts, so no radius can be chosen for a precision; give --radius")


def _choose(compared: Compared, shingles: Shingles | None, config: DedupConfig) -> Choice:
    if shingles is None:
        return Choice(config.radius or 0, config.jaccard, False, [])
    widest = max(config.radius or 0, widest_radius(compared.bits))
    rows = np.flatnonzero(compared.informative)
    new = rows[rows >= compared.known]
    sample = np.sort(np.random.default_rng(0).choice(new, min(SAMPLE, len(new)), replace=False))
    measured = measure_precision(compared.codes, shingles, rows, config.jaccard, widest, sample)
    alone = reached(measured, config.precision)
    if config.radius is not None:
        enough = alone is not None and alone >= config.radius
        return Choice(config.radius, config.jaccard, _if_unset(config.confirm, not enough), measured)
    if alone is not None and not config.confirm:
        return Choice(alone, config.jaccard, False, measured)
    if config.confirm is False:
        raise _unreachable(measured, config)
    return Choice(widest, config.jaccard, True, measured)


def _unreachable(measured: list[Precision], config: DedupConfig) -> Misuse:
    seen = f"{measured[0].precision:.1%} ({measured[0].low:.1%} to {measured[0].high:.1%})" if measured else "unknown"
    return Misuse(
        f"codes alone do not reach a precision of {config.precision:.0%}: at radius 0 it is {seen}; "
        f"let texts confirm (without --codes-alone), or give --radius"
    )


def _if_unset(value: bool | None, otherwise: bool) -> bool:
    return otherwise if value is None else value


def _join(
    compared: Compared, shingles: Shingles | None, units: _Units, choice: Choice, draft: Draft, progress: Progress
) -> Links:
    """The links of all pairs; a run that was killed goes on after the last pass whose links were saved."""
    join: HammingJoin | TextJoin
    if choice.confirm and shingles is not None:
        join = TextJoin(shingles, units.first, choice.jaccard, units.known)
        levels = list(range(0, int(level_of(np.array(choice.jaccard))) + 1, 5))
    else:
        join = HammingJoin(compared.codes[units.first], choice.radius, units.known)
        levels = list(range(choice.radius + 1))
    done, forest = _saved(draft.scratch)
    links = Links(len(units.first), units.known, levels, forest)
    progress.start("dedup", len(join), "passes")
    progress.advance(done, "passes that were there" if done else "")
    saved = time.monotonic()
    for table in range(done, len(join)):
        for some in _near(join, table, compared, shingles, units, choice, links):
            links.add(some)
        links.compact()
        if time.monotonic() - saved > SAVE_EVERY_S:
            links.save(draft.scratch / f"links-{table + 1:06d}.npy")
            saved = time.monotonic()
        progress.advance(1, f"{len(links.forest):,} links")
    progress.finish()
    return links


def _near(
    join: HammingJoin | TextJoin,
    table: int,
    compared: Compared,
    shingles: Shingles | None,
    units: _Units,
    choice: Choice,
    links: Links,
) -> Iterator[NDArray[np.void]]:
    """The links of one pass, without those that would change nothing."""
    words = as_words(compared.codes)[units.first]
    for left, right in join.pairs(table):
        apart = distances(words, left, right)
        chosen = np.flatnonzero(apart <= choice.radius)
        left, right, apart = left[chosen], right[chosen], apart[chosen]
        if not choice.confirm or shingles is None:
            fresh = ~links.connected(left, right, apart)
            left, right, apart = left[fresh], right[fresh], apart[fresh]
            yield links_of(left, right, apart, apart, np.zeros(len(left), np.float32))
            continue
        rows, others = units.first[left], units.first[right]
        bound = shingles.jaccard_at_most(rows, others)
        fresh = (bound >= choice.jaccard) & ~links.connected(left, right, level_of(bound))
        left, right, apart, rows, others = left[fresh], right[fresh], apart[fresh], rows[fresh], others[fresh]
        similar = shingles.jaccard(rows, others)
        near = similar >= choice.jaccard
        yield links_of(left[near], right[near], level_of(similar[near]), apart[near], similar[near].astype(np.float32))


def _saved(scratch: Path) -> tuple[int, NDArray[np.void] | None]:
    files = sorted(scratch.glob("links-*.npy"))
    if not files:
        return 0, None
    return int(files[-1].stem.removeprefix("links-")), np.load(files[-1]).astype(LINK)


def _found(compared: Compared, shingles: Shingles | None, units: _Units, links: Links) -> _Found:
    parents, edges, ends = links.parents()
    kept, near = np.arange(len(compared)), np.arange(len(compared))
    distance, jaccard = np.zeros(len(kept), np.int64), np.full(len(kept), np.nan, np.float32)
    inside = np.flatnonzero(units.of_row >= 0)
    unit = units.of_row[inside]
    copies = units.first[unit] != inside
    kept[inside] = units.first[ends[unit]]
    near[inside] = np.where(copies, units.first[unit], units.first[parents[unit]])
    distance[inside] = np.where(copies, 0, edges["distance"][unit])
    if shingles is not None:
        dropped = np.flatnonzero(near != np.arange(len(near)))
        jaccard[dropped] = shingles.jaccard(dropped, near[dropped])
    return _Found(kept, near, distance, jaccard)


def _write(compared: Compared, found: _Found, choice: Choice, draft: Draft) -> Artifact:
    ids = compared.ids()
    clusters = np.unique(found.kept[compared.known :], return_inverse=True)[1]
    parts: list[Part] = []
    for start in range(compared.known, len(compared), PART_ROWS):
        name = f"part-{len(parts):05d}.parquet"
        rows = np.arange(start, min(start + PART_ROWS, len(compared)))
        part = find_part(draft.path, name)
        if part is None:
            with replacing(draft.path / name) as temporary:
                table = _table(compared, found, ids, rows, clusters[rows - compared.known])
                pq.write_table(table, temporary, row_group_size=ROWS_AT_ONCE)
            part = record_part(draft.path, name, len(rows))
        parts.append(part)
    return draft.finish(parts, _statistics(compared, found, choice, clusters))


def _table(compared: Compared, found: _Found, ids: pa.ChunkedArray, rows: Rows, clusters: Rows) -> pa.Table:
    kept, near, dropped = found.kept[rows], found.near[rows], found.near[rows] != rows
    apart = distances(as_words(compared.codes), rows, kept)
    codes = compared.codes[rows]
    packed = [None, pa.py_buffer(codes.tobytes())]
    columns = {
        "id": _taken(ids, pa.array(rows)),
        "keep": pa.array(~dropped),
        "cluster": pa.array(clusters),
        "kept_id": _taken(ids, pa.array(kept)),
        "distance": pa.array(apart, pa.int32()),
        "near_id": _taken(ids, pa.array(near, mask=~dropped)),
        "near_distance": pa.array(found.distance[rows], pa.int32(), mask=~dropped),
        "near_jaccard": pa.array(found.jaccard[rows], pa.float32(), mask=np.isnan(found.jaccard[rows])),
        "near_row": pa.array(near - compared.known, pa.int64(), mask=~dropped | (near < compared.known)),
        "code": pa.FixedSizeBinaryArray.from_buffers(pa.binary(codes.shape[1]), len(rows), packed),
    }
    return pa.table(columns)


def _taken(ids: pa.ChunkedArray, rows: pa.Array) -> pa.ChunkedArray:
    return ids.take(rows).cast(pa.string())


def _statistics(compared: Compared, found: _Found, choice: Choice, clusters: Rows) -> dict[str, Any]:
    new = np.arange(compared.known, len(compared))
    dropped = found.near[new] != new
    sizes = np.bincount(clusters) + (np.unique(found.kept[new]) < compared.known)
    here = [one for one in choice.measured if one.radius == choice.radius]
    return {
        "documents": len(new),
        "kept": int((~dropped).sum()),
        "dropped": int(dropped.sum()),
        "clusters": int((sizes > 1).sum()),
        "largest_cluster": int(sizes.max(initial=0)),
        "without_known_word": int((~compared.informative[new]).sum()),
        "against": compared.known,
        "radius": choice.radius,
        "jaccard": choice.jaccard,
        "confirmed_by_text": choice.confirm,
        "codes_alone": asdict(here[0]) if here else None,
        "measured": [asdict(one) for one in choice.measured],
    }
