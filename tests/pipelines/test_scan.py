"""The fast scan against a plain sort, the bound that proves it, and the kinds that are not exact."""

from pathlib import Path

import faiss
import numpy as np
import pytest
from code_files import write_codes
from service_files import write_index

from pipelines.index import IndexConfig, index
from pipelines.index_changes import add, compact, delete
from pipelines.search import Index
from pipelines.searching import scan as scanning
from pipelines.searching.approximate import FlatConfig, HnswConfig, IvfConfig, MultiHashConfig
from pipelines.searching.scan import Queries, Scan
from pipelines.searching.tuning import Kind, _advice, tune
from vae_core.errors import Misuse

BITS = 64


@pytest.fixture(autouse=True)
def _fast_scans_of_few_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "FAST_FROM", 100)
    monkeypatch.setattr(scanning, "ARRANGE_AFTER", 1)


def clustered(documents: int, bits: int = BITS, seed: int = 0) -> np.ndarray:
    dice = np.random.default_rng(seed)
    centres = dice.integers(0, 256, (20, bits // 8), dtype=np.uint8)
    flips = np.packbits(dice.random((documents, bits)) < 0.15, axis=1)
    return centres[dice.integers(0, 20, documents)] ^ flips


def plain(codes: np.ndarray, log_odds: np.ndarray, k: int) -> np.ndarray:
    bits = np.unpackbits(codes, axis=1, bitorder="little").astype(np.float64)
    return np.argsort(-(np.clip(log_odds, -10, 10).astype(np.float64) @ bits.T), axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("bits", [8, 24, 64, 128, 512])
@pytest.mark.parametrize("scale", [0.01, 3.0, 40.0])
def test_the_fast_scan_is_exact(bits: int, scale: float) -> None:
    codes = clustered(5000, bits)
    log_odds = np.random.default_rng(1).normal(scale=scale, size=(9, bits)).astype(np.float32)
    found = Scan.of(codes).by_log_odds(Queries.of(log_odds, bits), 20)
    np.testing.assert_array_equal(found.rows, plain(codes, log_odds, 20))


def test_the_fast_scan_proves_most_answers_at_first_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would be exact only by being slow."""
    scan, looked = Scan.of(clustered(60_000, 128)), []
    plain_look = scan._look
    monkeypatch.setattr(scan, "_look", lambda queries, *rest: looked.append(len(queries)) or plain_look(queries, *rest))
    log_odds = np.random.default_rng(1).normal(scale=4, size=(200, 128)).astype(np.float32)
    scan.by_log_odds(Queries.of(log_odds, 128), 10)
    assert sum(looked) <= 4


def test_many_equal_codes_are_told_apart_by_row() -> None:
    """More equals than candidates: the proof fails, and every code is looked at."""
    codes = np.repeat(clustered(3), 4000, axis=0)
    log_odds = np.random.default_rng(1).normal(size=(4, BITS)).astype(np.float32)
    found = Scan.of(codes).by_log_odds(Queries.of(log_odds, BITS), 30)
    np.testing.assert_array_equal(found.rows, plain(codes, log_odds, 30))


def test_the_error_of_the_fast_scan_is_within_the_bound_that_the_proof_takes() -> None:
    codes = clustered(4000, 128)
    scan = Scan.of(codes)
    log_odds = np.random.default_rng(2).normal(scale=3, size=(20, 128)).astype(np.float32)
    queries = Queries.of(log_odds, 128)
    proposed, rows = scan._arranged().search(log_odds, 4000)
    exact = scan.scored(queries, rows).scores * 2 - queries.log_odds.sum(axis=1, keepdims=True)
    spans = 2 * np.abs(queries.log_odds).reshape(20, -1, 4).sum(axis=2).max(axis=1)
    bound = 1.01 * 32 * 0.5 * spans / 255 + 1e-3
    assert (np.abs(proposed - exact).max(axis=1) <= bound).all()


@pytest.mark.parametrize("kind", [HnswConfig(look=400), IvfConfig(lists=8, probes=8), MultiHashConfig(bits=8, flips=3)])
def test_other_kinds_find_nearly_all_of_what_an_exact_search_does(
    tmp_path: Path, kind: HnswConfig | IvfConfig | MultiHashConfig
) -> None:
    codes = clustered(3000)
    write_codes(tmp_path / "codes", codes)
    index(tmp_path / "codes", tmp_path / "index", IndexConfig(segment_documents=1700, candidates=kind))
    write_codes(tmp_path / "more", codes[:200] ^ 3)
    log_odds = np.random.default_rng(1).normal(scale=3, size=(30, BITS)).astype(np.float32)
    changes = (lambda: None, lambda: delete(tmp_path / "index", ["d5", "d2000"]), lambda: compact(tmp_path / "index"))
    for change in changes:
        change()
        opened = Index.open(tmp_path / "index")
        for rank in ("log-odds", "hamming"):
            found, exact = opened.search(log_odds, 10, rank), opened.search_exactly(log_odds, 10, rank)
            assert np.mean(found.scores >= exact.scores[:, -1:]) > 0.9
            filtered = opened.search(log_odds, 10, rank, "year >= 100")
            everything = opened.search_exactly(log_odds, 3000, rank)
            years = np.array([document["metadata"]["year"] for document in opened.documents(np.arange(opened.rows))])
            for query in range(30):
                rows = everything.rows[query][everything.rows[query] >= 0]
                assert filtered.rows[query].tolist() == rows[years[rows] >= 100][:10].tolist()
    with pytest.raises(Misuse, match="--upsert"):
        add(tmp_path / "index", tmp_path / "more")


def test_tuning_measures_recall_against_exact_and_takes_what_is_advised(tmp_path: Path) -> None:
    write_codes(tmp_path / "codes", clustered(3000))
    index(tmp_path / "codes", tmp_path / "index", IndexConfig())
    found = tune(tmp_path / "index", queries=40)
    flat = found.kinds[0]
    assert (flat.config.kind, flat.recall, flat.bytes_per_document) == ("flat", 1.0, 8)
    assert {kind.config.kind for kind in found.kinds} == {"flat", "hnsw", "ivf", "multihash"}
    assert found.documents == 2960
    best = max(found.kinds[1:], key=lambda kind: kind.recall)
    assert best.recall > 0.9
    assert (found.take, found.why) == _advice(found.kinds)
    assert found.as_dict()["take"] == found.take.config.model_dump()


@pytest.mark.parametrize(
    ("measured", "taken", "why"),
    [
        ([(0.96, 2.0)], 1, "5.0 times as fast as flat, with 96.0% of the exact answer"),
        ([(0.94, 2.0)], 0, "no approximate kind finds 95% of the exact answer"),
        ([(0.99, 9.0)], 0, "it is exact, and none with 95% of its answer is clearly faster"),
        ([(0.94, 1.0), (0.99, 6.0), (0.95, 4.0)], 3, "2.5 times as fast as flat, with 95.0% of the exact answer"),
        ([(0.94, 1.0), (0.99, 12.0)], 0, "it is exact, and none with 95% of its answer is clearly faster"),
    ],
)
def test_the_fastest_kind_is_advised_of_those_that_find_enough_and_are_clearly_faster_than_flat(
    measured: list[tuple[float, float]], taken: int, why: str
) -> None:
    """Of pairs of recall and milliseconds, after a flat kind that takes ten."""
    kinds = [Kind(FlatConfig(), 1.0, 10.0, 100.0, 8.0, 0.0)]
    kinds += [Kind(HnswConfig(look=32), recall, ms, 100.0, 300.0, 1.0) for recall, ms in measured]
    take, said = _advice(kinds)
    assert take is kinds[taken]
    assert said == why


def test_tuning_measures_on_no_more_documents_than_are_asked_for(tmp_path: Path) -> None:
    write_codes(tmp_path / "codes", clustered(3000))
    index(tmp_path / "codes", tmp_path / "index", IndexConfig(segment_documents=1700))
    delete(tmp_path / "index", ["d5", "d2000"])
    found = tune(tmp_path / "index", documents=500, queries=20)
    assert (found.documents, found.queries, found.kinds[0].recall) == (500, 20, 1.0)


def test_tuning_asks_the_texts_that_it_is_given_and_holds_no_document_out(tmp_path: Path) -> None:
    made = write_index(tmp_path / "run")
    found = tune(made.path, texts=["ship storm", "qqq zzz", "bread"], k=5)
    assert (found.documents, found.queries, found.k) == (300, 2, 5)
    assert (found.kinds[0].recall, max(kind.recall for kind in found.kinds[1:])) == (1.0, 1.0)
    with pytest.raises(Misuse, match="knows no word of any of these queries"):
        tune(made.path, texts=["qqq zzz"])


def test_too_few_documents_to_tune_are_said(tmp_path: Path) -> None:
    write_codes(tmp_path / "codes", clustered(15))
    index(tmp_path / "codes", tmp_path / "index", IndexConfig())
    with pytest.raises(Misuse, match="15 documents, too few to measure the 10 best of"):
        tune(tmp_path / "index")


def test_hamming_search_is_that_of_faiss() -> None:
    codes = clustered(2000)
    queries = np.where(np.unpackbits(codes[:7], axis=1, bitorder="little") > 0, 1.0, -1.0)
    flat = faiss.IndexBinaryFlat(BITS)
    flat.add(codes)
    found = Scan.of(codes).by_hamming(Queries.of(queries, BITS), 50)
    np.testing.assert_array_equal(found.distances, flat.search(codes[:7], 50)[0])
