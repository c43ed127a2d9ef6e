"""Search against a plain sort of every document's score."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from code_files import write_codes
from hypothesis import given, settings
from hypothesis import strategies as st
from service_files import write_index

from pipelines.corpus import Document
from pipelines.encoder import Encoder
from pipelines.index import IndexConfig, index
from pipelines.search import Index, Rank, hits, nearest_codes, require_model
from pipelines.searching.scan import Scan
from vae_core.codes import PackedCodes, log_odds_scores
from vae_core.errors import Damaged, Misuse, Stale


def build(folder: Path, codes: np.ndarray, *, segment_documents: int = 10_000_000, files: int = 1) -> Index:
    write_codes(folder / "codes", codes, files=files)
    index(folder / "codes", folder / "index", IndexConfig(segment_documents=segment_documents))
    return Index.open(folder / "index")


def bits_of(codes: np.ndarray) -> np.ndarray:
    return np.unpackbits(codes, axis=1, bitorder="little").astype(np.float64)


def sorted_by(scores: np.ndarray, k: int) -> np.ndarray:
    """Rows by (better score, lower row), padded with -1: numpy's stable sort keeps the order of equals."""
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.pad(rows, ((0, 0), (0, k - rows.shape[1])), constant_values=-1)


def brute_force(codes: np.ndarray, log_odds: np.ndarray, k: int, rank: Rank) -> np.ndarray:
    if rank == "hamming":
        return sorted_by(-(bits_of(codes)[None] != (log_odds > 0)[:, None]).sum(axis=2), k)
    return sorted_by(np.clip(log_odds, -10, 10).astype(np.float64) @ bits_of(codes).T, k)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    documents=st.integers(1, 90),
    width=st.integers(1, 3),
    used=st.sampled_from([1, 3, 255]),
    segment=st.integers(7, 100),
    k=st.integers(1, 100),
    rank=st.sampled_from(["log-odds", "hamming"]),
)
def test_search_is_a_stable_sort_of_all_documents_by_score(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    documents: int,
    width: int,
    used: int,
    segment: int,
    k: int,
    rank: Rank,
) -> None:
    """Few bits in use and log-odds in eighths make ties common, within a segment, across segments, at the cut-off."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 256, (documents, width), dtype=np.uint8) & np.uint8(used)
    log_odds = (random.integers(-100, 101, (3, 8 * width)) / 8).astype(np.float32)
    opened = build(tmp_path_factory.mktemp("run"), codes, segment_documents=segment, files=2)
    np.testing.assert_array_equal(opened.search(log_odds, k, rank).rows, brute_force(codes, log_odds, k, rank))


def test_scores_of_real_log_odds_are_ranked_exactly_where_float32_cannot_tell_them_apart(tmp_path: Path) -> None:
    """Every code is there about three times, and 256 codes at a time differ only in bits worth less than 1e-5."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (200_000, 2), dtype=np.uint8)
    log_odds = random.normal(size=(4, 16)).astype(np.float32)
    log_odds[:, 8:] *= 2.0**-20
    result = build(tmp_path, codes, segment_documents=120_000).search(log_odds, 50)
    np.testing.assert_array_equal(result.rows, brute_force(codes, log_odds, 50, "log-odds"))


def test_scores_are_the_log_probability_of_the_code_and_distances_are_hamming(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    codes = random.integers(0, 256, (40, 4), dtype=np.uint8)
    log_odds = random.normal(scale=8, size=(5, 32)).astype(np.float32)
    opened = build(tmp_path, codes, segment_documents=16)
    by_log_odds, by_hamming = opened.search(log_odds, 40), opened.search(log_odds, 40, "hamming")
    scores = log_odds_scores(torch.from_numpy(log_odds).double(), PackedCodes(torch.from_numpy(codes))).numpy()
    distances = (bits_of(codes)[None] != (log_odds > 0)[:, None]).sum(axis=2)
    np.testing.assert_allclose(by_log_odds.scores, np.take_along_axis(scores, by_log_odds.rows, axis=1), rtol=1e-6)
    for result in (by_log_odds, by_hamming):
        np.testing.assert_array_equal(result.distances, np.take_along_axis(distances, result.rows, axis=1))
    np.testing.assert_array_equal(by_hamming.scores, -by_hamming.distances)


def test_infinite_log_odds_count_as_the_largest(tmp_path: Path) -> None:
    codes = np.arange(64, dtype=np.uint8)[:, None]
    opened = build(tmp_path, codes)
    infinite = np.array([[np.inf, -np.inf, 3, 0, 0, 0, 0, 0]], np.float32)
    clamped = np.array([[10, -10, 3, 0, 0, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(opened.search(infinite, 9).rows, opened.search(clamped, 9).rows)
    assert np.isfinite(opened.search(infinite, 9).scores).all()


def test_places_that_no_document_fills_have_row_minus_one(tmp_path: Path) -> None:
    opened = build(tmp_path, np.arange(3, dtype=np.uint8)[:, None])
    for rank in ("log-odds", "hamming"):
        result = opened.search(np.ones((2, 8), np.float32), 5, rank)
        assert (result.rows[:, 3:] == -1).all()
        assert (result.rows[:, :3] >= 0).all()
        assert [len(answer) for answer in hits(opened, result)] == [3, 3]


def test_an_index_of_nothing_answers_with_nothing(tmp_path: Path) -> None:
    opened = build(tmp_path, np.empty((0, 2), np.uint8))
    assert len(opened) == 0
    assert opened.bits == 16
    for rank in ("log-odds", "hamming"):
        assert hits(opened, opened.search(np.ones((1, 16), np.float32), 5, rank)) == [[]]


def test_hits_carry_the_document(tmp_path: Path) -> None:
    codes = np.arange(30, dtype=np.uint8)[:, None]
    opened = build(tmp_path, codes, segment_documents=8, files=3)
    query = np.where(bits_of(codes[17:18]) > 0, 4.0, -4.0).astype(np.float32)
    (answer,) = hits(opened, opened.search(query, 2))
    assert answer[0] == {
        "id": "d17",
        "score": pytest.approx(-8 * np.log1p(np.exp(-4.0))),
        "distance": 0,
        "text": "text 17",
        "labels": [],
        "component": 17 % 3,
        "metadata": {"year": 17},
    }
    assert [document["id"] for document in opened.documents(np.array([29, 0, 8]))] == ["d29", "d0", "d8"]


def test_a_query_of_another_width_is_refused_with_both_widths(tmp_path: Path) -> None:
    opened = build(tmp_path, np.zeros((3, 4), np.uint8))
    with pytest.raises(Misuse, match="index holds 32-bit codes, query has 16"):
        opened.search(np.zeros((1, 16), np.float32), 1)
    with pytest.raises(ValueError, match=r"must be \(queries, bits\), got shape \(32,\)"):
        opened.search(np.zeros(32, np.float32), 1)
    with pytest.raises(ValueError, match="query 1 are not numbers"):
        opened.search(np.array([[0.0] * 32, [np.nan] * 32], np.float32), 1)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        opened.search(np.zeros((1, 32), np.float32), 0)


def test_a_model_that_did_not_make_the_codes_is_refused(tmp_path: Path) -> None:
    opened = build(tmp_path, np.zeros((3, 4), np.uint8))
    require_model(opened, "cafe")
    with pytest.raises(Stale, match="codes of the model cafe and this model is f00d"):
        require_model(opened, "f00d")


def test_an_index_whose_codes_are_gone_asks_for_the_model(tmp_path: Path) -> None:
    opened = build(tmp_path, np.zeros((3, 4), np.uint8))
    (tmp_path / "codes").rename(tmp_path / "elsewhere")
    with pytest.raises(Misuse, match="--model"):
        opened.model_path()


def test_a_truncated_segment_is_named(tmp_path: Path) -> None:
    build(tmp_path, np.zeros((100, 4), np.uint8))
    file = tmp_path / "index" / "segments" / "00000" / "codes.faiss"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(Damaged, match=r"segments/00000/codes\.faiss"):
        Index.open(tmp_path / "index")


def test_nearest_codes_break_ties_by_row() -> None:
    codes = np.random.default_rng(3).integers(0, 4, (60, 1), dtype=np.uint8)
    expected = sorted_by(-(bits_of(codes)[None] != bits_of(codes[:9])[:, None]).sum(axis=2), 20)
    np.testing.assert_array_equal(nearest_codes(codes, codes[:9], 20), expected)


@pytest.mark.parametrize("radius", [0, 1, 5, 16])
def test_within_finds_every_code_up_to_and_at_the_radius(tmp_path: Path, radius: int) -> None:
    codes = np.random.default_rng(5).integers(0, 256, (300, 2), dtype=np.uint8)
    rows, distances = build(tmp_path, codes, segment_documents=70).within(codes[11], radius)
    expected = (bits_of(codes) != bits_of(codes[11:12])).sum(axis=1)
    np.testing.assert_array_equal(rows, np.flatnonzero(expected <= radius))
    np.testing.assert_array_equal(distances, expected[rows])


@pytest.mark.parametrize("rank", ["log-odds", "hamming"])
@pytest.mark.parametrize(("where", "passing"), [(None, slice(0, 300)), ("year >= 90", slice(90, 300))])
def test_hits_within_a_radius_are_the_best_of_the_documents_that_pass_and_are_near_each_query(
    tmp_path: Path, rank: Rank, where: str | None, passing: slice
) -> None:
    random = np.random.default_rng(6)
    codes = random.integers(0, 256, (300, 2), dtype=np.uint8)
    log_odds = random.normal(scale=3, size=(5, 16)).astype(np.float32)
    opened = build(tmp_path, codes, segment_documents=70)
    found = opened.within_radius(log_odds, 3, 3, rank, where)
    distances = (bits_of(codes)[None] != (log_odds > 0)[:, None]).sum(axis=2)
    near = np.zeros(distances.shape, bool)
    near[:, passing] = distances[:, passing] <= 3
    ordered = brute_force(codes, log_odds, 300, rank)
    expected = [[row for row in rows if near[query, row]][:3] for query, rows in enumerate(ordered)]
    assert [rows[rows >= 0].tolist() for rows in found.rows] == expected
    assert min(map(len, expected)) < max(map(len, expected)) == 3
    there = found.rows >= 0
    assert (found.distances[there] == np.take_along_axis(distances, found.rows, axis=1)[there]).all()
    assert (found.scores[~there] == -np.inf).all()


def test_a_negative_radius_is_refused_and_one_of_nothing_finds_the_code_itself(tmp_path: Path) -> None:
    opened = build(tmp_path, np.arange(30, dtype=np.uint8)[:, None])
    with pytest.raises(Misuse, match="the radius must be at least 0 bits, got -1"):
        opened.within_radius(np.ones((1, 8), np.float32), -1)
    codes = np.concatenate([opened.log_odds_of_code(row) for row in (3, 17)])
    assert opened.within_radius(codes, 0, 2).rows.tolist() == [[3, -1], [17, -1]]


def test_texts_are_asked_by_the_log_odds_that_the_model_of_the_index_has_for_each(tmp_path: Path) -> None:
    made = write_index(tmp_path / "run", segments=2)
    opened, encoder = Index.open(made.path), Encoder.load(tmp_path / "run" / "model")
    texts = ["ship storm", "qqq zzz", "bread oven flour moon"]
    alone = [encoder.encode(encoder.tokenizer.table([Document("q", text, [], {}, "q", 1)])) for text in texts]
    log_odds = np.concatenate([one.log_odds for one in alone])
    assert np.abs(log_odds).max(axis=1).astype(bool).tolist() == [True, False, True]
    np.testing.assert_allclose(opened.text_log_odds(texts), log_odds, rtol=1e-5, atol=1e-6)
    found = opened.search(texts, 20)
    expected = brute_force(np.concatenate(opened.codes()), log_odds, 20, "log-odds")
    np.testing.assert_array_equal(found.rows[[0, 2]], expected[[0, 2]])
    assert (found.rows[1] == -1).all()
    assert opened.search(texts[2], 20).rows.tolist() == [found.rows[2].tolist()]
    np.testing.assert_array_equal(opened.within_radius(texts, 3).rows, opened.within_radius(log_odds, 3).rows)
    with pytest.raises(Misuse, match="the query is empty"):
        opened.search(["ship", " "])


def test_codes_outlive_the_index_that_they_were_read_from() -> None:
    kept = np.random.default_rng(0).integers(0, 256, (1000, 8), dtype=np.uint8)
    codes = Scan.of(kept).codes[10:]
    gc.collect()
    np.empty(8000, np.uint8).fill(7)
    np.testing.assert_array_equal(codes, kept[10:])
    base = codes
    while isinstance(base, np.ndarray):
        base = base.base
    assert base.owner.ntotal == 1000
