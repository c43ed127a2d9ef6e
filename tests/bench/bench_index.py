"""An index as a live thing: how large, how soon open, and how much sooner changed than made anew.

While 1 M codes are added to an index of 10 M, another thread searches it; a search that fails fails the benchmark, and
so does an addition during which none was answered.
"""

import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from pipelines.artifact import Artifact, Draft, Plan, begin, record_part
from pipelines.index import IndexConfig, index
from pipelines.index_changes import add
from pipelines.indexing.facts import facts
from pipelines.search import Index
from pipelines.searching.scan import ARRANGE_AFTER
from tests.bench.index_codes import random_queries, write_codes

DOCUMENTS, ADDED, BITS = 10_000_000, 1_000_000, 128
MOST_BYTES, MOST_SECONDS, MOST_RESIDENT = 48, 1.0, 100e6
Figure = dict[str, object]


def main() -> Iterator[Figure]:
    """Bytes a document, seconds to open, resident bytes, and seconds of an addition against a rebuild."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = _without_metadata(write_codes(folder / "made", DOCUMENTS, BITS), folder / "codes")
        index(first.path, folder / "index", IndexConfig())
        size = sum(file.stat().st_size for file in (folder / "index").rglob("*") if file.is_file()) / DOCUMENTS
        yield _figure("index bytes a document, 128 bits, ids of 16 characters", size, MOST_BYTES, "bytes", at_most=1.0)
        yield from _opening(folder / "index")
        more = _without_metadata(write_codes(folder / "made2", ADDED, BITS, 1, DOCUMENTS), folder / "more")
        yield _adding(folder, more)


def _opening(path: Path) -> Iterator[Figure]:
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    opened = Index.open(path)
    seconds = time.perf_counter() - started
    taken = psutil.Process().memory_info().rss - before
    assert len(opened) == DOCUMENTS
    yield _figure("index open, 10 M codes", seconds, MOST_SECONDS, "s", at_most=1.0)
    yield _figure("index open, resident memory", max(taken, 0) / 1e6, MOST_RESIDENT / 1e6, "MB", at_most=1.0)


def _adding(folder: Path, more: Artifact) -> Figure:
    opened, stop = Index.open(folder / "index"), threading.Event()
    queries = random_queries(1, BITS)

    def ask() -> list[float]:
        """When each search was answered."""
        answered = []
        while not stop.is_set():
            opened.refresh()
            assert (opened.search(queries, 10).rows >= 0).all()
            answered.append(time.perf_counter())
            time.sleep(0.1)
        return answered

    for _ in range(2 * ARRANGE_AFTER):  # the first ones take longer than the addition
        opened.search(queries, 10)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        started = time.perf_counter()
        try:
            add(folder / "index", more.path)
        finally:
            seconds = time.perf_counter() - started
            stop.set()
        answered = asking.result()  # raises what a search raised
    meanwhile = sum(started <= when <= started + seconds for when in answered)
    opened.refresh()
    assert len(opened) == DOCUMENTS + ADDED
    assert meanwhile, f"none of {len(answered)} searches was answered while the codes were added"
    assert facts(folder / "index")["version"] == 1
    everything = _without_metadata(write_codes(folder / "made3", DOCUMENTS + ADDED, BITS), folder / "all")
    started = time.perf_counter()
    index(everything.path, folder / "rebuilt", IndexConfig())
    rebuilt = time.perf_counter() - started
    figure = _figure("index add of 1 M codes against a rebuild", rebuilt, seconds, "s", at_least=10.0)
    return figure | {"ours": round(seconds, 3), "theirs": round(rebuilt, 3), "searches_meanwhile": meanwhile}


def _without_metadata(codes: Artifact, folder: Path) -> Artifact:
    """The same codes with nothing but ids, codes, components and confidences."""
    draft = begin(folder, Plan(kind="codes", config={}, inputs=(codes.as_input("codes"),)))
    assert isinstance(draft, Draft)
    parts = []
    for file in codes.files(".parquet"):
        table = pq.read_table(file).drop_columns(["metadata"])
        pq.write_table(table, draft.path / file.name)
        parts.append(record_part(draft.path, file.name, len(table)))
        file.unlink()
    return draft.finish(parts, dict(codes.manifest.statistics))


def _figure(name: str, ours: float, theirs: float, unit: str, **bound: float) -> Figure:
    shown = {"bench": name, "ours": round(ours, 4), "theirs": round(theirs, 4), "unit": unit}
    return shown | {"ratio": round(ours / theirs, 3)} | bound
